"""How far a prediction is to be believed, fitted on validation: its stated uncertainty, and its weight among others.

A teacher is over-confident on what it was trained on. One number a teacher mends that: a temperature for classes
(Guo et al., On calibration of modern neural networks, 2017), a factor of the variance for regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.functional import trust_fusion, trust_weights
from modbalance.tasks import Task, prediction_variance, split_gaussian, task_loss


def fit_scale(task: Task, outputs: Tensor, target: Tensor) -> float:
    """The number that makes held-out `outputs` most likely; 1 without any."""
    if not len(outputs):
        return 1.0
    if task != "gaussian":
        temperatures = torch.logspace(-1, 2, 121).tolist()
        losses = [task_loss(task, outputs / t, target).mean().item() for t in temperatures]
        return temperatures[losses.index(min(losses))]
    mean, log_variance = split_gaussian(outputs)
    return ((mean - target[:, None]).square() * (-log_variance).exp()).mean().clamp(1e-2, 1e3).item()


def calibrate(task: Task, outputs: Tensor, scale: float) -> Tensor:
    """`outputs` with their uncertainty mended; the prediction stays the same."""
    if task != "gaussian":
        return outputs / scale
    mean, log_variance = outputs.chunk(2, -1)
    return torch.cat([mean, log_variance + torch.tensor(scale).log()], -1)


class Vote(NamedTuple):
    """How several predictions become one: `trust_weights` of their variances with this `power` and `bias`."""

    power: float
    bias: dict[str, float]

    def __call__(self, task: Task, said: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        return vote(task, said, present, self.power, self.bias)


def vote(
    task: Task,
    said: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    power: float | Tensor,
    bias: Mapping[str, float | Tensor],
) -> Tensor:
    """Predictions mixed by trust: log-probabilities or logits; for gaussian means, and variances."""
    variances = {name: prediction_variance(task, outputs) for name, outputs in said.items()}
    weights = trust_weights(variances, present, power=power, bias=bias)
    if task == "classification":
        return trust_fusion({name: outputs.log_softmax(-1) for name, outputs in said.items()}, weights)
    if task == "gaussian":
        apart = {name: split_gaussian(outputs) for name, outputs in said.items()}
        mean = trust_fusion({name: mean for name, (mean, _) in apart.items()}, weights)
        variance = trust_fusion({name: log.exp() for name, (_, log) in apart.items()}, weights)
        return torch.cat([mean, variance.clamp(min=1e-4).log()], -1)
    return trust_fusion(said, weights)


@torch.enable_grad()
def fit_vote(
    task: Task,
    said: Mapping[str, Tensor],
    target: Tensor,
    present: Mapping[str, Tensor],
    *,
    shrink: float = 1e-3,
) -> Vote:
    """The power and biases by which held-out targets are met best: by cross-entropy, or the squared error of means.

    Args:
        said: held-out head outputs by expert, `(N, width)`.
        target: `(N,)`.
        present: bool `(N,)` by expert.
        shrink: of the penalty on the squares of what is fitted, which keeps little data near equal biases.

    Returns:
        a power of at least 0; equal biases without samples.
    """
    free = torch.zeros(len(said) + 1, dtype=torch.float64, requires_grad=True)
    said = {name: outputs.detach().double() for name, outputs in said.items()}
    optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        mixed = vote(task, said, present, F.softplus(free[0]), dict(zip(said, free[1:], strict=True)))
        error = (mixed[:, 0] - target).square() if task == "gaussian" else task_loss(task, mixed, target)
        value = error.mean() + shrink * free.square().mean()
        value.backward()
        return value

    if len(target):
        optimizer.step(loss)
    return Vote(F.softplus(free[0]).item(), dict(zip(said, free[1:].tolist(), strict=True)))
