"""The terms of the energy: what every backend of the penalty takes besides features and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modbalance import task_formulas as formulas


class EnergyTerms(NamedTuple):
    task: formulas.Task
    alpha: float
    beta: float
    gamma: float
    temperature: float
    normalize: bool
    target: Tensor | None
    class_weight: Tensor | None

    @classmethod
    def of(
        cls, task: formulas.Task, alpha: float, beta: float, gamma: float, temperature: float, *rest: Any
    ) -> EnergyTerms:
        """Adding zero has Dynamo read the numbers here: read first inside an autograd.Function they are lost."""
        return cls(task, alpha + 0.0, beta + 0.0, gamma + 0.0, temperature + 0.0, *rest)

    def with_target(self, target: Tensor | None, class_weight: Tensor | None) -> EnergyTerms:
        return EnergyTerms(*self[:6], target, class_weight)

    def norm_weight(self, dim: int) -> float:
        return self.alpha / dim if self.normalize else self.alpha

    def norm_weights(self, features: Sequence[Tensor]) -> list[float]:
        return [self.norm_weight(z.shape[1]) for z in features]

    def potential(self, outputs: Tensor) -> Tensor:
        """beta loss + gamma uncertainty, `(B,)`: the part of the energy that a head sees."""
        return self.value(formulas.HeadOutputs(outputs.T))

    def value(self, at: formulas.HeadOutputs) -> Tensor:
        """The potential of outputs in columns `(width, ..., B)`."""
        terms = []
        if self.beta and self.target is not None:
            # Ignored labels are masked by the caller, so any label that is out of range will do here.
            terms.append((self.beta, formulas.loss_value(self.task, at, self.target, self.class_weight)))
        if self._has_uncertainty:
            terms.append((self.gamma, formulas.uncertainty_value(self.task, at, self.temperature)))
        return _weighted_sum(terms) if terms else at.outputs.new_zeros(at.outputs.shape[1:])

    def slope(self, at: formulas.HeadOutputs) -> Tensor:
        """v = d potential / d outputs."""
        terms = []
        if self.beta and self.target is not None:
            terms.append((self.beta, formulas.loss_slope(self.task, at, self.target, self.class_weight)))
        if self._has_uncertainty:
            terms.append((self.gamma, formulas.uncertainty_slope(self.task, at, self.temperature)))
        return _weighted_sum(terms) if terms else torch.zeros_like(at.outputs)

    def curvature(self, at: formulas.HeadOutputs, t: Tensor) -> Tensor:
        """J t, J = dv / d outputs."""
        terms = []
        if self.beta and self.target is not None:
            terms.append((self.beta, formulas.loss_curvature(self.task, at, self.target, t, self.class_weight)))
        if self._has_uncertainty:
            terms.append((self.gamma, formulas.uncertainty_curvature(self.task, at, t, self.temperature)))
        return _weighted_sum(terms) if terms else torch.zeros_like(t)

    @property
    def _has_uncertainty(self) -> bool:
        return bool(self.gamma) and self.task != "regression"


def _weighted_sum(terms: list[tuple[float, Tensor]]) -> Tensor:
    (weight, total), *rest = terms
    total = total if weight == 1 else weight * total
    for weight, term in rest:
        total = torch.add(total, term, alpha=weight)
    return total
