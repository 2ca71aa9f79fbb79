"""One modality of one split, from whatever the file holds to what a model may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from reprlib import repr as short
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.dataset import DataError

Array = np.ndarray[Any, Any]
Assemble = Callable[[tuple[int, ...], "np.dtype[Any]", Iterator[Array]], Tensor]  # of a shape, from blocks of rows
BLOCK = 2**24  # bytes


class Modality(NamedTuple):
    features: Tensor
    lengths: Tensor | None
    present: Tensor


def in_memory(shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterator[Array]) -> Tensor:
    out, start = np.empty(shape, dtype), 0
    for block in blocks:
        out[start : start + len(block)] = block
        start += len(block)
    return torch.from_numpy(out)


def clean(
    who: str,
    x: Any,
    *,
    lengths: Any = None,
    present: Any = None,
    ids: Sequence[str] | None = None,
    padding: Literal["last", "first"] = "last",
    assemble: Assemble = in_memory,
) -> Modality:
    """Float32 (float16 stays), infinities and padding to zero, rows without a valid frame counted as absent.

    Works through blocks of rows, so that an array that lies in a file is never read whole.

    Args:
        who: file, split and modality, for the messages.
        x: `(N, D)` or `(N, T, D)`; `(N, 1, D)` becomes `(N, D)`.
        lengths: valid frames per row; without them, all but the zero frames on the side of the padding.
        present: bool per row; all True without it.
        ids: names of the rows, for the messages.
        padding: where it is; after cleaning it comes last.
        assemble: where the rows go; into one tensor in memory by default.

    Raises:
        DataError: shape, dtype or length is none of these, or a value of a present row is NaN.
    """
    x = numbers(who, x)
    rows = len(x)
    present = np.ones(rows, bool) if present is None else _column(who, "present", present, rows) != 0
    single = x.ndim == 3 and x.shape[1] == 1
    if x.ndim == 3:
        frames = x.shape[1]
        # before zeroing infinities: a frame of -inf is a frame
        lengths = valid_frames(x, padding) if lengths is None else _column(who, "lengths", lengths, rows)
        if rows and (lengths.min() < 0 or lengths.max() > frames):
            raise DataError(
                f"{who}: lengths run from {lengths.min()} to {lengths.max()}, expected 0 to {frames}, the "
                "frames of the array; correct the lengths or pad the array."
            )
        present = present & (lengths > 0)
        lengths = np.where(present, lengths, 0)
    elif lengths is not None:
        raise DataError(f"{who}: lengths came with features of shape {x.shape}, expected (N, T, D); drop them.")

    dtype = np.dtype(np.float16 if x.dtype.kind == "f" and x.dtype.itemsize == 2 else np.float32)
    broken: list[int] = []

    def blocks() -> Iterator[Array]:
        for part in row_blocks(x):
            with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 becomes infinite, and then zero
                block = x[part].astype(dtype)
            if lengths is not None:
                if padding == "first":
                    for row, length in zip(block, lengths[part], strict=True):
                        row[:length] = row[frames - length :].copy()
                block[np.arange(frames) >= lengths[part, None]] = 0
            block[~present[part]] = 0
            block[np.isinf(block)] = 0  # log-energies of silence, as MMSA's audio has them
            bad = np.isnan(block).any(tuple(range(1, block.ndim)))
            broken.extend((part.start + np.flatnonzero(bad)).tolist())
            yield block[:, 0] if single else block

    shape = (rows, x.shape[-1]) if single else x.shape
    features = assemble(shape, dtype, blocks())
    if broken:
        first = ids[broken[0]] if ids and len(ids) == rows else f"row {broken[0]}"
        raise DataError(
            f"{who}: NaN in {len(broken)} of {rows} rows (first: {first}), expected finite features; "
            "recompute them or mark the modality as absent there."
        )
    return Modality(
        features,
        None if lengths is None or single else torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(present),
    )


def row_blocks(x: Array | Tensor) -> Iterator[slice]:
    """Rows of `x` by blocks of some megabytes."""
    step = max(1, BLOCK // max(1, x[:1].nbytes)) if len(x) else 1
    return (slice(start, min(start + step, len(x))) for start in range(0, len(x), step))


def valid_frames(x: Array, padding: Literal["last", "first"]) -> Array:
    """By row, all frames but the zero ones on the side of the padding; zero frames elsewhere are frames."""
    return reach(filled_frames(x), padding)


def filled_frames(x: Array) -> Array:
    """`(N, T)`: which frames hold anything but zeros."""
    return np.concatenate([np.zeros((0, x.shape[1]), bool), *((x[part] != 0).any(2) for part in row_blocks(x))])


def reach(filled: Array, padding: Literal["last", "first"]) -> Array:
    """`valid_frames` of what `filled_frames` found."""
    ahead = filled if padding == "first" else filled[:, ::-1]
    return np.where(filled.any(1), filled.shape[1] - ahead.argmax(1), 0)


def numbers(who: str, x: Any) -> Array:
    """An array (N, D) or (N, T, D) of whatever type of number the file has."""
    try:
        if not isinstance(x, np.ndarray) or x.dtype == object:
            with np.errstate(over="ignore"):
                x = np.asarray(x, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
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


def _column(who: str, what: str, values: Any, rows: int) -> Array:
    try:
        plain = isinstance(values, np.ndarray) and values.dtype.kind in "fiub"
        column = (values if plain else np.asarray(values, np.float64)).reshape(-1)
        with np.errstate(invalid="ignore"):  # NaN casts to a number it does not equal
            whole = column.astype(np.int64)
        exact = bool((whole == column.astype(np.float64)).all())
    except (ValueError, TypeError, OverflowError):
        exact = False
    if not exact or len(column) != rows:
        raise DataError(
            f"{who}: {what} came as {short(values)}, expected {rows} whole numbers, one per row; write "
            "one for each row."
        )
    return whole
