r"""The penalty in closed form, with plain torch operations: no double backward.

With $s = Wz + b$, $v = \partial(\beta\ell + \gamma u)/\partial s$, $J = \partial v/\partial s$ and
$g = \partial E/\partial z = 2\alpha z + W^\top v$, upstream gradients $a$ of E and $w$ of P give

$$h = J\,(2wWg), \quad dz = (4\alpha w + a)\,g + W^\top h, \quad
  dW = \textstyle\sum v\,(2wg + az)^\top + h z^\top, \quad db = \sum h + av.$$

With $g$ written out, $k = 4\alpha w + a$ and $u = kv + h$, the features' gradient needs neither $g$ nor $s$:

$$dz = 2\alpha k z + W^\top u.$$

Both directions read the features once, in blocks of rows that stay in the cache of a CPU. Head outputs and all that
derives from them are columns, `(width, M, B)`: see `task_formulas.HeadOutputs`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from modbalance.kernels.autograd import apply, forbid_double_backward, inside_vmap
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.presence import select
from modbalance.task_formulas import HeadOutputs

FEW = 1 << 16  # feature entries a modality
BLOCK = 1 << 20  # feature entries, all modalities together: measured best for 1 and for 2 threads


def energy_penalty(
    terms: EnergyTerms,
    mask: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Energies and squared gradient norms `(M, B)` under linear heads."""
    if mask is not None and on_cpu(mask) and bool(mask.all()):
        mask = None
    options, target, class_weight = terms.with_target(None, None), *terms[-2:]
    tensors = [*features, *weights, *biases]
    energy, penalty, *_ = apply(
        _Penalty, tensors, options, torch.is_grad_enabled(), mask, target, class_weight, *tensors
    )
    return energy, penalty


