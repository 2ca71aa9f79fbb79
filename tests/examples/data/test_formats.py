"""Other containers of the same utterances: identical batches to the .npz, or one clear error."""

import csv
import pickle

import numpy as np
import pytest
import torch

from containers import (
    FRAMES,
    IDS,
    SPLIT,
    N,
    h5,
    h5_groups,
    manifest,
    mat,
    npz,
    old_pt,
    pt,
    pth,
    safetensors,
    safetensors_by_split,
    tensors,
    tuples,
    utterances,
)
from ebmc_msa.data import DataError, LabelOptions, load
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.formats.matlab import read_matlab
from ebmc_msa.data.formats.ragged import stack
from ebmc_msa.data.split import SplitView


@pytest.fixture(scope="module")
def fields():
    return utterances()


FORMATS = [pt, pth, old_pt, safetensors, safetensors_by_split, h5, h5_groups, mat, manifest, tuples]


def batch(data, split):
    return SplitView.of(data.splits[split], Spec.of(data), torch.device("cpu")).rows(torch.arange(6))


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_the_same_utterances_give_identical_batches(tmp_path, fields, write):
    (tmp_path / "a").mkdir()
    options = LabelOptions(range=(-3, 3))
    expected, data = (
        load(npz(tmp_path, fields), options=options),
        load(write(tmp_path / "a", fields), options=options),
    )
    assert data.modalities == expected.modalities
    assert (data.kind, data.range) == ("sentiment", (-3, 3))
    for split in ("train", "valid", "test"):
        one, other = data.splits[split], expected.splits[split]
        assert (one.id, one.group) == (other.id, other.group)
        a, b = batch(data, split), batch(expected, split)
        assert torch.equal(a.target, b.target)
        for m in FRAMES:
            assert torch.equal(a.features[m], b.features[m])
            assert torch.equal(a.lengths[m], b.lengths[m])
            assert torch.equal(a.present[m], b.present[m])


@pytest.mark.parametrize(
    ("write", "kind"),
    [(pt, "regression"), (pth, "sentiment"), (tuples, "sentiment"), (manifest, "regression"), (mat, "regression")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_fractions_are_sentiment_in_the_layouts_of_sentiment_only(tmp_path, fields, write, kind):
    assert load(write(tmp_path, fields)).kind == kind


def test_a_folder_with_one_such_file(tmp_path, fields):
    pt(tmp_path, fields)
    assert load(tmp_path).name == "d"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_every_number_type_of_torch(tmp_path, fields, dtype):
    content = {name: tensors(x) for name, x in fields.items()}
    content["x_text"] = (10 * content["x_text"]).to(dtype)
    torch.save(content, tmp_path / "d.pt")
    data = load(tmp_path / "d.pt").splits["train"]
    assert data.features["text"].dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
    assert torch.equal(data.features["text"].float(), content["x_text"][:6].float())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "bool", "U3"])
def test_matlab_arrays_are_those_of_scipy(tmp_path, dtype, packed):
    io = pytest.importorskip("scipy.io")
    x = (50 * np.random.default_rng(0).random((4, 3, 2))).astype(dtype)
    x = np.array([["abc"], ["dé"]]) if dtype == "U3" else x
    io.savemat(tmp_path / "d.mat", {"x_a": x, "a_name_of_many_letters": x, "y": x[:, 0]}, do_compression=packed)
    found = read_matlab(tmp_path / "d.mat")
    for name, expected in io.loadmat(tmp_path / "d.mat").items():
        if name == "x_a" and dtype != "U3":
            assert found[name].dtype == (np.dtype(bool) if dtype == "bool" else expected.dtype)
        if not name.startswith("__"):
            np.testing.assert_array_equal(
                found[name], "".join(expected.ravel()).rstrip() if dtype == "U3" else expected
            )


# doubles of MATLAB and cells of CSV have no type that tells classes from numbers


@pytest.mark.parametrize("y", [[0, 1, 2], [1, 2, 3], [-1, 1, 1]])
def test_whole_numbers_of_matlab_are_in_doubt(tmp_path, fields, y):
    path = mat(tmp_path, fields | {"y": np.tile(np.array(y, float), 6)})
    with pytest.raises(DataError, match=r"y are whole numbers only .*--task classification"):
        load(path)
    found = load(path, options=LabelOptions("classification"))
    assert found.kind == "classes"
    assert ("labels do not start at 0" in found.note) == (y == [1, 2, 3])


def rewritten(path, **columns):
    with path.open() as opened:
        rows = list(csv.DictReader(opened))
    for i, row in enumerate(rows):
        row.update({name: values[i % len(values)] for name, values in columns.items()})
    with path.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_labels_of_a_manifest(tmp_path, fields):
    path = manifest(tmp_path, fields)
    data = load(rewritten(path, label=["0", "1", "2"]))
    assert (data.kind, data.classes) == ("classes", 3)
    for cells in (["1", "2", "3", "4", "5"], ["0.0", "1.0"]):
        with pytest.raises(DataError, match="label are whole numbers only"):
            load(rewritten(path, label=cells))
    with pytest.raises(DataError, match=r"labels are words \(angry, happy\), expected numbers; write 0 for 'angry'"):
        load(rewritten(path, label=["happy", "angry"]))
    several = rewritten(path, label_happy=["0", "1"], label_sad=["1", "1"])
    with pytest.raises(DataError, match=r"has label and label_happy, expected one label, or several"):
        load(several)
    lines = [
        ",".join(c for i, c in enumerate(line.split(",")) if i != 2) for line in several.read_text().splitlines()
    ]
    several.write_text("\n".join(lines))
    data = load(several)
    assert (data.kind, data.labels) == ("multilabel", ("happy", "sad"))
    assert data.splits["train"].target[:2].tolist() == [[0, 1], [1, 1]]


