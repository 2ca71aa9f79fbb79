"""Other containers of the same utterances: identical batches to the .npz, or one clear error."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, LabelOptions, load
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.formats.ragged import stack
from ebmc_msa.data.split import Fold

FRAMES = {"text": (6, 5), "audio": (8, 3), "vision": (7, 2)}
N = 18
SPLIT = np.repeat([0, 1, 2], 6)
IDS = [f"video{i // 2}[{i}]" for i in range(N)]


@pytest.fixture(scope="module")
def fields():
    """Of the .npz; row 1 lacks vision, float32 as every container can hold it."""
    rng = np.random.default_rng(0)
    found = {"y": np.round(rng.uniform(-3, 3, N), 1), "split": SPLIT, "id": np.array(IDS)}
    found["group"] = np.array([i.partition("[")[0] for i in IDS])
    for m, (frames, size) in FRAMES.items():
        x = rng.normal(size=(N, frames, size)).astype(np.float32)
        length = rng.integers(3, frames + 1, N)
        length[[0, 6, 12]] = frames  # so that each split is as long as the longest
        length[1] *= m != "vision"
        x[np.arange(frames) >= length[:, None]] = 0
        found |= {f"x_{m}": x, f"length_{m}": length}
    return found


def npz(home, fields):
    np.savez(home / "d.npz", **fields)
    return home / "d.npz"


def by_fold(fields):
    """MulT's fields, padding last."""
    names = {"text": "x_text", "audio": "x_audio", "vision": "x_vision", "labels": "y", "id": "id"}
    return {
        fold: {key: fields[name][i == SPLIT] for key, name in names.items()}
        for i, fold in enumerate(("train", "dev", "test"))
    }


def tensors(x):
    return torch.from_numpy(x) if x.dtype.kind in "fi" else x.tolist()


def pt(home, fields):
    torch.save({name: tensors(x) for name, x in fields.items()}, home / "d.pt")
    return home / "d.pt"


def pth(home, fields):
    torch.save(
        {fold: {k: tensors(x) for k, x in part.items()} for fold, part in by_fold(fields).items()}, home / "d.pth"
    )
    return home / "d.pth"


def old_pt(home, fields):
    content = {name: tensors(x) for name, x in fields.items()}
    torch.save(content, home / "d.pt", _use_new_zipfile_serialization=False)
    return home / "d.pt"


def safetensors(home, fields):
    save = pytest.importorskip("safetensors.torch").save_file
    metadata = {name: json.dumps(fields[name].tolist()) for name in ("id", "group")} | {"task": "regression"}
    save({name: tensors(x) for name, x in fields.items() if name not in metadata}, home / "d.safetensors", metadata)
    return home / "d.safetensors"


def safetensors_by_fold(home, fields):
    save = pytest.importorskip("safetensors.torch").save_file
    parts = by_fold(fields)
    x = {f"{fold}.{k}": tensors(v) for fold, part in parts.items() for k, v in part.items() if k != "id"}
    save(x, home / "d.safetensors", {f"{fold}.id": json.dumps(part["id"].tolist()) for fold, part in parts.items()})
    return home / "d.safetensors"


def h5(home, fields):
    h5py = pytest.importorskip("h5py")
    with h5py.File(home / "d.h5", "w") as file:
        for name, x in fields.items():
            file.create_dataset(name, data=x.astype("S20") if name == "group" else x.tolist() if name == "id" else x)
    return home / "d.h5"


def h5_groups(home, fields):
    h5py = pytest.importorskip("h5py")
    with h5py.File(home / "d.hdf5", "w") as file:
        for fold, part in by_fold(fields).items():
            for name, x in part.items():
                packed = {"compression": "gzip"} if x.dtype.kind == "f" else {}
                file.create_dataset(f"{fold}/{name}", data=x if x.dtype.kind == "f" else x.tolist(), **packed)
    return home / "d.hdf5"


def mat(home, fields):
    savemat = pytest.importorskip("scipy.io").savemat
    doubles = {name: x.astype(np.float64) for name, x in fields.items() if name in ("y", "split")}
    savemat(home / "d.mat", fields | doubles | {"y": fields["y"][:, None]}, do_compression=True)
    return home / "d.mat"


def manifest(home, fields):
    """Frames without their padding, one file a row and modality."""
    with (home / "table.csv").open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "split", "label", "group", *FRAMES])
        for i in range(N):
            paths = []
            for m in FRAMES:
                path = home / m / f"{i}.npy"
                path.parent.mkdir(exist_ok=True)
                length = fields[f"length_{m}"][i]
                np.save(path, fields[f"x_{m}"][i, :length])
                paths.append(f"{m}/{i}.npy" if length else "")
            fold = ("train", "valid", "2")[SPLIT[i]]
            writer.writerow([IDS[i], fold, fields["y"][i], fields["group"][i], *paths])
    return home / "table.csv"


