"""Random numbers by utterance, which depend on seed, purpose and the row's place in its split, and on nothing else.

So a split read in any chunks, padded to any length and on any device is masked alike. Each row has its own stream
out of Philox (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011), whose integers numpy guarantees for
all its versions and machines; what becomes of them here is exact, `normal` excepted.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch
from torch import Tensor


def uniform(rows: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """`(len(rows), count)` float64 strictly between 0 and 1: 52 random bits and a half, times 2**-52, not rounded."""
    bits = np.empty((len(rows), count), np.uint64)
    for row, out in zip(rows.tolist(), bits, strict=True):
        out[:] = _stream(row, seed, purpose).random_raw(count)
    return torch.from_numpy((bits >> np.uint64(12)) + 0.5) * 2.0**-52


def normal(rows: Tensor, shape: tuple[int, ...], seed: int, purpose: str) -> Tensor:
    """`(len(rows), *shape)` float32; reproducible as far as numpy's own normal numbers are."""
    found = np.empty((len(rows), *shape), np.float32)
    for row, out in zip(rows.tolist(), found, strict=True):
        np.random.Generator(_stream(row, seed, purpose)).standard_normal(dtype=np.float32, out=out)
    return torch.from_numpy(found)


def order(rows: Tensor, seed: int, purpose: str) -> Tensor:
    """`rows` shuffled."""
    return rows[uniform(rows, 1, seed, purpose)[:, 0].argsort(dim=0, stable=True)]


def _stream(row: int, seed: int, purpose: str) -> np.random.Philox:
    return np.random.Philox(key=[seed, crc32(purpose.encode())], counter=[0, 0, 0, row])
