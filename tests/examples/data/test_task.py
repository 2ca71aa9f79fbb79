"""The task of a file's labels: stated, guessed where that is safe, refused where it is doubtful."""

import json
import pickle

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, LabelOptions, load
from ebmc_msa.data.convert import main
from ebmc_msa.data.task import Source, decide

SPLITS = ("train", "valid", "test")
rng = np.random.default_rng(0)
FRACTIONS = np.array([-2.4, 0.6, 1.0, -1.8, 0.2, 3.0])


def guess(labels, options=None, **source):
    return decide(Source("file", "labels", **source), {"train": labels}, options or LabelOptions())


def mult(path, y, **names):
    """A MulT pickle with labels `y` in each split."""
    splits = {
        names.get(split, split): {
            "text": rng.normal(size=(len(y), 4, 3)),
            "audio": rng.normal(size=(len(y), 3)),
            "labels": y,
        }
        for split in SPLITS
    }
    path.write_bytes(pickle.dumps(splits))
    return path


def mmsa(path, y, **more):
    splits = {
        split: {
            "text": rng.normal(size=(len(y), 4, 3)),
            "audio": rng.normal(size=(len(y), 3)),
            "vision": rng.normal(size=(len(y), 2)),
            "regression_labels": y,
            "raw_text": ["words"] * len(y),
        }
        | {key: value for key, value in more.items() if value is not None}
        for split in SPLITS
    }
    path.write_bytes(pickle.dumps(splits))
    return path


@pytest.mark.parametrize("write", [mult, mmsa])
@pytest.mark.parametrize(
    ("y", "classes", "expected", "note"),
    [
        (np.array([0, 1, 1, 0]), 2, [0, 1, 1, 0], "task classification (auto: labels 0 to 1)"),
        (np.array([-1, 1, 1, -1]), 2, [0, 1, 1, 0], "labels -1 and 1, now 0 and 1"),
        (np.array([2, 0, 1, 3]), 4, [2, 0, 1, 3], "labels 0 to 3"),
        (np.eye(3)[[2, 0, 1]], 3, [2, 0, 1], "one-hot rows of 3 columns"),
        (np.eye(7)[[2, 0, 6, 5]], 7, [2, 0, 6, 5], "one-hot rows of 7 columns"),
        (np.eye(2, dtype=int)[[1, 0]][:, None], 2, [1, 0], "one-hot rows of 2 columns"),
    ],
    ids=["0 1", "-1 1", "0 to 3", "one-hot", "seven one-hot", "one-hot (N, 1, 2)"],
)
def test_class_labels_are_classes_and_noted(tmp_path, write, y, classes, expected, note):
    data = load(write(tmp_path / "d.pkl", y))
    assert (data.kind, data.classes) == ("classes", classes)
    assert data.splits["test"].target.tolist() == expected
    assert note in data.note


@pytest.mark.parametrize("write", [mult, mmsa])
@pytest.mark.parametrize(
    "y",
    [
        np.array([0.0, 1, 1, 0]),
        np.array([-1.0, 1, 1, -1]),
        np.array([0.0, 1, 2, 3]),
        np.array([1, 2, 3, 4]),
        np.array([-3, 3, 0, 1]),
        np.array([-3.0, 3, 0, 1]),
        np.array([0, 1, -1]),
        np.ones(4),
    ],
    ids=str,
)
def test_whole_numbers_that_may_be_sentiment_are_refused(tmp_path, write, y):
    path = write(tmp_path / "d.pkl", y)
    with pytest.raises(DataError, match=r"labels are whole numbers only \(.*pass --task classification, --task sent"):
        load(path)
    assert load(path, options=LabelOptions("sentiment", (-3, 3) if y.max() <= 3 else (1, 5))).kind == "sentiment"
    assert load(path, options=LabelOptions("regression")).kind == "regression"
    if y.min() >= 0 and y.max() > 0:
        data = load(path, options=LabelOptions("classification"))
        assert (data.kind, data.splits["train"].target.tolist()) == ("classes", y.astype(int).tolist())


def test_sentiment_is_guessed_from_fractions_and_noted(tmp_path):
    data = load(mult(tmp_path / "d.pkl", FRACTIONS))
    assert (data.kind, data.range) == ("sentiment", (-3, 3))
    assert data.note.startswith("task sentiment in [-3, 3] (auto: labels from -2.4 to 3)")
    assert load(tmp_path / "d.pkl", options=LabelOptions("sentiment")).note.startswith(
        "task sentiment in [-3, 3], as stated"
    )


