"""Training: one stage, and the one or two stages of a model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from evaluate import measure, score, worth
from finetune import parameter_groups
from fold import Fold, shuffled
from missing import random_drop
from modbalance.diagnostics import gradient_norms, shares
from model import EBMC, Concat, said_of
from settings import Settings
from spoil import spoil

Progress = Callable[[str, int, dict[str, Any]], None]


class Stage(NamedTuple):
    name: str  # enhance, balance, or train for a model of one stage
    epochs: int
    history: list[dict[str, Any]]
    seconds: float
    step_ms: float
    epoch: int  # the one selected


def train(
    model: EBMC | Concat, train: Fold, valid: Fold, settings: Settings, seed: int, progress: Progress
) -> tuple[list[Stage], EBMC | None]:
    """Train all stages of a model, which ends at its selected epoch; also EBMC as it was before balancing."""
    for name, encoder in model.encoders.items():
        encoder.standardise(train.frames(name))
    if not isinstance(model, EBMC):
        epochs = settings.stage1_epochs + settings.stage2_epochs
        return [run_stage("train", model, train, valid, settings, epochs, seed, progress)], None
    first = run_stage("enhance", model, train, valid, settings, settings.stage1_epochs, seed, progress)
    before = copy.deepcopy(model)
    if not settings.stage2_epochs:
        return [first], before
    model.start_balancing(valid)
    second = run_stage("balance", model, train, valid, settings, settings.stage2_epochs, seed + 1, progress)
    model.settle(valid)
    return [first, second], before


def run_stage(
    name: str,
    model: EBMC | Concat,
    train: Fold,
    valid: Fold,
    settings: Settings,
    epochs: int,
    seed: int,
    progress: Progress,
) -> Stage:
    """Train with early stopping; the model ends at the epoch that is best on validation."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.text_lr), lr=settings.lr, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, Any]] = []
    best, best_state = (-float("inf"), 0.0), copy.deepcopy(model.state_dict())
    steps, started = 0, time.perf_counter()
    for epoch in range(1, epochs + 1):
        tick = time.perf_counter()
        entry = _epoch(model, optimizer, train, settings, generator)
        metrics = measure(model, valid)
        if name == "enhance":
            watch(model, valid)
        steps += -(-len(train) // settings.batch_size)
        entry |= {
            "stage": name,
            "epoch": epoch,
            "valid": metrics,
            "selected": False,
            "seconds": time.perf_counter() - tick,
        }
        history.append(entry)
        progress(name, epoch, entry)
        if (now := score(model.spec.kind, metrics)) > best:
            best, best_epoch = now, epoch
            best_state = copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= settings.patience:
            break
    if epochs:
        model.load_state_dict(best_state)
        history[best_epoch - 1]["selected"] = True
    seconds = time.perf_counter() - started
    return Stage(name, len(history), history, seconds, 1000 * seconds / max(steps, 1), best_epoch if epochs else 0)


@torch.no_grad()
def watch(model: EBMC, valid: Fold) -> None:
    """Keep each unimodal path as it is at its own best epoch: they are not at their best together."""
    model.eval()
    for name in model.spec.dims:
        path, here = model.path(name), valid.keep(valid.present[name])
        if len(here):
            said = said_of(here, lambda b, path=path, name=name: path(b.features[name], b.lengths.get(name)))
            now = worth(model.spec, *said)
            if name not in model.paths or now > model.paths[name][0]:
                model.paths[name] = (now, copy.deepcopy(path.state_dict()))


def _epoch(
    model: EBMC | Concat,
    optimizer: torch.optim.Optimizer,
    train: Fold,
    settings: Settings,
    generator: torch.Generator,
) -> dict[str, Any]:
    model.train()
    sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "energy": {}, "gradient": {}}
    scales = {name: e.scale for name, e in model.encoders.items() if hasattr(e, "scale")}  # tokens have none
    batches = shuffled(train, settings.batch_size, generator)
    for rows in batches:
        batch = train.rows(rows)
        if settings.corruption:
            batch = spoil(batch, scales, settings.corruption, generator)
        if settings.modality_dropout:
            batch = batch.showing(random_drop(batch.present, settings.modality_dropout, generator))
        out = model(batch)
        optimizer.zero_grad()
        # Some balancers change gradients rather than the loss.
        model.backward(out) if hasattr(model, "backward") else out.loss.backward()
        _add(sums["gradient"], gradient_norms(model.encoders))
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        _add(sums["train"], out.terms)
        _add(
            sums["energy"], {name: e.sum() / batch.present[name].sum().clamp(min=1) for name, e in out.energy.items()}
        )
    means = {kind: {k: v.item() / len(batches) for k, v in total.items()} for kind, total in sums.items()}
    return {**means, "gradient": shares(means["gradient"])}


def _add(total: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        total[name] = total.get(name, 0.0) + value.detach()
