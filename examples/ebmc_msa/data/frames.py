"""Padded sequences: valid frames, dropped frames, and the spread of columns."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mask(frames: int, lengths: Tensor) -> Tensor:
    """Which of `frames` are valid, `(N, frames)` bool on the device of `lengths` `(N,)`."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def keep_frames(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The frames of `x` `(B, T, ...)` where `mask` `(B, T)` is true, moved to the front in order, and their number.

    What follows them is the rest of the frames.
    """
    order = (~mask).byte().argsort(dim=1, stable=True).to(x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], order], mask.sum(1)


def std_or_one(std: Tensor, mean: Tensor) -> Tensor:
    """A divisor for each column: its standard deviation, or 1 for a constant column, whose deviation is rounding."""
    return torch.where(std > 1e-6 * mean.abs(), std, 1.0)
