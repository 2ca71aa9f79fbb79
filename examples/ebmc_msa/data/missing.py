"""Missing modalities and frames: which conditions to test, and how to switch them off.

Absent means absent: a modality goes by its presence, a frame by leaving the sequence, which grows shorter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ebmc_msa.data.batch import Batch
from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.dataset import DataError, canonical
from ebmc_msa.data.frames import frame_mask, keep_frames
from ebmc_msa.data.rng import uniform
from modbalance.diagnostics import modality_subsets
from modbalance.dropout import modality_dropout
from modbalance.presence import select


def conditions(modalities: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What to keep, by name, the full set last: `{"text": ("text",), ..., "text+audio": ("text", "audio")}`.

    Up to three modalities: every subset. More: each alone, each left out, all.
    """
    names = list(modalities)
    modality_subsets(names, [1])  # refuses names that are not distinct
    sizes = None if len(names) <= 3 else (1, len(names) - 1, len(names))
    return {"+".join(kept): kept for kept in modality_subsets(canonical(names), sizes)}


def dropout_rates(rate: float | tuple[tuple[str, float], ...], modalities: Iterable[str]) -> dict[str, float]:
    """The rate of modality dropout in training, by modality; `rate` is one for all, or pairs of name and rate.

    Raises:
        DataError: the pairs lack one of `modalities`.
    """
    names = list(modalities)
    if not isinstance(rate, tuple):
        return dict.fromkeys(names, rate)
    given = dict(rate)
    if not set(names) <= set(given):
        raise DataError(f"--modality-dropout: {sorted(given)}, expected a rate for each of {names}; name them all.")
    return {name: given[name] for name in names}


def unequal_rates(modalities: Iterable[str]) -> list[dict[str, float]]:
    """Missing rates from 0.1 for the first modality to 0.9 for the last, evenly spaced, and the reverse."""
    names = canonical(modalities)
    rates = [round(0.1 + 0.8 * i / max(len(names) - 1, 1), 2) for i in range(len(names))]
    return [dict(zip(names, rates, strict=True)), dict(zip(names, reversed(rates), strict=True))]


def restrict(present: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
    """Presence with only `keep` left on; rows that had none of these are left with nothing."""
    unknown = set(keep) - set(present)
    if unknown:
        raise ValueError(
            f"restrict: keep names {sorted(unknown)}, expected some of {list(present)}; correct the names."
        )
    return {name: here if name in keep else torch.zeros_like(here) for name, here in present.items()}


def missing_at_random(
    present: Mapping[str, Tensor],
    rate: float | Mapping[str, float],
    seed: int,
    conversation: Conversation | None = None,
) -> dict[str, Tensor]:
    """Presence of a whole split with each modality missing with probability `rate`; every row keeps one it had.

    With `conversation` it is missing from all utterances of a conversation or from none.

    The draw of a modality does not depend on the others or on the rate: what is missing at a rate is missing at
    every higher one. See `modbalance.modality_dropout`.

    Args:
        present: by modality, bool `(N,)`.
        rate: from 0 to 1; one number, or one by modality.
        seed: of the draws.
    """
    rows = torch.arange(len(next(iter(present.values()))))
    if conversation is not None:
        rows = conversation.id.cpu()
    draw = torch.cat([uniform(rows, 1, seed, f"missing {name}") for name in present], -1)
    return modality_dropout(present, rate, uniform=draw)


def drop_frames(batch: Batch, modality: str, rate: float, rows: Tensor, seed: int) -> Batch:
    """`batch` with `rate` of each sequence's valid frames gone, rounded, at least one kept; the others close ranks.

    Args:
        modality: one with a time axis.
        rate: 0 to 1.
        rows: where the samples stand in their split, `(B,)`; the draws depend on it.
        seed: of the draws; what is gone at a rate is gone at every higher one.

    Raises:
        ValueError: the modality has no time axis, or the rate is none.
    """
    _check_rate("drop_frames", rate)
    if modality not in batch.lengths:
        raise ValueError(
            f"drop_frames: {modality} has no time axis, expected one of {list(batch.lengths)}; name one of these."
        )
    x, lengths = batch.features[modality], batch.lengths[modality].cpu()
    draw = torch.where(frame_mask(x.shape[1], lengths), uniform(rows, x.shape[1], seed, f"frames {modality}"), 0)
    left = (lengths.double() * (1 - rate)).round().long().clamp(min=1).minimum(lengths)
    kept = draw.argsort(-1, descending=True).argsort(-1) < left[:, None]
    x = select(keep_frames(x, kept)[0], frame_mask(x.shape[1], left).to(x.device))
    features, lengths = batch.features | {modality: x}, batch.lengths | {modality: left.to(x.device)}
    return replace(batch, features=features, lengths=lengths)


def _check_rate(who: str, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"{who}: rate {rate}, expected a probability from 0 to 1; correct it.")
