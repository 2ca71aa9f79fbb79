"""MMSA's pickles, tiny, and everything that can be wrong with them."""

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, load
from layouts import mmsa, mmsa_split, rng, write


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
