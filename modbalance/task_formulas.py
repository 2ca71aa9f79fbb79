"""Loss and uncertainty of each task as functions of head outputs in columns, with first and second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Task = Literal["classification", "multilabel", "regression", "gaussian"]
"""Class indices or probabilities; 0 or 1 for each label; numbers; numbers with a predicted variance."""

LOG_VARIANCE_LIMIT = 10.0


class HeadOutputs:
    """Head outputs as columns, `(width, ..., B)`, and their softmax or sigmoid: computed once, used by every formula.

    There are few columns and many rows: a softmax along short rows takes a CPU twenty times as long.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs
        self._cache: dict[tuple[str, float], Tensor] = {}

    def scaled(self, temperature: float) -> Tensor:
        return _unscaled(self.outputs, temperature)

    def log_softmax(self, temperature: float = 1.0) -> Tensor:
        return self._cached("log", temperature, lambda: self.scaled(temperature).log_softmax(0))

    def softmax(self, temperature: float = 1.0) -> Tensor:
        return self._cached("softmax", temperature, lambda: self.log_softmax(temperature).exp())

    def finite_log(self, temperature: float = 1.0) -> Tensor:
        """log q, finite where a logit is -inf: 0 log 0 is 0."""
        return self._cached(
            "finite",
            temperature,
            lambda: self.log_softmax(temperature).clamp(min=torch.finfo(self.outputs.dtype).min),
        )

    def mean_log(self, temperature: float = 1.0) -> Tensor:
        """sum q log q, the negative entropy."""
        return self._cached(
            "mean", temperature, lambda: (self.softmax(temperature) * self.finite_log(temperature)).sum(0)
        )

    def excess(self, temperature: float = 1.0) -> Tensor:
        """k = log q - sum q log q."""
        return self._cached("k", temperature, lambda: self.finite_log(temperature) - self.mean_log(temperature))

    def sigmoid(self, temperature: float = 1.0) -> Tensor:
        return self._cached("sigmoid", temperature, lambda: self.scaled(temperature).sigmoid())

    def columns(self, target: Tensor) -> Tensor:
        """A target `(B,)` or `(B, C)` as columns, ready to broadcast against the outputs."""

        def compute() -> Tensor:
            y = as_matrix(target).to(self.outputs.dtype).T.contiguous()
            return y if self.outputs.dim() == 2 else y.unsqueeze(1)

        return self._cached("target", 1.0, compute)

    def one_hot(self, target: Tensor) -> Tensor:
        """As bool."""
        classes = torch.arange(self.outputs.shape[0], device=target.device)
        return target == classes.view((-1,) + (1,) * (self.outputs.dim() - 1))

    def soft_labels(self, target: Tensor, class_weight: Tensor | None) -> Tensor:
        """Probabilities `(B, C)` as columns, times the weights of the classes."""

        def compute() -> Tensor:
            y = self.columns(target)
            if class_weight is None:
                return y
            return y * class_weight.to(y.dtype).view((-1,) + (1,) * (y.dim() - 1))

        return self._cached("soft", 1.0, compute)

    def label_weight(self, target: Tensor, class_weight: Tensor) -> Tensor:
        return class_weight.to(self.outputs.dtype)[target.clamp(0, self.outputs.shape[0] - 1)]

    def _cached(self, name: str, temperature: float, compute: Callable[[], Tensor]) -> Tensor:
        key = name, temperature
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]


def loss_value(task: Task, at: HeadOutputs, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """The loss, `(..., B)`. Rows with an ignored label are the caller's to mask, here and in the derivatives."""
    if task == "classification":
        log_p = at.log_softmax()
        if target.is_floating_point():
            y = at.soft_labels(target, class_weight)
            return -torch.where(y > 0, y * log_p, 0.0).sum(0)
        label = target.clamp(0, log_p.shape[0] - 1).expand(log_p.shape[1:])
        loss = -log_p.gather(0, label[None])[0]
        return loss if class_weight is None else loss * at.label_weight(target, class_weight)
    y = at.columns(target)
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(at.outputs, y.expand_as(at.outputs), reduction="none").sum(0)
    if task == "regression":
        return (at.outputs - y).square().sum(0)
    mean, log_variance = split_gaussian(at.outputs, 0)
    return 0.5 * ((mean - y).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)).sum(0)


