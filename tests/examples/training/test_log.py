"""What `--log tensorboard` writes is the history of the run and its figures, once, also after an interruption."""

import sys

import numpy as np
import pytest

from ebmc_msa.report import plots
from ebmc_msa.training import command, console, resume, run
from runs import SHORT

BRIEF = ["--log", "tensorboard", *SHORT]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=72)
    x = {f"x_{m}": rng.normal(size=(72, d)).astype("float32") + y[:, None] for m, d in (("sound", 6), ("lidar", 4))}
    np.savez(tmp_path / "toy.npz", y=y, split=np.arange(72) % 3, **x)
    return tmp_path / "toy.npz"


@plots.drawing
def curve(label):
    figure = plots._figure(2, 2)
    figure.subplots().set(ylabel=label)
    return figure


def start(data, *options):
    return command.main([str(a) for a in ("--data", data, "--out", data.parent, "--name", "a", *BRIEF, *options)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own packages
def test_scalars_are_the_history_and_figures_those_of_the_report(data, monkeypatch):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard: modbalance[tensorboard]"
    )
    records = []

    def draw(path, results, found):
        records.extend(found)
        for label in ("loss", "energy"):
            curve(label)

    def interrupt(*arguments, **changes):
        if changes.get("completed") == 3:  # in the second stage
            raise KeyboardInterrupt
        update(*arguments, **changes)

    update = console.Progress.update
    monkeypatch.setattr(run, "write_report", draw)
    monkeypatch.setattr(resume, "SHARE", float("inf"))
    with monkeypatch.context() as patch:
        patch.setattr(console.Progress, "update", interrupt)
        assert start(data) == 130
    assert command.main(["--resume", str(data.parent / "a")]) == 0

    (record,) = records
    assert {path.name for path in (data.parent / "a/tensorboard").iterdir()} == {"ebmc-1111", "report"}
    (file,) = (data.parent / "a/tensorboard/ebmc-1111").iterdir()
    events = reader.EventAccumulator(str(file)).Reload()
    for part in ("train", "energy", "gradient", "valid"):
        for name in record.history[0][part]:
            found = {event.step: event.value for event in events.Scalars(f"{part}/{name}")}
            assert list(found) == [1, 2, 3, 4]
            expected = [entry[part].get(name, np.nan) for entry in record.history]
            np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6)
    for modality, share in record.contribution["after"].items():
        assert events.Scalars(f"contribution_after/{modality}")[-1].value == pytest.approx(share, rel=1e-6)
    report = reader.EventAccumulator(str(data.parent / "a/tensorboard/report")).Reload()
    assert report.Tags()["images"] == ["report/01 curve, loss", "report/02 curve, energy"]
    assert 'log = "tensorboard"' in (data.parent / "a/config.toml").read_text()


def test_without_tensorboard(data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert start(data) == 2
    assert capsys.readouterr().err == (
        'error: --log: tensorboard is not installed, expected it here; pip install "modbalance[tensorboard]".\n'
    )
    assert [path.name for path in data.parent.iterdir()] == ["toy.npz"]


def test_log_beside_evaluate(capsys):
    with pytest.raises(SystemExit):
        command.main(["--evaluate", "runs/a", "--log", "tensorboard"])
    assert "--log: logs training, and --evaluate does not train" in capsys.readouterr().err
