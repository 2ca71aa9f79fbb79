"""Utterances of different length as one padded array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError

Array = np.ndarray[Any, Any]
_MOST_PADDING = 64  # times what the rows hold, and 256 MB


def stack(where: str, rows: Sequence[Array | None], ids: Sequence[str]) -> tuple[Array, Array | None, Array]:
    """Features `(N, D)` or `(N, T, D)` with padding last, lengths `(N,)` of the latter, and presence `(N,)`.

    Args:
        rows: one array per utterance: `(D,)` everywhere, or `(frames, D)` everywhere; None where it is absent.

    Raises:
        DataError: rows disagree in their features, are no numbers, or one is so long that padding is all there is.
    """
    present = np.array([row is not None and len(row) > 0 for row in rows], bool)
    shapes: dict[tuple[int, ...], str] = {}
    for name, row in zip(ids, rows, strict=True):
        if row is None or not len(row):
            continue
        if row.ndim not in (1, 2) or row.shape[-1] == 0 or row.dtype.kind not in "fiub":
            raise DataError(
                f"{where}: {name} has shape {row.shape} and dtype {row.dtype}, expected numbers (D,) or (frames, D); "
                "save one array of numbers per utterance."
            )
        shapes.setdefault((row.ndim, row.shape[-1]), name)
    if len(shapes) > 1:
        (a, first), (b, second) = list(shapes.items())[:2]
        raise DataError(
            f"{where}: {first} has {a[0]} axes and {a[1]} features, {second} {b[0]} and {b[1]}, expected the same "
            "everywhere; extract them again with one extractor."
        )
    if not shapes:
        raise DataError(f"{where}: every utterance is empty, expected features; leave the modality out.")
    axes, size = next(iter(shapes))
    frames = max(len(row) for row in rows if row is not None and len(row)) if axes == 2 else 1
    padded, held = len(rows) * frames * size, sum(row.size for row in rows if row is not None)
    if padded > _MOST_PADDING * held + 2**26:
        raise DataError(
            f"{where}: the longest of {len(rows)} utterances has {frames:,} frames, to which all would be padded, "
            "expected similar lengths; cut or pool that one."
        )
    half = all(row.dtype == np.float16 for row in rows if row is not None and len(row))
    x = np.zeros((len(rows), frames, size), np.float16 if half else np.float32)
    for place, row in zip(x, rows, strict=True):
        if row is not None and len(row):
            with np.errstate(over="ignore", invalid="ignore"):
                place[: len(row) if axes == 2 else 1] = row
    if axes == 1:
        return x[:, 0], None, present
    return x, np.array([0 if row is None else len(row) for row in rows]), present
