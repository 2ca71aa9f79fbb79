"""Runs with context: what is trained, said and saved; resumed and evaluated to the same figures."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from ebmc_msa.model.prediction import spec_of, weighted_loss
from ebmc_msa.model.settings import Settings
from ebmc_msa.training import checkpoint, command, console, resume, run
from runs import interrupt_at_an_epoch

SHORT = ["--stage1-epochs", "1", "--stage2-epochs", "1", "--batch-size", "16", "--device", "cpu"]
EMOTIONS = ("happy", "sad", "neutral", "angry")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Conversations of one to nine utterances with one mood each, which most of their utterances share."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 10, 45)
    talk, order = np.arange(45).repeat(lengths), np.concatenate([np.arange(n) for n in lengths])
    y = np.where(rng.random(len(talk)) < 0.7, talk % 4, rng.integers(0, 4, len(talk)))
    path = tmp_path_factory.mktemp("data") / "talks.npz"
    np.savez(
        path,
        x_text=(np.eye(4)[y] + rng.normal(size=(len(y), 4))).astype("float32"),
        x_audio=rng.normal(size=(len(y), 3)).astype("float32"),
        present_audio=rng.random(len(y)) < 0.8,
        y=y,
        split=talk % 3,
        conversation=talk,
        order=order,
        speaker=order % 2,
        labels=EMOTIONS,
    )
    return path


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    options = ["--data", data, "--out", out, "--name", "a", "--compare", "--predictions", out / "rows.csv", *SHORT]
    assert command.main([str(option) for option in options]) == 0
    return out


def test_metrics_and_report_say_which_context(compared):
    found = json.loads((compared / "a/metrics.json").read_text())
    assert found["context"] == {"encoder": "gru", "causal": False, "speakers": True, "control": True}
    assert found["settings"]["context"] == "gru"
    report = (compared / "a/report.html").read_text()
    assert "gru over whole conversations (shuffled: in random order, the control)" in report
    assert "EBMC, shuffled" in report


def test_beside_every_model_stands_its_control(compared):
    models = json.loads((compared / "a/metrics.json").read_text())["models"]
    names = ["ebmc", "concat", "text", "audio"]
    assert list(models) == [*names, *(f"{name}-shuffled" for name in names)]
    assert {path.stem.rpartition("-")[0] for path in (compared / "a").glob("*.pt")} == set(models)
    _, _, model = checkpoint.read(compared / "a/text-shuffled-1111.pt", torch.device("cpu"))
    assert model.spec.context == "shuffled"


def test_each_class_has_its_f1(compared):
    scores = json.loads((compared / "a/metrics.json").read_text())["models"]["ebmc"]["test"]["text+audio"]
    assert {f"f1_{name}" for name in EMOTIONS} | {f"binary_f1_{name}" for name in EMOTIONS} <= set(scores)
    mean = np.mean([scores[f"binary_f1_{name}"]["mean"] for name in EMOTIONS])
    assert scores["binary_f1"]["mean"] == pytest.approx(mean)
    report = (compared / "a/report.html").read_text()
    assert "F1 by class" in report


def test_checkpoints_evaluate_to_what_the_run_found(compared, data, capsys):
    assert command.main(["--evaluate", str(compared / "a"), "--data", str(data)]) == 0
    files = [json.loads((compared / "a" / name).read_text()) for name in ("metrics.json", "evaluation.json")]
    assert files[0]["context"] == files[1]["context"]
    first, again = (found["models"] for found in files)
    assert {name: model["test"] for name, model in again.items()} == {
        name: model["test"] for name, model in first.items()
    }
    rows = list(csv.DictReader((compared / "rows.csv").read_text().splitlines()))
    assert len({row["id"] for row in rows}) * 8 == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["random", "conversations", "noise"])
def test_protocols_run_on_its_checkpoints(compared, data, protocol, tmp_path, capsys):
    names = ("concat", "concat-shuffled", "text", "audio")
    for name in names[:2] if protocol == "conversations" else names:
        shutil.copy(compared / f"a/{name}-1111.pt", tmp_path)
    assert command.main(["--evaluate", str(tmp_path), "--data", str(data), "--missing", protocol]) == 0
    found = json.loads((tmp_path / f"robustness-{protocol}.json").read_text())
    assert "concat-shuffled" in found["models"]
    assert found["context"] == {"encoder": "gru", "causal": False, "speakers": True, "control": True}
    assert "gru over whole conversations (shuffled" in (tmp_path / f"robustness-{protocol}.html").read_text()


def test_a_checkpoint_with_context_needs_conversations(compared, data, tmp_path, capsys):
    with np.load(data) as file:
        fields = {key: file[key] for key in file.files if key not in ("conversation", "order", "speaker")}
    np.savez(tmp_path / "bare.npz", **fields)
    assert command.main(["--evaluate", str(compared / "a"), "--data", str(tmp_path / "bare.npz")]) == 2
    assert "expected the fields conversation and order" in capsys.readouterr().err


def test_resumed_it_ends_at_the_same_bits(data, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SHARE", float("inf"))
    monkeypatch.setattr(run, "write_report", lambda *_: None)
    context = ["--context", "transformer", "--causal", "--impute-context"]
    options = ["--data", str(data), "--model", "concat", *context, *SHORT]
    assert command.main([*options, "--out", str(tmp_path / "whole"), "--name", "a"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(console.Progress, "update", interrupt_at_an_epoch)
        assert command.main([*options, "--out", str(tmp_path / "cut"), "--name", "a"]) == 130
    assert command.main(["--resume", str(tmp_path / "cut/a")]) == 0
    one, other = (torch.load(tmp_path / out / "a/concat-1111.pt", weights_only=True) for out in ("whole", "cut"))
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
    assert one["settings"]["causal"] is True
    found = json.loads((tmp_path / "whole/a/metrics.json").read_text())
    context = {"encoder": "transformer", "causal": True, "speakers": True, "control": False, "imputed": True}
    assert found["context"] == context
    assert command.main(["--evaluate", str(tmp_path / "whole/a"), "--data", str(data)]) == 0
    again = json.loads((tmp_path / "whole/a/evaluation.json").read_text())
    assert again["context"] == context
    assert again["models"]["concat"]["test"] == found["test"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--causal"], "--causal: --context auto reads none on synthetic, expected a context"),
        (["--impute-context"], "--impute-context: --context auto reads none on synthetic, expected a context"),
        (["--context", "gru"], "expected the fields conversation and order"),
        (["--class-weight", "balanced"], "--class-weight: balanced on sentiment labels, expected classes"),
    ],
)
def test_what_the_data_do_not_allow_is_refused(options, message, tmp_path, capsys):
    assert command.main([*options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_class_weights_reach_the_task_loss_and_the_components(data):
    from ebmc_msa.data import load
    from ebmc_msa.model.ebmc import EBMC

    loaded, settings = load(data), Settings(class_weight="balanced", dim=8)
    model = EBMC(spec_of(loaded, settings), settings)
    weight = torch.tensor(model.spec.class_weight)
    count = loaded.splits["train"].target.bincount()
    torch.testing.assert_close(weight * count, torch.full((4,), count.sum() / 4))
    for part in (model.decouple, model.enhance, model.coordinate):
        assert torch.equal(part.class_weight, weight)
    outputs, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(
        weighted_loss(model.spec, outputs, target),
        weight[target] * torch.nn.functional.cross_entropy(outputs, target, reduction="none"),
    )
