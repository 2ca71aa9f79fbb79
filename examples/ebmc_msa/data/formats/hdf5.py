"""`.h5` and `.hdf5`: datasets in the fields of one of the other layouts, by split or flat."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError

MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_UNPACKED = 2**28  # bytes, and 200 times the file
_MOST_DEPTH = 4
_MOST_OBJECTS = 10_000


def is_hdf5(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(8) == MAGIC or (opened.seek(512), opened.read(8))[1] == MAGIC


def read_hdf5(file: Path) -> dict[str, Any]:
    """Arrays and strings by name, groups as dicts.

    Raises:
        DataError: a link leads out of the file, a dataset is none of numbers or strings, its content lies elsewhere
            or would unpack to far more than the file, or `h5py` is not installed.
    """
    with file.open("rb") as opened:
        if opened.read(19) == b"MATLAB 7.3 MAT-file":
            raise DataError(f"{file}: is a MATLAB 7.3 file, expected version 7; write it with save(…, '-v7').")
    try:
        import h5py
    except ImportError as problem:
        raise DataError(
            f"{file}: is HDF5, and h5py is not installed; pip install 'modbalance[formats]'."
        ) from problem
    try:
        with h5py.File(file, "r", locking=False) as opened:
            return _Reader(h5py, file).group(opened, 0)
    except Exception as error:  # a corrupt file can fail in any way
        raise DataError(
            f"{file}: cannot be read ({str(error).splitlines()[0][:200] if str(error) else type(error).__name__}), "
            "expected HDF5 datasets of numbers or strings within the file; write them again with h5py."
        ) from error


class _Reader:
    def __init__(self, h5py: Any, file: Path) -> None:
        self.h5py = h5py
        self.bytes = _MOST_UNPACKED + 200 * file.stat().st_size  # still to be read
        self.objects = _MOST_OBJECTS

    def group(self, group: Any, depth: int) -> dict[str, Any]:
        if depth > _MOST_DEPTH:
            raise ValueError(f"groups nest deeper than {_MOST_DEPTH}")
        found = {}
        for name in group:
            self.objects -= 1
            if self.objects < 0:
                raise ValueError(f"it holds more than {_MOST_OBJECTS} objects")
            link = group.get(name, getlink=True)
            if not isinstance(link, self.h5py.HardLink):
                raise ValueError(f"{name} is an {type(link).__name__}, which leads elsewhere")
            held = group[name]
            found[name] = (
                self.group(held, depth + 1) if isinstance(held, self.h5py.Group) else self.dataset(name, held)
            )
        return found

    def dataset(self, name: str, x: Any) -> Any:
        if not isinstance(x, self.h5py.Dataset) or x.external or x.is_virtual or x.shape is None:
            raise ValueError(f"{name} is no dataset of its own content")
        size = math.prod(x.shape) * x.dtype.itemsize
        chunk = math.prod(x.chunks) * x.dtype.itemsize if x.chunks else 0
        if size > self.bytes or chunk > max(size, 2**24) or (not size and sum(x.shape) > 10_000):
            raise ValueError(f"{name} of shape {x.shape} would unpack to {max(size, chunk):,} bytes")
        self.bytes -= size
        text = self.h5py.check_string_dtype(x.dtype)
        if text is None:
            if x.dtype.kind not in "fiub":
                raise ValueError(f"{name} has dtype {x.dtype}")
            return x[()]
        if text.length is None:  # libhdf5 never ends on some corrupt files that hold such strings
            raise ValueError(f"{name} holds strings of variable length; write them as np.array(names, 'S')")
        return np.char.decode(x[()], "utf-8", "replace") if x.shape else x[()].decode("utf-8", "replace")
