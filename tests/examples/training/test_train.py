"""The pipeline from the command line to its folder, on sets small enough for a test."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ebmc_msa.training import command

SHORT = ["--stage1-epochs", "2", "--stage2-epochs", "2", "--device", "cpu"]
FAST = ["--batch-size", "8", "--lr", "1e-2"]
SCRIPT = Path(__file__).parents[3] / "examples/ebmc_msa/train.py"


def write_npz(path, n=120, classes=3, seed=0, dims=None, **changes):
    dims = dims or {"sound": 6, "lidar": 4}
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    fields = {f"x_{m}": rng.normal(size=(n, d)).astype("float32") + y[:, None] for m, d in dims.items()}
    fields |= {"y": y, "split": np.arange(n) % 3}
    fields |= changes
    np.savez(path, **{k: v for k, v in fields.items() if v is not None})
    return path


def call(*arguments):
    return command.main([str(a) for a in arguments])


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing takes seconds; the run of `compared` has drawn one already."""
    from ebmc_msa.training import run

    monkeypatch.setattr(run, "write_report", lambda *_: None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """One run of all models on two seeds, shared by the tests that only read it."""
    home = tmp_path_factory.mktemp("compared")
    data = write_npz(home / "toy.npz")
    assert (
        call("--data", data, "--out", home / "runs", "--name", "a", "--compare", "--seeds", 1, 2, *SHORT, *FAST) == 0
    )
    return home


def test_a_run_writes_its_folder_and_nothing_else(compared):
    files = {path.name for path in (compared / "runs/a").iterdir()}
    models = ("ebmc", "concat", "sound", "lidar")
    assert files == {"config.toml", "metrics.json", "report.html", *(f"{m}-{s}.pt" for m in models for s in (1, 2))}
    assert [path.name for path in (compared / "runs").iterdir()] == ["a"]


def test_metrics_json(compared):
    found = json.loads((compared / "runs/a/metrics.json").read_text())
    assert list(found["models"]) == ["ebmc", "concat", "sound", "lidar"]
    ebmc = found["models"]["ebmc"]
    assert list(ebmc["test"]) == ["sound", "lidar", "sound+lidar"]
    cell = ebmc["test"]["sound+lidar"]["acc"]
    assert cell["mean"] == pytest.approx(np.mean(cell["values"]))
    assert cell["std"] == pytest.approx(np.std(cell["values"], ddof=1))
    assert cell["mean"] > 60, "two modalities that show the class must be learnt"
    assert set(ebmc["contribution"]) == {"before", "after"}
    assert sum(ebmc["contribution"]["after"].values()) == pytest.approx(1)
    assert ebmc["selection"]["split"] == "valid"
    assert list(found["models"]["lidar"]["test"]) == ["lidar"]


def test_evaluate_repeats_the_test_of_the_run(compared, capsys):
    """Without --data on the data that the run was trained on, and not on the synthetic set."""
    assert call("--evaluate", compared / "runs/a", "--device", "cpu") == 0
    assert "toy.npz" in capsys.readouterr().out
    before = json.loads((compared / "runs/a/metrics.json").read_text())["models"]
    after = json.loads((compared / "runs/a/evaluation.json").read_text())["models"]
    (compared / "runs/a/evaluation.json").unlink()
    for model, found in before.items():
        assert after[model]["test"] == found["test"]


def test_predictions_without_labels(compared, tmp_path):
    rows = write_npz(tmp_path / "new.npz", y=None, split=None, id=np.array([f"clip{i}" for i in range(120)]))
    target = tmp_path / "predictions.csv"
    assert call("--evaluate", compared / "runs/a", "--data", rows, "--predictions", target, "--device", "cpu") == 0
    written = list(csv.DictReader(target.read_text().splitlines()))
    assert len(written) == 120 * 4 * 2
    first = written[-1] if written[-1]["model"] == "ebmc" else next(r for r in written if r["model"] == "ebmc")
    assert first["id"] == "clip0"
    assert float(first["variance"]) >= 0
    assert float(first["trust_sound"]) + float(first["trust_lidar"]) == pytest.approx(1, abs=1e-5)


def test_four_emotions_at_once(tmp_path, capsys):
    y = np.random.default_rng(0).integers(2, size=(120, 2))
    data = write_npz(tmp_path / "toy.npz", y=y, labels=["happy", "sad"])
    target = tmp_path / "predictions.csv"
    call("--data", data, "--out", tmp_path / "runs", "--name", "a", "--predictions", target, *SHORT, *FAST)
    assert call("--evaluate", tmp_path / "runs/a", "--data", data, "--device", "cpu") == 0
    found = json.loads((tmp_path / "runs/a/metrics.json").read_text())
    assert found["task"] == "multilabel"
    assert found["selection"]["metric"] == "f1"
    scores = {key: entry["mean"] for key, entry in found["test"]["sound+lidar"].items()}
    assert list(scores) == ["acc", "f1", "acc_happy", "acc_sad", "f1_happy", "f1_sad"]
    assert scores["f1"] == pytest.approx((scores["f1_happy"] + scores["f1_sad"]) / 2)
    with target.open() as f:
        rows = list(csv.DictReader(f))
    happy = [float(row["prediction_happy"]) == y[int(row["id"]), 0] for row in rows]
    assert 100 * np.mean(happy) == pytest.approx(scores["acc_happy"])
    capsys.readouterr()
    other = write_npz(tmp_path / "other.npz", y=y, labels=["sad", "happy"])
    assert call("--evaluate", tmp_path / "runs/a", "--data", other, "--device", "cpu") == 2
    assert "are labelled sad, happy, expected happy, sad as in training" in capsys.readouterr().err


def test_the_file_of_a_run_repeats_it(compared):
    """Bit for bit; the command line overrides it."""
    file = compared / "runs/a/config.toml"
    assert call("--config", file, "--no-compare", "--out", compared / "again") == 0
    (folder,) = (compared / "again").iterdir()
    for seed in (1, 2):
        first, again = (
            torch.load(run / f"ebmc-{seed}.pt", weights_only=True) for run in (compared / "runs/a", folder)
        )
        assert first["settings"] == again["settings"]
        torch.testing.assert_close(first["state"], again["state"], rtol=0, atol=0)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["test"] == json.loads((compared / "runs/a/metrics.json").read_text())["models"]["ebmc"]["test"]
    assert f"--config {file} --no-compare" in found["command"]
    changed = {line for line in (folder / "config.toml").read_text().splitlines() if line not in file.read_text()}
    assert {line.partition("#")[0].strip() for line in changed} == {
        "compare = false",
        f'out = "{compared / "again"}"',
    }


def test_test_labels_choose_nothing(compared, tmp_path):
    content = dict(np.load(compared / "toy.npz"))
    content["y"] = np.where(content["split"] == 2, 0, content["y"])
    np.savez(tmp_path / "other.npz", **content)
    assert call("--data", tmp_path / "other.npz", "--out", tmp_path, "--name", "b", "--seeds", 1, *SHORT, *FAST) == 0
    state = torch.load(tmp_path / "b/ebmc-1.pt", weights_only=True)["state"]
    reference = torch.load(compared / "runs/a/ebmc-1.pt", weights_only=True)["state"]
    torch.testing.assert_close(state, reference, rtol=0, atol=0)


def test_checkpoint_holds_teachers_and_calibration(compared):
    from ebmc_msa.training import checkpoint

    content = torch.load(compared / "runs/a/ebmc-1.pt", weights_only=True)
    state = content["state"]
    teachers, ensemble = state["student.teachers._extra_state"], state["_extra_state"]
    assert set(teachers["branches"]) == set(teachers["temperatures"]) == {"sound", "lidar"}
    assert set(ensemble["mixtures"]) == {"sound", "lidar", "sound+lidar"}
    _, _, model = checkpoint.read(compared / "runs/a/ebmc-1.pt", torch.device("cpu"))
    model.train()
    assert not any(m.training for frozen in model.frozen() for m in frozen.modules())


@pytest.mark.parametrize("part", ["msd", "cce", "emc", "imtd"])
def test_without_one_component(compared, tmp_path, part):
    assert call("--data", compared / "toy.npz", "--out", tmp_path, "--without", part, *SHORT) == 0


def test_enhancement_alone(compared, tmp_path):
    short = ["--stage1-epochs", "1", "--stage2-epochs", "0", "--device", "cpu"]
    assert call("--data", compared / "toy.npz", "--out", tmp_path / "runs", "--name", "one", *short) == 0
    found = json.loads((tmp_path / "runs/one/metrics.json").read_text())
    assert found["contribution"]["before"] == found["contribution"]["after"]


@pytest.mark.slow
def test_synthetic_without_arguments_but_epochs(tmp_path, capsys):
    """EBMC beside the plain models, and what it prints ends in the verdict, the device and the report."""
    assert call("--out", tmp_path / "runs", *SHORT) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "metrics.json").read_text())
    assert list(found["models"]) == ["ebmc", "concat", "text", "audio", "vision"]
    assert found["test"] == found["models"]["ebmc"]["test"]
    printed = " ".join(capsys.readouterr().out.split())
    first, second = found["verdict"]
    assert f"{first} {second}" in printed
    assert "s of processor time on cpu." in printed.partition(second)[2]
    assert printed.replace(" ", "").endswith(f"{folder}/report.html")
    assert list(found["test"])[-1] == "text+audio+vision"
    assert set(found["test"]["text"]) == {
        "acc2_has0", "acc2_non0", "f1_has0", "f1_non0", "acc7", "acc5", "mae", "corr",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist, expected"),
        (["--model", "tekst"], "--model: tekst, expected ebmc, concat, text, audio, vision"),
        (["--name", "a/b"], "--name: 'a/b', expected a plain folder name"),
        (["--device", "quantum"], "--device: quantum cannot be used here"),
        (["--evaluate", "nowhere"], "nowhere is no folder, expected the folder of a run"),
        (["--predictions", "no/folder.csv"], "--predictions: no/folder.csv cannot be written"),
        (["--lr", "1e9"], "training diverged"),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else "",
)
def test_bad_input_is_one_error_and_leaves_nothing(arguments, message, tmp_path, capsys):
    assert call("--out", tmp_path / "runs", *(() if "--evaluate" in arguments else SHORT), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "runs").glob("*"))


