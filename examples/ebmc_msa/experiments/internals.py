"""Measurements inside EBMC: contribution, gradient and energy by modality, and the teachers' calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView, by_length, outputs_and_targets
from ebmc_msa.evaluation.predict import label_targets, predict
from ebmc_msa.evaluation.scores import contribution
from ebmc_msa.experiments.trust import trust_tests
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.encoders import encode
from ebmc_msa.model.ensemble import TrustEnsemble
from ebmc_msa.training.stages import Trained
from modbalance.diagnostics import calibration_error, gaussian_coverage
from modbalance.functional import scale_temperature
from modbalance.tasks import task_loss

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@torch.no_grad()
def inspect(ebmc: Trained, splits: Mapping[str, SplitView]) -> dict[str, Any]:
    """Numbers by modality of a trained model, on the test split where there is one, else on validation.

    Returns:
        contribution: Shapley shares, of the model `before` balancing and `after`.
        gradient: share of the encoders' gradient in training, by stage.
        energy: mean energy on the training split and on the validation split.
        teachers: negative log-likelihood, calibration and reliability of each, `as stated` and `calibrated`.
        trust: `trust_tests`; empty without an ensemble.
        silhouette, fused, group: of the fused features, and by what they are grouped.
    """
    model, student = ebmc.model, ebmc.student
    held, spec = splits.get("test", splits["valid"]), model.spec
    found: dict[str, Any] = {
        "contribution": {"before": contribution(ebmc.stage1, held), "after": contribution(model, held)},
        "gradient": {s.name: _mean([epoch["gradient"] for epoch in s.history]) for s in ebmc.stages if s.history},
        "energy": {split: energies(student, splits[split]) for split in ("train", "valid")},
        "teachers": {},
        "trust": trust_tests(model, held) if isinstance(model, TrustEnsemble) else {},
    }
    for name, temperature in student.temperatures().items():
        here = held.select(held.present[name])
        stated, target = outputs_and_targets(here, lambda batch, m=name: student.teachers.predict(m, batch))
        found["teachers"][name] = {
            "as stated": reliability(spec, stated, target),
            "calibrated": reliability(spec, scale_temperature(spec.task, stated, temperature), target),
        }
    fused, group = predict(model, held).fused, groups(spec, held.target)
    keep = group >= 0
    found |= {"fused": fused[keep], "group": group[keep]}
    several = len(group[keep].unique()) > 1
    found["silhouette"] = float(silhouette_score(fused[keep].cpu(), group[keep].cpu())) if several else math.nan
    return found


@torch.no_grad()
def energies(model: EBMC, split: SplitView) -> dict[str, float]:
    """Mean energy of each modality over the samples of a split that have it."""
    model.eval()
    values: dict[str, list[Tensor]] = {name: [] for name in split.present}
    for batch in (split.rows(rows) for rows in by_length(split)):
        energy = model.coordinate(encode(model.encoders, batch), batch.target, batch.present).energy
        for name, here in batch.present.items():
            values[name].append(energy[name][here])
    return {name: torch.cat(parts).mean().item() for name, parts in values.items()}


def reliability(spec: Spec, outputs: Tensor, target: Tensor) -> dict[str, Any]:
    """`nll`; `error`: of the 90 % interval's coverage, or the expected calibration error; the `curve` of the two.

    The curve is `(stated, found)`: coverage of central intervals, or accuracy in fifths of rising confidence.
    """
    nll = task_loss(spec.task, outputs, target).mean().item()
    if spec.task == "gaussian":
        covered = [gaussian_coverage(outputs, target, level=level) for level in LEVELS]
        return {"nll": nll, "error": covered[-1] - LEVELS[-1], "curve": list(zip(LEVELS, covered, strict=True))}
    confidence, label = outputs.softmax(-1).max(-1)
    fifths = confidence.argsort().tensor_split(5)
    curve = [(confidence[f].mean().item(), (label == target)[f].float().mean().item()) for f in fifths if len(f)]
    return {"nll": nll, "error": calibration_error(spec.task, outputs, target), "curve": curve}


def groups(spec: Spec, target: Tensor) -> Tensor:
    """A class for each sample, `(N,)`: of sentiment its sign, of other values the half; -1 in between."""
    if spec.task == "classification":
        return target
    value = label_targets(spec, target)
    value = value if spec.kind == "sentiment" else value - value.median()
    return torch.where(value == 0, -1, (value > 0).long())


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
