"""How much each modality contributes: Shapley values over coalitions, shares, and how uneven they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

__all__ = ["imbalance", "modality_subsets", "shapley_values", "shares"]


def modality_subsets(modalities: Iterable[str], sizes: Iterable[int] | None = None) -> list[tuple[str, ...]]:
    """The subsets of the modalities, smaller ones first, each in the order given.

    Args:
        modalities: M distinct names.
        sizes: how many modalities a subset has; from 1 to M by default, which leaves out the empty one.

    Returns:
        2^M - 1 tuples by default, the full set last.

    Raises:
        ValueError: there are no names, or one is there twice.

    Examples:
        >>> modality_subsets(["text", "audio"])
        [('text',), ('audio',), ('text', 'audio')]
        >>> modality_subsets(["text", "audio", "vision"], sizes=[2])
        [('text', 'audio'), ('text', 'vision'), ('audio', 'vision')]
    """
    names = list(modalities)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"modality_subsets: modalities is {names}, expected distinct names, at least one; correct them."
        )
    sizes = range(1, len(names) + 1) if sizes is None else sizes
    return [subset for size in sizes for subset in combinations(names, size)]


def shapley_values(value: Callable[[tuple[str, ...]], float], players: Sequence[str]) -> dict[str, float]:
    r"""Exact Shapley value of each player: its mean marginal worth over all orders of joining.

    $$\phi_m = \sum_{S \not\ni m} \frac{|S|!\,(M-|S|-1)!}{M!}\,\bigl(v(S \cup m) - v(S)\bigr)$$

    Args:
        value: worth of a coalition, given in the order of `players`; called once for each of the 2^M.
        players: names of the M modalities.

    Returns:
        by player; the values sum to v(all) - v(none).

    Source: L. S. Shapley, A value for n-person games, 1953.

    Examples:
        >>> shapley_values(lambda coalition: float(len(coalition)), ["text", "audio"])
        {'text': 1.0, 'audio': 1.0}
    """
    total = len(players)
    worth = {s: value(s) for s in modality_subsets(players, range(total + 1))}
    result = dict.fromkeys(players, 0.0)
    for coalition, with_it in worth.items():
        for player in coalition:
            without = tuple(name for name in coalition if name != player)
            weight = math.factorial(len(without)) * math.factorial(total - len(coalition)) / math.factorial(total)
            result[player] += weight * (with_it - worth[without])
    return result


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