class _Penalty(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        options, differentiable, mask, target, class_weight, *tensors = arguments
        modalities = len(tensors) // 3
        heads = tensors[modalities:]
        blocks = Blocks(tensors[:modalities])
        parts = [
            _values(options.with_target(y, class_weight), differentiable, here, z, heads)
            for y, here, *z in blocks.split((target, 0), (mask, 1), *((z, 0) for z in tensors[:modalities]))
        ]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(x, -1) for x in zip(*parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, _, mask, _, _, *tensors = inputs
        modalities = len(tensors) // 3
        ctx.options = options
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, *output[2:], *tensors[: 2 * modalities])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        d_energy, d_penalty = upstream[:2]
        if d_penalty is None:
            if d_energy is None:
                return (None,) * len(ctx.needs_input_grad)
            d_penalty = torch.zeros_like(d_energy)
        gradients = forbid_double_backward(
            "analytic", _backward, ctx.options, ctx.needs_input_grad[5:], d_energy, d_penalty, *ctx.saved_tensors
        )
        return None, None, None, None, None, *gradients


# autograd.Function works the signature out anew at every call, a tenth of the time of a small batch.
_Penalty.forward.__signature__ = inspect.signature(_Penalty.forward)  # type: ignore[attr-defined]


def _values(*arguments: Any) -> tuple[Tensor, ...]:
    value, size, *rest = forward(*arguments)
    return value + size, *rest


def forward(
    terms: EnergyTerms,
    differentiable: bool,
    mask: Tensor | None,
    features: Sequence[Tensor],
    heads: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Of a block of rows, `(M, B)`: beta l + gamma u, alpha ||z||^2 and the penalty.

    Where `differentiable` also what the backward needs, v and J W g, `(width, M, B)`.
    """
    weights, biases = heads[: len(features)], heads[len(features) :]
    if _few(features):
        return _forward_stacked(terms, differentiable, mask, features, weights, biases)
    if mask is not None:
        features = [select(z, here) for z, here in zip(features, mask, strict=True)]
    triples = zip(features, weights, biases, strict=True)
    at = HeadOutputs(torch.stack([torch.addmm(b[:, None], w, z.T) for z, w, b in triples], 1))
    value, v = terms.value(at), terms.slope(at)
    if mask is not None:
        value, v = select(value, mask), torch.where(mask, v, 0.0)
    alphas = terms.norm_weights(features)
    norms, t = [], []
    for alpha, z, w, slope in zip(alphas, features, weights, v.unbind(1), strict=True):
        g = torch.addmm(z, slope.T, w, beta=2 * alpha)
        # The squares of g, never the Gram matrix of W: that form cancels as the penalty shrinks.
        norms.append(torch.linalg.vector_norm(g, dim=1))
        if differentiable:
            t.append(w @ g.T)
    penalty = torch.stack(norms).square()
    if terms.alpha:
        size = _scale(torch.stack([torch.linalg.vector_norm(z, dim=1) for z in features]).square(), alphas)
    else:
        size = torch.zeros_like(penalty)
    return (value, size, penalty, v, terms.curvature(at, torch.stack(t, 1))) if t else (value, size, penalty)


def _forward_stacked(
    terms: EnergyTerms,
    differentiable: bool,
    mask: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """As `forward`, all modalities by each operation: on a few rows it is starting one that takes the time."""
    z, w = torch.stack(list(features)), torch.stack(list(weights))
    if mask is not None:
        z = select(z, mask)
    at = HeadOutputs(torch.baddbmm(torch.stack(list(biases))[:, :, None], w, z.mT).transpose(0, 1))
    value, v = terms.value(at), terms.slope(at)
    if mask is not None:
        value, v = select(value, mask), torch.where(mask, v, 0.0)
    alpha = terms.norm_weight(z.shape[2])
    g = torch.baddbmm(z, v.permute(1, 2, 0), w, beta=2 * alpha)
    penalty, size = (torch.linalg.vector_norm(x, dim=2).square() for x in (g, z))
    values = value, size * alpha, penalty
    return (*values, v, terms.curvature(at, (w @ g.mT).transpose(0, 1))) if differentiable else values


def _backward(
    options: EnergyTerms,
    needs: Sequence[bool],
    d_energy: Tensor | None,
    d_penalty: Tensor,
    mask: Tensor | None,
    slopes: Tensor,
    curvatures: Tensor,
    *tensors: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of features, weights and biases, None where `needs` is false."""
    modalities = len(tensors) // 2
    features, weights = tensors[:modalities], tensors[modalities:]
    if mask is not None:
        d_penalty = select(d_penalty, mask)
        d_energy = None if d_energy is None else select(d_energy, mask)
    cut = Blocks(features)
    dz = [torch.empty_like(z) if need and cut.count > 1 else None for z, need in zip(features, needs, strict=False)]
    total: list[Tensor | None] = []
    by_row = [(mask, 1), (d_energy, 1), (d_penalty, 1), (slopes, 2), (curvatures, 2)]
    for here, a, w, v, h, *blocks in cut.split(*by_row, *((x, 0) for x in (*features, *dz))):
        z, out = blocks[:modalities], blocks[modalities:]
        if here is not None:
            z = [select(x, keep) for x, keep in zip(z, here, strict=True)]
        written, part = _backward_block(options, needs, a, w, v, h, z, weights, out)
        total = [_add(x, y) for x, y in zip(total, part, strict=True)] if total else part
    return *(written if cut.count == 1 else dz), *total


def _backward_block(
    options: EnergyTerms,
    needs: Sequence[bool],
    a: Tensor | None,
    w: Tensor,
    v: Tensor,
    h: Tensor,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    out: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients of a block of features, in `out` where it is given, and its share of those of the heads."""
    modalities = len(features)
    needs_z, needs = needs[:modalities], needs[modalities:]
    alphas = options.norm_weights(features)
    w = 2 * w
    h, k = h * w, _scale(w, [2 * alpha for alpha in alphas])
    k = k if a is None else k + a
    u = torch.addcmul(h, k, v)
    if _few(features) and all(into is None for into in out):
        return _gradients_stacked(alphas[0], needs_z, needs, a, w, v, h, k, u, features, weights)
    columns = zip(alphas, features, weights, u.unbind(1), k, needs_z, out, strict=True)
    dz = [
        torch.addmm(z * c[:, None], row.T, weight, beta=2 * alpha, out=into) if need else None
        for alpha, z, weight, row, c, need, into in columns
    ]
    dw: list[Tensor | None] = [None] * modalities
    db: list[Tensor | None] = [None] * modalities
    if any(needs):
        # Not with u and W v: summed over the rows their terms cancel as the penalty shrinks, so g once more.
        pull, push = h if a is None else torch.addcmul(h, a, v), w * v
        rows = zip(alphas, features, weights, v.unbind(1), pull.unbind(1), push.unbind(1), strict=True)
        for m, (alpha, z, weight, slope, row, pushed) in enumerate(rows):
            if needs[m]:
                g = torch.addmm(z, slope.T, weight, beta=2 * alpha)
                dw[m] = torch.addmm(pushed @ g, row, z)
            if needs[modalities + m]:
                db[m] = row.sum(-1)
    return dz, [*dw, *db]


def _gradients_stacked(
    alpha: float,
    needs_z: Sequence[bool],
    needs_heads: Sequence[bool],
    a: Tensor | None,
    w: Tensor,
    v: Tensor,
    h: Tensor,
    k: Tensor,
    u: Tensor,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """As the loop of `_backward_block`, all modalities by each operation."""
    modalities = len(features)
    z, weight = torch.stack(list(features)), torch.stack(list(weights))
    gradients: list[Any] = [None] * 3 * modalities
    if any(needs_z):
        gradients[:modalities] = torch.baddbmm(z * k[:, :, None], u.permute(1, 2, 0), weight, beta=2 * alpha).unbind()
    if any(needs_heads):
        g = torch.baddbmm(z, v.permute(1, 2, 0), weight, beta=2 * alpha)
        pull = (h if a is None else torch.addcmul(h, a, v)).transpose(0, 1)
        gradients[modalities : 2 * modalities] = torch.baddbmm((w * v).transpose(0, 1) @ g, pull, z).unbind()
        gradients[2 * modalities :] = pull.sum(-1).unbind()
    kept: list[Tensor | None] = [
        x if need else None for x, need in zip(gradients, (*needs_z, *needs_heads), strict=True)
    ]
    return kept[:modalities], kept[modalities:]


def _few(features: Sequence[Tensor]) -> bool:
    """Whether there is so little that a copy of all features costs less than an operation on each."""
    first = features[0]
    return first.numel() <= FEW and on_cpu(first) and all(z.shape == first.shape for z in features)


def _scale(x: Tensor, weights: Sequence[float]) -> Tensor:
    """Row m of x times weights[m]."""
    if len(set(weights)) == 1:
        return x * weights[0]
    return torch.stack([row * weight for row, weight in zip(x, weights, strict=True)])


def _add(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return None if total is None or part is None else total.add_(part)


class Blocks:
    """Blocks of rows whose features stay in the cache of a CPU; one block where that is no use."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        batch, width = features[0].shape[0], sum(z.shape[1] for z in features)
        rows = max(BLOCK // max(width, 1), 1)
        self.count = -(-batch // rows) if on_cpu(features[0]) and batch > rows else 1
        self.rows = -(-batch // self.count)

    def split(self, *tensors: tuple[Tensor | None, int]) -> Iterator[tuple[Any, ...]]:
        """Block after block of tensors that hold rows in the given dimension; None stays None."""
        if self.count == 1:
            return iter([tuple(x for x, _ in tensors)])
        return zip(
            *([None] * self.count if x is None else torch.split(x, self.rows, d) for x, d in tensors), strict=True
        )


def on_cpu(x: Tensor) -> bool:
    """Whether looking at values is free: not on a device, not while compiling."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not inside_vmap()
