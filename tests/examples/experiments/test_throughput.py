"""The benchmark of data, on a few rows: it makes what train.py reads, and measures every way of batching."""

import sys

import pytest
import torch

from ebmc_msa.data import load
from ebmc_msa.experiments import throughput


def call(monkeypatch, *arguments):
    return throughput.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "data"
    throughput.make(40, folder)
    return folder


def test_makes_what_train_reads(made):
    splits = load(made).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 28, "valid": 3, "test": 8}
    train = splits["train"]
    assert train.features["audio"].shape == (28, 500, 74)
    assert not train.features["audio"][torch.arange(500) >= train.lengths["audio"][:, None]].any()
    assert sorted(made.parent.iterdir()) == [made], "no workspace is left"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_measures(made, monkeypatch, capsys):
    assert call(monkeypatch, "measure", made, "--steps", 1, "--model", "concat", "--encoder", "mean") == 0
    out = capsys.readouterr().out
    assert "28 training samples; concat, mean" in out
    assert out.count("tokens/s") == 3


@pytest.mark.parametrize("what", ["make", "measure"])
def test_a_wrong_folder_is_one_error(what, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, what, tmp_path / "no" / "where", "--rows", 10) == 2
    assert capsys.readouterr().err.startswith("error: ")
