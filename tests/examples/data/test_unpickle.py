"""What a stranger's pickle may hold, and that nothing else gets to run."""

import collections
import os
import pickle
import struct

import numpy as np
import pytest

from ebmc_msa.data import DataError, load
from ebmc_msa.data.formats.unpickle import unpickle

REFUSED = r"unpickle: .*{}, expected numpy arrays and plain containers only.*save its arrays as \.npz"


@pytest.fixture
def read(tmp_path):
    def read(data: bytes):
        path = tmp_path / "data.pkl"
        path.write_bytes(data)
        return unpickle(path)

    return read


CONTENT = {
    "floats": np.arange(6.0).reshape(2, 3),
    "half": np.ones((2, 2), np.float16),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "turned": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "big endian": np.arange(3, dtype=">f4"),
    "strings": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "objects": np.array(["a", None, [1, 2]], dtype=object),
    "empty": np.zeros((0, 3)),
    "bools": np.array([True, False]),
    "scalars": [np.float64(1.5), np.int32(-2), np.bool_(True), np.str_("x"), np.str_("")],
    "containers": (
        {"a", "b"},
        frozenset({1}),
        [1, 2.5, None, True, b"raw", b"", 10**30],
        collections.OrderedDict(a=1),
    ),
    "default": collections.defaultdict(list, a=[1]),
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("key", CONTENT)
def test_admits_arrays_and_containers(read, key, protocol):
    found = read(pickle.dumps(CONTENT[key], protocol))
    np.testing.assert_equal(found, CONTENT[key])
    assert type(found) is type(CONTENT[key])
    if isinstance(found, np.ndarray):
        assert found.dtype == CONTENT[key].dtype.newbyteorder("=") or found.dtype == CONTENT[key].dtype


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_admits_both_names_of_numpy_core(read, core):
    data = pickle.dumps(CONTENT["floats"], 2).replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)
    np.testing.assert_equal(read(data), CONTENT["floats"])


def test_python_2_pickles_read_as_latin1(read):
    # what Python 2 wrote for {"x": numpy.arange(2.), "s": "\xe9", "set": {1}} with protocol 2
    raw = np.arange(2.0).tobytes()
    data = (
        b"\x80\x02}(U\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tbU\x01sU\x01\xe9U\x03setc__builtin__\nset\n]K\x01a\x85Ru."
    )
    found = read(data)
    np.testing.assert_equal(found["x"], np.arange(2.0))
    assert found["s"] == "\xe9"
    assert found["set"] == {1}


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch {}",), rf"{os.name}\.system"),
        (eval, ("open('{}', 'w')",), r"(builtins|__builtin__)\.eval"),
        (exec, ("open('{}', 'w')",), r"(builtins|__builtin__)\.exec"),
        (open, ("{}", "w"), r"io\.open"),
        (getattr, (np, "save"), r"(builtins|__builtin__)\.getattr"),
        (np.save, ("{}", [1]), r"numpy\.save"),
        (np.fromfile, ("{}",), r"numpy.*fromfile"),
        (np.load, ("{}", None, True), r"numpy\.load"),
        (collections.Counter, (), r"collections\.Counter"),
        (complex, (1, 2), r"(builtins|__builtin__)\.complex"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_by_name_and_never_run(read, tmp_path, function, args, name, protocol):
    trace = tmp_path / "trace"
    args = tuple(a.format(trace) if isinstance(a, str) else a for a in args)
    if function is getattr:
        args = ("text", "upper")
    hidden = {"train": [np.zeros(2), Call(function, *args)]}
    with pytest.raises(DataError, match=REFUSED.format(f"it asks for {name}")):
        read(pickle.dumps(hidden, protocol))
    assert not trace.exists()


def test_calls_inside_object_arrays_are_refused(read, tmp_path):
    hidden = np.array([Call(os.system, f"touch {tmp_path / 'trace'}"), None], dtype=object)
    with pytest.raises(DataError, match=r"it asks for \w+\.system"):
        read(pickle.dumps(hidden))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "source",
    [
        b"(S'x'\nios\nsystem\n.",  # INST
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",  # dotted names reach attributes
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
    ],
    ids=["inst", "stack_global", "dotted", "globals"],
)
def test_every_opcode_that_names_something_is_refused(read, source):
    with pytest.raises(DataError, match=REFUSED.format(r"it asks for \S+")):
        read(source)


