"""How far a teacher's own statement of its uncertainty is to be believed, fitted on validation.

A teacher is over-confident on what it was trained on. One number a teacher mends that: a temperature for classes
(Guo et al., On calibration of modern neural networks, 2017), a factor of the variance for regression.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modbalance.tasks import Task, split_gaussian, task_loss


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