def test_a_scale_in_doubt_is_refused_and_stated_by_range(tmp_path):
    y = np.array([-1, -0.4, 0.2, 1, 0.6])
    path = mult(tmp_path / "d.pkl", y)
    for options in (LabelOptions(), LabelOptions("sentiment")):
        with pytest.raises(DataError, match=r"run from -1 to 1, .* pass --range -1 1 or --range -3 3"):
            load(path, options=options)
    for scale in ((-1, 1), (-3, 3)):
        data = load(path, options=LabelOptions(range=scale))
        assert (data.kind, data.range) == ("sentiment", scale)
    with pytest.raises(DataError, match=r"labels run from -1 to 1, expected sentiment from 0 to 1"):
        load(path, options=LabelOptions(range=(0, 1)))
    with pytest.raises(DataError, match=r"labels run from -2.4 to 3, expected sentiment from -1 to 1"):
        load(mult(tmp_path / "d.pkl", FRACTIONS), options=LabelOptions(range=(-1, 1)))


def test_sentiment_beyond_its_range_names_the_option(tmp_path):
    path = mult(tmp_path / "d.pkl", 2 * FRACTIONS)
    with pytest.raises(DataError, match=r"labels run from -4.8 to 6, expected sentiment from -3 to 3; pass --range"):
        load(path)
    assert load(path, options=LabelOptions(range=(-6, 6))).range == (-6, 6)


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        ("classification", FRACTIONS, r"not all whole numbers \(first: -2.4\), expected classes.*--task regression"),
        ("classification", np.array([-3, 3, 0, 1]), r"labels run from -3 to 3, expected classes 0, 1, …; recode"),
        ("multilabel", FRACTIONS, r"labels has shape \(18,\) for task 'multilabel', expected \(N, C\)"),
        ("sentiment", np.eye(3), r"labels has shape \(3, 3\), expected one label per row"),
        ("regression", np.eye(3), r"labels has shape \(3, 3\), expected one label per row"),
        ("classification", np.ones((3, 2)), r"labels has shape \(3, 2\), expected one label per row"),
        ("auto", np.zeros((3, 2)), r"labels has shape \(3, 2\), expected one label per row.*--task multilabel"),
        ("auto", rng.random((3, 4)), r"labels has shape \(3, 4\), expected one label per row"),
        ("sentiment", np.eye(2)[np.ones((3, 4), int)], r"shape \(N, 4, 2\), IEMOCAP's four emotions.*--task multi"),
    ],
)
def test_a_stated_task_that_the_labels_contradict(tmp_path, task, y, message):
    with pytest.raises(DataError, match=message):
        load(mult(tmp_path / "d.pkl", y), options=LabelOptions(task))


def test_several_labels(tmp_path):
    y = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]])
    data = load(mult(tmp_path / "d.pkl", y))
    assert (data.kind, data.classes, data.labels) == ("multilabel", 3, ("0", "1", "2"))
    assert "task multilabel (auto: 0 or 1 in each of 3 columns)" in data.note
    assert load(mult(tmp_path / "d.pkl", np.eye(3)), options=LabelOptions("multilabel")).kind == "multilabel"


def test_labels_that_start_at_one_warn():
    found = guess(np.array([1, 2, 3]), integers=True)
    assert found.classes == 4
    assert "labels do not start at 0, so no utterance has class 0" in found.note
    with pytest.raises(DataError, match=r"whole numbers only \(1, 2, 3\)"):
        guess(np.array([1, 2, 3]))


def test_years_are_no_classes():
    with pytest.raises(DataError, match=r"whole numbers only \(1990, 2001\)"):
        guess(np.array([1990, 2001]), integers=True, sentiment=False)