def loss_slope(task: Task, at: HeadOutputs, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """d loss / d outputs."""
    if task == "classification":
        if target.is_floating_point():
            y = at.soft_labels(target, class_weight)
            return at.softmax() * y.sum(0) - y
        slope = torch.add(at.softmax(), at.one_hot(target), alpha=-1)
        return slope if class_weight is None else slope * at.label_weight(target, class_weight)
    y = at.columns(target)
    if task == "multilabel":
        return at.sigmoid() - y
    if task == "regression":
        return 2 * (at.outputs - y)
    mean, log_variance = split_gaussian(at.outputs, 0)
    error, precision = mean - y, (-log_variance).exp()
    return torch.cat([error * precision, 0.5 * (1 - error.square() * precision) * _inside(at.outputs)])


def loss_curvature(
    task: Task, at: HeadOutputs, target: Tensor, t: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """(d^2 loss / d outputs^2) t."""
    if task == "classification":
        pt = at.softmax() * t
        curvature = torch.addcmul(pt, at.softmax(), pt.sum(0), value=-1)
        if target.is_floating_point():
            return curvature * at.soft_labels(target, class_weight).sum(0)
        return curvature if class_weight is None else curvature * at.label_weight(target, class_weight)
    if task == "multilabel":
        p = at.sigmoid()
        return p * (1 - p) * t
    if task == "regression":
        return 2 * t
    mean, log_variance = split_gaussian(at.outputs, 0)
    error, precision = mean - at.columns(target), (-log_variance).exp()
    inside = _inside(at.outputs)
    t_mean, t_log = t.chunk(2)
    t_log = t_log * inside
    h_mean = precision * (t_mean - error * t_log)
    h_log = precision * error * (0.5 * error * t_log - t_mean)
    return torch.cat([h_mean, h_log * inside])


def uncertainty_value(task: Task, at: HeadOutputs, temperature: float = 1.0) -> Tensor:
    """The uncertainty, `(..., B)`."""
    if task == "classification":
        return -at.mean_log(temperature)
    if task == "multilabel":
        x = at.scaled(temperature)
        return (F.softplus(x) - x * at.sigmoid(temperature)).sum(0)
    if task == "regression":
        return at.outputs.sum(0) * 0.0
    _, log_variance = split_gaussian(at.outputs, 0)
    return 0.5 * (log_variance + math.log(2 * math.pi * math.e)).sum(0)


def uncertainty_slope(task: Task, at: HeadOutputs, temperature: float = 1.0) -> Tensor:
    """d uncertainty / d outputs."""
    if task == "classification":
        return at.softmax(temperature) * at.excess(temperature) * (-1 / temperature)
    if task == "multilabel":
        x, q = at.scaled(temperature), at.sigmoid(temperature)
        return x * q * (-x).sigmoid() * (-1 / temperature)
    if task == "regression":
        return torch.zeros_like(at.outputs)
    inside = _inside(at.outputs)
    return torch.cat([torch.zeros_like(inside), 0.5 * inside])


def uncertainty_curvature(task: Task, at: HeadOutputs, t: Tensor, temperature: float = 1.0) -> Tensor:
    """(d^2 uncertainty / d outputs^2) t; zero for both regressions."""
    if task == "classification":
        q, k = at.softmax(temperature), at.excess(temperature)
        qt = q * t
        inner = torch.addcmul((qt * k).sum(0), t - qt.sum(0), 1 + k, value=-1)
        return _unscaled(q * inner, temperature**2)
    if task == "multilabel":
        x, q = at.scaled(temperature), at.sigmoid(temperature)
        return _unscaled(q * (q - 1) * (1 + x * (1 - 2 * q)) * t, temperature**2)
    return torch.zeros_like(t)


def as_matrix(target: Tensor) -> Tensor:
    return target[:, None] if target.dim() == 1 else target


def split_gaussian(outputs: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Means and clamped log-variances, halves of `dim`."""
    mean, log_variance = outputs.chunk(2, dim)
    return mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


def _unscaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x / scale


def _inside(outputs: Tensor) -> Tensor:
    log_variance = outputs.chunk(2)[1]
    return (log_variance.abs() <= LOG_VARIANCE_LIMIT).to(outputs.dtype)
