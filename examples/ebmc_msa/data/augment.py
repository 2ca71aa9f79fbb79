"""Corruption as augmentation: noise and frame dropout on single modalities of training samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ebmc_msa.data.batch import Batch
from ebmc_msa.data.frames import frame_mask, keep_frames

SMALLEST, LARGEST = 0.25, 4.0  # standard deviations of each feature
KEPT = 0.1, 0.9  # share of the frames that stay


def corrupt_at_random(batch: Batch, scales: Mapping[str, Tensor], rate: float, generator: torch.Generator) -> Batch:
    """`batch` with each modality of each sample corrupted with probability `rate`, each by itself.

    Gaussian noise, its size drawn log-uniformly between 0.25 and 4 standard deviations, on frames times the root of
    their number, since over these it averages out. Half of the corrupted sequences lose 10 to 90 % of their frames
    instead.

    Args:
        scales: standard deviation of each feature, `(D,)`, by modality; others are left as they are.
        generator: on the CPU.
    """
    features, lengths = dict(batch.features), dict(batch.lengths)
    for name in [name for name in features if name in scales]:  # in order: they share the generator
        x = features[name]
        draw = torch.rand(3, len(x), generator=generator)
        mask = draw[0] < rate
        noisy = mask & (draw[1] < 0.5) if name in lengths else mask
        size = torch.exp(math.log(SMALLEST) + draw[2] * math.log(LARGEST / SMALLEST))
        size = (size * noisy).to(x).reshape(-1, *[1] * (x.dim() - 1))
        if name in lengths:
            size = size * lengths[name].clamp(min=1).sqrt()[:, None, None]
        features[name] = x + size * torch.randn(x.shape, generator=generator).to(x) * scales[name]
        if name in lengths:
            share = torch.where(mask & ~noisy, KEPT[0] + draw[2] * (KEPT[1] - KEPT[0]), 1.0)
            features[name], lengths[name] = drop_frames_at_random(features[name], lengths[name], share, generator)
    return replace(batch, features=features, lengths=lengths)


def drop_frames_at_random(
    x: Tensor, lengths: Tensor, share: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`x` `(B, T, D)` with about `share` of each sample's frames, at least one, drawn at random and in order."""
    valid = frame_mask(x.shape[1], lengths.cpu())
    draw = torch.rand(x.shape[:2], generator=generator).masked_fill(~valid, 2.0)
    keep = valid & ((draw < share[:, None]) | (draw == draw.amin(1, keepdim=True)))
    x, left = keep_frames(x, keep)
    return x, left.to(lengths)
