"""Pickles are strangers' code: admit numpy arrays and plain containers, and nothing else.

Refusing names is not enough. A pickle may hand numpy a forged dtype, whose raw bytes are then read as object
pointers; it may share one list so often that reading it takes years; it may ask for more memory than there is. So
arrays are built here and not by numpy, opcodes that data never need are left out, keys are plain, and what the
pickle builds is bounded by the size of its file. Large arrays stay in the file, mapped, until somebody reads them.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as short
from typing import Any, ClassVar

import numpy as np

from ebmc_msa.data.dataset import DataError
from ebmc_msa.data.formats.npy import readable

_MOST_STEPS = 5_000_000  # MOSEI's largest pickle takes a tenth of it
_MOST_DEPTH = 16
_LARGE = 2**16  # bytes; what is larger is mapped
_NDARRAY = object()  # stands for the class: never called, so `numpy.ndarray(buffer=...)` cannot happen
_KEYS = (str, bytes, float, bool, type(None), np.generic)


class _Pending:
    """An array that was announced; its shape, dtype and content follow as state."""

    def __init__(self) -> None:
        self.memo: list[int] = []


def _dtype(spec: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    if not isinstance(spec, str) or not re.fullmatch(r"[<>|=]?([?biufSU]\d{0,9}|O8?)", spec):
        raise DataError(f"dtype {short(spec)} is none of bool, number, string or object")
    return np.dtype(spec, copy=True)  # always a copy: the state that follows would alter numpy's own


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Pending:
    if kind is not _NDARRAY:
        raise DataError(f"an array of class {short(kind)} is not a plain numpy array")
    return _Pending()


def _array(shape: Any, dtype: Any, order: str, data: Any) -> np.ndarray[Any, Any]:
    """The array of a pickle, over the bytes that came with it."""
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise DataError(f"array shape {short(shape)} is not a tuple of sizes")
    if not isinstance(dtype, np.dtype):
        raise DataError(f"array dtype {short(dtype)} is none")
    if isinstance(data, str):  # Python 2
        data = data.encode("latin1")
    count = math.prod(shape)
    if dtype.hasobject:
        if type(data) is not list or len(data) != count:
            raise DataError(f"object array of shape {short(shape)} does not come with that many objects")
        array = np.empty(count, object)
        for i, value in enumerate(data):
            array[i] = value
    elif not isinstance(data, (bytes, memoryview)) or len(data) != count * dtype.itemsize:
        raise DataError(f"array of shape {short(shape)} and dtype {dtype} does not come with that many bytes")
    elif not len(data):
        array = np.empty(0 if dtype.itemsize else count, dtype)
    else:
        array = readable(np.frombuffer(data, dtype))
    if not len(data) and sum(shape) > 10_000:  # no memory, but a loop over its rows would never end
        raise DataError(f"array of shape {short(shape)} holds nothing")
    return array.reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _array((), dtype, "C", data)[()]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray[Any, Any]:
    if order == "K" and axes is not None:
        return _array(shape, dtype, "C", data).transpose(axes)
    return _array(shape, dtype, order, data)


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DataError(f"encoding {short(encoding)} is not latin1")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""  # bytes(n) would allocate n bytes, however many


def _list(items: Any = ()) -> list[Any]:
    return list(_items(items))


def _set(items: Any = ()) -> set[Any]:
    return set(_keys(_items(items)))


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_keys(_items(items)))


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    return _filled({}, _items(pairs))


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return _filled(OrderedDict(), _items(pairs))


def _default(factory: Any = None) -> defaultdict[Any, Any]:
    return defaultdict(None)


def _items(items: Any) -> Iterable[Any]:
    if type(items) not in (list, tuple, set, frozenset):
        raise DataError(f"a container is made of a {type(items).__name__}")
    return items  # type: ignore[no-any-return]


def _keys(keys: Iterable[Any]) -> list[Any]:
    """Keys that hash fast and do not collide by design: no tuples, no enormous integers."""
    keys = list(keys)
    for key in keys:
        if not (isinstance(key, _KEYS) or (type(key) is int and abs(key) < 2**60)):
            raise DataError(f"a key is a {type(key).__name__}: {short(key)}")
    return keys


def _filled(target: Any, pairs: Iterable[Any]) -> Any:
    for key, value in pairs:
        target[_keys([key])[0]] = value
    return target


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): _default,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    for _name, _maker in (
        ("bytes", _empty_bytes),
        ("list", _list),
        ("set", _set),
        ("frozenset", _frozenset),
        ("dict", _dict),
    ):
        _ADMITTED[_builtins, _name] = _maker


def _check_dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    """Only the byte order may change."""
    if not isinstance(state, tuple) or len(state) != 8:
        raise DataError(f"dtype state {short(state)}, expected 8 entries")
    version, order, *structure, size, alignment, flags = state
    if (
        type(version) is not int
        or version != 3
        or order not in ("<", ">", "|", "=")
        or any(part is not None for part in structure)
        or size not in (-1, dtype.itemsize)
        or alignment not in (-1, dtype.alignment)
        or not isinstance(flags, int)
        # numpy marks strings with 8 in some versions; every other bit would change how bytes are read
        or (flags != dtype.flags if dtype.hasobject else flags & ~8)
    ):
        raise DataError(f"dtype state {short(state)} does not describe {dtype}")


class _Source:
    """The bytes of a file, read in order and never past their end; large pieces as views."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def read(self, size: int) -> Any:
        if not 0 <= size <= len(self.data) - self.at:
            raise EOFError(f"it asks for {size} bytes where {len(self.data) - self.at} are left")
        piece = self.data[self.at : self.at + size]
        self.at += size
        return bytes(piece) if size < _LARGE else piece

    def readline(self) -> bytes:
        size = 256
        while (end := (line := bytes(self.data[self.at : self.at + size])).find(b"\n") + 1) == 0:
            if size > len(self.data) - self.at:
                raise EOFError("a line does not end")
            size *= 8  # Python 2 wrote whole arrays as one line
        self.at += end
        return line[:end]


