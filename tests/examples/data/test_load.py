"""Files in the layouts people have, tiny, and everything that can be wrong with them."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ebmc_msa.data import DataError, load
from ebmc_msa.data.check import described
from ebmc_msa.data.formats.clean import clean
from ebmc_msa.data.formats.gcnet import modality_of

rng = np.random.default_rng(0)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


# MMSA


def mmsa_split(rows=4, **changes):
    bert = np.zeros((rows, 3, 6))
    for i in range(rows):
        bert[i, 1, : 2 + i % 3] = 1
    fields = {
        "raw_text": np.array(["words"] * rows),
        "id": np.array([f"video{i // 2}$_${i}" for i in range(rows)]),
        "text": rng.normal(size=(rows, 6, 5)).astype(np.float16),  # [PAD] is not zero
        "text_bert": bert,
        "audio": rng.normal(size=(rows, 8, 3)),
        "audio_lengths": [3 + i % 4 for i in range(rows)],
        "vision": rng.normal(size=(rows, 7, 2)).astype(np.float32),
        "annotations": np.array(["Positive"] * rows, dtype=object),
        "classification_labels": np.ones(rows),
        "regression_labels": np.linspace(-3, 3, rows) * 0.9,
    } | changes
    return {key: value for key, value in fields.items() if value is not None}


def mmsa(tmp_path, **changes):
    return write(tmp_path / "any.name", {split: mmsa_split(**changes) for split in ("train", "valid", "test")})


def test_mmsa(tmp_path):
    vision = rng.normal(size=(4, 7, 2)).astype(np.float32)
    vision[:, 5:] = 0
    vision[1] = 0
    data = load(mmsa(tmp_path, vision=vision))
    split = data.splits["train"]
    assert (data.kind, data.classes) == ("sentiment", 1)
    assert data.modalities == ["text", "audio", "vision"]
    assert split.lengths["text"].tolist() == [2, 3, 4, 2]  # by the mask
    assert split.lengths["audio"].tolist() == [3, 4, 5, 6]  # as stated
    assert split.lengths["vision"].tolist() == [5, 0, 5, 5]  # by trailing zeros
    assert split.present["vision"].tolist() == [True, False, True, True]
    for name, x in split.features.items():
        assert x.dtype == (torch.float16 if name == "text" else torch.float32)  # as in the file
        assert not x[torch.arange(x.shape[1]) >= split.lengths[name][:, None]].any()
    assert split.group == ["video0", "video0", "video1", "video1"]
    np.testing.assert_allclose(split.target, [-2.7, -0.9, 0.9, 2.7], rtol=1e-6)
    assert "vision absent in 1 train, 1 valid, 1 test" in data.note


def test_mmsa_without_a_modality_and_with_one_vector_per_utterance(tmp_path):
    path = mmsa(tmp_path, vision=None, audio=rng.normal(size=(4, 1, 3)), audio_lengths=[1] * 4)
    data = load(path)
    assert data.modalities == ["text", "audio"]
    assert data.splits["test"].features["audio"].shape == (4, 3)
    assert list(data.splits["test"].lengths) == ["text"]


def test_mmsa_infinite_audio_becomes_zero(tmp_path):
    audio = rng.normal(size=(4, 8, 3))
    audio[0, 0, 0] = -np.inf
    x = load(mmsa(tmp_path, audio=audio)).splits["train"].features["audio"]
    assert x[0, 0, 0] == 0
    assert x[0, 0, 1] != 0


def test_mmsa_nan_in_padding_is_padding(tmp_path):
    audio = rng.normal(size=(4, 8, 3))
    audio[:, 7] = np.nan
    assert torch.isfinite(load(mmsa(tmp_path, audio=audio)).splits["train"].features["audio"]).all()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1)])
def test_mmsa_label_shapes(tmp_path, shape):
    y = np.array([-3.0, 0.5, 1, 2])
    assert load(mmsa(tmp_path, regression_labels=y.reshape(shape))).splits["test"].target.tolist() == y.tolist()


def test_mmsa_seven_columns_start_with_the_sentiment(tmp_path):
    y = np.zeros((4, 7))
    y[:, 0] = [-1, 0, 1.5, 2]
    y[:, 1] = 3
    assert load(mmsa(tmp_path, regression_labels=y)).splits["test"].target.tolist() == [-1, 0, 1.5, 2]


def test_mmsa_without_validation_splits_off_whole_videos(tmp_path):
    data = load(write(tmp_path / "d.pkl", {"train": mmsa_split(40), "test": mmsa_split()}))
    assert len(data.splits["valid"]) == 6
    assert not set(data.splits["train"].group) & set(data.splits["valid"].group)


def test_mmsa_one_unlabelled_split_to_predict(tmp_path):
    path = write(tmp_path / "d.pkl", {"test": mmsa_split(regression_labels=None, classification_labels=None)})
    data = load(path, labels=False)
    assert list(data.splits) == ["test"]
    assert data.splits["test"].target is None
    splits = {"test": mmsa_split(regression_labels=None, classification_labels=None)}
    with pytest.raises(DataError, match=r"holds .*expected .* and regression_labels; add"):
        load(write(tmp_path / "d.pkl", splits))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None, "audio": None, "vision": None}, r"holds raw_text.*expected at least one of text.*; add"),
        ({"regression_labels": np.zeros((4, 2))}, r"regression_labels has shape \(4, 2\), expected one.*keep"),
        ({"regression_labels": ["good"] * 4}, r"regression_labels are not numbers .*expected one.*recode"),
        (
            {"regression_labels": np.full(4, 5.5)},
            r"labels run from 5.5 to 5.5, expected sentiment from -3 to 3; pass",
        ),
        ({"regression_labels": np.array([np.nan] * 4)}, r"4 labels are NaN .*video0\$_\$0.*expected numbers; label"),
        ({"regression_labels": np.full(3, 1.5)}, r"differ in rows .*labels 3.*expected one row.*same list"),
        ({"id": ["a"]}, r"differ in rows \(id 1, text features 4"),
        ({"audio_lengths": [9] * 4}, r"'audio'\]: lengths run from 9 to 9, expected 0 to 8.*correct the lengths"),
        ({"audio_lengths": [np.nan] * 4}, r"lengths came as \[nan, nan, nan, nan\], expected 4 whole numbers"),
        (
            {"audio_lengths": [1.5] * 4},
            r"'audio'\]: lengths came as \[1.5, 1.5, 1.5, 1.5\], expected 4 whole numbers.*write",
        ),
        ({"audio": np.full((4, 8, 3), np.nan)}, r"'audio'\]: NaN in 4 of 4 rows \(first: video0.*recompute"),
        ({"audio": np.zeros(4)}, r"'audio'\]: features have shape \(4,\).*expected numbers \(N, D\).*save"),
        ({"audio": [np.zeros((2, 3)), np.zeros((3, 3))] * 2}, r"'audio'\]: rows of unequal shape.*pad the rows"),
        ({"text_bert": np.zeros((4, 3, 5))}, r"text_bert has shape \(4, 3, 5\) beside.*expected.*remove"),
        ({"text_bert": np.tile([0.0, 1, 0, 1, 1, 1], (4, 3, 1))}, r"ones after zeros, expected.*move the padding"),
        (
            {"audio_lengths": [0] * 4, "text": None, "vision": None},
            r"4 utterances have no modality at all \(first: video0.*expected at least one; add",
        ),
    ],
)
def test_mmsa_errors(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(mmsa(tmp_path, **changes))


def test_splits_must_agree(tmp_path):
    splits = {"train": mmsa_split(), "valid": mmsa_split(vision=None), "test": mmsa_split()}
    with pytest.raises(DataError, match=r"\['valid'\]: vision is missing, expected the same .*\(4, 7, 2\); extract"):
        load(write(tmp_path / "d.pkl", splits))
    splits["valid"] = mmsa_split(vision=np.ones((4, 7, 9)))
    with pytest.raises(DataError, match=r"\['valid'\]: vision is \(4, 7, 9\), expected the same modalities"):
        load(write(tmp_path / "d.pkl", splits))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_empty_splits_are_named(tmp_path, split):
    splits = {name: mmsa_split(0 if name == split else 4) for name in ("train", "valid", "test")}
    with pytest.raises(DataError, match=rf"split '{split}' is empty \(rows: .*{split} 0.*expected.*assign"):
        load(write(tmp_path / "d.pkl", splits))


# GCNet


def gcnet(root, *, classes=False, rows=3, videos=8, skip=(), labels=None, features=None):
    names = [f"Ses0{i}" for i in range(videos)]
    ids = {v: [f"{v}_{j}" for j in range(rows)] for v in names}
    if labels is None:
        labels = {v: [j % 3 if classes else np.float64(j - 1.5) for j in range(rows)] for v in names}
    splits = [set(names[:-2]), names[-2:]] if classes else [set(names[:-3]), {names[-3]}, names[-2:]]
    sets = [ids, labels, {v: ["F"] * rows for v in names}, {v: [""] * rows for v in names}, *splits]
    for folder, shape in (features or {"minilm-UTT": (4,), "hubert-UTT": (5, 3), "gait": (2,)}).items():
        for utterance in (u for v in names for u in ids[v] if (folder, u) not in skip):
            file = root / "features" / folder / f"{utterance}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, rng.normal(size=shape))
    return write(root / "labels.pkl", sets)


def test_gcnet_seven_list(tmp_path):
    path = gcnet(tmp_path, skip={("hubert-UTT", "Ses00_1"), ("gait", "Ses07_0")})
    for source in (path, tmp_path):
        data = load(source)
        assert data.kind == "sentiment"
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 15, "valid": 3, "test": 6}
        assert data.dims == {"text": 4, "audio": 3, "gait": 2}
    train, test = data.splits["train"], data.splits["test"]
    assert not train.lengths
    assert train.id[:2] == ["Ses00_0", "Ses00_1"]
    assert train.group[:4] == ["Ses00"] * 3 + ["Ses01"]
    assert train.present["audio"].tolist() == [True, False] + [True] * 13
    assert test.present["gait"].tolist() == [True] * 3 + [False] + [True] * 2
    assert not train.features["audio"][1].any()
    frames = np.load(tmp_path / "features/hubert-UTT/Ses00_0.npy")
    torch.testing.assert_close(train.features["audio"][0], torch.tensor(frames.mean(0)).float())
    assert train.target[:3].tolist() == [-1.5, -0.5, 0.5]
    assert "text from minilm-UTT, audio from hubert-UTT, gait from gait" in data.note


def test_gcnet_utterances_of_no_split_are_counted(tmp_path):
    content = pickle.loads(gcnet(tmp_path).read_bytes())
    content[4].remove("Ses00")
    assert "3 utterances of no split left out" in load(write(tmp_path / "labels.pkl", content)).note


def test_gcnet_six_list_splits_off_whole_conversations_by_seed(tmp_path):
    path = gcnet(tmp_path, classes=True, videos=42)
    data = load(path)
    assert (data.kind, data.classes) == ("classes", 3)
    assert data.splits["train"].target.dtype == torch.int64
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 102, "valid": 18, "test": 6}
    groups = [set(split.group) for split in data.splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 42
    assert "6 of 40 groups (18 of 120 utterances) split off train by seed 0" in data.note
    assert load(path).splits["valid"].id == data.splits["valid"].id
    assert load(path, split_seed=1).splits["valid"].id != data.splits["valid"].id


def test_gcnet_without_labels_to_predict(tmp_path):
    path = gcnet(tmp_path, labels={})
    data = load(path, labels=False)
    assert data.kind is None
    assert data.splits["test"].target is None
    with pytest.raises(DataError, match=r"Ses00 has 0 labels for 3 utterances, expected one each; correct"):
        load(path)


def test_gcnet_two_folders_of_one_modality(tmp_path):
    path = gcnet(tmp_path, features={"bert": (3,), "minilm-UTT": (4,)})
    with pytest.raises(
        DataError, match=r"bert and minilm-UTT both hold text, expected one.*move .*for example minilm-UTT"
    ):
        load(path)


def test_gcnet_errors(tmp_path):
    path = gcnet(tmp_path)
    file = tmp_path / "features/minilm-UTT/Ses02_0.npy"
    for content, message in [
        (np.zeros(9), r"Ses00_0\.npy has 4 features and Ses02_0\.npy 9, expected the same everywhere; extract"),
        (np.full(4, np.nan), r"minilm-UTT, text: NaN in 1 of 24 rows \(first: Ses02_0\), expected finite.*recomp"),
        (np.zeros((1, 2, 3)), r"Ses02_0\.npy: has shape \(1, 2, 3\).*expected numbers \(D,\) or.*save one"),
        (np.array([{}], dtype=object), r"Ses02_0\.npy: cannot be read .*expected a plain \.npy.*numpy\.save"),
    ]:
        np.save(file, content)
        with pytest.raises(DataError, match=message):
            load(path)
    file.parent.rename(tmp_path / "elsewhere")
    file.parent.mkdir()
    with pytest.raises(
        DataError, match=r"minilm-UTT: holds no file for any of 24 .*expected names like Ses00_0\.npy"
    ):
        load(path)
    (tmp_path / "features").rename(tmp_path / "gone")
    with pytest.raises(
        DataError, match=r"features: no feature folder, expected features/<name>/<utterance>\.npy.*put"
    ):
        load(path)


def test_gcnet_label_errors(tmp_path):
    names = [f"Ses0{i}" for i in range(8)]
    with pytest.raises(DataError, match=r"labels are not all numbers, expected integers.*recode"):
        load(gcnet(tmp_path, labels={v: ["sad"] * 3 for v in names}))
    with pytest.raises(DataError, match=r"labels are whole numbers only \(-1, 0, 1\).*--task classification"):
        load(gcnet(tmp_path, labels={v: [-1, 0, 1] for v in names}))
    with pytest.raises(DataError, match=r"every label is class 0, expected at least two classes; check"):
        load(gcnet(tmp_path, labels={v: [0, 0, 0] for v in names}))


def test_gcnet_split_of_unknown_videos(tmp_path):
    content = pickle.loads(gcnet(tmp_path).read_bytes())
    content[-1] = ["Ses99"]
    with pytest.raises(DataError, match=r"split 'test' names Ses99, expected videos of the first entry; add"):
        load(write(tmp_path / "labels.pkl", content))


@pytest.mark.parametrize(
    ("folder", "modality"),
    [
        ("minilm-UTT", "text"),
        ("deberta-large-4-UTT", "text"),
        ("chinese-hubert-large-UTT", "audio"),
        ("wav2vec-large-c-UTT", "audio"),
        ("vggish", "audio"),
        ("vggface2", "vision"),
        ("manet_UTT", "vision"),
        ("OpenFace", "vision"),
        ("lidar", "lidar"),
    ],
)
def test_feature_names(folder, modality):
    assert modality_of(folder) == modality


# our own


def npz(tmp_path, **changes):
    n = 12
    fields = {
        "x_lidar": rng.normal(size=(n, 3)),
        "x_vision": rng.normal(size=(n, 5, 2)),
        "length_vision": np.arange(n) % 5 + 1,
        "y": np.arange(n) % 4,
        "split": np.arange(n) % 3,
    } | changes
    path = tmp_path / "field.npz"
    np.savez(path, **{key: value for key, value in fields.items() if value is not None})
    return path


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


# which layout


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
