"""Double backward through any head: the oracle of the closed forms, and the path for non-linear heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.presence import select


def energy_penalty(
    terms: EnergyTerms,
    mask: Tensor | None,
    features: Sequence[Tensor],
    heads: Sequence[Callable[[Tensor], Tensor]],
) -> tuple[Tensor, Tensor]:
    """Energies and squared gradient norms `(M, B)`; each head maps `(B, D_m)` to `(B, width)`, row by row."""
    rows = []
    for m, (z, head) in enumerate(zip(features, heads, strict=True)):
        here = z.new_ones(z.shape[0], dtype=torch.bool) if mask is None else mask[m]
        energy, gradient = energy_and_gradient(terms, select(z, here), head)
        rows.append((select(energy, here), select(gradient.square().sum(-1), here)))
    energies, penalties = zip(*rows, strict=True)
    return torch.stack(energies), torch.stack(penalties)


def linear_energy_penalty(
    terms: EnergyTerms,
    mask: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    heads = [partial(F.linear, weight=w, bias=b) for w, b in zip(weights, biases, strict=True)]
    return energy_penalty(terms, mask, features, heads)


def energy_and_gradient(terms: EnergyTerms, z: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Energy `(B,)` and its gradient `(B, D)`; both with a graph where gradients are being recorded."""
    if torch.is_inference_mode_enabled():
        target = None if terms.target is None else terms.target.clone()
        with torch.inference_mode(False), torch.no_grad():
            return energy_and_gradient(terms.with_target(target, terms.class_weight), z.clone(), head)
    recording = torch.is_grad_enabled()
    alpha = terms.norm_weight(z.shape[1])
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        outputs = head(z)
        potential = terms.potential(outputs)
        slope = _slope(outputs, z, potential) if terms.beta or terms.gamma else torch.zeros_like(z)
        energy = alpha * z.square().sum(-1) + potential
        gradient = 2 * alpha * z + slope
    return (energy, gradient) if recording else (energy.detach(), gradient.detach())


def _slope(outputs: Tensor, z: Tensor, potential: Tensor) -> Tensor:
    """d potential / dz, by way of v = d potential / d outputs: a head without a second derivative shows there."""
    v = slope = None
    if outputs.requires_grad:
        if potential.requires_grad:
            (v,) = torch.autograd.grad(potential.sum(), outputs, create_graph=True, allow_unused=True)
        v = torch.zeros_like(outputs) if v is None else v
        # Where v is constant it still becomes a variable: what an honest head returns is linear in it.
        v = v if v.requires_grad else v.detach().requires_grad_()
        (slope,) = torch.autograd.grad(outputs, z, v, create_graph=True, allow_unused=True)
    if slope is None or v is None or not slope.requires_grad or not _depends(slope, v):
        raise RuntimeError(
            "energy_penalty: the head returned a gradient without a graph, so the penalty would silently have none; "
            "expected a head that is twice differentiable in its features. Use plain torch operations in it (a "
            "fused kernel often differentiates only once)."
        )
    return slope


def _depends(y: Tensor, x: Tensor) -> bool:
    (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True, allow_unused=True)
    return gradient is not None
