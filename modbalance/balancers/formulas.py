r"""The published formulas as functions of numbers, one per modality.

With M modalities "the other" of a paper on two becomes the mean of the others that were seen:
$\bar v_m = \operatorname{mean}_{k \ne m,\,k\text{ seen}} v_k$. With two modalities that is the paper's formula.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = [
    "agm_coefficients",
    "blend_weights",
    "cggm_coefficients",
    "ogm_coefficients",
    "pareto_direction",
    "pmr_coefficients",
]


def ogm_coefficients(scores: Tensor, seen: Tensor, *, alpha: float) -> Tensor:
    r"""OGM-GE: how far the gradient of each encoder is scaled down.

    $$\rho_m = s_m / \bar s_m, \qquad k_m = 1 - \tanh(\alpha \rho_m)\,[\rho_m > 1]$$

    Args:
        scores: s, mean probability of the true class from each modality alone, `(M,)`.
        seen: modalities that the batch has, bool `(M,)`.
        alpha: strength of the modulation.

    Returns:
        k, `(M,)`; 1 for a modality that was not seen, or seen alone.

    Examples:
        >>> ogm_coefficients(torch.tensor([0.6, 0.3]), torch.tensor([True, True]), alpha=0.5)
        tensor([0.2384, 1.0000])
    """
    ratio = scores / _others(scores, seen)
    ahead = _several(seen) & (ratio > 1)
    return torch.where(ahead, 1 - torch.tanh(alpha * ratio), 1.0)


def agm_coefficients(errors: Tensor, mean: Tensor, seen: Tensor, *, alpha: float, limit: float = 10.0) -> Tensor:
    r"""AGM: how far the gradient of each encoder is scaled, against where its modality has been so far.

    $$r_m = e^{\bar s_m - s_m}, \qquad \kappa_m = e^{-\alpha (r_m - \tau_m)}$$

    with $\tau$ the same ratio of the mean errors of all steps before.

    Args:
        errors: s, mean error of each modality's share of the fused outputs, `(M,)`.
        mean: its mean over the steps before, `(M,)`.
        seen: modalities that the batch has, bool `(M,)`.
        alpha: strength of the modulation.
        limit: $\tau - r$ is cut here, and the exponent of a ratio at 50, so that nothing overflows.

    Returns:
        kappa, `(M,)`; 1 for a modality that was not seen, or seen alone.

    Examples:
        >>> now, before, seen = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([True, True])
        >>> agm_coefficients(now, before, seen, alpha=1.0)
        tensor([0.5227, 1.4821])
    """
    ratio = (_others(errors, seen) - errors).clamp(max=50).exp()
    before = (_others(mean, seen) - mean).clamp(max=50).exp()
    return torch.where(_several(seen), (alpha * (before - ratio).clamp(max=limit)).exp(), 1.0)


def cggm_coefficients(gains: Tensor, seen: Tensor, *, rho: float) -> Tensor:
    r"""CGGM: the balancing term, larger for a modality whose classifier has improved less than the others'.

    $$B_m = \rho\,\frac{\sum_{k \ne m} \Delta\varepsilon_k}{\sum_k \Delta\varepsilon_k}$$

    Args:
        gains: what the metric of each modality's classifier gained since the step before, `(M,)`.
        seen: modalities that have a gain, bool `(M,)`.
        rho: amplification.

    Returns:
        B, `(M,)`, cut to [0, rho], where the formula lies as long as no modality gets worse; 1 where the gains sum
        to zero, for a modality that was not seen, or seen alone.

    Examples:
        >>> cggm_coefficients(torch.tensor([0.3, 0.1]), torch.tensor([True, True]), rho=1.0)
        tensor([0.2500, 0.7500])
    """
    gains = torch.where(seen, gains, 0.0)
    total = gains.sum()
    term = (rho * (total - gains) / total).clamp(0, rho)
    return torch.where(_several(seen) & (total != 0), term, 1.0)


def pmr_coefficients(scores: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    r"""PMR: whom the prototypes pull, and whose certainty is held back.

    $$\beta_m = \operatorname{clip}(\bar s_m / s_m - 1,\, 0,\, 1), \qquad
      \gamma_m = \operatorname{clip}(s_m / \bar s_m - 1,\, 0,\, 1)$$

    Args:
        scores: s, mean probability of the true class by distance to the prototypes, `(M,)`.
        seen: modalities that the batch has, bool `(M,)`.

    Returns:
        beta and gamma, `(M,)` each; 0 for a modality that was not seen, or seen alone.

    Examples:
        >>> pmr_coefficients(torch.tensor([0.4, 0.6]), torch.tensor([True, True]))
        (tensor([0.5000, 0.0000]), tensor([0.0000, 0.5000]))
    """
    others, several = _others(scores, seen), _several(seen)
    tiny = torch.finfo(scores.dtype).tiny
    pull = (others / scores.clamp(min=tiny) - 1).clamp(0, 1)
    hold = (scores / others.clamp(min=tiny) - 1).clamp(0, 1)
    return torch.where(several, pull, 0.0), torch.where(several, hold, 0.0)


def pareto_direction(fused: Tensor, alone: Tensor, *, gamma: float) -> Tensor:
    r"""MMPareto: a direction that serves the fused and the unimodal loss, never shorter than their sum.

    $h = g + g_u$ where $g \cdot g_u \ge 0$, else $h = 2 a g + 2 (1 - a) g_u$ with $a \in [0, 1]$ of the smallest
    norm, stretched to $\lVert g + g_u \rVert$ where it is shorter; the result is $\gamma h$.

    Args:
        fused: g, gradient of the fused loss, `(P,)`.
        alone: g_u, gradient of the modality's own loss, `(P,)`.
        gamma: what the result is multiplied by.

    Returns:
        `(P,)`. No step along it raises either loss to first order.

    Examples:
        >>> pareto_direction(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0]), gamma=1.0)
        tensor([1.4142, 1.4142])
    """
    plain, gap = fused + alone, alone - fused
    tiny = torch.finfo(fused.dtype).tiny
    a = ((gap @ alone) / (gap @ gap).clamp(min=tiny)).clamp(0, 1)
    shortest = 2 * a * fused + 2 * (1 - a) * alone
    stretch = (plain.norm() / shortest.norm().clamp(min=1e-12)).clamp(min=1)
    return gamma * torch.where(fused @ alone >= 0, plain, stretch * shortest)


def blend_weights(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]], *, floor: float = 0.01
) -> dict[str, float]:
    r"""Gradient Blending: how much each loss gained on held-out data for what it over-fitted, squared.

    $$w_k \propto G_k / O_k^2, \qquad \sum_k w_k = 1, \qquad
      G = L^v_{before} - L^v_{after}, \quad O = (L^v - L^t)_{after} - (L^v - L^t)_{before}$$

    Args:
        before: (training loss, validation loss) of each modality, and of the fused outputs, at a checkpoint.
        after: the same at a later one.
        floor: the least that O counts as; G counts as 0 at least.

    Returns:
        w by name; all equal where nothing gained.

    Raises:
        ValueError: the names differ.

    Examples:
        >>> blend_weights({"audio": (2.0, 2.0), "task": (2.0, 2.0)}, {"audio": (1.0, 1.5), "task": (1.5, 1.75)})
        {'audio': 0.3333333333333333, 'task': 0.6666666666666666}
    """
    if set(before) != set(after) or not before:
        raise ValueError(
            f"blend_weights: before has {sorted(before)} and after {sorted(after)}, expected the same names; "
            "measure the same losses at both checkpoints."
        )
    weights = {}
    for name, (train, valid) in before.items():
        gain = max(valid - after[name][1], 0.0)
        overfit = max((after[name][1] - after[name][0]) - (valid - train), floor)
        weights[name] = gain / overfit**2
    total = sum(weights.values())
    return {name: w / total if total else 1 / len(weights) for name, w in weights.items()}


def _others(values: Tensor, seen: Tensor) -> Tensor:
    """Mean of the other modalities that were seen."""
    kept = torch.where(seen, values, 0.0)
    return (kept.sum() - kept) / (seen.sum() - 1).clamp(min=1)


def _several(seen: Tensor) -> Tensor:
    """Seen, and not the only one."""
    return seen & (seen.sum() > 1)
