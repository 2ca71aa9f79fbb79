"""The robustness protocols: from trained checkpoints to how much worse they get as modalities go missing or bad."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ebmc_msa.data import DataError, Dataset, canonical
from ebmc_msa.data.batch import Batch
from ebmc_msa.data.missing import conditions, drop_frames, missing_at_random, restrict
from ebmc_msa.data.split import Fold
from ebmc_msa.evaluation import corruption
from ebmc_msa.evaluation.scores import SELECTION, Change, constant_score, measure, predict, quality, score
from ebmc_msa.model.prediction import Model, Prediction
from ebmc_msa.model.text_encoder import tokenised
from ebmc_msa.report import robustness
from ebmc_msa.report.run_view import METRICS
from ebmc_msa.training import checkpoint
from ebmc_msa.training.results import grouped, spread
from ebmc_msa.training.run import checkpoints, console, pick_device

DRAWS = 5  # masks of seeds 0 to 4, averaged
AVERAGE = "avg"
Scores = dict[str, float]
Record = dict[str, Any]  # of one checkpoint


def evaluate(run: Path, dataset: Dataset, protocol: str, device_name: str) -> None:
    """Put the checkpoints of a run through one protocol and write `robustness-<protocol>.*` beside them."""
    paths, device = checkpoints(run, dataset), pick_device(device_name)
    loaded = []
    for path in paths:
        name, seed, model = checkpoint.read(path, device)
        if model.spec.text is not None:
            dataset = tokenised(dataset, model.spec.text)
        model.spec.check(dataset, f"--evaluate {path}")
        loaded.append((name, seed, model))
    split = dataset.splits.get("test") or next(iter(dataset.splits.values()))
    if split.target is None:
        raise DataError("--missing: the data have no labels, expected labels to measure by; add them.")
    read = {modality for _, _, model in loaded for modality in model.spec.dims}
    present = {name: split.present[name] for name in canonical(split.present) if name in read}

    extra: dict[str, Any] = {}
    if protocol == "noise":
        sizes = noise_sizes(loaded, dataset, present, device)
        extra["sizes"] = {name: size.as_dict() for name, size in sizes.items()}
    else:
        rows = levels(protocol, present, [name for name in present if name in split.lengths])
    records = []
    for name, seed, model in track(loaded, f"--missing {protocol}", console=console, transient=True):
        test = Fold.of(split, model.spec, device)
        record = spoil(model, test, sizes) if protocol == "noise" else degrade(model, test, rows)
        records.append({"model": name, "seed": seed, **record})
    results = {
        "protocol": protocol,
        "dataset": dataset.name,
        "kind": dataset.kind,
        "seeds": sorted({record["seed"] for record in records}),
        "draws": DRAWS,
        "selection": {"split": "valid", "metric": SELECTION[dataset.kind]},
        "modalities": {name: name in split.lengths for name in present},  # with a time axis
        **extra,
        "models": {
            name: {
                part: spread([{"test": record[part]} for record in group])
                for part in ("test", "loss", "detection")
                if group[0].get(part)
            }
            for name, group in grouped(records).items()
        },
    }
    robustness.print_tables(results, console)
    written = robustness.write(run, results)
    console.print(f"Written to {run}: {', '.join(path.name for path in written)}.")


class Level(NamedTuple):
    """One row of the table: what is done to the test fold, once per draw."""

    name: str
    changes: list[Change]
    averaged: bool = True  # counts in the row "avg"


def levels(
    protocol: str, present: Mapping[str, Tensor], sequences: Collection[str], draws: int = DRAWS
) -> list[Level]:
    """The rows of `conditions`, `random` or `frames`, the untouched fold first.

    Args:
        protocol: one of these three.
        present: of the whole fold, with all modalities that any of the models reads: all lose the same.
        sequences: modalities with a time axis.
        draws: masks to average over.

    Raises:
        DataError: `frames`, and no modality has a time axis.
    """
    if protocol == "conditions":
        found = sorted(conditions(present).items(), key=lambda item: -len(item[1]))
        return [Level(name, [_showing(restrict(present, keep))], len(keep) < len(present)) for name, keep in found]
    if protocol == "random":
        return [
            Level(f"{rate:.1f}", [_showing(missing_at_random(present, rate, seed)) for seed in seeds], rate > 0)
            for rate, seeds in _rates(8, draws)
        ]
    if not sequences:
        raise DataError(
            f"--missing frames: {', '.join(present)} without a time axis, expected a sequence to drop frames of; "
            "pass --missing random, or data with sequences."
        )
    return [Level(f"{rate:.1f}", [_without(rate, seed) for seed in seeds]) for rate, seeds in _rates(10, draws)]


def _rates(count: int, draws: int) -> list[tuple[float, range]]:
    """0.0, 0.1, ... and the seeds of each: at 0 all masks are the same."""
    return [(i / 10, range(draws if i else 1)) for i in range(count)]


def _showing(present: Mapping[str, Tensor]) -> Change:
    def change(batch: Batch, rows: Tensor) -> Batch:
        left = {name: present[name][rows].to(here.device) for name, here in batch.present.items() if name in present}
        return batch.showing(batch.present | left)

    return change


def _without(rate: float, seed: int) -> Change:
    def change(batch: Batch, rows: Tensor) -> Batch:
        for name in batch.lengths:
            batch = drop_frames(batch, name, rate, rows, seed)
        return batch

    return change


def degrade(model: Model, test: Fold, rows: Sequence[Level]) -> Record:
    """Metrics by level and on average, and how much worse than untouched each is."""

    def tested(change: Change) -> Scores:
        return quality(model.spec, predict(model, test, change).outputs, test.target)

    found = {level.name: _mean([tested(change) for change in level.changes]) for level in rows}
    full = found[rows[0].name]
    found[AVERAGE] = _mean([found[level.name] for level in rows if level.averaged] or [full])
    return {"test": found, "loss": {name: worse(full, entry) for name, entry in found.items()}}


def worse(before: Scores, after: Scores) -> Scores:
    """By how much each metric got worse: positive is a loss, whichever way the metric points."""
    return {key: (value - after[key]) * (1 if METRICS[key].higher else -1) for key, value in before.items()}


def _mean(scores: Sequence[Scores]) -> Scores:
    return {key: statistics.fmean(entry[key] for entry in scores) for key in scores[0]}


class Size(NamedTuple):
    """How much Gaussian noise halves what one modality is worth alone."""

    size: float  # in standard deviations of each feature
    scale: Tensor  # those, (D,)
    judge: str  # the model whose gain it is
    worth: float  # that gain over the constant prediction, on validation
    left: float  # of it at this size
    halved: bool  # False: worth nothing, or no noise halves it; the size is then one standard deviation

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "scale"}


def noise_size(modality: str, judge: str, models: Sequence[Model], valid: Sequence[Fold]) -> Size:
    """By bisection on validation, where the modality is there and left alone; the mean over one model a seed.

    Worth is measured by what epochs are chosen by: accuracy, or MAE.
    """
    alone = [fold.keep(fold.present[modality]) for fold in valid]
    alone = [fold.showing(restrict(fold.present, [modality])) for fold in alone]
    scale = corruption.deviation(alone[0], modality)

    def worth(size: float) -> float:
        def change(batch: Batch, rows: Tensor) -> Batch:
            return corruption.corrupt(batch, modality, "noise", batch.present[modality], rows, 0, scale=size * scale)

        return statistics.fmean(
            score(model.spec.kind, measure(model, fold, change))[0] - constant_score(model.spec, fold.target)
            for model, fold in zip(models, alone, strict=True)
        )

    found = corruption.halving_size(worth)
    size = 1.0 if found is None else found
    return Size(size, scale, judge, worth(0.0), worth(size), found is not None)


def spoil(model: Model, test: Fold, sizes: Mapping[str, Size], draws: int = DRAWS) -> Record:
    """Metrics with half of the fold spoilt, what that half lost, and how well trust tells it from the other half.

    One modality at a time, of those that the model reads; by Gaussian noise where its size is given.
    """
    clean = predict(model, test)
    scores, loss, detection = {"clean": quality(model.spec, clean.outputs, test.target)}, {}, {}
    spoilable = [name for name, here in test.present.items() if here.sum() >= 2]  # one has none to swap with
    for modality in spoilable:
        kinds: dict[str, Tensor | None] = {}
        if modality in sizes:
            halving = sizes[modality].size * sizes[modality].scale
            kinds |= {"noise": halving, "noise x2": 2 * halving}
        if modality in test.lengths:
            kinds["frames"] = None
        for kind, scale in {**kinds, "swap": None}.items():
            name, found = f"{modality}: {kind}", []
            for seed in range(draws):
                said = predict(model, test, corruption.corruption(test, modality, kind.split()[0], seed, scale))
                hit = corruption.half(test.present[modality], seed, modality)
                found.append(_compare(model, test, clean, said, hit, modality))
            scores[name], loss[name], told = (_mean(parts) for parts in zip(*found, strict=True))
            if told:
                detection[name] = told
    return {"test": scores, "loss": loss, "detection": detection}


def _compare(
    model: Model, test: Fold, clean: Prediction, said: Prediction, hit: Tensor, modality: str
) -> tuple[Scores, Scores, Scores]:
    """Metrics of all, loss of those hit, and how well low trust in the modality tells them (area under the ROC)."""
    hit = hit.to(said.outputs.device)
    before, after = (quality(model.spec, p.outputs[hit], test.target[hit]) for p in (clean, said))
    told = {}
    if modality in said.trust:
        # whoever has nothing else is trusted wholly, whatever it says
        others = torch.stack([here for name, here in test.present.items() if name != modality]).any(0)
        rows = test.present[modality] & others
        both = len(hit[rows].unique()) == 2
        told["auroc"] = float(roc_auc_score(hit[rows].cpu(), -said.trust[modality][rows].cpu())) if both else math.nan
    return quality(model.spec, said.outputs, test.target), worse(before, after), told


def noise_sizes(
    loaded: Sequence[tuple[str, int, Model]], dataset: Dataset, present: Mapping[str, Tensor], device: torch.device
) -> dict[str, Size]:
    """The size of each modality's noise, judged by its unimodal models or, without any, by what reads it first."""
    if "valid" not in dataset.splits:
        raise DataError(
            "--missing noise: the data have no validation fold, expected one to find the size of noise on; add it."
        )
    sizes = {}
    for modality, here in present.items():
        if not (here.any() and dataset.splits["valid"].present[modality].any()):
            continue  # nothing to spoil, or to measure on
        able = [(name, model) for name, _, model in loaded if modality in model.spec.dims]
        if modality == "text" and able[0][1].spec.text is not None:
            continue  # tokens have no deviation
        judge = modality if modality in dict(able) else able[0][0]
        models = [model for name, model in able if name == judge]
        valid = [Fold.of(dataset.splits["valid"], model.spec, device) for model in models]
        sizes[modality] = noise_size(modality, judge, models, valid)
    return sizes