def test_a_manifest_of_conversations(tmp_path, fields):
    path = manifest(tmp_path, fields)
    with pytest.raises(DataError, match=r"conversation without order|has conversation"):
        load(rewritten(path, conversation=["a", "b"]))
    with pytest.raises(DataError, match=r"order holds words"):
        load(rewritten(path, order=["first"]))
    data = load(rewritten(path, order=[str(i) for i in range(N)], speaker=["x", "y", "z"]))
    assert data.conversational
    assert data.splits["train"].conversation is not None


def test_a_manifest_reads_words(tmp_path, fields):
    data = load(rewritten(manifest(tmp_path, fields), raw_text=["so, it was good"]))
    assert data.splits["test"].words == ["so, it was good"] * 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"audio": ["../audio/0.npy"]}, r"line 2, audio: '\.\./audio/0\.npy' leads out of .*; copy the file there"),
        ({"audio": ["/etc/passwd.npy"]}, r"line 2, audio: '/etc/passwd\.npy' leads out of"),
        ({"audio": ["link/0.npy"]}, r"line 2, audio: 'link/0\.npy' leads out of"),
        ({"audio": ["audio/none.npy"]}, r"line 2, audio: 'audio/none\.npy' does not exist.*leave the cell empty"),
        ({"audio": ["words"]}, r"line 2, audio: is 'words', expected the path of a \.npy file.*raw_text"),
        (
            {"audio": ["text/0.npy", "audio/1.npy"]},
            r"video0\[0\] has 2 axes and 5 features, video0\[1\] 2 and 3",
        ),
        ({"audio": ["objects.npy"]}, r"'objects\.npy' cannot be read \(Object arrays"),
        ({"audio": [""]}, r"audio: every utterance is empty"),
        ({"split": ["train", "devel"]}, r"line 3: a split is called 'devel' .*rename it to 'dev'"),
        ({"split": ["train"]}, r"split 'test' is empty"),
    ],
)
def test_errors_of_a_manifest(tmp_path, fields, columns, message):
    home = tmp_path / "home"
    home.mkdir()
    path = rewritten(manifest(home, fields), **columns)
    (home / "link").symlink_to(tmp_path)
    np.save(tmp_path / "0.npy", np.ones((2, 3)))
    np.save(home / "objects.npy", np.array([{}], object))
    with pytest.raises(DataError, match=message):
        load(path)


def test_one_utterance_that_is_far_longer_than_all_others():
    rows = [np.zeros((2**18, 1), np.int8), *[np.zeros((1, 1), np.int8)] * 999]
    with pytest.raises(DataError, match=r"the longest of 1000 utterances has 262,144 frames, to which all would be"):
        stack("audio", rows, [str(i) for i in range(1000)])


def test_text_that_is_no_table(tmp_path):
    for text, message in [
        ("split,label\ntrain\n", r"line 2 has 1 cell, expected 2"),
        ("split,split\ntrain,1\n", r"has columns split, split, expected each named once"),
        ("split,label\n", r"holds no rows"),
        ("split,label\ntrain,1\n", r"has columns split, label, expected one per modality"),
        ("split,text\ntrain,\n", r"has columns split, text, expected a column label; add"),
    ]:
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "t.csv")


# tuples


def mag_bert(home, fields, words=lambda i: ["so", "good"], frames=2):
    rng = np.random.default_rng(0)
    splits = {"train": [], "dev": [], "test": []}
    for i in range(N):
        x = (words(i), rng.normal(size=(frames, 2)), rng.normal(size=(frames, 3)))
        splits[("train", "dev", "test")[SPLIT[i]]].append((x, np.array([[fields["y"][i]]]), IDS[i]))
    (home / "mosi.pkl").write_bytes(pickle.dumps(splits))
    return home / "mosi.pkl"


def test_words_of_mag_bert_are_for_fine_tuning(tmp_path, fields):
    data = load(mag_bert(tmp_path, fields))
    assert data.modalities == ["audio", "vision"]
    assert data.splits["valid"].words == ["so good"] * 6
    assert data.splits["valid"].group[:2] == ["video3", "video3"]
    assert "words come without features (--finetune-text DIR reads them)" in data.note


def test_word_ids_of_misa(tmp_path, fields):
    data = load(mag_bert(tmp_path, fields, words=lambda i: np.array([3, 4])))
    assert data.splits["train"].words is None
    assert "as ids only" in data.note


def test_frames_of_minus_infinity_and_utterances_without_frames(tmp_path, fields):
    content = pickle.loads(tuples(tmp_path, fields).read_bytes())
    (text, vision, audio), label, name = content["train"][0]
    audio = audio.copy()
    audio[0] = -np.inf
    content["train"][0] = (text, vision[:0], audio), label, name
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps(content))
    split = load(tmp_path / "mosi.pkl").splits["train"]
    assert not split.present["vision"][0]
    assert not split.features["audio"][0, 0].any()
    assert split.lengths["audio"][0] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": [(("so", "good"), 1.0, "a")]}, r"\['valid'\]\[0\]: is a tuple of another form, expected \(\(words"),
        ({"test": [((np.ones((1, 5)), np.ones((1, 2)), np.ones((1, 3))), "good", "a")]}, r"labels are not numbers"),
        ({"test": [((np.ones((1, 5)), np.ones((1, 2)), np.ones((1, 3))), None, "a")]}, r"utterances without a label"),
        ({"hold": [1]}, r"a split is called 'hold' \(1 row\), expected train"),
    ],
)
def test_errors_of_tuples(tmp_path, fields, changes, message):
    with pytest.raises(DataError, match=message):
        load(tuples(tmp_path, fields, **changes))
