"""`.mat` of MATLAB 5 to 7: variables in the fields of the .npz layout, numbers and char arrays only."""

from __future__ import annotations

import math
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError, listed

MAGIC = b"MATLAB 5.0 MAT-file"
_MOST_UNPACKED = 2**28  # bytes, and 200 times the file
_CLASSES = {
    *("double", "single", "logical", "char"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def is_matlab(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def read_matlab(file: Path) -> dict[str, Any]:
    """Arrays by name; char arrays as strings, and columns or rows of the fields that have one number per utterance.

    Raises:
        DataError: a variable is a struct, cell or object, the file would unpack to far more than its size, it is
            corrupt, or `scipy` is not installed.
    """
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as problem:
        raise DataError(
            f"{file}: is a MATLAB file, and scipy is not installed; pip install 'modbalance[formats]'."
        ) from problem
    try:
        most = _MOST_UNPACKED + 200 * file.stat().st_size
        _check_sizes(file, most)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            listing = whosmat(file)
            other = [f"{name} ({kind})" for name, _, kind in listing if kind not in _CLASSES]
            if other:
                raise DataError(
                    f"{file}: holds {listed(other)}, expected numeric and char arrays; save each array as a variable "
                    "of its own: x_text, y, split, and ids with char(ids)."
                )
            if sum(math.prod(map(int, shape)) for _, shape, _ in listing) > most:
                raise ValueError("its variables state more than the file holds")
            fields = loadmat(file, chars_as_strings=True)
    except DataError:
        raise
    except Exception as error:  # a corrupt file can fail in any way
        raise DataError(
            f"{file}: cannot be read ({type(error).__name__}: {str(error)[:200]}), expected a whole MATLAB 5 to 7 "
            "file; write it again with save(…, '-v7')."
        ) from error
    return {name: _field(name, x) for name, x in fields.items() if not name.startswith("__")}


def _field(name: str, x: Any) -> Any:
    """MATLAB has no vectors: `(N, 1)` and `(1, N)` are columns, except of features and labels of several columns."""
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.kind == "U":
        return (
            [str(value).rstrip() for value in x.ravel()]
            if name in ("id", "group", "labels")
            else "".join(x.ravel()).strip()
        )
    x = x.ravel() if not name.startswith("x_") and x.ndim == 2 and 1 in x.shape else x
    # all numbers of MATLAB are doubles
    return x.astype(np.int64) if name == "split" and x.dtype.kind == "f" and np.isin(x, (0, 1, 2)).all() else x


def _check_sizes(file: Path, most: int) -> None:
    """What the compressed elements unpack to, counted without keeping it."""
    with file.open("rb") as opened:
        head = opened.read(128)
        order = {b"IM": "little", b"MI": "big"}.get(head[126:128])
        if order is None:
            raise ValueError("its header states no byte order")
        while len(tag := opened.read(8)) == 8:
            kind, size = (int.from_bytes(part, order) for part in (tag[:4], tag[4:]))  # type: ignore[arg-type]
            if kind != 15:  # not compressed
                opened.seek(size, 1)
                continue
            unpack = zlib.decompressobj()
            while size > 0 and (data := opened.read(min(size, 2**16))):
                size -= len(data)
                while data:
                    most -= len(unpack.decompress(data, 2**20))
                    data = unpack.unconsumed_tail
                    if most < 0:
                        raise ValueError("it unpacks to far more than the file")
