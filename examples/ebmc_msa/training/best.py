"""The better of two: weights so far, and scores of the same samples."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ebmc_msa.evaluation.impaired import compared_by
from ebmc_msa.evaluation.metrics import METRICS

Score = TypeVar("Score", float, tuple[float, float])
Weights = dict[str, torch.Tensor]


def better(best: tuple[Score, Weights] | None, score: Score, module: nn.Module) -> tuple[Score, Weights]:
    """The score and a copy of the module's weights where `score` is above that of `best`, else `best` as it was."""
    if best is not None and not score > best[0]:
        return best
    return score, copy.deepcopy(module.state_dict())


def clearly_better(kind: str, scores: np.ndarray, than: np.ndarray) -> bool:
    """Whether a mean of `sample_scores` is better by more than a standard error of the paired difference.

    Of several labels their accuracy is compared. Utterances of one conversation are taken as independent.

    Source: after the one-standard-error rule of Breiman et al., Classification and regression trees, 1984.
    """
    gain = METRICS[compared_by(kind)].sign * (scores - than)
    if len(gain) < 2:
        return False
    # One sample gained of any number is a gain of exactly a standard error, whatever its rounding.
    return bool(gain.mean() > (1 + 1e-9) * gain.std(ddof=1) / math.sqrt(len(gain)))
