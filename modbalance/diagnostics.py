"""How much each modality contributes: Shapley shares over coalitions, and shares of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

__all__ = ["gradient_norms", "shapley_values", "shares"]


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
    worth = {s: value(s) for size in range(total + 1) for s in combinations(players, size)}
    result = dict.fromkeys(players, 0.0)
    for coalition, with_it in worth.items():
        for player in coalition:
            without = tuple(name for name in coalition if name != player)
            weight = math.factorial(len(without)) * math.factorial(total - len(coalition)) / math.factorial(total)
            result[player] += weight * (with_it - worth[without])
    return result


def shares(values: Mapping[str, float]) -> dict[str, float]:
    """Values as shares that sum to 1; what is below zero counts as nothing, all equal where nothing is above.

    Examples:
        >>> shares({"text": 3.0, "audio": 1.0, "vision": -1.0})
        {'text': 0.75, 'audio': 0.25, 'vision': 0.0}
    """
    positive = {name: max(x, 0.0) for name, x in values.items()}
    total = sum(positive.values())
    return {name: x / total if total else 1 / len(positive) for name, x in positive.items()}


def gradient_norms(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Norm of the gradients of each modality's module, after `backward()`; 0 where there are none.

    Examples:
        >>> encoder = nn.Linear(2, 1, bias=False)
        >>> encoder(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> gradient_norms({"audio": encoder})
        {'audio': tensor(5.)}
    """
    norms = {}
    for name, module in modules.items():
        gradients = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        norms[name] = torch.stack(gradients).norm() if gradients else torch.zeros(())
    return norms
