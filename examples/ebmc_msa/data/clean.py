"""One modality of one fold, from whatever the file holds to what a model may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .dataset import DataError


class Modality(NamedTuple):
    features: Tensor
    lengths: Tensor | None
    present: Tensor


def clean(
    who: str, x: Any, *, lengths: Any = None, present: Any = None, ids: Sequence[str] | None = None
) -> Modality:
    """Float32, infinities and padding to zero, rows without a valid frame counted as absent.

    Args:
        who: file, fold and modality, for the messages.
        x: `(N, D)` or `(N, T, D)`; `(N, 1, D)` becomes `(N, D)`.
        lengths: valid frames per row; without them, up to the last frame that is not all zeros.
        present: bool per row; all True without it.
        ids: names of the rows, for the messages.

    Raises:
        DataError: shape, dtype or length is none of these, or a value of a present row is NaN.
    """
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and then zero
        x = np.require(numbers(who, x), np.float32, ["C", "W"])
    rows = len(x)
    present = np.ones(rows, bool) if present is None else _column(who, "present", present, rows) != 0
    if x.ndim == 3:
        frames = x.shape[1]
        # before zeroing infinities: a frame of -inf is a frame
        lengths = _trailing(x) if lengths is None else _column(who, "lengths", lengths, rows)
        if rows and (lengths.min() < 0 or lengths.max() > frames):
            raise DataError(
                f"{who}: lengths run from {lengths.min()} to {lengths.max()}, expected 0 to {frames}, the "
                "frames of the array; correct the lengths or pad the array."
            )
        present = present & (lengths > 0)
        lengths = np.where(present, lengths, 0)
        x[np.arange(frames) >= lengths[:, None]] = 0
        if frames == 1:
            x, lengths = x[:, 0], None
    elif lengths is not None:
        raise DataError(f"{who}: lengths came with features of shape {x.shape}, expected (N, T, D); drop them.")
    x[~present] = 0
    x[np.isinf(x)] = 0  # log-energies of silence, as MMSA's audio has them
    broken = np.isnan(x).any(tuple(range(1, x.ndim)))
    if broken.any():
        first = ids[broken.argmax()] if ids and len(ids) == rows else f"row {broken.argmax()}"
        raise DataError(
            f"{who}: NaN in {broken.sum()} of {rows} rows (first: {first}), expected finite features; "
            "recompute them or mark the modality as absent there."
        )
    return Modality(
        torch.from_numpy(x),
        None if lengths is None else torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(present),
    )


def numbers(who: str, x: Any) -> np.ndarray[Any, Any]:
    """An array (N, D) or (N, T, D) of whatever type of number the file has."""
    try:
        x = np.asarray(x)
        if x.dtype == object:
            x = x.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{who}: rows of unequal shape or without numbers ({error}), expected one array (N, D) or (N, T, "
            "D); pad the rows and save them as one array."
        ) from None
    if x.dtype.kind not in "fiub" or x.ndim not in (2, 3) or 0 in x.shape[1:]:
        raise DataError(
            f"{who}: features have shape {x.shape} and dtype {x.dtype}, expected numbers (N, D) or (N, T, "
            "D); save one row per utterance."
        )
    return x


def _column(who: str, what: str, values: Any, rows: int) -> np.ndarray[Any, Any]:
    try:
        column = np.asarray(values).reshape(-1)
        with np.errstate(invalid="ignore"):  # NaN casts to a number it does not equal
            whole = column.astype(np.int64)
        exact = bool((whole == column.astype(np.float64)).all())
    except (ValueError, TypeError):
        exact = False
    if not exact or len(column) != rows:
        raise DataError(
            f"{who}: {what} has shape {np.shape(values)}, expected {rows} whole numbers, one per row; write "
            "one for each row."
        )
    return whole


def _trailing(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Position after the last frame that is not all zeros."""
    filled = (x != 0).any(2)
    return np.where(filled.any(1), x.shape[1] - filled[:, ::-1].argmax(1), 0)
