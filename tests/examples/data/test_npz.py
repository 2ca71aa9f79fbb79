"""Our own `.npz`, tiny, and everything that can be wrong with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, load
from ebmc_msa.data.check import described
from layouts import npz


def test_npz(tmp_path):
    present = np.arange(12) != 3
    data = load(npz(tmp_path, x_text=np.ones((12, 4), int), present_lidar=present, id=[f"u{i}" for i in range(12)]))
    assert data.modalities == ["text", "vision", "lidar"]
    assert (data.name, data.kind, data.classes) == ("field", "classes", 4)
    split = data.splits["train"]
    assert split.id == ["u0", "u3", "u6", "u9"]
    assert split.target.tolist() == [0, 3, 2, 1]
    assert split.lengths["vision"].tolist() == [1, 4, 2, 5]
    assert split.present["lidar"].tolist() == [True, False, True, True]
    assert not split.features["lidar"][1].any()
    assert "text is constant in train" in data.note


@pytest.mark.parametrize(
    ("y", "task", "kind", "dtype"),
    [
        (np.arange(12) % 2 == 0, None, "classes", torch.int64),
        (np.arange(12) / 2, None, "regression", torch.float32),
        (np.arange(12.0) + 30, None, "regression", torch.float32),
        (np.arange(12.0)[:, None], "regression", "regression", torch.float32),
        (np.arange(12) % 7 - 3, "sentiment", "sentiment", torch.float32),
        (np.arange(12) % 2, "classes", "classes", torch.int64),
    ],
    ids=["bools", "floats", "whole floats", "one column", "integer sentiment", "classes"],
)
def test_npz_kind(tmp_path, y, task, kind, dtype):
    data = load(npz(tmp_path, y=y, task=task))
    assert data.kind == kind
    assert data.splits["train"].target.dtype == dtype
    assert data.splits["train"].target.shape == (4,)


def test_npz_multilabel(tmp_path):
    y = np.arange(24).reshape(12, 2) % 3 % 2
    data = load(npz(tmp_path, y=y, labels=["rain", "wind"]))
    assert (data.kind, data.classes, data.labels) == ("multilabel", 2, ("rain", "wind"))
    assert data.splits["train"].target.tolist() == y[::3].tolist()
    assert load(npz(tmp_path, y=y.astype(float), task="multilabel")).labels == ("0", "1")
    for changes, message in [
        ({"y": y * 2}, r"labels run from 0 to 2, expected 0 or 1 for each label; recode"),
        ({"y": y, "labels": ["rain"]}, r"labels names rain, expected 2 names, one per column of y; correct"),
        (
            {"y": y[:, 0], "task": "multilabel"},
            r"y has shape \(12,\) for task 'multilabel', expected \(N, C\); correct",
        ),
    ]:
        with pytest.raises(DataError, match=message):
            load(npz(tmp_path, **changes))


def test_npz_without_validation(tmp_path):
    split = np.array([0] * 10 + [2] * 2)
    data = load(npz(tmp_path, split=split))
    assert len(data.splits["valid"]) == 1  # 15 % of 10 utterances, without going over
    grouped = load(npz(tmp_path, split=split, group=["a"] * 6 + ["b"] * 4 + ["c"] * 2))
    assert grouped.splits["valid"].group == ["b"] * 4
    with pytest.raises(DataError, match=r"no validation split and the training split has 1 group, expected.*mark"):
        load(npz(tmp_path, split=split, group=["a"] * 12))


def test_npz_groups_across_splits_are_noted(tmp_path):
    assert "2 groups occur in more than one split" in load(npz(tmp_path, group=["a"] * 12)).note


def test_data_without_ids_have_none_twice(tmp_path):
    """Rows are numbered anew in each split of a pickle."""
    dataset = replace(load(npz(tmp_path)), note="")
    for prefix, noted in (("", False), ("u", True)):
        splits = {n: replace(s, id=[f"{prefix}{i}" for i in range(len(s))]) for n, s in dataset.splits.items()}
        assert ("should occur once" in described(replace(dataset, splits=splits)).note) == noted


def test_npz_to_predict(tmp_path):
    path = npz(tmp_path, y=None, split=None, task="classes")
    data = load(path, labels=False)
    assert (data.kind, data.classes, list(data.splits)) == ("classes", 0, ["test"])
    assert len(data.splits["test"]) == 12
    kept = load(npz(tmp_path, split=np.array([0] * 6 + [2] * 6)), labels=False)
    assert {name: len(split) for name, split in kept.splits.items()} == {"train": 6, "test": 6}
    assert kept.splits["test"].target is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lable": np.zeros(12)}, r"unknown field 'lable', expected y, split.*rename it to 'labels', or remove"),
        ({"lenght_vision": np.ones(12)}, r"unknown field 'lenght_vision'.*rename it to 'length_vision', or remove"),
        ({"length_audio": np.ones(12)}, r"unknown field 'length_audio'"),
        ({"x_lidar": None, "x_vision": None, "length_vision": None}, r"holds y, split, expected.*x_<modality>; name"),
        ({"y": None}, r"no field y, expected labels .*; add y, or use the file for prediction only"),
        ({"split": None}, r"no field split, expected 0 \(train\), 1 \(valid\) or 2 \(test\).*add it"),
        ({"split": np.full(12, 3)}, r"split has .* values 3, expected integers.*recode"),
        (
            {"split": np.array(["trial"] * 12)},
            r"split is called 'trial' \(12 rows\).*rename it to 'train'",
        ),
        (
            {"y": np.zeros((12, 2))},
            r"y has shape \(12, 2\), expected one label per row, one-hot rows.*keep",
        ),
        ({"y": np.array(["a"] * 12)}, r"y are not numbers .*expected one label per row; recode"),
        ({"y": np.arange(12) - 1}, r"labels run from .* to .*, expected classes 0, 1"),
        (
            {"y": np.arange(12) / 2, "task": "classes"},
            r"y are not all whole numbers \(first: 0.5\)",
        ),
        ({"y": np.arange(12.0)}, r"y are whole numbers only .*--task classification"),
        ({"y": np.eye(12, dtype=int)}, r"holds one 1 in each row.*--task classification or --task multilabel"),
        ({"y": np.arange(12) / 6 - 1, "task": "sentiment"}, r"y run from -1 to 0.833333.*pass --range -1 1"),
        ({"y": np.arange(12) / 6, "task": "sentiment", "range": [1]}, r"range is .*expected two numbers"),
        ({"y": np.arange(12.0), "task": "sentiment"}, r"expected sentiment from -3 to 3; pass --range"),
        (
            {"task": "emotion"},
            r"task is 'emotion', expected one of sentiment, classification, multilabel, regr",
        ),
        ({"y": np.zeros(5)}, r"the fields differ in rows \(.*y 5.*expected one row per utterance.*same list"),
        ({"length_vision": None}, r"x_vision has shape \(12, 5, 2\).*without length_vision, expected.*add length_v"),
        (
            {"length_lidar": np.ones(12)},
            r"\['train'\]: x_lidar: lengths came with features of shape \(4, 3\), expected.*drop",
        ),
        ({"x_lidar": np.full((12, 3), np.nan)}, r"x_lidar: NaN in 4 of 4 rows \(first: 0\), expected.*recompute"),
        ({"x_lidar": np.array(["a"] * 12)}, r"x_lidar: features have shape \(4,\) and dtype <U1, expected numb"),
        ({"present_lidar": np.full(12, 0.5)}, r"present_lidar holds 0\.5, expected booleans; write True"),
        ({"x_lidar": np.array([[None]] * 12)}, r"cannot be read \(Object arrays.*expected a whole \.npz.*savez"),
        ({"split": np.array([0] * 6 + [1] * 6)}, r"split 'test' is empty \(rows: train 6, valid 6\)"),
        ({"split": np.array([1] * 6 + [2] * 6)}, r"split 'train' is empty"),
    ],
)
def test_npz_errors(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path, **changes))


def test_npz_without_rows(tmp_path):
    np.savez(tmp_path / "d.npz", x_a=np.zeros((0, 3)))
    with pytest.raises(DataError, match=r"holds no rows, expected at least one; check"):
        load(tmp_path / "d.npz", labels=False)


def test_npz_cut_off(tmp_path):
    path = npz(tmp_path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"field\.npz: cannot be read .*expected a whole \.npz"):
        load(path)
