"""Shares of what each modality contributes, and how uneven they are."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["imbalance", "shares"]


def shares(values: Mapping[str, float]) -> dict[str, float]:
    r"""Values as shares that sum to 1: $p_m = \max(v_m, 0) / \sum_n \max(v_n, 0)$.

    Args:
        values: by modality; what is below zero counts as nothing.

    Returns:
        by modality; all equal where no value is above zero.

    Examples:
        >>> shares({"text": 3.0, "audio": 1.0, "vision": -1.0})
        {'text': 0.75, 'audio': 0.25, 'vision': 0.0}
    """
    positive = {name: max(x, 0.0) for name, x in values.items()}
    total = sum(positive.values())
    return {name: x / total if total else 1 / len(positive) for name, x in positive.items()}


def imbalance(values: Mapping[str, float]) -> float:
    r"""How unevenly the modalities share something, from 0 to 1.

    $$I = \frac{M}{2\,(M-1)} \sum_m \left| p_m - \frac{1}{M} \right|, \qquad p = \text{shares}(v)$$

    The sum over two is the part that would have to change hands for all to have the same; it is divided by its
    greatest possible value. 0: all have the same share. 1: one has everything. For two modalities it is the
    difference of their shares. The order of the modalities and a common positive factor change nothing.

    Args:
        values: by modality, Shapley values for example; what is below zero counts as nothing.

    Returns:
        a number in [0, 1]; 0 for a single modality, and where no value is above zero.

    Source: ours; the total variation distance from equal shares, normalised.

    Examples:
        >>> imbalance({"text": 3.0, "audio": 1.0})
        0.5
        >>> imbalance({"text": 2.0, "audio": 0.0, "vision": -1.0})
        1.0
    """
    total = len(values)
    if total < 2:
        return 0.0
    return total / (2 * (total - 1)) * sum(abs(p - 1 / total) for p in shares(values).values())
