"""What every backend of the penalty is told besides features and heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modbalance import tasks


class Problem(NamedTuple):
    task: tasks.Task
    alpha: float
    beta: float
    gamma: float
    temperature: float
    normalize: bool
    target: Tensor | None
    class_weight: Tensor | None

    def norm_weight(self, dim: int) -> float:
        return self.alpha / dim if self.normalize else self.alpha

    def potential(self, outputs: Tensor) -> Tensor:
        """beta loss + gamma uncertainty, `(B,)`: the part of the energy that a head sees."""
        value = outputs.new_zeros(outputs.shape[0])
        if self.beta and self.target is not None:
            # Ignored labels are masked by the caller, so any label that is out of range will do here.
            value = value + self.beta * tasks.task_loss(
                self.task, outputs, self.target, class_weight=self.class_weight
            )
        if self.gamma:
            value = value + self.gamma * tasks.task_uncertainty(self.task, outputs, temperature=self.temperature)
        return value

    def slope(self, outputs: Tensor) -> Tensor:
        """v = d potential / d outputs."""
        v = torch.zeros_like(outputs)
        if self.beta and self.target is not None:
            v = v + self.beta * tasks.loss_slope(self.task, outputs, self.target, self.class_weight)
        if self.gamma:
            v = v + self.gamma * tasks.uncertainty_slope(self.task, outputs, self.temperature)
        return v

    def curvature(self, outputs: Tensor, t: Tensor) -> Tensor:
        """J t, J = dv / d outputs."""
        h = torch.zeros_like(outputs)
        if self.beta and self.target is not None:
            h = h + self.beta * tasks.loss_curvature(self.task, outputs, self.target, t, self.class_weight)
        if self.gamma:
            h = h + self.gamma * tasks.uncertainty_curvature(self.task, outputs, t, self.temperature)
        return h