def tuples(home, fields, name="dev", **changes):
    """As MAG-BERT has them, but with features of words in place of words."""
    folds = {"train": [], name: [], "test": []}
    for i in range(N):
        x = [fields[f"x_{m}"][i, : fields[f"length_{m}"][i]] for m in ("text", "vision", "audio")]
        folds[("train", name, "test")[SPLIT[i]]].append((tuple(x), fields["y"][i].reshape(1, 1), IDS[i]))
    (home / "mosi.pkl").write_bytes(pickle.dumps(folds | changes))
    return home / "mosi.pkl"


FORMATS = [pt, pth, old_pt, safetensors, safetensors_by_fold, h5, h5_groups, mat, manifest, tuples]


def batch(data, fold):
    return Fold.of(data.splits[fold], Spec.of(data), torch.device("cpu")).rows(torch.arange(6))


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
    for fold in ("train", "valid", "test"):
        one, other = data.splits[fold], expected.splits[fold]
        assert (one.id, one.group) == (other.id, other.group)
        a, b = batch(data, fold), batch(expected, fold)
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


def test_a_manifest_reads_words(tmp_path, fields):
    data = load(rewritten(manifest(tmp_path, fields), raw_text=["so, it was good"]))
    assert data.splits["test"].words == ["so, it was good"] * 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"audio": ["../audio/0.npy"]}, r"line 2, audio: '\.\./audio/0\.npy' leads out of .*; copy the file there"),
        ({"audio": ["/etc/passwd.npy"]}, r"line 2, audio: '/etc/passwd\.npy' leads out of"),
        ({"audio": ["link/0.npy"]}, r"line 2, audio: 'link/0\.npy' leads out of"),
        ({"audio": ["audio/none.npy"]}, r"line 2, audio: 'audio/none\.npy' cannot be read .*No such file"),
        ({"audio": ["words"]}, r"line 2, audio: is 'words', expected the path of a \.npy file.*raw_text"),
        (
            {"audio": ["text/0.npy", "audio/1.npy"]},
            r"video0\[0\] has 2 axes and 5 features, video0\[1\] 2 and 3",
        ),
        ({"audio": ["objects.npy"]}, r"'objects\.npy' cannot be read \(Object arrays"),
        ({"audio": [""]}, r"audio: every utterance is empty"),
        ({"split": ["train", "devel"]}, r"line 3: a split is called 'devel' .*rename it to 'dev'"),
        ({"split": ["train"]}, r"fold 'test' is empty"),
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
        ("split,label\ntrain\n", r"line 2 has 1 cells, expected 2"),
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
    folds = {"train": [], "dev": [], "test": []}
    for i in range(N):
        x = (words(i), rng.normal(size=(frames, 2)), rng.normal(size=(frames, 3)))
        folds[("train", "dev", "test")[SPLIT[i]]].append((x, np.array([[fields["y"][i]]]), IDS[i]))
    (home / "mosi.pkl").write_bytes(pickle.dumps(folds))
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
        ({"hold": [1]}, r"a split is called 'hold' \(1 rows\), expected train"),
    ],
)
def test_errors_of_tuples(tmp_path, fields, changes, message):
    with pytest.raises(DataError, match=message):
        load(tuples(tmp_path, fields, **changes))


# refusals


class Stranger:
    pass


def test_what_torch_must_not_load(tmp_path, fields):
    good = {name: tensors(x) for name, x in fields.items()}
    storage = torch.zeros(4)
    for changes, message in [
        ({"extra": Stranger()}, r"torch\.load\(weights_only=True\).*expected tensors in plain dicts"),
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
        (lambda f: f.create_group("a/b/c/d/e"), r"groups nest deeper than 4"),
    ]:
        h5(tmp_path, fields)
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(DataError, match=message):
            load(path)


def test_what_matlab_must_not_load(tmp_path, fields):
    savemat = pytest.importorskip("scipy.io").savemat
    for changes, message in [
        ({"id": np.array(IDS, object)}, r"holds id \(cell\), expected numeric and char arrays; save .*char\(ids\)"),
        ({"info": {"a": 1}}, r"holds info \(struct\)"),
    ]:
        savemat(tmp_path / "d.mat", fields | changes)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "d.mat")
    savemat(tmp_path / "d.mat", {"x_a": np.zeros(2**26)}, do_compression=True)
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


@pytest.mark.parametrize("module", ["h5py", "scipy.io", "safetensors"])
def test_missing_libraries_are_named(tmp_path, fields, module, monkeypatch):
    import sys

    write = {"h5py": h5, "scipy.io": mat, "safetensors": safetensors}[module]
    path = write(tmp_path, fields)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"is not installed; pip install 'modbalance\[formats\]'"):
        load(path)
