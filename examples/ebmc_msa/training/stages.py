"""Training: one stage, and the one or two stages of a model."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ebmc_msa.data.augment import corrupt_at_random
from ebmc_msa.data.batch import Batch
from ebmc_msa.data.dataset import DataError
from ebmc_msa.data.missing import dropout_rates
from ebmc_msa.data.split import SplitView, by_length, outputs_and_targets, shuffled
from ebmc_msa.evaluation.impaired import sample_scores
from ebmc_msa.evaluation.scores import evaluate, outputs_score, selection_score
from ebmc_msa.model.encoders import feature_std
from ebmc_msa.model.prediction import Model, Prediction
from ebmc_msa.model.settings import Settings
from ebmc_msa.model.text_encoder import parameter_groups
from ebmc_msa.training.best import Weights, better, clearly_better
from ebmc_msa.training.distributed import broadcast_from_rank0, parallel, rank, shard
from ebmc_msa.training.schedule import ROUNDING, Schedule
from modbalance import distributed
from modbalance.diagnostics import gradient_norms, shares
from modbalance.dropout import modality_dropout

Progress = Callable[[str, int, dict[str, Any]], None]
Save = Callable[[dict[str, Any]], None]


Best = tuple[tuple[float, float], Weights]
Branches = dict[str, Best]  # of each unimodal branch


class Trained(NamedTuple):
    model: Model  # what predicts
    student: Model  # what was trained; of EBMC one of the experts of `model`
    stages: list[Stage]
    stage1: Model | None  # EBMC after its first stage


class Stage(NamedTuple):
    name: str  # enhance, balance or joint, or train for a plain model
    epochs: int
    history: list[dict[str, Any]]
    seconds: float
    step_ms: float
    epoch: int  # the one selected
    cut_short: bool  # by its epochs, before its patience ran out
    undone: bool = False  # since it was worse than the stage before


def train(
    model: Model,
    train: SplitView,
    valid: SplitView,
    settings: Settings,
    seed: int,
    progress: Progress,
    *,
    save: Save | None = None,
    state: dict[str, Any] | None = None,
) -> Trained:
    """Train all stages of a model; each ends at the epoch selected on validation.

    A second stage whose selected epoch is worse there than that of the first is undone. Where the first one's has
    less strength, and the second stage had its time, worse means by more than a standard error.

    After each epoch `save` is called with all that the next one depends on. With that as `state`, and the model as it
    is first built, training continues from there to the same bits.
    """
    plan = model.stages(settings)
    schedule = Schedule(settings.warmup_steps, len(by_length(train, settings.batch_size)), model.rest)
    stages: list[Stage] = []
    stage1: Model | None = None
    branches: Branches = {}
    if state is None:
        for name, encoder in model.encoders.items():
            encoder.standardise(train.frames(name))
    else:
        stages = [Stage(**stage) for stage in state["stages"]]
        if state["stage1"] is not None:
            stage1 = copy.deepcopy(model)
            stage1.load_state_dict(state["stage1"])
        model.load_state_dict(state["model"])
        branches = state["branches"]

    def save_all(running: dict[str, Any]) -> None:
        if save is not None:
            first = None if stage1 is None else stage1.state_dict()
            finished = [stage._asdict() for stage in stages]
            save({"stages": finished, "stage1": first, "model": model.state_dict(), "branches": branches, **running})

    def start_balancing() -> Model | None:
        return model.start_balancing(train, valid, {name: weights for name, (_, weights) in branches.items()})

    # One for all stages: a new one would begin each with steps as large as those of the first.
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.text_lr), lr=settings.lr, weight_decay=settings.weight_decay
    )
    for place, (name, epochs) in list(enumerate(plan.items()))[len(stages) :]:
        if place and stage1 is None:
            if not epochs:
                return Trained(model, model, stages, copy.deepcopy(model))
            stage1 = start_balancing()
        spent = sum(stage.epochs for stage in stages)
        here = schedule._replace(before=schedule.per_epoch * spent)
        left = sum(plan.values()) - spent
        stages.append(
            run_stage(
                name,
                model,
                train,
                valid,
                settings,
                optimizer,
                min(epochs, left),
                0 if place else left - epochs - 1,
                seed,
                progress,
                here,
                [entry for stage in stages for entry in stage.history],
                branches,
                save_all,
                state,
            )
        )
        state = None
    if stage1 is None:
        stage1 = start_balancing()
    if len(stages) == 2 and stages[0].history:
        one, two = (_progress(model, stage.history)[0][stage.epoch - 1] for stage in stages)
        weaker = model.rest and stage1.strength < model.strength - ROUNDING
        if two < one and (
            not weaker
            or stages[1].cut_short
            or broadcast_from_rank0(
                lambda: clearly_better(model.spec.kind, sample_scores(stage1, valid), sample_scores(model, valid))
            )
        ):
            model.undo_balancing(stage1)
            stages[1] = stages[1]._replace(undone=True)
    return Trained(model.finalize(valid), model, stages, stage1)


def run_stage(
    name: str,
    model: Model,
    train: SplitView,
    valid: SplitView,
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    spare: int,
    seed: int,
    progress: Progress,
    schedule: Schedule,
    earlier: list[dict[str, Any]],
    branches: Branches,
    save: Save,
    state: dict[str, Any] | None,
) -> Stage:
    """Train with early stopping; the model ends at the epoch selected on validation.

    It is the best one. With `model.rest` joint training is a phase of its own, after which training goes on from its
    best epoch (the optimiser's state stays) where at least `patience` epochs at full strength are left; a short stage
    has none to lose. Then, in a stage that has come to rest, an epoch that begins below full strength is selected
    only where it is better by more than a standard error than the best of the others: what has not seen a corrupted
    sample is at an advantage on clean ones. A stage that its epochs cut short has not shown what they can reach.

    The stage has `epochs` epochs at most, and up to `spare` more while `schedule.extends` it. `earlier` is the
    history of the stages before.
    """
    step = parallel(model)
    history: list[dict[str, Any]] = []
    below: Best | None = None  # of the epochs that begin below full strength
    full: Best | None = None  # of the others
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        history, below, full = state["history"], state["below"], state["full"]

    def goes_on() -> bool:
        done, (scores, losses) = len(history), _progress(model, history)
        within = done < epochs or (done < epochs + spare and now().extends(scores))
        return within and now().go_on(scores, losses, settings.patience)

    def now() -> Schedule:
        return schedule.after(*_progress(model, earlier + history))

    def joint_training_just_ended() -> bool:
        last = schedule.after(*_progress(model, (earlier + history)[:-1]))
        return last.begins == math.inf and now().begins < math.inf

    def scores_of(best: Best) -> np.ndarray:
        model.load_state_dict(best[1])
        return sample_scores(model, valid)

    def can_come_to_rest() -> bool:
        return epochs - now().warming(epochs) >= settings.patience

    while goes_on():
        if below is not None and joint_training_just_ended() and can_come_to_rest():
            model.load_state_dict(below[1])
        tick, epoch = time.perf_counter(), len(history) + 1
        # Each epoch draws from its own seeds, so that no generator needs to be saved. Order and modality dropout are
        # alike on all processes, being those of the whole batch; corrupted samples and dropout in the model are not.
        alike = torch.Generator().manual_seed(_draw(seed, name, epoch))
        own = torch.Generator().manual_seed(_draw(seed, name, epoch, rank()))
        torch.manual_seed(_draw(seed, name, epoch, rank(), "model"))
        entry = _epoch(model, step, optimizer, train, settings, now(), len(history), alike, own)
        metrics = broadcast_from_rank0(lambda: evaluate(model, valid))
        keep_best_branches(model, valid, branches)
        model.observe(valid)
        history.append(
            {
                **entry,
                "stage": name,
                "epoch": epoch,
                "valid": metrics,
                "selected": False,
                "seconds": time.perf_counter() - tick,
            }
        )
        score = selection_score(model.spec.kind, metrics)
        if now().warming(epoch) == epoch:
            below = better(below, score, model)
        else:
            full = better(full, score, model)
        save({"optimizer": optimizer.state_dict(), "history": history, "below": below, "full": full})
        progress(name, epoch, history[-1])
    cut_short = now().go_on(*_progress(model, history), settings.patience)
    best, selected = full or below, 0
    ahead = full is not None and below is not None and below[0] > full[0]
    if ahead and (
        cut_short or broadcast_from_rank0(lambda: clearly_better(model.spec.kind, scores_of(below), scores_of(full)))
    ):
        best = below
    if best is not None:
        model.load_state_dict(best[1])
        scores = [selection_score(model.spec.kind, entry["valid"]) for entry in history]
        selected = scores.index(best[0], 0 if best is below else now().warming(len(history))) + 1
        history[selected - 1]["selected"] = True
    seconds, steps = (sum(entry[key] for entry in history) for key in ("seconds", "steps"))
    return Stage(name, len(history), history, seconds, 1000 * seconds / max(steps, 1), selected, cut_short)


def _progress(model: Model, history: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Scores and losses on validation by epoch."""
    scores = [selection_score(model.spec.kind, entry["valid"])[0] for entry in history]
    return scores, [entry["valid"]["loss"] for entry in history]


def _draw(*what: int | str) -> int:
    """A seed for what is named."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "big")


@torch.no_grad()
def keep_best_branches(model: Model, valid: SplitView, best: Branches) -> None:
    """Keep each unimodal branch from its own best epoch, because these epochs differ."""
    model.eval()
    for name, branch in model.unimodal_branches().items():
        rows = valid.select(valid.present[name])
        if len(rows):
            outputs, target = outputs_and_targets(rows, lambda batch, f=branch, m=name: f(*batch.inputs(m)))
            best[name] = better(best.get(name), outputs_score(model.spec, outputs, target), branch)


def _epoch(
    model: Model,
    step: Callable[[Batch], Prediction],
    optimizer: torch.optim.Optimizer,
    train: SplitView,
    settings: Settings,
    schedule: Schedule,
    epochs: int,
    alike: torch.Generator,
    own: torch.Generator,
) -> dict[str, Any]:
    model.train()
    parameters = list(model.parameters())  # to go through the modules at every step costs a millisecond
    sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "energy": {}, "gradient": {}}
    std = feature_std(model.encoders)
    batches = shuffled(train, settings.batch_size, alike)
    for i, rows in enumerate(batches):
        model.strength = schedule.strength(epochs * schedule.per_epoch + i)
        places = shard(rows, train.conversation)
        batch, present = train.rows(rows[places]), train.presence(rows)
        if settings.modality_dropout:
            rates = dropout_rates(settings.modality_dropout, present)
            rates = {name: model.strength * rate for name, rate in rates.items()}
            present = modality_dropout(present, rates, generator=alike)
        batch = batch.with_present({name: here[places.to(here.device)] for name, here in present.items()})
        if settings.corruption:
            batch = corrupt_at_random(batch, std, model.strength * settings.corruption, own)
        try:
            out = step(batch)
        except ValueError as problem:  # the components check values, and the inputs are finite
            if "NaN or inf" not in str(problem):
                raise
            raise DataError("training diverged: features are NaN or infinite; pass a smaller --lr.") from problem
        optimizer.zero_grad()
        model.backward(out)
        _add(sums["gradient"], gradient_norms(model.encoders))
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        _add(sums["train"], out.terms)
        _add(sums["energy"], {name: distributed.mean(e, batch.present[name]) for name, e in out.energy.items()})
    means = {kind: {k: v.item() / len(batches) for k, v in total.items()} for kind, total in sums.items()}
    gradient, weight = shares(means["gradient"]), model.balance_weights()
    return {**means, "gradient": gradient, "weight": weight, "strength": model.strength, "steps": len(batches)}


def _add(total: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        total[name] = total.get(name, 0.0) + value.detach()