def test_splits_decide_together():
    with pytest.raises(DataError, match="whole numbers only"):
        decide(Source("f", "y"), {"train": np.array([0.0, 1]), "test": np.array([2.0])}, LabelOptions())
    found = decide(Source("f", "y"), {"train": np.array([0.0, 1]), "test": np.array([2.5])}, LabelOptions())
    assert found.kind == "sentiment"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "emotion"}, r"--task: 'emotion', expected auto, sentiment, classification, multilabel, regress"),
        ({"range": (1, -1)}, r"--range: 1 -1, expected the lowest and the highest sentiment; swap"),
        ({"range": (0, float("inf"))}, r"--range: 0 inf, expected"),
        ({"task": "classification", "range": (-1, 1)}, r"--range: goes with --task sentiment, not classification"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(DataError, match=message):
        LabelOptions(**options)


# MOSEI


def mosei(rows=6):
    y = np.round(rng.uniform(0, 3, (rows, 7)) * 3) / 3
    y[:, 0] = np.linspace(-2.3, 3, rows)
    y[:, 1:] *= rng.random((rows, 6)) < 0.5
    return y


@pytest.mark.parametrize("write", [mult, mmsa])
def test_mosei_has_sentiment_and_six_emotions(tmp_path, write):
    y = mosei()
    path = write(tmp_path / "d.pkl", y)
    data = load(path)
    assert (data.kind, data.range) == ("sentiment", (-3, 3))
    np.testing.assert_allclose(data.splits["test"].target, y[:, 0], rtol=1e-6)
    assert "MOSEI's six emotions left out (--labels emotions)" in data.note
    data = load(path, options=LabelOptions(labels="emotions"))
    assert (data.kind, data.labels) == ("multilabel", ("happy", "sad", "anger", "surprise", "disgust", "fear"))
    assert data.splits["test"].target.tolist() == (y[:, 1:] > 0).tolist()
    assert "sentiment left out (--labels sentiment)" in data.note
    assert load(path, options=LabelOptions("multilabel")).labels == data.labels
    with pytest.raises(DataError, match=r"emotions are of --task multilabel, not sentiment"):
        load(path, options=LabelOptions("sentiment", labels="emotions"))
    with pytest.raises(DataError, match=r"--labels: joy, but .*holds sentiment and emotions; pass one of"):
        load(path, options=LabelOptions(labels="joy"))


def test_six_columns_are_the_emotions_alone(tmp_path):
    y = mosei()[:, 1:]
    data = load(mult(tmp_path / "d.pkl", y))
    assert (data.kind, data.classes) == ("multilabel", 6)
    assert data.splits["train"].target.tolist() == (y > 0).tolist()
    with pytest.raises(DataError, match=r"--labels: sentiment, but .* holds emotions; pass one of emotions"):
        load(tmp_path / "d.pkl", options=LabelOptions(labels="sentiment"))


def test_labels_option_of_a_file_with_one_kind(tmp_path):
    with pytest.raises(DataError, match=r"--labels: emotions, but .* holds one kind of labels only; leave it out"):
        load(mult(tmp_path / "d.pkl", FRACTIONS), options=LabelOptions(labels="emotions"))


def test_seven_columns_that_are_not_mosei(tmp_path):
    y = mosei()
    y[0, 1] = 9
    with pytest.raises(DataError, match=r"labels has shape \(6, 7\), expected .*MOSEI's 7 columns"):
        load(mult(tmp_path / "d.pkl", y))


# CH-SIMS


def sims(path, **changes):
    y = np.array([-1, -0.6, 0, 0.2, 1])
    own = {f"regression_labels_{m}": np.roll(y, i) for i, m in enumerate("TAV")}
    return mmsa(path, **({"y": y, "classification_labels": np.sign(y) + 1} | own | changes))


def test_ch_sims_is_recognised_by_its_labels_of_each_modality(tmp_path):
    data = load(sims(tmp_path / "d.pkl"))
    assert (data.kind, data.range) == ("sentiment", (-1, 1))
    assert (
        "task sentiment in [-1, 1] (auto: labels from -1 to 1, and labels of each modality, as in CH-SIMS)"
        in data.note
    )
    own = data.splits["test"].own
    assert list(own) == ["text", "audio", "vision"]
    np.testing.assert_allclose(own["audio"], [1, -1, -0.6, 0, 0.2], rtol=1e-6)
    assert "labels of text (correlation with the label 1.00), audio (" in data.note
    assert "regression_labels_T" not in data.note


def test_ch_sims_trains_on_the_labels_of_one_modality(tmp_path):
    data = load(sims(tmp_path / "d.pkl"), options=LabelOptions(labels="audio"))
    np.testing.assert_allclose(data.splits["test"].target, [1, -1, -0.6, 0, 0.2], rtol=1e-6)
    assert "labels of audio" in data.note


def test_the_scale_of_ch_sims_without_its_labels_is_in_doubt(tmp_path):
    path = sims(tmp_path / "d.pkl", **{f"regression_labels_{m}": None for m in "TAV"})
    with pytest.raises(DataError, match=r"pass --range -1 1"):
        load(path)
    assert load(path, options=LabelOptions(range=(-1, 1))).range == (-1, 1)


def test_classes_of_an_mmsa_file(tmp_path):
    path = sims(tmp_path / "d.pkl")
    data = load(path, options=LabelOptions("classification"))
    assert (data.kind, data.splits["train"].target.tolist()) == ("classes", [0, 0, 1, 2, 2])
    assert "from classification_labels" in data.note
    only = mmsa(tmp_path / "only.pkl", np.zeros(4), classification_labels=np.array([0.0, 2, 1, 1]))
    splits = pickle.loads(only.read_bytes())
    for fields in splits.values():
        del fields["regression_labels"]
    only.write_bytes(pickle.dumps(splits))
    data = load(only)
    assert (data.kind, data.classes) == ("classes", 3)
    assert "from classification_labels" in data.note


def test_of_several_kinds_of_labels_those_a_trained_model_expects(tmp_path):
    data = load(mult(tmp_path / "d.pkl", mosei()), options=LabelOptions(expected=("multilabel", None)))
    assert (data.kind, data.classes) == ("multilabel", 6)
    path = sims(tmp_path / "s.pkl")
    assert load(path, options=LabelOptions(expected=("classes", None))).kind == "classes"
    assert load(path, options=LabelOptions(expected=("sentiment", (-1, 1)))).range == (-1, 1)
    data = load(mult(tmp_path / "d.pkl", FRACTIONS), options=LabelOptions(expected=("classes", None)))
    assert data.kind == "sentiment"  # no doubt about it


# splits


@pytest.mark.parametrize("name", ["dev", "val", "validation", "eval", "Valid", "DEV"])
def test_names_of_the_validation_split(tmp_path, name):
    data = load(mult(tmp_path / "d.pkl", FRACTIONS, valid=name))
    assert {part: len(split) for part, split in data.splits.items()} == dict.fromkeys(SPLITS, 6)
    assert "split off" not in data.note


@pytest.mark.parametrize("write", [mult, mmsa])
def test_other_names_of_splits_are_named_and_refused(tmp_path, write):
    path = write(tmp_path / "d.pkl", FRACTIONS)
    splits = pickle.loads(path.read_bytes())
    splits["testing"] = splits.pop("test")
    path.write_bytes(pickle.dumps(splits))
    with pytest.raises(DataError, match=r"a split is called 'testing' \(6 rows\), expected train.*to 'test', or"):
        load(path)
    splits["test"], splits["dev"] = splits.pop("testing"), splits["train"]
    path.write_bytes(pickle.dumps(splits))
    with pytest.raises(DataError, match=r"'valid' and 'dev' both name the valid split, expected one"):
        load(path)


def test_what_is_no_split_is_ignored_and_noted(tmp_path):
    path = mult(tmp_path / "d.pkl", FRACTIONS)
    splits = pickle.loads(path.read_bytes()) | {"version": 2, "words": ["a", "b"]}
    path.write_bytes(pickle.dumps(splits))
    assert "ignored version, words" in load(path).note


def test_unlabelled_files_state_no_task(tmp_path):
    path = mult(tmp_path / "d.pkl", FRACTIONS)
    splits = pickle.loads(path.read_bytes())
    del splits["test"]["labels"]
    path.write_bytes(pickle.dumps({"test": splits["test"]}))
    assert load(path, labels=False).kind is None
    assert load(path, labels=False, options=LabelOptions("classification")).kind == "classes"


def test_half_and_double_precision_labels():
    for dtype in (np.float16, np.float32, np.float64):
        y = FRACTIONS.astype(dtype)
        found = guess(y)
        assert torch.equal(found.values["train"], torch.from_numpy(y.astype(np.float32)))


# converted data keep their task


def test_a_converted_folder_keeps_task_and_range(tmp_path, capsys):
    path = mult(tmp_path / "d.pkl", np.array([-1, -0.4, 0.2, 1]))
    assert main([str(path), str(tmp_path / "c")]) == 2
    assert "pass --range -1 1 or --range -3 3" in capsys.readouterr().err
    assert main([str(path), str(tmp_path / "c"), "--range", "-1", "1"]) == 0
    data = load(tmp_path / "c")
    assert (data.kind, data.range) == ("sentiment", (-1, 1))
    assert load(tmp_path / "c", options=LabelOptions(range=(-1, 1))).range == (-1, 1)
    for options in (LabelOptions(range=(-3, 3)), LabelOptions("classification"), LabelOptions(labels="emotions")):
        with pytest.raises(DataError, match=r"was converted as sentiment in \[-1, 1\], expected no other --task"):
            load(tmp_path / "c", options=options)


@pytest.mark.parametrize("bad", [[1, -1], ["a", 1], [0, 1, 2], 3, [0, 1e300], [float("nan"), 1]])
def test_a_manifest_with_a_range_that_is_none(tmp_path, bad):
    assert main([str(mult(tmp_path / "d.pkl", FRACTIONS)), str(tmp_path / "c")]) == 0
    file = tmp_path / "c/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"range": bad}))
    with pytest.raises(DataError, match=r"manifest.json: cannot be read"):
        load(tmp_path / "c")


def test_folders_converted_before_ranges_existed(tmp_path):
    assert main([str(mult(tmp_path / "d.pkl", FRACTIONS)), str(tmp_path / "c")]) == 0
    file = tmp_path / "c/manifest.json"
    content = json.loads(file.read_text())
    assert content.pop("range") == [-3, 3]
    file.write_text(json.dumps(content))
    assert load(tmp_path / "c").kind == "sentiment"
