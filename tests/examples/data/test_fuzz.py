"""Strangers' files, mutated: they load or end in a DataError, and nothing of them runs, hangs or fills the memory.

`python -W error tests/examples/data/test_fuzz.py SECONDS` does the same for longer.
"""

import collections
import contextlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[3] / "examples"
MEMORY = 3 * 2**30  # of address space, torch's own included
MOST_SECONDS = 10  # a file
TRACE = "fuzz-trace"


def split(rng, rows, names):
    return {m: rng.normal(size=(rows, 3, 2)).astype(t) for m, t in zip(names, ("f4", "f2", "f8"), strict=False)}


def pickles():
    """Small files of every pickled layout, by every protocol."""
    rng = np.random.default_rng(0)
    mmsa, mult, iemocap = {}, {}, {}
    for name in ("train", "valid", "test"):
        x = split(rng, 3, ("text", "audio", "vision"))
        ids = [f"v$_${i}" for i in range(3)]
        bert = np.ones((3, 3, 3))
        mmsa[name] = x | {
            "regression_labels": np.array([0.5, -1.2, 3]),
            "id": ids,
            "audio_lengths": [1, 2, 3],
            "text_bert": bert,
        }
        mult[name] = x | {"labels": np.array([0.5, -1.2, 3])[:, None, None], "id": np.array([[b"v", b"0", b"1"]] * 3)}
        iemocap[name] = x | {"labels": np.eye(2)[np.ones((3, 4), int)], "id": np.array(ids, object)}
    videos = {f"v{i}": [f"v{i}_{j}" for j in range(2)] for i in range(6)}
    labels = {v: [np.float64(1.0), 0.5] for v in videos}
    gcnet = [videos, labels, {}, collections.OrderedDict(), {"v0", "v1"}, ["v2"], ("v3", "v4")]
    frames = [(["so", "good"], rng.normal(size=(n, 2)), rng.normal(size=(n, 3))) for n in (1, 2, 3)]
    rows = [(x, np.array([[0.5]]), f"v{i}[{i}]") for i, x in enumerate(frames)]
    tuples = dict.fromkeys(("train", "dev", "test"), rows)
    talks = {"d0": 2, "d1": 1}
    vectors = [{k: np.ones((n, 3)) * n for k, n in talks.items()}, {k: [np.ones(2)] * n for k, n in talks.items()}]
    names = [{k: [f"{k}_{i}" for i in range(n)] for k, n in talks.items()}, {k: ["M"] * n for k, n in talks.items()}]
    erc = (
        *names,
        {k: [1] * n for k, n in talks.items()},
        *vectors,
        {"d0"},
        ["d1"],
        {k: [0] * n for k, n in talks.items()},
    )
    return [pickle.dumps(x, p) for x in (mmsa, mult, iemocap, gcnet, tuples, erc) for p in (0, 2, 4, 5)]


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks():
    """Pieces to splice in: calls, forged arrays, enormous lengths, deep nests, shared lists, colliding keys."""
    calls = [Call(os.system, f"touch {TRACE}"), Call(eval, f"open('{TRACE}', 'w')"), Call(np.empty, 2**40)]
    laugh = b"](K\x01K\x01eq\x01" + b"".join(b"]q%c(%s" % (i, b"h%c" % (i - 1) * 9 + b"e") for i in range(2, 40))
    tuples = b")\x85q\x01" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(1, 40) for _ in [b"h%c" % i])
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    huge = b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R\x89U\x00tb"
    return [
        *(pickle.dumps(call, p)[2 * (p > 1) : -1] for call in calls for p in (1, 2, 4)),
        laugh,
        tuples,
        b"]q\x00h\x00a",  # a list that holds itself
        b"}q\x00U\x01ah\x00s",
        b"(" * 5000,
        b"]" * 5000,
        b"N" + b"\x85" * 5000,
        b"r\xff\xff\xff\x7f",  # LONG_BINPUT
        b"p9999999999\n",
        b"\x8e" + struct.pack("<Q", 2**62),  # BINBYTES8
        b"\x96" + struct.pack("<Q", 2**40),  # BYTEARRAY8
        b"\x95" + struct.pack("<Q", 2**60),  # FRAME
        b"B\xff\xff\xff\xff",
        b"T\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",  # LONG4
        b"I" + b"9" * 4000 + b"\n",
        b"L" + b"9" * 100000 + b"L\n",
        array + huge % b"f8",
        array + huge % b"S0",
        array + huge % b"O8",
        array + b"q\x05" + huge % b"f4" + b"h\x05",
        b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R",
        b"c__builtin__\nlist\n(]" + b"N" * 2000 + b"t" + b"R" * 3,
        b"}(" + b"".join(b"\x8a\x09" + ((2**61 - 1) * i).to_bytes(9, "little") + b"N" for i in range(2000)) + b"u",
        b"\x98",
        b"\x97",
        b"\x82\x01",
    ]


