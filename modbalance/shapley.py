"""Shapley values over the subsets of the modalities: exact, or estimated from sampled orders."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import NamedTuple


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


class ShapleyEstimate(NamedTuple):
    """Shapley values from sampled orders.

    Attributes:
        values: by player; they sum to v(all) - v(none) exactly.
        errors: their standard errors, by player.

    Examples:
        >>> ShapleyEstimate({"text": 0.5, "audio": 0.1}, {"text": 0.02, "audio": 0.02}).errors["text"]
        0.02
    """

    values: dict[str, float]
    errors: dict[str, float]


def sampled_shapley_values(
    value: Callable[[tuple[str, ...]], float], players: Sequence[str], *, orders: int = 64, seed: int = 0
) -> ShapleyEstimate:
    r"""Shapley values from some of the M! orders of joining, where 2^M coalitions are too many.

    $$\hat\phi_m = \frac{1}{K} \sum_{k=1}^{K} \tfrac12 \bigl(\Delta_m(\pi_k) + \Delta_m(\bar\pi_k)\bigr), \qquad
      s_m = \operatorname{std}_k / \sqrt K$$

    with $\Delta_m(\pi)$ what m adds to those before it in the order $\pi$, and $\bar\pi$ the reverse of $\pi$: the
    two err in opposite directions.

    Args:
        value: worth of a coalition, given in the order of `players`; called once for each that occurs.
        players: names of the M modalities.
        orders: how many orders, an even number of at least 4; K is half of it.
        seed: of the orders.

    Returns:
        values and their standard errors, by player.

    Raises:
        ValueError: `orders` is odd or below 4.

    Source: Castro et al., Polynomial calculation of the Shapley value based on sampling, 2009; antithetic orders as
    in Mitchell et al., Sampling permutations for Shapley value estimation, JMLR 2022.

    Examples:
        >>> sampled_shapley_values(lambda coalition: float(len(coalition)), ["text", "audio"], orders=4)
        ShapleyEstimate(values={'text': 1.0, 'audio': 1.0}, errors={'text': 0.0, 'audio': 0.0})
    """
    worth: dict[tuple[str, ...], float] = {}

    def once(coalition: tuple[str, ...]) -> float:
        if coalition not in worth:
            worth[coalition] = value(coalition)
        return worth[coalition]

    pairs: dict[str, list[float]] = {name: [] for name in players}
    drawn = sample_orders(players, orders, seed)
    for order in drawn[::2]:
        both = [_marginals(once, players, o) for o in (order, order[::-1])]
        for name in players:
            pairs[name].append((both[0][name] + both[1][name]) / 2)
    return ShapleyEstimate(
        {name: fmean(x) for name, x in pairs.items()},
        {name: stdev(x) / math.sqrt(len(x)) for name, x in pairs.items()},
    )


def sample_orders(players: Sequence[str], orders: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Random orders of the players, each followed by its reverse.

    Args:
        players: their names.
        orders: how many, an even number of at least 4.
        seed: of the orders; the same seed gives the same.

    Returns:
        `orders` tuples.

    Raises:
        ValueError: `orders` is odd or below 4.

    Examples:
        >>> first, reverse, *_ = sample_orders(["text", "audio", "vision"], 4)
        >>> first == reverse[::-1]
        True
    """
    if orders < 4 or orders % 2:
        raise ValueError(f"sample_orders: orders is {orders}, expected an even number of at least 4; pass 64.")
    generator = random.Random(seed)
    drawn = (tuple(generator.sample(list(players), len(players))) for _ in range(orders // 2))
    return [order for first in drawn for order in (first, first[::-1])]


def _marginals(
    value: Callable[[tuple[str, ...]], float], players: Sequence[str], order: tuple[str, ...]
) -> dict[str, float]:
    marginals, joined, before = {}, set(), value(())
    for name in order:
        joined.add(name)
        after = value(tuple(n for n in players if n in joined))
        marginals[name], before = after - before, after
    return marginals
