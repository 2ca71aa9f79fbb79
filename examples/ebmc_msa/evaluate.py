"""What a trained model says, and how good that is: whole, with modalities missing, and by modality."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import metrics
from batch import Batch, Spec
from data import DataError
from fold import Fold, by_length
from missing import conditions, restrict
from modbalance.diagnostics import shapley_values, shares
from modbalance.tasks import prediction_variance, task_loss
from model import EBMC, Concat, Prediction

Model = EBMC | Concat
SELECTION = {"sentiment": "mae", "regression": "mae", "classes": "acc"}


@torch.no_grad()
def predict(model: Model, fold: Fold | Batch) -> Prediction:
    """What the model says of a whole fold, in chunks and without looking at its labels."""
    model.eval()
    unlabelled, chunks = replace(fold, target=None), by_length(fold)
    pieces = [model(unlabelled.rows(rows)) for rows in chunks]
    place = torch.cat(chunks).argsort().to(pieces[0].outputs.device)

    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[place]

    def by_modality(field: str) -> dict[str, Tensor]:
        return {k: joined([getattr(p, field)[k] for p in pieces]) for k in getattr(pieces[0], field)}

    outputs, fused = (joined([getattr(p, field) for p in pieces]) for field in ("outputs", "fused"))
    return Prediction(outputs, fused, by_modality("trust"), by_modality("energy"), pieces[0].loss, {})


def answer(spec: Spec, outputs: Tensor) -> Tensor:
    """The prediction in the data's own units: a class, or a value."""
    return outputs.argmax(-1) if spec.kind == "classes" else outputs[:, 0] * spec.scale + spec.mean


def truth(spec: Spec, target: Tensor) -> Tensor:
    return target if spec.kind == "classes" else target * spec.scale + spec.mean


def variance(spec: Spec, outputs: Tensor) -> Tensor:
    """What the model states of its own error: p(1-p) of the predicted class, or the variance of the value."""
    v = prediction_variance(spec.task, outputs)
    return v.gather(-1, outputs.argmax(-1, keepdim=True))[:, 0] if spec.kind == "classes" else v[:, 0] * spec.scale**2


def measure(model: Model, fold: Fold | Batch) -> dict[str, float]:
    """The metrics of the data's kind, and the task loss."""
    spec, outputs = model.spec, predict(model, fold).outputs
    if not torch.isfinite(outputs).all():
        raise DataError("training diverged: predictions are NaN or infinite, expected numbers; pass a smaller --lr.")
    found = metrics.compute(spec.kind, answer(spec, outputs).cpu(), truth(spec, fold.target).cpu(), spec.num_outputs)
    return {**found, "loss": task_loss(spec.task, outputs, fold.target).mean().item()}


def score(kind: str, found: dict[str, float]) -> tuple[float, float]:
    """What an epoch is selected by, higher is better: MAE or accuracy, ties by the loss."""
    name = SELECTION[kind]
    return found[name] if name == "acc" else -found[name], -found["loss"]


def by_condition(model: Model, fold: Fold) -> dict[str, dict[str, float]]:
    """The metrics with only some of the modalities left on."""
    found = {}
    for condition, keep in conditions(model.spec.dims).items():
        found[condition] = measure(model, fold.showing(restrict(fold.present, keep)))
        del found[condition]["loss"]
    return found


def contribution(model: Model, valid: Fold) -> dict[str, float]:
    """Share of each modality in what the model gained over a constant: Shapley over coalitions, on validation."""
    spec = model.spec
    name = SELECTION[spec.kind]
    y = truth(spec, valid.target)
    if spec.kind == "classes":
        constant = 100 * (y == y.mode().values).float().mean().item()
    else:
        constant = (y - spec.mean).abs().mean().item()

    def worth(coalition: tuple[str, ...]) -> float:
        if not coalition:
            return constant if name == "acc" else -constant
        return score(spec.kind, measure(model, valid.showing(restrict(valid.present, coalition))))[0]

    return shares(shapley_values(worth, list(spec.dims)))
