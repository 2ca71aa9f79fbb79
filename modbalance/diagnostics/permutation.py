"""Does trust decide anything? Shuffle the weights over the samples, and see whether the score stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from modbalance.diagnostics.score import task_score
from modbalance.tasks import Task

__all__ = ["PermutationTest", "trust_permutation_test"]


class PermutationTest(NamedTuple):
    """What `trust_permutation_test` returns.

    Attributes:
        score: with each sample's own weights.
        permuted: mean score with the weights of other samples.
        spread: standard deviation of that score over the permutations.
        p_value: chance of a score as high with weights that know nothing of their sample.

    Examples:
        >>> found = PermutationTest(score=0.9, permuted=0.9, spread=0.01, p_value=0.5)
        >>> found.score > found.permuted
        False
    """

    score: float
    permuted: float
    spread: float
    p_value: float


@torch.no_grad()
def trust_permutation_test(
    predict: Callable[[dict[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor],
    target: Tensor,
    task: Task = "classification",
    *,
    score: Callable[[Tensor, Tensor], float] | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> PermutationTest:
    r"""Permutation test of weights by sample: if the score stays when they are shuffled, trust decided nothing.

    $$p = \frac{1 + \#\{k : S(w_{\pi_k}) \ge S(w)\}}{1 + K}$$

    Weights are shuffled among the samples that have the same modalities, all modalities of a sample together: each
    sample gets the trust of another, never any in what it lacks.

    Args:
        predict: weights by modality, `(N,)`, to outputs `(N, width)` of the same held-out samples in their order:
            `lambda w: head(distill.fuse(features, w))`, for example.
        weights: by modality, `(N,)`, 0 where absent, as `TrustDistiller` gives them.
        target: as for the task's loss.
        task: `classification`, `multilabel`, `regression` or `gaussian`.
        score: your own measure in place of `task_score`; higher is better.
        permutations: K.
        seed: of the permutations.

    Returns:
        the score, its mean and spread over permutations, and p. A small p means that the weights know something of
        their sample, not that they are the best ones.

    Raises:
        ValueError: the weights differ in length, or no two samples have the same modalities.

    Source: E. J. G. Pitman, Significance tests which may be applied to samples from any populations, 1937; the +1 is
    Phipson and Smyth, Permutation p-values should never be zero, 2010.

    Examples:
        >>> target = torch.arange(40) % 2
        >>> text, audio = torch.eye(2)[target], torch.eye(2)[1 - target]
        >>> right = {"text": torch.ones(40), "audio": torch.zeros(40)}  # the same for all: nothing to shuffle
        >>> predict = lambda w: w["text"][:, None] * text + w["audio"][:, None] * audio
        >>> trust_permutation_test(predict, right, target).p_value
        1.0
    """
    sizes = {name: tuple(w.shape) for name, w in weights.items()}
    if not sizes or set(sizes.values()) != {(len(target),)}:
        raise ValueError(
            f"trust_permutation_test: weights have shapes {sizes}, expected ({len(target)},) as the target has rows; "
            "pass the weights of these samples."
        )
    measure = score or (lambda outputs, y: task_score(task, outputs, y))
    stacked = torch.stack(list(weights.values()), 1)
    _, group = torch.unique(stacked > 0, dim=0, return_inverse=True)
    if int(group.bincount().max()) < 2:
        raise ValueError(
            f"trust_permutation_test: no two of the {len(target)} samples have the same modalities, expected some to "
            "shuffle among; pass more samples."
        )
    generator = torch.Generator().manual_seed(seed)
    own = measure(predict(dict(weights)), target)
    scores = []
    for _ in range(permutations):
        source = _shuffled_within(group.cpu(), generator).to(stacked.device)
        shuffled = dict(zip(weights, stacked[source].unbind(1), strict=True))
        scores.append(measure(predict(shuffled), target))
    reached = sum(x >= own for x in scores)
    return PermutationTest(own, fmean(scores), stdev(scores), (1 + reached) / (1 + permutations))


def _shuffled_within(group: Tensor, generator: torch.Generator) -> Tensor:
    """For each row a row of its own group, each once."""
    order = torch.randperm(len(group), generator=generator)
    order = order[group[order].argsort(stable=True)]
    source = torch.empty_like(order)
    source[group.argsort(stable=True)] = order
    return source
