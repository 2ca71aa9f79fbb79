"""The best weights: so far, and of two models."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.impaired import compared_by, sample_scores
from ebmc_msa.evaluation.metrics import METRICS
from ebmc_msa.model.prediction import Model

Score = TypeVar("Score", float, tuple[float, float])
Weights = dict[str, torch.Tensor]


def better(best: tuple[Score, Weights] | None, score: Score, module: nn.Module) -> tuple[Score, Weights]:
    """The score and a copy of the module's weights where `score` is above that of `best`, else `best` as it was."""
    if best is not None and not score > best[0]:
        return best
    return score, copy.deepcopy(module.state_dict())


def clearly_better(model: Model, than: Model, split: SplitView) -> bool:
    """Whether a model's mean score is better by more than a standard error of the paired difference.

    Source: the one-standard-error rule of Breiman et al., Classification and regression trees, 1984.
    """
    gain = METRICS[compared_by(model.spec.kind)].sign * (sample_scores(model, split) - sample_scores(than, split))
    return len(gain) > 1 and bool(gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)))
