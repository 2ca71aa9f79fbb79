"""How sure a difference between two methods is, when both were tried with the same seeds on the same samples."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

Scores = np.ndarray  # (seeds, samples)


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


def interval(scores: Scores, *, level: float = 0.95, draws: int = 5000, seed: int = 0) -> Interval:
    """Mean of `(seeds, samples)` with its percentile interval over resampled seeds and, crossed with them, samples.

    For the difference of two methods pass the difference of their scores: what seeds and samples share cancels out.
    With few seeds the interval is somewhat too narrow, as any bootstrap of five values is.

    Source: Efron and Tibshirani, An introduction to the bootstrap, 1993; both axes are resampled as in Owen, The
    pigeonhole bootstrap, 2007.

    Raises:
        ValueError: `scores` is no `(seeds, samples)` of finite numbers.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            f"interval: scores have shape {scores.shape}, expected finite (seeds, samples); pass one row a seed."
        )
    rows, columns = (_counts(size, draws, seed + axis) for axis, size in enumerate(scores.shape))
    means = np.einsum("rn,rn->r", rows @ scores, columns) / scores.size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _counts(size: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `size` is drawn, `(draws, size)`."""
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), draws).astype(np.float64)
