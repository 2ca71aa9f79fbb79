"""What a trained model says, and how good that is: whole, with modalities missing, and by modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ebmc_msa.data import DataError
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.missing import conditions, restrict
from ebmc_msa.data.split import Fold, by_length
from ebmc_msa.evaluation import metrics
from ebmc_msa.model.prediction import Model, Prediction
from modbalance.diagnostics import shapley_values, shares
from modbalance.tasks import prediction_variance, task_loss

Change = Callable[[Batch, Tensor], Batch]
SELECTION = {"sentiment": "mae", "regression": "mae", "classes": "acc", "multilabel": "f1"}


@torch.no_grad()
def predict(model: Model, fold: Fold | Batch, change: Change | None = None) -> Prediction:
    """What the model says of a whole fold, in chunks and without looking at its labels.

    `change` is done to each chunk first: to the samples and their rows in the fold.
    """
    model.eval()
    unlabelled, chunks, pieces = replace(fold, target=None), by_length(fold), []
    for rows in chunks:
        batch = unlabelled.rows(rows)
        pieces.append(model(batch if change is None else change(batch, rows)))
    place = torch.cat(chunks).argsort().to(pieces[0].outputs.device)

    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[place]

    def by_modality(field: str) -> dict[str, Tensor]:
        return {k: joined([getattr(p, field)[k] for p in pieces]) for k in getattr(pieces[0], field)}

    outputs, fused = (joined([getattr(p, field) for p in pieces]) for field in ("outputs", "fused"))
    return Prediction(outputs, fused, by_modality("trust"), by_modality("energy"), pieces[0].loss, {})


def answer(spec: Spec, outputs: Tensor) -> Tensor:
    """The prediction in the data's own units: a class, 0 or 1 for each label, or a value."""
    if spec.kind == "multilabel":
        return (outputs > 0).to(outputs.dtype)
    return outputs.argmax(-1) if spec.kind == "classes" else outputs[:, 0] * spec.scale + spec.mean


def truth(spec: Spec, target: Tensor) -> Tensor:
    """The target in the data's own units; what was 0 is 0 again, in spite of rounding."""
    if spec.task != "gaussian":
        return target
    value = target * spec.scale + spec.mean
    return torch.where(value.abs() < 1e-6 * max(spec.scale, 1.0), 0.0, value)


def variance(spec: Spec, outputs: Tensor) -> Tensor:
    """What the model states of its own error: p(1-p) of the predicted class or each label, or the variance."""
    v = prediction_variance(spec.task, outputs)
    if spec.kind == "multilabel":
        return v
    return v.gather(-1, outputs.argmax(-1, keepdim=True))[:, 0] if spec.kind == "classes" else v[:, 0] * spec.scale**2


def measure(
    model: Model, fold: Fold | Batch, change: Change | None = None, parts: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """The metrics of the data's kind, and the task loss."""
    outputs = predict(model, fold, change).outputs
    found = quality(model.spec, outputs, fold.target, parts)
    return {**found, "loss": task_loss(model.spec.task, outputs, fold.target).mean().item()}


def quality(
    spec: Spec, outputs: Tensor, target: Tensor, parts: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """The metrics of the data's kind; of classes, the accuracy in each of the `parts` too."""
    if not torch.isfinite(outputs).all():
        raise DataError("training diverged: predictions are NaN or infinite, expected numbers; pass a smaller --lr.")
    said, true = answer(spec, outputs).cpu(), truth(spec, target).cpu()
    found = metrics.compute(spec.kind, said, true, spec.num_outputs, spec.labels, spec.range)
    if spec.kind == "classes":
        found |= {f"acc_{name}": metrics.accuracy(said[rows], true[rows]) for name, rows in (parts or {}).items()}
    return found


def score(kind: str, found: dict[str, float]) -> tuple[float, float]:
    """What an epoch is selected by, higher is better: MAE, accuracy or mean weighted F1, ties by the loss."""
    name = SELECTION[kind]
    return -found[name] if name == "mae" else found[name], -found["loss"]


def worth(spec: Spec, outputs: Tensor, target: Tensor) -> tuple[float, float]:
    """What epochs are selected by; the lowest possible without samples."""
    if not len(target):
        return -float("inf"), 0.0
    said, true = answer(spec, outputs).cpu(), truth(spec, target).cpu()
    found = metrics.compute(spec.kind, said, true, spec.num_outputs, spec.labels, spec.range)
    return score(spec.kind, {**found, "loss": task_loss(spec.task, outputs, target).mean().item()})


def by_condition(model: Model, fold: Fold, parts: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, float]]:
    """The metrics with only some of the modalities left on."""
    found = {}
    for condition, keep in conditions(model.spec.dims).items():
        found[condition] = measure(model, fold.showing(restrict(fold.present, keep)), parts=parts)
        del found[condition]["loss"]
    return found


def contribution(model: Model, fold: Fold) -> dict[str, float]:
    """Share of each modality in what the model gained over a constant: Shapley over coalitions, held out."""
    spec = model.spec
    constant = constant_score(spec, fold.target)

    def worth(coalition: tuple[str, ...]) -> float:
        if not coalition:
            return constant
        return score(spec.kind, measure(model, fold.showing(restrict(fold.present, coalition))))[0]

    return shares(shapley_values(worth, list(spec.dims)))


def constant_score(spec: Spec, target: Tensor) -> float:
    """What a constant prediction scores: the commonest class, the commoner value of each label, the training mean."""
    y = truth(spec, target)
    guess = y.new_full(y.shape, spec.mean) if spec.task == "gaussian" else y.mode(0).values.expand_as(y)
    found = metrics.compute(spec.kind, guess.cpu(), y.cpu(), spec.num_outputs, spec.labels, spec.range)
    return score(spec.kind, {**found, "loss": 0.0})[0]
