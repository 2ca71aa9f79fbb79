"""Predictions of a trained model for a whole split, and in label units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.split import SplitView, by_length
from ebmc_msa.model.prediction import Model, Prediction
from modbalance.tasks import prediction_variance

Change = Callable[[Batch, Tensor], Batch]
T = TypeVar("T")


@torch.no_grad()
def predict(model: Model, split: SplitView | Batch, change: Change | None = None) -> Prediction:
    """Predictions for a whole split, in chunks and without its labels.

    `change(batch, rows)` is applied to each chunk first; `rows` are its places in the split.
    """
    chunks, pieces = _in_chunks(model.eval(), split, change)

    def joined(tensors: list[Tensor]) -> Tensor:
        return _in_order(chunks, tensors)

    def by_modality(field: str) -> dict[str, Tensor]:
        return {k: joined([getattr(p, field)[k] for p in pieces]) for k in getattr(pieces[0], field)}

    outputs, fused = (joined([getattr(p, field) for p in pieces]) for field in ("outputs", "fused"))
    return Prediction(outputs, fused, by_modality("trust"), by_modality("energy"), pieces[0].loss, {})


@torch.no_grad()
def answers(model: Model, split: SplitView | Batch, change: Change | None = None) -> Tensor:
    """The outputs of `predict` alone, which cost less."""
    return _in_order(*_in_chunks(model.eval().answer, split, change))


def _in_chunks(
    call: Callable[[Batch], T], split: SplitView | Batch, change: Change | None
) -> tuple[tuple[Tensor, ...], list[T]]:
    """The rows of each chunk, and what `call` returns for it."""
    unlabelled, chunks, pieces = replace(split, target=None), by_length(split), []
    for rows in chunks:
        batch = unlabelled.rows(rows)
        pieces.append(call(batch if change is None else change(batch, rows)))
    return chunks, pieces


def _in_order(chunks: tuple[Tensor, ...], pieces: list[Tensor]) -> Tensor:
    return torch.cat(pieces)[torch.cat(chunks).argsort().to(pieces[0].device)]


def label_predictions(spec: Spec, outputs: Tensor) -> Tensor:
    """Predictions in label units: a class, 0 or 1 for each label, or a value."""
    if spec.kind == "multilabel":
        return (outputs > 0).to(outputs.dtype)
    return outputs.argmax(-1) if spec.kind == "classes" else outputs[:, 0] * spec.scale + spec.mean


def label_targets(spec: Spec, target: Tensor) -> Tensor:
    """Targets in label units; what was 0 is exactly 0 again, in spite of rounding."""
    if spec.task != "gaussian":
        return target
    value = target * spec.scale + spec.mean
    return torch.where(value.abs() < 1e-6 * max(spec.scale, 1.0), 0.0, value)


def label_variance(spec: Spec, outputs: Tensor) -> Tensor:
    """Predicted variance in label units: p(1-p) of the predicted class or each label, or of the value."""
    v = prediction_variance(spec.task, outputs)
    if spec.kind == "multilabel":
        return v
    return v.gather(-1, outputs.argmax(-1, keepdim=True))[:, 0] if spec.kind == "classes" else v[:, 0] * spec.scale**2
