"""Corruption by instance: one modality of half the samples is corrupted, and the model is not informed in which.

`noise` adds Gaussian noise to the features, `frames` drops 70 % of the sequence, `swap` replaces it by another
utterance's, which is in distribution but disagrees with the other modalities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ebmc_msa.data.batch import Batch
from ebmc_msa.data.frames import frame_mask
from ebmc_msa.data.missing import drop_frames
from ebmc_msa.data.rng import normal, order
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.predict import Change
from ebmc_msa.model.encoders import moments

KINDS = ("noise", "frames", "swap")
DROPPED = 0.7
LARGEST = 1024.0  # standard deviations; a modality that noise of this size does not halve is not halved by noise


def half(present: Tensor, seed: int, modality: str) -> Tensor:
    """Mask of the samples to corrupt, `(N,)` bool: half of those that have the modality, rounded down."""
    there = order(present.cpu().nonzero()[:, 0], seed, f"half {modality}")
    mask = torch.zeros(len(present), dtype=torch.bool)
    mask[there[: len(there) // 2]] = True
    return mask


def partners(present: Tensor, seed: int, modality: str) -> Tensor:
    """For each sample of a split that has the modality another one that has it, `(N,)`; each is taken once."""
    there = order(present.cpu().nonzero()[:, 0], seed, f"partner {modality}")
    partner = torch.arange(len(present))
    partner[there] = there.roll(1)
    return partner


def feature_std(split: SplitView, modality: str) -> Tensor:
    """Standard deviation of each feature, `(D,)`, over present samples and valid frames."""
    return moments(split.frames(modality), split.features[modality].shape[-1])[1].float()


def corrupt(
    batch: Batch,
    modality: str,
    kind: str,
    mask: Tensor,
    rows: Tensor,
    seed: int,
    *,
    std: Tensor | None = None,
    others: Batch | None = None,
) -> Batch:
    """`batch` with one modality of some samples corrupted.

    Args:
        modality: the one.
        kind: `noise`, `frames` or `swap`.
        mask: which samples, `(B,)` bool.
        rows: where the samples stand in their split, `(B,)`; the draws depend on it.
        seed: of the draws.
        std: for `noise`, the standard deviation of each feature's noise, `(D,)`.
        others: for `swap`, the utterances to take the features from, one a sample.

    Raises:
        ValueError: the kind is unknown, lacks what it needs, or wants a time axis where there is none.
    """
    length = batch.lengths.get(modality)
    if kind == "noise" and std is not None:
        x = batch.features[modality]
        corrupted = x + std.to(x) * normal(rows, tuple(x.shape[1:]), seed, f"noise {modality}").to(x.device)
        if length is not None:
            valid = frame_mask(x.shape[1], length)
            corrupted = torch.where(valid[..., None], corrupted, 0)
    elif kind == "frames":
        dropped = drop_frames(batch, modality, DROPPED, rows, seed)
        corrupted, length = dropped.features[modality], dropped.lengths[modality]
    elif kind == "swap" and others is not None:
        corrupted, length = others.features[modality], others.lengths.get(modality)
    else:
        raise ValueError(
            f"corrupt: kind {kind!r} without {'others' if kind == 'swap' else 'std'}, expected one of {KINDS}, "
            "noise with its std and swap with others; pass these."
        )
    mask = mask.to(batch.features[modality].device)
    return _mixed(batch, modality, corrupted, length, mask)


def corruption(split: SplitView, modality: str, kind: str, seed: int, std: Tensor | None = None) -> Change:
    """`corrupt` for half of a split, for `predict`: `predict(model, split, corruption(split, "audio", "swap", 0))`.

    Which half: `half(split.present[modality], seed, modality)`, the same for every kind.
    """
    mask, partner = (choose(split.present[modality], seed, modality) for choose in (half, partners))

    def change(batch: Batch, rows: Tensor) -> Batch:
        others = split.rows(partner[rows]) if kind == "swap" else None
        return corrupt(batch, modality, kind, mask[rows], rows, seed, std=std, others=others)

    return change


def _mixed(batch: Batch, modality: str, x: Tensor, length: Tensor | None, mask: Tensor) -> Batch:
    """`x` for the masked samples, the batch's own features for the others."""
    own = batch.features[modality]
    if length is not None:
        frames = max(own.shape[1], x.shape[1])
        own, x = (pad(v, (0, 0) * (v.ndim - 2) + (0, frames - v.shape[1])) for v in (own, x))
        lengths = batch.lengths | {modality: torch.where(mask, length, batch.lengths[modality])}
    else:
        lengths = batch.lengths
    mixed = torch.where(mask.reshape(-1, *[1] * (own.ndim - 1)), x, own)
    return replace(batch, features=batch.features | {modality: mixed}, lengths=lengths)


def halving_size(gain: Callable[[float], float], steps: int = 12) -> float | None:
    """The size of noise at which `gain` is half of that at 0, by bisection; None where no size halves it."""
    whole = gain(0.0)
    if not whole > 0:
        return None
    low, high = 0.0, 1.0
    while gain(high) > whole / 2:
        low, high = high, 2 * high
        if high > LARGEST:
            return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) > whole / 2 else (low, middle)
    return (low + high) / 2