def test_options_of_training_have_no_place_beside_evaluate(capsys):
    with pytest.raises(SystemExit):
        call("--evaluate", "runs/a", "--lr", "0.1")
    assert "argument --evaluate: tests a run as it was trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--compare", "--model", "text"],
            "--model: text with --compare, which trains every model; pass --no-compare",
        ),
        (["--model", "concat", "--without", "emc"], "--without: is about ebmc, and --model is concat"),
        (["--data", "toy.npz", "--imbalance", "0.3"], "--imbalance: is about the synthetic set, and --data names"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_would_be_ignored(options, message, capsys):
    with pytest.raises(SystemExit):
        call(*options)
    assert message in capsys.readouterr().err


def test_a_run_repeated_by_its_config_leaves_its_predictions(compared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ("--data", compared / "toy.npz", "--model", "sound", *SHORT)
    assert call(*data, "--name", "a", "--predictions", "a.csv") == 0
    before = (tmp_path / "a.csv").read_text()
    assert call("--config", "runs/a/config.toml", "--seeds", "7", "--name", "b") == 0
    assert (tmp_path / "a.csv").read_text() == before


@pytest.mark.parametrize(
    "options", [["--causal"], ["--context", "none"], ["--model", "text"], ["--seeds", "2"]], ids=str
)
def test_options_that_evaluate_would_not_read(options, capsys):
    with pytest.raises(SystemExit):
        call("--evaluate", "runs/a", *options)
    assert f"without {options[0]}; leave it out" in capsys.readouterr().err


def test_evaluate_refuses_a_run_that_is_unfinished(tmp_path, capsys):
    (tmp_path / "a.partial").mkdir()
    for path in (tmp_path / "a", tmp_path / "a.partial"):
        assert call("--evaluate", path) == 2
        error = capsys.readouterr().err
        assert f"{path} is unfinished, expected a run that has ended; finish it with --resume {tmp_path}/a." in error


def test_evaluate_without_the_data_of_the_run(compared, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    assert call("--evaluate", tmp_path / "old") == 2
    assert "has no config.toml, which names its data, expected --data; pass it" in capsys.readouterr().err
    content = (compared / "runs/a/config.toml").read_text()
    (tmp_path / "old/config.toml").write_text(content.replace("toy.npz", "gone.npz"))
    assert call("--evaluate", tmp_path / "old") == 2
    assert "gone.npz, which is not here now; pass --data PATH" in capsys.readouterr().err


def test_from_python(compared, monkeypatch):
    monkeypatch.chdir(compared)
    folder = command.train(data="toy.npz", model="lidar", stage1_epochs=1, seeds=[1], device="cpu", name="python")
    assert folder == Path("runs/python")
    found = json.loads((folder / "metrics.json").read_text())
    assert found["command"].startswith("train(data='toy.npz', model='lidar', stage1_epochs=1, seeds=[1]")
    for options, message in (
        ({"sedes": [1]}, "unknown option sedes, expected one that --help lists; did you mean seeds"),
        ({"seeds": 1}, "seeds = 1, expected a list of whole numbers"),
        ({"stage1_epochs": 0, "stage2_epochs": 0}, "expected at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            command.train(**options)


@pytest.mark.parametrize("name", ["a.b", "keys", "ebmc", "a+b"])
def test_modality_names_that_cannot_be_used(name, tmp_path, capsys):
    data = write_npz(tmp_path / "names.npz", dims={name: 3, "other": 2})
    assert call("--data", data, "--out", tmp_path / "runs", *SHORT) == 2
    assert "rename it in the file" in capsys.readouterr().err


def test_modalities_dropped_at_rates_of_their_own(compared, tmp_path, capsys):
    common = ["--data", compared / "toy.npz", "--out", tmp_path, *SHORT, *FAST]
    assert call(*common, "--modality-dropout", "sound=0.1,lidar=0.8") == 0
    settings = json.loads((tmp_path / "toy-ebmc/metrics.json").read_text())["settings"]
    assert settings["modality_dropout"] == [["sound", 0.1], ["lidar", 0.8]]
    assert call("--evaluate", tmp_path / "toy-ebmc", "--data", compared / "toy.npz") == 0
    assert call(*common, "--modality-dropout", "sound=0.1", "--name", "b") == 2
    assert "--modality-dropout: ['sound'], expected a rate for each of ['sound', 'lidar']" in capsys.readouterr().err


def test_existing_name_is_kept(tmp_path, capsys):
    (tmp_path / "runs/mine").mkdir(parents=True)
    assert call("--out", tmp_path / "runs", "--name", "mine", *SHORT) == 2
    assert "exists already, expected a new name" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / "runs/mine"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": {"sound": 7, "lidar": 4}}, "sound has 7 features, expected 6 as in training"),
        ({"dims": {"radar": 6, "video": 4}}, "expected some of ['sound', 'lidar'] as in training"),
        ({"classes": 5}, "5 classes, expected at most 3"),
        ({"y": np.linspace(-1, 1, 120).astype("float32")}, "are regression, expected classes"),
    ],
    ids=["size", "names", "classes", "kind"],
)
def test_evaluate_refuses_other_data(compared, tmp_path, capsys, changes, message):
    data = write_npz(tmp_path / "other.npz", **changes)
    assert call("--evaluate", compared / "runs/a", "--data", data, "--device", "cpu") == 2
    assert message in capsys.readouterr().err


def test_evaluate_with_a_modality_gone(compared, tmp_path):
    data = write_npz(tmp_path / "sound.npz", x_lidar=None)
    target = tmp_path / "p.csv"
    wanted = ["--evaluate", compared / "runs/a", "--data", data, "--predictions", target, "--device", "cpu"]
    assert call(*wanted) == 2, "the model of lidar alone has nothing to read"
    (compared / "only").mkdir()
    os.link(compared / "runs/a/ebmc-1.pt", compared / "only/ebmc-1.pt")
    wanted[1] = compared / "only"
    assert call(*wanted) == 0
    assert all(float(row["trust_lidar"]) == 0 for row in csv.DictReader(target.read_text().splitlines()))


def test_foreign_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/ebmc-1.pt").write_bytes(b"not a checkpoint")
    assert call("--evaluate", tmp_path / "run", "--data", write_npz(tmp_path / "d.npz")) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_interruption_before_the_first_epoch_leaves_nothing(tmp_path, capsys, monkeypatch):
    from ebmc_msa.training import stages

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "evaluate", interrupt)
    data = write_npz(tmp_path / "toy.npz")
    assert call("--data", data, "--out", tmp_path / "runs", *SHORT) == 130
    assert "Nothing was written; the same command starts again." in capsys.readouterr().err
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sedes", "1"], "error: unknown option --sedes; did you mean --seeds?"),
        (["--rnage", "-1", "1"], "error: unknown option --rnage; did you mean --range?"),
        (["--task", "clasification"], "did you mean classification?"),
        (["--without", "edm"], "invalid choice: 'edm'"),
        (["--batch-size", "0"], "expected a whole number from 1"),
        (["--modality-dropout", "1"], "expected a probability in [0, 1)"),
        (["--modality-dropout", "sound=1,lidar=0.2"], "1, expected a probability in [0, 1)"),
        (["--modality-dropout", "sound=0.1,sound=0.2"], "expected each modality once"),
        (["--modality-dropout", "=0.1"], "expected each modality once"),
        (["--stage1-epochs", "0", "--stage2-epochs", "0"], "expected at least one"),
        (["--seeds", "1", "2", "1"], "argument --seeds: [1, 2, 1], expected each once"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_misspelt_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert len(lines) == 2


@pytest.mark.slow
def test_help_is_quick_and_complete():
    text = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    options = (
        "data seeds model compare without stage1-epochs stage2-epochs patience warmup-steps batch-size lr "
        "modality-dropout device encoder finetune-text text-lr out name evaluate predictions task range labels"
    )
    assert all(f"--{option}" in text for option in options.split())


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mosi", "iemocap", "ravdess/ravdess.npz"])
def test_real_data(name, tmp_path):
    home = os.environ.get("MODBALANCE_DATA")
    if not home:
        pytest.skip("real data: set MODBALANCE_DATA to the folder that holds mosi, iemocap and ravdess")
    short = ["--stage1-epochs", "1", "--stage2-epochs", "1", "--batch-size", "256", "--device", "cpu"]
    assert call("--data", Path(home) / name, "--out", tmp_path, *short) == 0
