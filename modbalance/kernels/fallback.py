"""What takes over where a kernel cannot be compiled or launched: the same results by plain torch operations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from modbalance.kernels import analytic
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.presence import select
from modbalance.tasks import labelled

failed: dict[tuple[Any, ...], str] = {}  # kernels that cannot be compiled or launched, and why: tried once a process
_warned: set[str] = set()


class LaunchError(RuntimeError):
    """A kernel could not be compiled or launched. What a device reports later is another error."""

    def __init__(self, cause: str) -> None:
        try:
            triton = version("triton")
        except PackageNotFoundError:  # a build of one's own, or pytorch-triton
            triton = "of unknown version"
        self.cause = cause
        super().__init__(
            f"energy_penalty: the Triton backend cannot compile or launch its {cause} "
            f"(torch {torch.__version__}, Triton {triton})"
        )


def warn(error: LaunchError) -> None:
    """Once per process and cause."""
    if error.cause not in _warned:
        _warned.add(error.cause)
        warnings.warn(
            f"{error}; the analytic backend takes over for it. Update Triton and torch as a pair, or pass "
            'backend="analytic" to choose it without this warning.',
            RuntimeWarning,
            stacklevel=2,
        )


def forward(
    terms: EnergyTerms,
    ignore_index: int,
    present: Tensor | None,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    pooled: tuple[float, float, bool] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """As `triton_launcher.forward`."""
    z, w = [x.float() for x in features], [x.float() for x in weights]
    b = [x.float() for x in biases] or [x.new_zeros(len(x)) for x in w]
    counted = torch.ones(len(z), len(z[0]), dtype=torch.bool, device=z[0].device) if present is None else present
    width = len(w[0]) // 2 if terms.task == "gaussian" else len(w[0])
    valid = labelled(terms.task, terms.target, width, ignore_index)
    counted = counted.clone() if valid is None else counted & valid
    value, size, penalty, slopes, curvatures = analytic.forward(terms, True, counted, z, [*w, *b])
    energy = value + size
    if pooled is None:
        return energy, penalty, counted, slopes, curvatures, []
    delta, rate, pull = pooled
    share = 1 / counted.sum(1).clamp(min=1).float()
    there, mean = counted.any(1), value.sum(1) * share
    above = torch.where(there, mean - torch.where(there, mean, torch.inf).amin(0), 0.0) * float(pull)
    modalities = there.sum().clamp(min=1)
    gap, steep = above.square().sum() / modalities, (penalty.sum(1) * share).sum()
    descent = rate * (mean + size.sum(1) * share).sum()
    coefficients = torch.stack([share, 2 * above / modalities * share])
    return (
        energy,
        penalty,
        counted,
        slopes,
        curvatures,
        [gap, steep, descent, gap + delta * steep + descent, coefficients],
    )


def backward(
    alpha: float,
    normalize: bool,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    counted: Tensor,
    slopes: Tensor,
    curvatures: Tensor,
    coefficients: Tensor | None,
    upstream: Sequence[Tensor | None],
    delta: float,
    rate: float,
    needs_features: bool,
    needs_heads: bool,
) -> tuple[list[Tensor], Tensor]:
    """As `triton_launcher.backward`."""
    zero = slopes.new_zeros(())
    a, p, d_gap, d_penalty, d_descent, d_loss = (zero if x is None else x for x in upstream)
    e = zero.expand(counted.shape)
    if coefficients is not None:
        share, pull = coefficients[:, :, None]
        a, p = a + rate * (d_descent + d_loss) * share, p + (d_penalty + delta * d_loss) * share
        e = (d_gap + d_loss) * pull
    a, p, e = (select(x.expand(counted.shape), counted) for x in (a, p, e))
    dz, heads = [], []
    for m, (feature, weight) in enumerate(zip(features, weights, strict=True)):
        z, w = select(feature.float(), counted[m]), weight.float()
        v, h = slopes[:, m], 2 * p[m] * curvatures[:, m]
        scale = 2 * alpha / z.shape[1] if normalize else 2 * alpha
        if needs_features:
            k = 2 * scale * p[m] + a[m]
            dz.append((scale * k[:, None] * z + ((k + e[m]) * v + h).T @ w).to(feature.dtype))
        if needs_heads:
            direct = h + (a[m] + e[m]) * v
            heads += [(2 * p[m] * v) @ (scale * z + v.T @ w) + direct @ z, direct.sum(1)]
    return dz, torch.cat([x.flatten() for x in heads]) if heads else features[0].new_empty(0, dtype=torch.float32)
