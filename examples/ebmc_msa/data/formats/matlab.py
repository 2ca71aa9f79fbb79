"""`.mat` of MATLAB 5 to 7: variables in the fields of the .npz layout, numeric and char arrays only.

Read here and not by scipy, whose reader crashes on corrupt files. A file is a header of 128 bytes and a sequence of
elements, perhaps compressed; each is a matrix of elements: flags, sizes, name, content.
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError, listed

MAGIC = b"MATLAB 5.0 MAT-file"
_MOST_UNPACKED = 2**28  # bytes, and 200 times the file
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15  # types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_CHAR = 4
_OTHERS = {1: "cell", 2: "struct", 3: "object", 5: "sparse", 16: "function", 17: "object"}
_COMPLEX, _LOGICAL = 0x0800, 0x0200


def is_matlab(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def read_matlab(file: Path) -> dict[str, Any]:
    """Arrays by name; char arrays as strings, and columns or rows of the fields that have one number per utterance.

    Raises:
        DataError: a variable is a struct, cell or object, the file would unpack to far more than its size, or it is
            corrupt.
    """
    try:
        with file.open("rb") as opened:
            data = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
        if order is None:
            raise ValueError("its header states no byte order")
        fields, other, left = {}, [], _MOST_UNPACKED + 200 * len(data)
        for kind, content in _elements(data[128:], order):
            if kind == _COMPRESSED:
                unpack = zlib.decompressobj()
                content = memoryview(unpack.decompress(content, left))
                left -= len(content)
                if not unpack.eof:
                    raise ValueError("it unpacks to far more than the file, or is cut off")
                ((kind, content),) = _elements(content, order)
            if kind != _MATRIX:
                raise ValueError(f"it holds an element of type {kind}")
            name, value = _matrix(content, order)
            if isinstance(value, str):
                other.append(f"{name} ({value})")
            elif name:  # MATLAB's own data have none
                fields[name] = value
    except Exception as error:  # a corrupt file can fail in any way
        raise DataError(
            f"{file}: cannot be read ({type(error).__name__}: {str(error)[:200]}), expected a whole MATLAB 5 to 7 "
            "file; write it again with save(…, '-v7')."
        ) from error
    if other:
        raise DataError(
            f"{file}: holds {listed(other)}, expected numeric and char arrays; save each array as a variable "
            "of its own: x_text, y, split, and ids with char(ids)."
        )
    return {name: _field(name, x) for name, x in fields.items()}


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element; small ones have both in eight bytes."""
    at = 0
    while at < len(data):
        kind, size = np.frombuffer(data[at : at + 8], f"{order}u4").tolist()
        if small := kind >> 16:
            kind, size, start, end = kind & 0xFFFF, small, at + 4, at + 8
        else:
            start = at + 8
            end = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > min(len(data), end):
            raise EOFError("an element is longer than the file")
        yield kind, data[start : start + size]
        at = end


def _matrix(data: memoryview, order: str) -> tuple[str, Any]:
    """Name and array; of a class that is not read, its name."""
    (flags_kind, flags), (sizes_kind, sizes), (_, name), *contents = _elements(data, order)
    if flags_kind != _UINT32 or len(flags) != 8 or sizes_kind != _INT32:
        raise ValueError("a matrix has no flags or sizes")
    bits = int(np.frombuffer(flags, f"{order}u4")[0])
    kind, title = bits & 0xFF, bytes(name).decode("ascii")
    if kind in _OTHERS or bits & _COMPLEX:
        return title, _OTHERS.get(kind, "complex")
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    if min(shape, default=-1) < 0 or len(shape) > 4:
        raise ValueError(f"{title} has shape {shape}")
    ((content_kind, content),) = contents
    if kind == _CHAR:
        flat = np.array(list(_text(content_kind, content, order)), "U1")
    else:
        flat = np.frombuffer(content, order + _NUMBERS[content_kind]).astype(_CLASSES[kind])
    if len(flat) != math.prod(shape) or (not len(flat) and sum(shape) > 10_000):
        raise ValueError(f"{title} has shape {shape} and {len(flat)} entries")
    array = flat.reshape(shape, order="F")
    return title, array.astype(bool) if bits & _LOGICAL else array


def _text(kind: int, content: memoryview, order: str) -> str:
    encoding = _TEXTS[kind]
    if encoding == "utf-16":
        encoding += "-le" if order == "<" else "-be"
    return bytes(content).decode(encoding)


def _field(name: str, x: np.ndarray[Any, Any]) -> Any:
    """MATLAB has no vectors: `(N, 1)` and `(1, N)` are columns, except of features."""
    if x.dtype.kind == "U":
        rows = ["".join(row).rstrip() for row in x.reshape(len(x), -1)]
        return rows if name in ("id", "group", "labels", "split") else "".join(rows)
    x = x.ravel() if not name.startswith("x_") and x.ndim == 2 and 1 in x.shape else x
    # all numbers of MATLAB are doubles
    return x.astype(np.int64) if name == "split" and x.dtype.kind == "f" and np.isin(x, (0, 1, 2)).all() else x
