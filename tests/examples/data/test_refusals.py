"""Files of other containers that must not be loaded, and files of no layout: one clear error each."""

import pickle
import sys

import numpy as np
import pytest
import torch

from containers import (
    IDS,
    N,
    h5,
    safetensors,
    tensors,
    utterances,
)
from ebmc_msa.data import DataError, load
from ebmc_msa.data.formats import matlab


@pytest.fixture(scope="module")
def fields():
    return utterances()


class Stranger:
    pass


def test_what_torch_must_not_load(tmp_path, fields):
    good = {name: tensors(x) for name, x in fields.items()}
    storage = torch.zeros(4)
    for changes, message in [
        ({"extra": Stranger()}, r"holds objects other than tensors, expected tensors in plain dicts"),
        ({"x_text": torch.zeros(1).expand(N, 5)}, r"a tensor of shape \(18, 5\).*is larger than its storage"),
        ({"x_text": torch.eye(N).to_sparse()}, r"a tensor is torch\.sparse_coo"),
        ({"x_text": torch.zeros(N, 5, device="meta")}, r"cannot be read"),
        ({"x_text": torch.zeros(N, 5, dtype=torch.complex64)}, r"is larger than its storage, or no numbers"),
        ({"x_odd": [storage] * 4}, r"fields differ in rows|features have shape"),
    ]:
        torch.save(good | changes, tmp_path / "d.pt")
        with pytest.raises(DataError, match=message):
            load(tmp_path / "d.pt")
    torch.save([good] * 2, tmp_path / "d.pt")
    with pytest.raises(DataError, match=r"is a pt with a list of 2, expected .*the nearest is GCNet's"):
        load(tmp_path / "d.pt")
    torch.save(good, tmp_path / "d.pt")
    (tmp_path / "d.pt").write_bytes((tmp_path / "d.pt").read_bytes()[:-200])
    with pytest.raises(DataError, match=r"d\.pt: cannot be read .*expected a whole"):
        load(tmp_path / "d.pt")


def test_what_hdf5_must_not_load(tmp_path, fields):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "d.h5"
    (tmp_path / "secret.bin").write_bytes(bytes(800))
    for change, message in [
        (lambda f: f.__setitem__("x_a", h5py.ExternalLink("other.h5", "/x")), r"x_a is an ExternalLink, which leads"),
        (lambda f: f.__setitem__("x_a", h5py.SoftLink("/x_text")), r"x_a is an SoftLink"),
        (
            lambda f: f.create_dataset("x_a", (100,), "f8", external=[(str(tmp_path / "secret.bin"), 0, 800)]),
            r"x_a is no dataset of its own content",
        ),
        (lambda f: f.create_dataset("x_a", (2**34, 64), "f4", chunks=(64, 64)), r"x_a of shape .* would unpack to"),
        (lambda f: f.create_dataset("x_a", (10,), [("a", "f4")]), r"x_a has dtype"),
        (lambda f: f.create_dataset("x_a", (10,), h5py.ref_dtype), r"x_a has dtype object"),
        (
            lambda f: f.create_dataset("x_a", data=["a"] * 4),
            r"x_a holds strings of variable length; write them",
        ),
        (lambda f: f.create_group("a/b/c/d/e"), r"groups nest deeper than 4"),
    ]:
        h5(tmp_path, fields)
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(DataError, match=message):
            load(path)


def test_what_matlab_must_not_load(tmp_path, fields, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    for changes, message in [
        ({"id": np.array(IDS, object)}, r"holds id \(cell\), expected numeric and char arrays; save .*char\(ids\)"),
        ({"info": {"a": 1}}, r"holds info \(struct\)"),
    ]:
        savemat(tmp_path / "d.mat", fields | changes)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "d.mat")
    savemat(tmp_path / "d.mat", {"x_a": np.zeros((3, 2), complex)})
    with pytest.raises(DataError, match=r"holds x_a \(complex\)"):
        load(tmp_path / "d.mat")
    monkeypatch.setattr(matlab, "_MOST_UNPACKED", 2**18)
    savemat(tmp_path / "d.mat", {"x_a": np.zeros(2**20)}, do_compression=True)
    with pytest.raises(DataError, match=r"it unpacks to far more than the file"):
        load(tmp_path / "d.mat")
    (tmp_path / "d.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(DataError, match=r"is a MATLAB 7\.3 file, expected version 7; write it with save\(…, '-v7'\)"):
        load(tmp_path / "d.mat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b" + bytes(20), r"is a compressed file, .*; unpack it"),
        (b"\x93NUMPY\x01\x00" + bytes(20), r"is a single array, .*put it into an \.npz as x_<modality>"),
        (b'{"train": []}', r"is a JSON text, .*write its arrays"),
        (b"text,label\nso,1\n", r"is a text, .*name a column split to make it a CSV manifest"),
        (b"PAR1" + bytes(20), r"is a table of columns, .*CSV manifest"),
        (b"RIFF" + bytes(20), r"is a recording, .*extract features first"),
        (bytes(20), r"is of no known kind, .*convert it"),
        (b"", r"is of no known kind"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    (tmp_path / "d.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"text": np.ones(3), "labels": np.ones(3)},
            r"a pickle with a dict of text, labels.*put the fields of each spl",
        ),
        ({"text": {"train": np.ones(3)}}, r"the nearest is MulT's: put the splits outside"),
        ({"v1": {"features": np.ones(3), "intervals": np.ones(3)}}, r"CMU-MultimodalSDK's: align and pad"),
        ({"a": np.ones(3), "b": np.ones(3)}, r"the nearest is the \.npz: name the arrays x_<modality>"),
        ({"train": np.ones(3)}, r"make each split a dict of text, audio"),
        ({"train": {"x_text": np.ones(3), "y": np.ones(3)}}, r"put all rows together, with their split"),
        ([((1, 2, 3), 0, "a")], r"the nearest is that of tuples: put the lists of each split into a dict"),
        ([1, 2, 3], r"a pickle with a list of 3, .*GCNet's, a list of 6 or 7"),
        ("words", r"a pickle with a str, .*write an \.npz"),
    ],
)
def test_other_content_is_named_with_the_nearest_layout(tmp_path, content, message):
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d.pkl")


@pytest.mark.parametrize("module", ["h5py", "safetensors"])
def test_missing_libraries_are_named(tmp_path, fields, module, monkeypatch):
    write = {"h5py": h5, "safetensors": safetensors}[module]
    path = write(tmp_path, fields)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"is not installed; pip install 'modbalance\[formats\]'"):
        load(path)
