"""GCNet's folders, tiny, and everything that can be wrong with them."""

import pickle

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, load
from ebmc_msa.data.formats.gcnet import modality_of
from layouts import gcnet, write


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
