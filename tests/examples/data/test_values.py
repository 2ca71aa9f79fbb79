"""Finite values that no feature has are found before training, with utterance, modality and column."""

import numpy as np
import pytest

from ebmc_msa.data import DataError, load, synthetic
from ebmc_msa.data.check import described

N = 60


def write(path, where=(), value=1e30, scale=1.0, dtype=np.float64, column=2):
    """An .npz with `value` in `column` of the rows `where`."""
    x = (scale * np.random.default_rng(0).normal(size=(N, 5))).astype(dtype)
    x[list(where), column] = value
    y = np.arange(N) % 2
    np.savez(path, x_a=x, x_b=y[:, None] + x[:, :2] * 0, y=y, split=np.arange(N) % 3, id=[f"u{i}" for i in range(N)])
    return path


@pytest.mark.parametrize(("row", "split"), [(3, "train"), (4, "valid"), (5, "test")])
@pytest.mark.parametrize("value", [1e30, -1e30, 1e8])
def test_an_absurd_value_is_named(tmp_path, row, split, value):
    with pytest.raises(
        DataError, match=rf"\['{split}'\]: a of u{row} reaches .* in column 2, where the 90th percentile"
    ):
        load(write(tmp_path / "d.npz", [row], value))


def test_a_column_of_absurd_values_is_refused_too(tmp_path):
    with pytest.raises(DataError, match=r"a of u0 reaches 1e\+30 in column 2, .*expected at most 1e\+15"):
        load(write(tmp_path / "d.npz", range(N)))


def test_absurd_frames_of_a_sequence(tmp_path):
    x = np.random.default_rng(0).normal(size=(N, 4, 3))
    x[7, 2, 1] = 1e30
    y = np.arange(N) % 2
    np.savez(tmp_path / "d.npz", x_a=x, length_a=np.full(N, 4), y=y, split=np.arange(N) % 3)
    with pytest.raises(DataError, match=r"\['valid'\]: a of 7 reaches 1e\+30 in column 1"):
        load(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x_a=x, length_a=np.full(N, 2), y=y, split=np.arange(N) % 3)
    load(tmp_path / "d.npz")  # padding


def test_outliers_are_noted_and_kept(tmp_path):
    data = load(write(tmp_path / "d.npz", [3], 1e5))
    assert "a: 1 column with outliers (column 2 reaches" in data.note
    assert data.splits["train"].features["a"][1, 2] == 1e5


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_and_small_units_are_no_outliers(tmp_path, scale, dtype):
    note = load(write(tmp_path / "d.npz", scale=scale, dtype=dtype)).note
    assert "outliers" not in note


def test_rare_values_of_a_sparse_column_are_no_outliers(tmp_path):
    x = np.zeros((N, 5))
    x[:, 0], x[3, 2] = np.arange(N), 40.0
    y = np.arange(N) % 2
    np.savez(tmp_path / "d.npz", x_a=x, y=y, split=np.arange(N) % 3)
    assert "outliers" not in load(tmp_path / "d.npz").note


def test_half_precision_has_no_room_for_absurd_values(tmp_path):
    data = load(write(tmp_path / "d.npz", [3], 6e4, dtype=np.float16))
    assert "outliers" in data.note


def test_synthetic_data_have_none():
    assert "outliers" not in described(synthetic(n=(60, 20, 20))).note


def test_labels_of_regression_that_cannot_be_squared(tmp_path):
    y = np.linspace(0.5, 7, N)
    y[4] = 1e30
    np.savez(tmp_path / "d.npz", x_a=np.ones((N, 2)), y=y, split=np.arange(N) % 3)
    with pytest.raises(DataError, match=r"labels run from .* to 1e\+30, expected values of a size that can be"):
        load(tmp_path / "d.npz")
