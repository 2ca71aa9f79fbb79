r"""The penalty in closed form, with plain torch operations: no double backward.

With $s = Wz + b$, $v = \partial(\beta\ell + \gamma u)/\partial s$, $J = \partial v/\partial s$ and
$g = \partial E/\partial z = 2\alpha z + W^\top v$, upstream gradients $a$ of E and $w$ of P give

$$h = J\,(2wWg), \quad dz = (4\alpha w + a)\,g + W^\top h, \quad
  dW = \textstyle\sum v\,(2wg + az)^\top + h z^\top, \quad db = \sum h + av.$$
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modbalance.kernels.once import once
from modbalance.kernels.problem import Problem
from modbalance.presence import select


def energy_penalty(
    problem: Problem,
    mask: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Energies and squared gradient norms `(M, B)` under linear heads."""
    if mask is not None:
        features = [select(z, here) for z, here in zip(features, mask, strict=True)]
    options, target, class_weight = problem._replace(target=None, class_weight=None), *problem[-2:]
    energy, penalty, *_ = _Penalty.apply(  # type: ignore[no-untyped-call]
        options, mask, target, class_weight, *features, *weights, *biases
    )
    return energy, penalty


class _Penalty(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        options: Problem,
        mask: Tensor | None,
        target: Tensor | None,
        class_weight: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        problem = options._replace(target=target, class_weight=class_weight)
        energies, penalties, outputs, gradients = [], [], [], []
        for m, (z, w, b) in enumerate(_by_modality(tensors)):
            alpha = problem.norm_weight(z.shape[1])
            s = torch.addmm(b, z, w.T)
            v = problem.slope(s)
            if mask is not None:
                v = select(v, mask[m])
            g = torch.addmm(z, v, w, beta=2 * alpha)
            # The squares of g, never the Gram matrix of W: that form cancels as the penalty shrinks.
            penalties.append(g.square().sum(-1))
            energy = problem.potential(s)
            if alpha:
                energy = torch.add(energy, z.square().sum(-1), alpha=alpha)
            energies.append(energy if mask is None else select(energy, mask[m]))
            outputs.append(s)
            gradients.append(g)
        return torch.stack(energies), torch.stack(penalties), *outputs, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, mask, target, class_weight, *tensors = inputs
        ctx.options = options
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, target, class_weight, *tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        mask, target, class_weight, *saved = ctx.saved_tensors
        d_energy, d_penalty = upstream[:2]
        if d_energy is None and d_penalty is None:
            return (None,) * len(ctx.needs_input_grad)
        some = d_energy if d_energy is not None else d_penalty
        assert some is not None
        d_energy = torch.zeros_like(some) if d_energy is None else d_energy
        d_penalty = torch.zeros_like(some) if d_penalty is None else d_penalty
        needs = ctx.needs_input_grad[4:]
        gradients = once(
            "analytic", _penalty_backward, ctx.options, needs, mask, target, class_weight, d_energy, d_penalty, *saved
        )
        return None, None, None, None, *gradients


def _penalty_backward(
    options: Problem,
    needs: Sequence[bool],
    mask: Tensor | None,
    target: Tensor | None,
    class_weight: Tensor | None,
    d_energy: Tensor,
    d_penalty: Tensor,
    *saved: Tensor,
) -> tuple[Tensor | None, ...]:
    problem = options._replace(target=target, class_weight=class_weight)
    modalities = len(saved) // 5
    if mask is not None:
        d_energy, d_penalty = select(d_energy, mask), select(d_penalty, mask)
    dz: list[Tensor | None] = []
    dw: list[Tensor | None] = []
    db: list[Tensor | None] = []
    for m in range(modalities):
        z, w, _, s, g = saved[m::modalities]
        alpha = problem.norm_weight(z.shape[1])
        a, q = d_energy[m][:, None], 2 * d_penalty[m][:, None]
        h = problem.curvature(s, q * (g @ w.T))
        dz.append(torch.addmm((2 * alpha * q + a) * g, h, w) if needs[m] else None)
        needs_w, needs_b = needs[modalities + m], needs[2 * modalities + m]
        v = problem.slope(s) if needs_w or needs_b else s
        if mask is not None:
            v = select(v, mask[m])
        dw.append(torch.addmm(v.T @ torch.addcmul(a * z, q, g), h.T, z) if needs_w else None)
        db.append((h + a * v).sum(0) if needs_b else None)
    return *dz, *dw, *db


def _by_modality(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    modalities = len(tensors) // 3
    return [tuple(tensors[m::modalities]) for m in range(modalities)]
