"""Double backward through any head: the oracle of the closed forms, and the path for non-linear heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.kernels.problem import Problem
from modbalance.presence import select


def energy_penalty(
    problem: Problem,
    mask: Tensor | None,
    features: Sequence[Tensor],
    heads: Sequence[Callable[[Tensor], Tensor]],
) -> tuple[Tensor, Tensor]:
    """Energies and squared gradient norms `(M, B)`; each head maps `(B, D_m)` to `(B, width)`, row by row."""
    rows = []
    for m, (z, head) in enumerate(zip(features, heads, strict=True)):
        here = z.new_ones(z.shape[0], dtype=torch.bool) if mask is None else mask[m]
        energy, penalty = _one_modality(problem, select(z, here), head)
        rows.append((select(energy, here), select(penalty, here)))
    energies, penalties = zip(*rows, strict=True)
    return torch.stack(energies), torch.stack(penalties)


def linear_energy_penalty(
    problem: Problem,
    mask: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    heads = [partial(F.linear, weight=w, bias=b) for w, b in zip(weights, biases, strict=True)]
    return energy_penalty(problem, mask, features, heads)


def _one_modality(problem: Problem, z: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    recording = torch.is_grad_enabled()
    alpha = problem.norm_weight(z.shape[1])
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        potential = problem.potential(head(z))
        gradient = 2 * alpha * z
        if potential.requires_grad:
            (slope,) = torch.autograd.grad(potential.sum(), z, create_graph=recording, allow_unused=True)
            if slope is None or (recording and not slope.requires_grad):
                raise RuntimeError(
                    "energy_penalty: the head or loss returned a gradient without a graph, so the penalty would "
                    "silently have none; expected a head that is twice differentiable in its features. Use "
                    "plain torch operations in it (a fused kernel often differentiates only once)."
                )
            gradient = gradient + slope
        energy = alpha * z.square().sum(-1) + potential
        penalty = gradient.square().sum(-1)
    return (energy, penalty) if recording else (energy.detach(), penalty.detach())
