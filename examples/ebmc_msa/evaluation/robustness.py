"""The robustness protocols: how much worse a model gets as modalities go missing or are corrupted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ebmc_msa.data import DataError, Dataset
from ebmc_msa.data.batch import Batch
from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.missing import conditions, drop_frames, missing_at_random, restrict, unequal_rates
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation import corruption
from ebmc_msa.evaluation.metrics import METRICS
from ebmc_msa.evaluation.predict import Change, answers, predict
from ebmc_msa.evaluation.scores import compute_metrics, constant_score, evaluate, selection_score
from ebmc_msa.model.prediction import Model, Prediction

DRAWS = 5  # masks of seeds 0 to 4, averaged
AVERAGE = "avg"
Scores = dict[str, float]
Degradation = dict[str, dict[str, Scores]]  # test, loss and detection, by level


class Level(NamedTuple):
    """One row of the table: what is done to the test split, once per draw."""

    name: str
    changes: list[Change]
    averaged: bool = True  # counts in the row "avg"


def levels(
    protocol: str,
    present: Mapping[str, Tensor],
    sequences: Collection[str],
    conversation: Conversation | None = None,
    draws: int = DRAWS,
) -> list[Level]:
    """The rows of `conditions`, `random`, `conversations`, `unequal` or `frames`, the untouched split first.

    Args:
        protocol: one of these five; `conversations` is `random` with one draw for a whole conversation.
        present: of the whole split, with all modalities that any of the models reads: all lose the same.
        sequences: modalities with a time axis.
        conversation: of the whole split, where the data have any.
        draws: masks to average over.

    Raises:
        DataError: `frames`, and no modality has a time axis; `conversations`, and the data have none.
    """
    if protocol == "conversations" and conversation is None:
        raise DataError(
            "--missing conversations: the data do not tell which utterances form a conversation, expected fields "
            "conversation and order; pass --missing random, or data with conversations."
        )
    if protocol == "conditions":
        found = sorted(conditions(present).items(), key=lambda item: -len(item[1]))
        return [
            Level(name, [_with_present(restrict(present, keep))], len(keep) < len(present)) for name, keep in found
        ]
    if protocol in ("random", "conversations"):
        unit = conversation if protocol == "conversations" else None

        def masks(rate: float, seeds: range) -> list[Change]:
            return [_with_present(missing_at_random(present, rate, seed, unit)) for seed in seeds]

        return [Level(f"{rate:.1f}", masks(rate, seeds), rate > 0) for rate, seeds in _rates(8, draws)]
    if protocol == "unequal":
        unequal = {
            " ".join(f"{name} {rate:.2g}" for name, rate in rates.items()): [
                _with_present(missing_at_random(present, rates, seed)) for seed in range(draws)
            ]
            for rates in unequal_rates(present)
        }
        untouched = Level("none missing", [_with_present(present)], averaged=False)
        return [untouched, *(Level(name, changes) for name, changes in unequal.items())]
    if not sequences:
        raise DataError(
            f"--missing frames: {', '.join(present)} without a time axis, expected a sequence to drop frames of; "
            "pass --missing random, or data with sequences."
        )
    return [Level(f"{rate:.1f}", [_without(rate, seed) for seed in seeds]) for rate, seeds in _rates(10, draws)]


def _rates(count: int, draws: int) -> list[tuple[float, range]]:
    """0.0, 0.1, ... and the seeds of each: at 0 all masks are the same."""
    return [(i / 10, range(draws if i else 1)) for i in range(count)]


def _with_present(present: Mapping[str, Tensor]) -> Change:
    def change(batch: Batch, rows: Tensor) -> Batch:
        left = {name: present[name][rows].to(here.device) for name, here in batch.present.items() if name in present}
        return batch.with_present(batch.present | left)

    return change


def _without(rate: float, seed: int) -> Change:
    def change(batch: Batch, rows: Tensor) -> Batch:
        for name in batch.lengths:
            batch = drop_frames(batch, name, rate, rows, seed)
        return batch

    return change


def degrade(model: Model, test: SplitView, rows: Sequence[Level]) -> Degradation:
    """Metrics by level and on average, and how much worse than untouched each is."""

    def tested(change: Change) -> Scores:
        return compute_metrics(model.spec, answers(model, test, change), test.target)

    found = {level.name: _mean([tested(change) for change in level.changes]) for level in rows}
    full = found[rows[0].name]
    found[AVERAGE] = _mean([found[level.name] for level in rows if level.averaged] or [full])
    return {"test": found, "loss": {name: worse(full, entry) for name, entry in found.items()}}


def worse(before: Scores, after: Scores) -> Scores:
    """By how much each metric got worse: positive is a loss, whichever way the metric points."""
    return {key: (value - after[key]) * METRICS[key].sign for key, value in before.items()}


def _mean(scores: Sequence[Scores]) -> Scores:
    return {key: statistics.fmean(entry[key] for entry in scores) for key in scores[0]}


class Size(NamedTuple):
    """The size of Gaussian noise at which a modality alone gains half as much over a constant prediction."""

    size: float  # in standard deviations of each feature
    std: Tensor  # those, (D,)
    model: str  # with which it was measured
    gain: float  # over the constant prediction without noise, on validation
    gain_left: float  # at this size
    halved: bool  # False: no gain, or no noise halves it; the size is then one standard deviation

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "std"}


def noise_size(modality: str, name: str, models: Sequence[Model], valid: Sequence[SplitView]) -> Size:
    """By bisection on validation samples that have the modality, with the others absent; the mean over `models`.

    Args:
        name: of the models, which are one a seed.
    """
    alone = [split.select(split.present[modality]) for split in valid]
    alone = [split.with_present(restrict(split.present, [modality])) for split in alone]
    std = corruption.feature_std(alone[0], modality)
    constants = [constant_score(model.spec, split.target) for model, split in zip(models, alone, strict=True)]

    def gain(size: float) -> float:
        def change(batch: Batch, rows: Tensor) -> Batch:
            return corruption.corrupt(batch, modality, "noise", batch.present[modality], rows, 0, std=size * std)

        scores = (
            selection_score(model.spec.kind, evaluate(model, split, change))[0]
            for model, split in zip(models, alone, strict=True)
        )
        return statistics.fmean(score - constant for score, constant in zip(scores, constants, strict=True))

    found = corruption.halving_size(gain)
    size = 1.0 if found is None else found
    return Size(size, std, name, gain(0.0), gain(size), found is not None)


def degrade_by_noise(model: Model, test: SplitView, sizes: Mapping[str, Size], draws: int = DRAWS) -> Degradation:
    """Metrics with half of the samples corrupted, the loss on that half, and whether low trust detects it.

    One modality at a time, of those that the model reads; Gaussian noise only where its size is given.
    """
    clean = predict(model, test)
    scores, loss, detection = {"clean": compute_metrics(model.spec, clean.outputs, test.target)}, {}, {}
    modalities = [name for name, here in test.present.items() if here.sum() >= 2]  # a single sample cannot be swapped
    for modality in modalities:
        kinds: dict[str, Tensor | None] = {}
        if modality in sizes:
            halving = sizes[modality].size * sizes[modality].std
            kinds |= {"noise": halving, "noise x2": 2 * halving}
        if modality in test.lengths:
            kinds["frames"] = None
        for kind, std in {**kinds, "swap": None}.items():
            name, found = f"{modality}: {kind}", []
            for seed in range(draws):
                change = corruption.corruption(test, modality, kind.split()[0], seed, std)
                mask = corruption.half(test.present[modality], seed, modality)
                found.append(_compare(model, test, clean, predict(model, test, change), mask, modality))
            scores[name], loss[name], auroc = (_mean(parts) for parts in zip(*found, strict=True))
            if auroc:
                detection[name] = auroc
    return {"test": scores, "loss": loss, "detection": detection}


def _compare(
    model: Model, test: SplitView, clean: Prediction, out: Prediction, mask: Tensor, modality: str
) -> tuple[Scores, Scores, Scores]:
    """Metrics of all samples, loss on the masked ones, and the AUROC of low trust in the modality as a detector."""
    mask = mask.to(out.outputs.device)
    before, after = (compute_metrics(model.spec, p.outputs[mask], test.target[mask]) for p in (clean, out))
    detection = {}
    if modality in out.trust:
        # Where no other modality is present, trust is 1 whatever the input.
        others = torch.stack([here for name, here in test.present.items() if name != modality]).any(0)
        rows = test.present[modality] & others
        both = len(mask[rows].unique()) == 2
        auroc = float(roc_auc_score(mask[rows].cpu(), -out.trust[modality][rows].cpu())) if both else math.nan
        detection["auroc"] = auroc
    return compute_metrics(model.spec, out.outputs, test.target), worse(before, after), detection


def noise_sizes(
    loaded: Sequence[tuple[str, int, Model]], dataset: Dataset, present: Mapping[str, Tensor], device: torch.device
) -> dict[str, Size]:
    """The size of each modality's noise, measured with its unimodal models or else with the first that reads it."""
    if "valid" not in dataset.splits:
        raise DataError(
            "--missing noise: the data have no validation split, expected one to find the size of noise on; add it."
        )
    sizes = {}
    for modality, here in present.items():
        if not (here.any() and dataset.splits["valid"].present[modality].any()):
            continue
        readers = [(name, model) for name, _, model in loaded if modality in model.spec.dims]
        if modality == "text" and readers[0][1].spec.text is not None:
            continue  # token ids have no deviation
        chosen = modality if modality in dict(readers) else readers[0][0]
        models = [model for name, model in readers if name == chosen]
        valid = [SplitView.of(dataset.splits["valid"], model.spec, device) for model in models]
        sizes[modality] = noise_size(modality, chosen, models, valid)
    return sizes
