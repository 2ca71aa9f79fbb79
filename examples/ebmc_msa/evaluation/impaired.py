"""Scores of single utterances: with all modalities, with some missing, with one corrupted.

All models of a run are scored on the same impaired utterances, also those that read only one of the modalities, so
that two models can be compared utterance by utterance.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.batch import Batch
from ebmc_msa.data.missing import conditions, restrict
from ebmc_msa.data.rng import uniform
from ebmc_msa.data.split import SplitView
from ebmc_msa.data.task import MOSI
from ebmc_msa.evaluation import corruption
from ebmc_msa.evaluation.metrics import KINDS, METRICS
from ebmc_msa.evaluation.predict import Change, answers, label_predictions, label_targets
from ebmc_msa.model.prediction import Model

PARTS = ("full", "missing", "corrupted")
NOISE = 2.0  # standard deviations; on frames times the root of their mean number, since over these it averages out


class Impaired(NamedTuple):
    """What all models of a run are scored on."""

    present: Mapping[str, Tensor]  # (N,) bool, of all modalities of the data
    corrupted: Tensor  # (N,) int64, which of them is corrupted; -1: the utterance has none

    @classmethod
    def of(cls, present: Mapping[str, Tensor], seed: int = 0) -> Impaired:
        """Draw one of the modalities that each utterance has."""
        here = torch.stack([here.cpu() for here in present.values()], -1)
        draw = uniform(torch.arange(len(here)), here.shape[1], seed, "corrupted modality").masked_fill(~here, -1)
        return cls(present, draw.argmax(-1).masked_fill(~here.any(-1), -1))


def compared_by(kind: str) -> str:
    """The metric that models are compared by: the one that selects the epoch, of several labels their accuracy."""
    selects = KINDS[kind].selects
    return selects if METRICS[selects].per_sample else "acc"


def scores_by_part(model: Model, split: SplitView, impaired: Impaired) -> dict[str, list[float]]:
    """Score of each utterance, `compared_by` the kind's metric: `full`, `missing` and `corrupted`.

    missing: the mean over all conditions that lack a modality. corrupted: one modality of the utterance has noise,
    has lost 70 % of its frames, or is another utterance's; the mean over the three. A model that reads none of what
    is left predicts from nothing.
    """
    found: dict[tuple[str, ...], np.ndarray] = {}  # by what is left of the modalities that the model reads

    def restricted(keep: tuple[str, ...]) -> np.ndarray:
        left = tuple(name for name in model.spec.dims if name in keep)
        if left not in found:
            found[left] = sample_scores(model, split.with_present(restrict(split.present, left)))
        return found[left]

    *incomplete, whole = conditions(impaired.present).values()
    full = restricted(whole)
    missing = np.mean([restricted(keep) for keep in incomplete], 0) if incomplete else full
    corrupted = np.mean(
        [sample_scores(model, split, _corruption(split, impaired, kind)) for kind in corruption.KINDS], 0
    )
    return {"full": full.tolist(), "missing": missing.tolist(), "corrupted": corrupted.tolist()}


def sample_scores(model: Model, split: SplitView, change: Change | None = None) -> np.ndarray:
    """Score of each utterance, `compared_by` the kind's metric, `(N,)`."""
    spec, metric = model.spec, METRICS[compared_by(model.spec.kind)]
    outputs = answers(model, split, change)
    pair = label_predictions(spec, outputs), label_targets(spec, split.target)
    predicted, true = (x.cpu().double().numpy() for x in pair)
    if spec.kind == "sentiment" and spec.range not in (None, MOSI):
        predicted, true = (np.clip(x, *spec.range) for x in (predicted, true))  # as the metrics are computed
    scores = metric.per_sample(predicted, true)
    return scores.mean(-1) if scores.ndim == 2 else scores


def _corruption(split: SplitView, impaired: Impaired, kind: str) -> Change:
    """A kind that a modality does not allow, as noise on token ids, is replaced by another utterance's features."""
    names = list(impaired.present)
    masks = {name: impaired.corrupted == names.index(name) for name in split.present}
    kinds, std, partners = {}, {}, {}
    for name, mask in masks.items():
        floats, sequence = split.features[name].is_floating_point(), name in split.lengths
        possible = {"noise": floats, "frames": floats and sequence, "swap": True}[kind]
        kinds[name] = kind if possible else "swap"
        if kinds[name] == "noise" and mask.any():
            frames = split.lengths[name][split.present[name].cpu()].double().mean().item() if sequence else 1.0
            std[name] = NOISE * sqrt(frames) * corruption.feature_std(split, name)
        elif kinds[name] == "swap":
            partners[name] = corruption.partners(split.present[name], 0, name)

    def change(batch: Batch, rows: Tensor) -> Batch:
        for name, mask in masks.items():
            if mask[rows].any():
                others = split.rows(partners[name][rows]) if name in partners else None
                batch = corruption.corrupt(
                    batch, name, kinds[name], mask[rows], rows, 0, std=std.get(name), others=others
                )
        return batch

    return change
