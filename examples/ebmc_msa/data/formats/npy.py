"""Arrays of .npy files, read by a fixed grammar: nothing is evaluated, and no memory taken before the sizes fit."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_HEADER = re.compile(
    rb"\s*\{\s*'descr'\s*:\s*'([<>|=]?[biufSU]\d{1,9}|\|O)'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,"
    rb"\s*'shape'\s*:\s*\(([\d, L]{0,200})\)\s*,?\s*\}\s*"
)


class Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int  # of the content, in bytes


def read_header(file: BinaryIO, size: int) -> Header:
    """Of a .npy of `size` bytes.

    Raises:
        ValueError: it is none, holds objects or structures, or has another size than its header states.
    """
    magic = file.read(8)
    width = {1: 2, 2: 4}.get(magic[6]) if len(magic) == 8 and magic[:6] == b"\x93NUMPY" else None
    if width is None:
        raise ValueError("it does not begin as a .npy of version 1 or 2")
    length = int.from_bytes(file.read(width), "little")
    if length > 10_000:
        raise ValueError(f"its header has {length} bytes")
    found = _HEADER.fullmatch(file.read(length))
    if not found:
        raise ValueError("its header is not that of an array of numbers or strings")
    if found[1] == b"|O":
        raise ValueError("Object arrays cannot be read without running code")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(n.strip(b" L")) for n in found[3].split(b",") if n.strip())
    start = 8 + width + length
    if math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError(f"shape {shape} of {dtype} does not fit its {size - start} bytes")
    if size == start and sum(shape) > 10_000:  # no memory, but a loop over its rows would never end
        raise ValueError(f"shape {shape} of {dtype} holds nothing")
    return Header(shape, dtype, found[2] == b"True", start)


def read_npy(file: BinaryIO, size: int) -> np.ndarray[Any, Any]:
    """The array of a .npy of `size` bytes."""
    shape, dtype, fortran, start = read_header(file, size)
    flat = np.empty(math.prod(shape), dtype)
    view = memoryview(flat.view(np.uint8)) if flat.nbytes else b""
    done = 0
    while done < len(view):
        got = file.read(min(2**24, len(view) - done))
        if not got:
            raise EOFError(f"it ends after {start + done} of {size} bytes")
        view[done : done + len(got)] = got  # type: ignore[index]
        done += len(got)
    return readable(flat).reshape(shape, order="F" if fortran else "C")


def readable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array itself, its strings checked: numpy takes any four bytes for a character and fails when it is read."""
    if array.dtype.kind == "U" and (array.view(f"{array.dtype.str[0]}u4") > sys.maxunicode).any():
        raise ValueError("it holds strings with characters that do not exist")
    return array


def open_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file, in memory."""
    with path.open("rb") as file:
        return read_npy(file, path.stat().st_size)
