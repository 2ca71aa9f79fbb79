"""Which layout a path is, and what a real one gives."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ebmc_msa.data import DataError, load
from ebmc_msa.data.formats.clean import clean
from layouts import mmsa, npz, write


def test_missing_path(tmp_path):
    with pytest.raises(
        DataError, match=r"--data: .*nowhere does not exist, expected a file or folder; check the path"
    ):
        load(tmp_path / "nowhere")


def test_unknown_file(tmp_path):
    (tmp_path / "table.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"table\.csv is a text, expected.*MMSA.*name a column split"):
        load(tmp_path / "table.csv")


@pytest.mark.parametrize("content", [{"labels": [1]}, [1, 2], {"train": [1]}, 3])
def test_unknown_pickle(tmp_path, content):
    with pytest.raises(
        DataError, match=r"d\.pkl is a pickle with a (dict|list|int).*expected an MMSA.*(nearest|write)"
    ):
        load(write(tmp_path / "d.pkl", content))


@pytest.mark.parametrize("names", [(), ("README.md", "clips/x")])
def test_folder_without_data(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("(text)")
    found = r"README\.md, clips/" if names else "nothing"
    with pytest.raises(
        DataError, match=rf"has no data file \(found: {found}\), expected exactly one: .*name the file"
    ):
        load(tmp_path)


def test_folder_with_several_candidates(tmp_path):
    mmsa(tmp_path)
    npz(tmp_path)
    with pytest.raises(
        DataError, match=r"has 2 candidates \(any\.name, field\.npz\), expected exactly one.*name the"
    ):
        load(tmp_path)


def test_folder_with_one_data_file_beside_others(tmp_path):
    npz(tmp_path)
    (tmp_path / "README.md").write_text("columns")
    (tmp_path / ".cache").write_bytes(b"\x80\x04.")
    assert load(str(tmp_path)).name == "field"


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda frames: st.tuples(
            hnp.arrays(np.float64, (3, frames, 2), elements=st.floats(-5, 5) | st.just(-np.inf)),
            st.lists(st.integers(0, frames), min_size=3, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
        )
    )
)
def test_clean_leaves_valid_frames_of_present_rows_and_nothing_else(case):
    x, lengths, present = case
    got = clean("x", x.copy(), lengths=lengths, present=present)
    assert torch.isfinite(got.features).all()
    for i in range(3):
        n = lengths[i] if present[i] else 0
        assert bool(got.present[i]) == (n > 0)
        expected = np.where(np.isinf(x[i]), 0, x[i]).astype(np.float32)
        expected[n:] = 0
        np.testing.assert_array_equal(got.features[i].numpy().reshape(expected.shape), expected)
        if got.lengths is not None:
            assert got.lengths[i] == n


# real data, where there are any

REAL = os.environ.get("MODBALANCE_DATA")


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="MODBALANCE_DATA does not name a folder of real data sets")
@pytest.mark.parametrize(
    ("name", "kind", "classes", "rows", "dims"),
    [
        ("mosi", "sentiment", 1, (760, 300, 229), {"text": 384, "audio": 73}),
        ("mosi_overfit_vision", "sentiment", 1, (889, 186, 180), {"text": 384, "audio": 73, "vision": 100}),
        ("iemocap", "classes", 4, (2773, 486, 1031), {"text": 384, "audio": 47}),
        (
            "mfeat",
            "classes",
            10,
            (1000, 400, 600),
            {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6},
        ),
    ],
)
def test_real_data(name, kind, classes, rows, dims):
    data = load(Path(REAL) / name)
    assert (data.kind, data.classes, data.dims) == (kind, classes, dims)
    assert tuple(len(data.splits[split]) for split in ("train", "valid", "test")) == rows
    assert "more than one split" not in data.note