def archive(**fields):
    out = io.BytesIO()
    np.savez_compressed(out, **fields)
    return out.getvalue()


def header(descr, shape, content=b""):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def archives():
    rng = np.random.default_rng(0)
    good = {"x_a": rng.normal(size=(6, 2)), "x_b": np.ones((6, 3, 2), "f2"), "length_b": np.ones(6, int)}
    good |= {"y": np.arange(6) % 2, "split": np.arange(6) // 2, "id": [f"u{i}" for i in range(6)]}
    members = [
        header("'<f8'", (2**40, 2**20)),
        header("'<f8'", (-1, 2)),
        header("'|O'", (6,), pickle.dumps(Call(os.system, f"touch {TRACE}"))),
        header("[('a', '<f8'), ('b', '|O')]", (6,)),
        header("'<U999999999'", (6,)),
        header("'<U0'", (2**60,)),
        header("'<f8'", (2**60, 0)),
        header("(" * 4000, (6,)),
        header("__import__('os').system('touch " + TRACE + "')", (6,)),
        bytes(2**29),  # a bomb: half a gigabyte of zeros
    ]
    found = [archive(**good)]
    for member in members:
        for field in ("x_a", "y", "id"):
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
                for key, value in good.items():
                    data = io.BytesIO()
                    np.save(data, value)
                    file.writestr(f"{key}.npy", member if key == field else data.getvalue())
            found.append(out.getvalue())
            if len(member) > 2**20:
                break
    return found


def containers(work):
    """Small files of the other containers, by the library that reads each; whatever is installed."""
    rng = np.random.default_rng(0)
    fields = {"x_a": rng.normal(size=(6, 2)), "x_b": np.ones((6, 3, 2), "f2"), "length_b": np.ones(6, int)}
    fields |= {"y": np.arange(6) % 2, "split": np.arange(6) // 2}
    ids, found = [f"u{i}" for i in range(6)], {}
    import torch

    tensors = {name: torch.from_numpy(x) for name, x in fields.items()}
    for name, zipped in (("pt", True), ("old pt", False)):
        out = io.BytesIO()
        torch.save(tensors | {"id": ids}, out, _use_new_zipfile_serialization=zipped)
        found[name] = out.getvalue()
    with contextlib.suppress(ImportError):
        from safetensors.torch import save

        found["safetensors"] = save(tensors)
    with contextlib.suppress(ImportError):
        import h5py

        for name, packed in (("h5", {}), ("packed h5", {"compression": "gzip", "chunks": True})):
            out = io.BytesIO()
            with h5py.File(out, "w") as file:
                for key, x in fields.items():
                    file.create_dataset(key, data=x, **packed)
                file["id"] = np.array(ids, "S")
            found[name] = out.getvalue()
    with contextlib.suppress(ImportError):
        from scipy.io import savemat

        for name, packed in (("mat", False), ("packed mat", True)):
            out = io.BytesIO()
            savemat(out, {**fields, "x_b": np.ones((6, 3, 2)), "id": np.array(ids)}, do_compression=packed)
            found[name] = out.getvalue()
    np.save(work / "a.npy", np.ones((2, 3)))
    found["csv"] = b"id,split,label,a\n" + b"".join(b"u%d,%d,%d,a.npy\n" % (i, i // 2, i % 2) for i in range(6))
    return found


def mutated(rng, data, pieces):
    """`data` with some bytes flipped, cut, doubled or replaced by a piece."""
    data = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4, 8])):
        at = rng.randrange(len(data) + 1)
        change = rng.randrange(6)
        if change == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif change == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 2:
            del data[at:]
        elif change == 3:
            del data[at : at + rng.choice([1, 2, 4, 16])]
        elif change == 4:
            data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.choice([1, 4, 16, 64])]
        elif pieces:
            data[at : at + rng.choice([0, 0, 8])] = rng.choice(pieces)
        if not data:
            break
    return bytes(data)


