"""How good a trained model is: whole, with modalities missing, and by modality."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ebmc_msa.data import DataError
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.missing import conditions, restrict
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation import metrics
from ebmc_msa.evaluation.metrics import KINDS, METRICS
from ebmc_msa.evaluation.predict import Change, answers, label_predictions, label_targets
from ebmc_msa.model.prediction import Model
from modbalance.diagnostics import shapley_values, shares
from modbalance.tasks import task_loss


def evaluate(
    model: Model, split: SplitView | Batch, change: Change | None = None, parts: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """The metrics of the data's kind, and the task loss."""
    outputs = answers(model, split, change)
    found = compute_metrics(model.spec, outputs, split.target, parts)
    return {**found, "loss": task_loss(model.spec.task, outputs, split.target).mean().item()}


def compute_metrics(
    spec: Spec, outputs: Tensor, target: Tensor, parts: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """The metrics of the data's kind; of classes also the accuracy in each of the `parts`."""
    if not torch.isfinite(outputs).all():
        raise DataError("training diverged: predictions are NaN or infinite, expected numbers; pass a smaller --lr.")
    predicted, true = label_predictions(spec, outputs).cpu(), label_targets(spec, target).cpu()
    found = metrics.compute(spec.kind, predicted, true, spec.num_outputs, spec.labels, spec.range)
    if spec.kind == "classes":
        found |= {
            f"acc_{name}": metrics.accuracy(predicted[rows], true[rows]) for name, rows in (parts or {}).items()
        }
    return found


def selection_score(kind: str, found: Mapping[str, float]) -> tuple[float, float]:
    """What an epoch is selected by, higher is better: the metric that `KINDS` names, ties by the loss."""
    name = KINDS[kind].selects
    return METRICS[name].sign * found[name], -found["loss"]


def outputs_score(spec: Spec, outputs: Tensor, target: Tensor) -> tuple[float, float]:
    """The `selection_score` of head outputs; the lowest possible without samples."""
    if not len(target):
        return -float("inf"), 0.0
    found = metrics.compute(
        spec.kind,
        label_predictions(spec, outputs).cpu(),
        label_targets(spec, target).cpu(),
        spec.num_outputs,
        spec.labels,
        spec.range,
    )
    return selection_score(spec.kind, {**found, "loss": task_loss(spec.task, outputs, target).mean().item()})


def by_condition(
    model: Model, split: SplitView, parts: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, float]]:
    """The metrics with only some of the modalities present."""
    found = {}
    for condition, keep in conditions(model.spec.dims).items():
        found[condition] = evaluate(model, split.with_present(restrict(split.present, keep)), parts=parts)
        del found[condition]["loss"]
    return found


def contribution(model: Model, split: SplitView) -> dict[str, float]:
    """Share of each modality in the gain over a constant prediction: Shapley values over subsets, held out."""
    spec = model.spec
    constant = constant_score(spec, split.target)

    def value(subset: tuple[str, ...]) -> float:
        if not subset:
            return constant
        return selection_score(spec.kind, evaluate(model, split.with_present(restrict(split.present, subset))))[0]

    return shares(shapley_values(value, list(spec.dims)))


def constant_score(spec: Spec, target: Tensor) -> float:
    """Score of a constant prediction: the commonest class, the commoner value of each label, the training mean."""
    y = label_targets(spec, target)
    guess = y.new_full(y.shape, spec.mean) if spec.task == "gaussian" else y.mode(0).values.expand_as(y)
    found = metrics.compute(spec.kind, guess.cpu(), y.cpu(), spec.num_outputs, spec.labels, spec.range)
    return selection_score(spec.kind, {**found, "loss": 0.0})[0]
