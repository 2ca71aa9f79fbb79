"""Labels as the pickles of sentiment hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.dataset import DataError

EMOTIONS = ("neutral", "happy", "sad", "angry")  # MulT's order
# As DialogueRNN and GCNet number them; with four classes excited counts as happy.
IEMOCAP = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
MELD = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
MELD_SENTIMENTS = ("neutral", "positive", "negative")


def iemocap(conversations: Iterable[str], classes: int) -> tuple[str, ...]:
    """Names of IEMOCAP's four or six classes, known by its conversations; else none."""
    known = classes in (4, 6) and all(re.match(r"Ses0\d[MF]_", name) for name in conversations)
    return IEMOCAP[:classes] if known else ()


def sentiment(who: str, what: str, values: Any) -> Tensor:
    """`(N,)` float32 of `(N,)`, `(N, 1)`, `(N, 1, 1)`, or MOSEI's 7 columns, of which the first is sentiment."""
    y = _floats(who, what, values)
    flat = y.reshape(len(y), -1) if y.size else np.zeros((0, 1), np.float32)
    if flat.shape[1] not in (1, 7):
        raise DataError(
            f"{who}: {what} has shape {y.shape}, expected one sentiment per row, or MOSEI's 7 "
            "columns; keep the sentiment alone."
        )
    return torch.from_numpy(flat[:, 0].copy())


def emotions(who: str, what: str, values: Any) -> Tensor | None:
    """`(N, 4)` float32 of 0 and 1 from MulT's `(N, 4, 2)` for IEMOCAP; None for labels of another shape."""
    y = _floats(who, what, values)
    if y.shape[1:] != (len(EMOTIONS), 2):
        return None
    if not np.isfinite(y).all():
        raise DataError(f"{who}: {what} holds NaN or infinities, expected (N, 4, 2) numbers; label these utterances.")
    return torch.from_numpy(y.argmax(-1).astype(np.float32))


def _floats(who: str, what: str, values: Any) -> np.ndarray[Any, Any]:
    try:
        with np.errstate(over="ignore"):
            return np.atleast_1d(np.asarray(values, np.float32))
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{who}: {what} are not numbers ({error}), expected one label per row; recode them."
        ) from None
