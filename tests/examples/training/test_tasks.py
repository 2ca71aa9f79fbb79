"""The task of the labels, from the command line to the terminal, metrics.json and predictions.csv."""

import csv
import json
import pickle

import numpy as np
import pytest

from ebmc_msa.training import command, run

SHORT = ["--stage1-epochs", "1", "--stage2-epochs", "1", "--device", "cpu", "--batch-size", "16", "--lr", "1e-2"]


def call(*arguments):
    return command.main([str(a) for a in arguments])


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(run, "write_report", lambda *_: None)


def write(path, y, **fields):
    """An MMSA pickle of pooled features that show `y`; each split has the labels `y`."""
    rng = np.random.default_rng(0)
    splits = {
        split: {
            m: rng.normal(size=(len(y), 4)) + np.reshape(y, (len(y), -1))[:, :1] for m in ("text", "audio", "vision")
        }
        | {"regression_labels": y, "raw_text": ["words"] * len(y), **fields}
        for split in ("train", "dev", "test")
    }
    path.write_bytes(pickle.dumps(splits))
    return path


@pytest.mark.slow
def test_ch_sims_from_its_file_to_its_metrics(tmp_path, capsys):
    y = np.random.default_rng(1).choice(np.linspace(-1, 1, 11).round(1), 24)
    own = {f"regression_labels_{m}": y[::-1] for m in "TAV"}
    path, rows = write(tmp_path / "sims.pkl", y, **own), tmp_path / "p.csv"
    out = ["--out", tmp_path, "--name", "a"]
    assert call("--data", path, *out, "--predictions", rows, *SHORT) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "24 train / 24 valid / 24 test" in text[:80]
    assert "vision 4 task sentiment in [-1, 1] (auto: labels from -1 to 1, and labels of each modality" in text
    assert "1 checkpoint" in text
    found = json.loads((tmp_path / "a/metrics.json").read_text())
    scores = {key: entry["mean"] for key, entry in found["test"]["text+audio+vision"].items()}
    assert list(scores) == ["acc2", "acc3", "acc5", "f1", "mae", "corr"]
    assert "task sentiment in [-1, 1]" in found["note"]
    table = list(csv.DictReader(rows.read_text().splitlines()))
    assert [float(row["label"]) for row in table] == y.tolist()
    p = np.array([float(row["prediction"]) for row in table])
    assert scores["acc2"] == pytest.approx(100 * np.mean((p > 0) == (y > 0)))
    assert scores["mae"] == pytest.approx(np.abs(np.clip(p, -1, 1) - y).mean(), rel=1e-5)

    # the scale is in doubt without the labels of each modality: that of the trained model is taken
    assert call("--evaluate", tmp_path / "a", "--data", write(tmp_path / "plain.pkl", y), "--device", "cpu") == 0
    again = json.loads((tmp_path / "a/evaluation.json").read_text())["models"]["ebmc"]["test"]
    assert list(again["text"]) == list(scores)
    other = write(tmp_path / "mosi.pkl", 2.5 * y)
    assert call("--evaluate", tmp_path / "a", "--data", other, "--device", "cpu") == 2
    assert "sentiment from -3 to 3, expected -1 to 1 as in training" in capsys.readouterr().err
    classes = write(tmp_path / "classes.pkl", (y > 0).astype(int))
    assert call("--evaluate", tmp_path / "a", "--data", classes, "--device", "cpu") == 2
    assert "the data are classes, expected sentiment as in training" in capsys.readouterr().err


@pytest.mark.slow
def test_one_class_in_the_test_split_is_noted(tmp_path, capsys):
    y = np.linspace(0.5, 2.75, 16)
    assert call("--data", write(tmp_path / "d.pkl", y), "--out", tmp_path, "--name", "a", *SHORT) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Note: Acc-2 has0 is 100.0 everywhere, whichever modalities are present" in text
    assert "state --task, --range or --labels" in text


@pytest.mark.slow
def test_labels_in_doubt_are_one_error_and_an_option_settles_it(tmp_path, capsys):
    path = write(tmp_path / "d.pkl", np.arange(16) % 3 * 1.0)
    assert call("--data", path, "--out", tmp_path, "--name", "a", *SHORT) == 2
    assert "whole numbers only (0, 1, 2)" in capsys.readouterr().err
    assert call("--data", path, "--task", "classification", "--out", tmp_path, "--name", "a", *SHORT) == 0
    assert "task classification, as stated" in capsys.readouterr().out
    found = json.loads((tmp_path / "a/metrics.json").read_text())
    assert (found["kind"], list(found["test"]["text"])) == ("classes", ["acc", "ua", "f1"])
    assert "nothing" not in json.dumps(found)


def test_contradicting_options_are_one_error(tmp_path, capsys):
    path = write(tmp_path / "d.pkl", np.linspace(-2.5, 2.5, 16))
    assert call("--data", path, "--task", "regression", "--range", -1, 1) == 2
    assert "--range: goes with --task sentiment, not regression" in capsys.readouterr().err