def array(dtype: bytes, shape: bytes, content: bytes) -> bytes:
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return head + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb."


def dtype(spec: bytes, flags: int, size: int = -1) -> bytes:
    state = b"(K\x03U\x01<NNN" + b"J" + struct.pack("<i", size) + b"J\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    return b"cnumpy\ndtype\nU" + bytes([len(spec)]) + spec + b"K\x00K\x00\x87R" + state


@pytest.mark.parametrize(
    "source",
    [
        array(dtype(b"O8", 0), b"K\x01\x85", b"U\x08AAAAAAAA"),
        array(dtype(b"O8", 63), b"K\x01\x85", b"U\x08AAAAAAAA"),
        array(dtype(b"O8", 63), b"K\x64\x85", b"]"),
        array(dtype(b"f8", 63), b"K\x01\x85", b"U\x08AAAAAAAA"),
        array(dtype(b"S8", 0, 4), b"K\x01\x85", b"U\x08AAAAAAAA"),
        array(dtype(b"f8", 0), b"J\xff\xff\xff\x7f\x85", b"U\x08AAAAAAAA"),
        array(dtype(b"V8", 0), b"K\x01\x85", b"U\x08AAAAAAAA"),
        b"\x80\x02cnumpy.core.multiarray\nscalar\n" + dtype(b"O8", 63) + b"U\x08AAAAAAAA\x86R.",
        b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(U\x08AAAAAAAA" + dtype(b"O8", 63) + b"K\x01\x85U\x01CtR.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nc__builtin__\nlist\nK\x00\x85U\x01b\x87R.",
        b"\x80\x02ccollections\nOrderedDict\n)R}U\x01aK\x01sb.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aU\x06rot_13\x86R.",
    ],
    ids=[
        "object pointers without the flag",
        "object pointers as bytes",
        "fewer objects than the shape",
        "floats flagged as objects",
        "string of another size",
        "larger than its bytes",
        "structure",
        "object scalar",
        "object buffer",
        "subclass",
        "state of a container",
        "codec",
    ],
)
def test_forged_arrays_are_refused(read, source):
    with pytest.raises(DataError, match=REFUSED.format(".*")):
        read(source)


def test_array_class_cannot_be_called(read):
    # numpy.ndarray(shape, dtype, buffer) would lay any dtype over any bytes
    with pytest.raises(DataError, match=r"cannot be read as a pickle \(TypeError.*not callable"):
        read(b"\x80\x02cnumpy\nndarray\nK\x01\x85\x85R.")


def test_numpys_own_dtypes_are_never_altered(read):
    big = b"cnumpy\ndtype\nU\x02f4K\x00K\x00\x87R(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    assert read(b"\x80\x02" + big + b".") == np.dtype(">f4")
    assert np.dtype("f4").isnative


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.99])
def test_truncated_pickles_say_so(read, keep):
    data = pickle.dumps({"train": CONTENT["floats"], "valid": list(range(50))})
    with pytest.raises(DataError, match=r"unpickle: .*data\.pkl cannot be read as a pickle .*whole.*download"):
        read(data[: int(len(data) * keep)])


def test_corrupt_pickles_say_so(read):
    data = pickle.dumps({str(i): np.arange(i) for i in range(5)})
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        for place in rng.integers(2, len(data), 5):
            broken[place] = rng.integers(256)
        try:
            read(bytes(broken))  # may happen to stay readable
        except DataError as error:
            assert "unpickle: " in str(error)  # noqa: PT017


def test_load_goes_through_the_restricted_reader(tmp_path):
    path = tmp_path / "mosi.pkl"
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path / 'trace'}")))
    with pytest.raises(DataError, match=REFUSED.format(r"it asks for \w+\.system")):
        load(path)
    assert not (tmp_path / "trace").exists()