def fuzz(seconds, seed, most):
    """In a process of its own: every file of random rounds loads or ends in a DataError."""
    import resource

    sys.path.insert(0, str(EXAMPLE))
    from ebmc_msa.data import DataError, load
    from ebmc_msa.data.convert import convert

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng, counts = random.Random(seed), collections.Counter()
    work = Path.cwd()
    sources, pieces, zips = pickles(), attacks(), archives()
    (work / "good.npz").write_bytes(zips[0])
    convert(work / "good.npz", work / "good")
    kept = {file: file.read_bytes() for file in (work / "good").rglob("*") if file.is_file()}
    others = containers(work)
    straight = [*((b"\x80\x04" + piece + b".", ".pkl") for piece in pieces), *((data, ".npz") for data in zips)]
    started = time.process_time()
    for number in range(most):
        if time.process_time() - started > seconds:
            break
        kind = rng.choice(["pickle", "pickle", "npz", "folder", "other", "other"])
        if number < len(straight):
            kind, (data, suffix) = "attack", straight[number]
            path = work / f"case{suffix}"
            path.write_bytes(data)
        elif kind == "folder":
            path = work / "good"
            file = rng.choice(list(kept))
            file.write_bytes(mutated(rng, kept[file], [b"../", b'"shape": [99999999999, 2]', b"[" * 9999, b"NaN"]))
        elif kind == "other":
            kind, path = rng.choice(list(others)), work / "case"
            path.write_bytes(mutated(rng, others[kind], [b"../", b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f"]))
        else:
            path = work / "case"
            path.write_bytes(
                mutated(rng, rng.choice(sources), pieces) if kind == "pickle" else mutated(rng, zips[0], [])
            )
        tick = time.process_time()
        try:
            load(path, labels=rng.random() < 0.8)
            counts[kind, "loaded"] += 1
        except DataError:
            counts[kind, "refused"] += 1
        except BaseException:
            (work / "failed").write_bytes(path.read_bytes() if path.is_file() else file.read_bytes())
            print(f"case {number} of seed {seed}, {kind}")
            raise
        assert time.process_time() - tick < MOST_SECONDS, f"case {number} of seed {seed} took too long"
        assert not (work / TRACE).exists(), f"case {number} of seed {seed} ran"
        if kind == "folder":
            file.write_bytes(kept[file])
    print(dict(counts))
    return counts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_strangers_files(tmp_path):
    command = [sys.executable, "-W", "error", __file__, "6", "0", "1500"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-500:] + run.stderr[-3000:]
    kinds = ("attack", "pickle", "npz", "folder", "pt", "old pt", "csv")
    assert all(f"('{kind}', 'refused')" in run.stdout for kind in kinds)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        fuzz(
            float(sys.argv[1]),
            int(sys.argv[2]) if len(sys.argv) > 2 else 0,
            int(sys.argv[3]) if len(sys.argv) > 3 else 10**9,
        )
