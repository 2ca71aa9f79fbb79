"""Pickles are strangers' code: admit numpy arrays and plain containers, and nothing else.

Refusing names is not enough. A pickle may also hand numpy a forged dtype, whose raw bytes are then read as
object pointers, so numpy's own constructors are replaced by checked ones and the state of every array and
dtype is checked before numpy sees it.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from .dataset import DataError

_NDARRAY = object()  # stands for the class: never called, so `numpy.ndarray(buffer=...)` cannot happen


def _dtype(spec: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    if not isinstance(spec, str) or not re.fullmatch(r"[<>|=]?([?biufcSU]\d*|O8?)", spec):
        raise DataError(f"dtype {spec!r} is none of bool, number, string or object")
    return np.dtype(spec, copy=True)  # always a copy: the state that follows would alter numpy's own


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    if kind is not _NDARRAY:
        raise DataError(f"an array of class {kind!r} is not a plain numpy array")
    return np.empty(0, np.int8)  # shape, dtype and content follow as state


def _plain(dtype: Any, data: Any) -> None:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, (bytes, bytearray)):
        raise DataError(f"{type(data).__name__} as the content of {dtype!r}, expected bytes of plain values")


def _scalar(dtype: Any, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2
    _plain(dtype, data)
    return np.frombuffer(data, dtype)[0] if dtype.itemsize else dtype.type()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray[Any, Any]:
    _plain(dtype, data)
    array = np.frombuffer(data, dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DataError(f"encoding {encoding!r} is not latin1")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    _ADMITTED[_builtins, "bytes"] = _empty_bytes  # bytes(n) would allocate whatever n says
    for _container in (set, frozenset, list, dict):
        _ADMITTED[_builtins, _container.__name__] = _container


def _check_dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    """Only the byte order may change."""
    if not isinstance(state, tuple) or len(state) != 8:
        raise DataError(f"dtype state {state!r}, expected 8 entries")
    version, order, *structure, size, alignment, flags = state
    if (
        version != 3
        or order not in ("<", ">", "|", "=")
        or any(part is not None for part in structure)
        or size not in (-1, dtype.itemsize)
        or alignment not in (-1, dtype.alignment)
        or not isinstance(flags, int)
        # numpy marks strings with 8 in some versions; every other bit would change how bytes are read
        or (flags != dtype.flags if dtype.hasobject else flags & ~8)
    ):
        raise DataError(f"dtype state {state!r} does not describe {dtype}")


def _check_array_state(state: Any) -> None:
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], np.dtype):
        raise DataError("array state is not (version, shape, dtype, order, content)")
    _, shape, dtype, _, data = state
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise DataError(f"array shape {shape!r} is not a tuple of sizes")
    if dtype.hasobject:
        # numpy reads prod(shape) entries off the list without looking at its length
        if type(data) is not list or len(data) != math.prod(shape):
            raise DataError(f"object array of shape {shape} does not come with that many objects")
    elif not isinstance(data, (bytes, str)) or len(data) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"array of shape {shape} and dtype {dtype} does not come with that many bytes")


# The Python implementation, because only there can BUILD, the opcode that sets state, be overridden.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise DataError(f"it asks for {module}.{name}") from None

    def load_build(self) -> None:
        state, target = self.stack[-1], self.stack[-2]
        if isinstance(target, np.dtype):
            _check_dtype_state(target, state)
        elif type(target) is np.ndarray:
            _check_array_state(state)
        else:
            raise DataError(f"it sets the state of a {type(target).__name__}")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build


def unpickle(path: Path) -> Any:
    """The content of a pickle of numpy arrays and plain containers; Python 2 pickles read as latin1.

    Raises:
        DataError: the pickle asks for anything else, or is cut off or corrupt. Nothing of it has run.
    """
    with path.open("rb") as file:
        return _load(file, path)


def _load(file: BinaryIO, path: Path) -> Any:
    load: Callable[[], Any] = _Unpickler(file, encoding="latin1").load
    try:
        return load()
    except DataError as error:
        raise DataError(
            f"unpickle: {path}: {error}, expected numpy arrays and plain containers only, since a pickle can "
            "run any code; where you trust the file, open it yourself and save its arrays as .npz "
            "(numpy.savez, read here with allow_pickle=False)."
        ) from None
    except Exception as error:  # a corrupt stream can fail in any way; all of them mean the same to the user
        raise DataError(
            f"unpickle: {path} cannot be read as a pickle ({type(error).__name__}: {error}), expected a "
            "whole, uncompressed pickle; compare its size with the source and download or write it again."
        ) from error
