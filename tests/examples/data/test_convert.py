"""What convert.py writes: the same data, mapped, checked, all of it or nothing."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, convert, load
from ebmc_msa.data.formats.converted import verify


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    splits = {}
    for split, n in (("train", 9), ("valid", 3), ("test", 4)):
        splits[split] = {
            "id": [f"{split}{i}$_$0" for i in range(n)],
            "text": rng.normal(size=(n, 6, 5)).astype(np.float16),
            "audio": rng.normal(size=(n, 8, 3)),
            "vision": rng.normal(size=(n, 1, 2)).astype(np.float32),
            "audio_lengths": [0, *([5] * (n - 1))],
            "regression_labels": np.linspace(-3, 3, n),
        }
    splits["train"]["audio"][1, 0, 0] = -np.inf
    path = tmp_path / "source.pkl"
    path.write_bytes(pickle.dumps(splits))
    return path


@pytest.fixture
def folder(source, tmp_path):
    assert convert.main([str(source), str(tmp_path / "converted")]) == 0
    return tmp_path / "converted"


def test_converted_data_are_the_same_and_mapped(source, folder):
    expected, found = load(source), load(folder)
    assert (found.name, found.kind, found.classes, found.note) == (
        expected.name, expected.kind, expected.classes, expected.note,
    )  # fmt: skip
    for key, split in expected.splits.items():
        other = found.splits[key]
        assert (other.id, other.group) == (split.id, split.group)
        assert torch.equal(other.target, split.target)
        for part in ("features", "lengths", "present"):
            for name, x in getattr(split, part).items():
                assert getattr(other, part)[name].dtype == x.dtype
                assert torch.equal(getattr(other, part)[name], x)
    assert found.splits["train"].features["text"].dtype == torch.float16
    x = np.load(folder / "train/x_text.npy", allow_pickle=False, mmap_mode="r")
    assert isinstance(x, np.memmap)
    found.splits["train"].features["text"].zero_()  # changes this process alone
    assert x.any()
    assert load(folder).splits["train"].features["text"].any()


def test_converting_again_gives_the_same_bytes(folder, tmp_path):
    convert.convert(folder, tmp_path / "again")
    for file in (f for f in folder.rglob("*") if f.is_file()):
        assert (tmp_path / "again" / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_validation_is_split_off_once(tmp_path):
    np.savez(tmp_path / "d.npz", x_a=np.eye(20), y=np.arange(20) % 2, split=np.arange(20) % 5 // 4 * 2)
    convert.main([str(tmp_path / "d.npz"), str(tmp_path / "c"), "--split-seed", "3"])
    assert load(tmp_path / "c").splits["valid"].id == load(tmp_path / "d.npz", split_seed=3).splits["valid"].id
    assert "split off train by seed 3" in load(tmp_path / "c", split_seed=4).note


def test_to_predict(source, tmp_path):
    np.savez(tmp_path / "d.npz", x_a=np.eye(3))
    assert convert.main([str(tmp_path / "d.npz"), str(tmp_path / "c"), "--no-labels"]) == 0
    assert load(tmp_path / "c", labels=False).splits["test"].target is None
    with pytest.raises(DataError, match=r"split 'train' is empty"):
        load(tmp_path / "c")


def test_dest_is_kept_unless_asked(source, folder, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    for arguments, message in [
        ([source, folder], "converted exists already, expected a new name; pass another, or --overwrite"),
        ([source, tmp_path / "mine", "--overwrite"], "mine exists already and is not a converted folder, expected"),
        ([source, tmp_path / "no/where"], "no/where cannot be written (No such file or directory), expected a place"),
        ([tmp_path / "nothing", tmp_path / "c"], "nothing does not exist"),
    ]:
        assert convert.main([str(a) for a in arguments]) == 2
        assert message in capsys.readouterr().err
    assert convert.main([str(source), str(folder), "--overwrite"]) == 0
    assert load(folder).splits["test"].id
    for arguments in ([source], ["--verify", source, folder]):
        with pytest.raises(SystemExit):
            convert.main([str(a) for a in arguments])


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["write", "rename"])
def test_interruption_leaves_nothing(source, tmp_path, monkeypatch, capsys, step, problem):
    def fail(*_, **__):
        raise problem

    if step == "write":
        monkeypatch.setattr("ebmc_msa.data.formats.converted.json.dumps", fail)
    else:
        monkeypatch.setattr("ebmc_msa.data.convert.os.replace", fail)
    status = convert.main([str(source), str(tmp_path / "c")])
    assert status == (130 if problem is KeyboardInterrupt else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pkl"]
    assert ("Interrupted" if status == 130 else "No space left on device; make room") in capsys.readouterr().err


def test_a_killed_conversion_does_not_load(folder, tmp_path):
    (folder / "manifest.json").unlink()  # it is written last
    with pytest.raises(DataError, match=r"no data file \(found: test/, train/, valid/\)"):
        load(folder)


def test_verify(folder, capsys):
    assert convert.main(["--verify", str(folder)]) == 0
    assert "bytes as they were written" in capsys.readouterr().out
    flip(folder / "valid/x_text.npy", -1)
    assert convert.main(["--verify", str(folder)]) == 2
    assert "x_text.npy: its content differs from what was written" in capsys.readouterr().err


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_content_of_large_files_is_left_to_verify(folder, monkeypatch):
    flip(folder / "valid/x_text.npy", -1)
    with pytest.raises(DataError, match=r"x_text\.npy: its content differs .*SHA-256.*convert the source again"):
        load(folder)
    monkeypatch.setattr("ebmc_msa.data.formats.converted._ALWAYS_VERIFIED", 0)
    load(folder)
    with pytest.raises(DataError, match=r"its content differs"):
        verify(folder)


def edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=2), r"version 2, expected 1"),
        (lambda m: m.pop("name"), r"KeyError: 'name'"),
        (lambda m: m.update(kind="music"), r"name, note, labels, kind or classes"),
        (lambda m: m.update(labels=["a"]), r"1 labels and 1 classes for sentiment"),
        (lambda m: m.update(kind="multilabel", labels=["a"]), r"y has shape \(9,\).*expected labels for multilabel"),
        (
            lambda m: m.update(kind="classes"),
            r"y has shape \(9,\) and dtype torch\.float32, expected labels for classes",
        ),
        (lambda m: m["folds"].update({"../train": {}}), r"splits train, valid, test, \.\./train"),
        (lambda m: m["folds"]["train"].update({"x_../../y": m["folds"]["train"]["y"]}), r"fields x_\.\./\.\./y"),
        (lambda m: m["folds"]["train"].pop("present_text"), r"each modality needs x and present"),
        (lambda m: m["folds"]["train"]["x_text"].update(shape=[9, -6, 5]), r"x_text has no shape"),
        (lambda m: m["folds"]["train"]["x_text"].update(dtype="|O"), r"x_text has 3 axes of \|O"),
        (
            lambda m: m["folds"]["train"]["x_text"].update(shape=[9, 6, 4]),
            r"x_text\.npy: cannot be read .*shape \(9, 6, 5\)",
        ),
        (lambda m: m["folds"]["train"].pop("length_text"), r"x_text has 3 axes"),
    ],
)
def test_manifests_that_lie(folder, change, message):
    edit(folder, change)
    with pytest.raises(DataError, match=message):
        load(folder)


def test_files_that_are_gone_or_replaced(folder):
    shutil.copy(folder / "test/present_text.npy", folder / "train/present_text.npy")
    with pytest.raises(DataError, match=r"present_text\.npy: cannot be read .*shape \(4,\).*expected shape \(9,\)"):
        load(folder)
    (folder / "train/present_text.npy").unlink()
    with pytest.raises(DataError, match=r"present_text\.npy: cannot be read .*No such file"):
        load(folder)


def test_modality_names_that_are_no_file_names(tmp_path, capsys):
    np.savez(tmp_path / "d.npz", **{"x_a.b": np.eye(6), "y": np.arange(6) % 2, "split": np.arange(6) // 2})
    assert convert.main([str(tmp_path / "d.npz"), str(tmp_path / "c")]) == 2
    assert "a modality is named 'a.b', expected letters, digits, - and _" in capsys.readouterr().err