# The Python implementation, because only there can an opcode be overridden or left out.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    dispatch: ClassVar[dict[int, Any]] = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if bytes([code])
        not in (
            pickle.LONG4,  # integers of any size
            pickle.PERSID,
            pickle.BINPERSID,
            pickle.EXT1,
            pickle.EXT2,
            pickle.EXT4,
            pickle.NEWOBJ,
            pickle.NEWOBJ_EX,
            pickle.NEXT_BUFFER,
            pickle.READONLY_BUFFER,
        )
    }

    def __init__(self, data: memoryview) -> None:
        self.source = _Source(data)
        super().__init__(self.source, encoding="latin1")
        self.read, self.readline = self.source.read, self.source.readline
        self.budget = 4 * len(data) + 2**20  # entries that calls may copy; each could copy the same large list

    def load(self) -> Any:
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        try:
            for _ in range(_MOST_STEPS):
                self.dispatch[self.read(1)[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        raise DataError(f"it takes more than {_MOST_STEPS:,} steps")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise DataError(f"it asks for {module[:80]}.{name[:80]}") from None

    def _decode_string(self, value: Any) -> Any:
        return value if isinstance(value, memoryview) else value.decode("latin1")

    def _call(self, function: Any, args: tuple[Any, ...]) -> Any:
        self.budget -= sum(len(a) for a in args if isinstance(a, (str, bytes, list, tuple, set, frozenset)))
        if self.budget < 0:
            raise DataError("it copies far more than it holds")
        return function(*args)

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._call(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        if type(args) is not tuple:
            raise DataError(f"it calls with a {type(args).__name__}")
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.dtype):
            _check_dtype_state(target, state)
            target.__setstate__(state)
        elif isinstance(target, _Pending):
            if type(state) is not tuple or len(state) != 5:
                raise DataError("array state is not (version, shape, dtype, order, content)")
            _, shape, dtype, fortran, content = state
            self.stack[-1] = _array(shape, dtype, "F" if fortran is True or fortran == 1 else "C", content)
            for key in target.memo:
                self.memo[key] = self.stack[-1]
        else:
            raise DataError(f"it sets the state of a {type(target).__name__}")

    def _remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], _Pending):
            self.stack[-1].memo.append(key)

    def load_put(self) -> None:
        self._remember(int(self.readline()))

    def load_binput(self) -> None:
        self._remember(self.read(1)[0])

    def load_long_binput(self) -> None:
        self._remember(int.from_bytes(self.read(4), "little"))

    def load_memoize(self) -> None:
        self._remember(len(self.memo))

    def load_frame(self) -> None:
        self.read(8)  # frames are a hint for buffering

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _target(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise DataError(f"it fills a {type(self.stack[-1]).__name__} as if it were a {kinds[0].__name__}")
        return self.stack[-1]

    def load_append(self) -> None:
        value = self.stack.pop()
        self._target(list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._target(list).extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _filled(self._target(dict, OrderedDict, defaultdict), [(key, value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _filled(self._target(dict, OrderedDict, defaultdict), zip(items[::2], items[1::2], strict=True))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_filled({}, zip(items[::2], items[1::2], strict=True)))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._target(set).update(_keys(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(_frozenset(items))


for _step in [name for name in vars(_Unpickler) if name.startswith("load_")]:
    _Unpickler.dispatch[getattr(pickle, _step.removeprefix("load_").upper())[0]] = vars(_Unpickler)[_step]


def weigh(value: Any, known: dict[int, tuple[int, int] | None], above: int = 0) -> tuple[int, int]:
    """Bytes that `value` would fill if nothing in it were shared, and how deep it nests."""
    kind = type(value)
    if kind in (str, bytes, memoryview):
        return 8 + len(value), 0
    if kind in (int, float, bool, type(None)) or isinstance(value, (np.generic, np.dtype)):
        return 8, 0
    if kind is np.ndarray and not value.dtype.hasobject:
        return 8 + value.nbytes, 0
    if kind in (list, tuple, set, frozenset):
        children: Iterable[Any] = value
    elif kind in (dict, OrderedDict, defaultdict):
        children = value.values()
    elif kind is np.ndarray:
        children = value.ravel().tolist()
    else:
        raise DataError(f"it holds a {kind.__name__.lstrip('_')}")
    if id(value) in known:
        weight = known[id(value)]
        if weight is None:
            raise DataError("it contains itself")
        return weight
    known[id(value)] = None
    if above > _MOST_DEPTH:
        raise DataError(f"it nests deeper than {_MOST_DEPTH}")
    below = [weigh(child, known, above + 1) for child in children]
    known[id(value)] = found = 8 + sum(w for w, _ in below), 1 + max((d for _, d in below), default=0)
    return found


def unpickle(path: Path) -> Any:
    """The content of a pickle of numpy arrays and plain containers; Python 2 pickles read as latin1.

    Large arrays are read-only views of the mapped file.

    Raises:
        DataError: the pickle asks for anything else, or is cut off or corrupt. Nothing of it has run.
    """
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        content = _Unpickler(data).load()
        weight, depth = weigh(content, {})
        if weight > 16 * len(data) + 2**26 or depth > _MOST_DEPTH:
            raise DataError(f"it unfolds to {weight:,} bytes in {depth} levels from a file of {len(data):,}")
        return content
    except DataError as error:
        raise DataError(
            f"unpickle: {path}: {error}, expected numpy arrays and plain containers only, since a pickle can "
            "run any code; where you trust the file, open it yourself and save its arrays as .npz "
            "(numpy.savez, read here with allow_pickle=False)."
        ) from None
    except Exception as error:  # a corrupt stream can fail in any way; all of them mean the same to the user
        raise DataError(
            f"unpickle: {path} cannot be read as a pickle ({type(error).__name__}: {str(error)[:200]}), expected a "
            "whole, uncompressed pickle; compare its size with the source and download or write it again."
        ) from error
