"""The best weights so far, by a score where higher is better."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Score = TypeVar("Score", float, tuple[float, float])
Weights = dict[str, torch.Tensor]


def better(best: tuple[Score, Weights] | None, score: Score, module: nn.Module) -> tuple[Score, Weights]:
    """The score and a copy of the module's weights where `score` is above that of `best`, else `best` as it was."""
    if best is not None and not score > best[0]:
        return best
    return score, copy.deepcopy(module.state_dict())
