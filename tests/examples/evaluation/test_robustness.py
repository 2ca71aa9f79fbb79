"""The protocols as one command, on checkpoints that need no training, and their numbers against loops written out."""

import json
import math
import re

import numpy as np
import pytest
import torch

from ebmc_msa.data import Split, load
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation import corruption, metrics, robustness
from ebmc_msa.model.prediction import Model, Prediction
from ebmc_msa.model.settings import PROTOCOLS, Settings
from ebmc_msa.report import robustness as degradation
from ebmc_msa.training import checkpoint, command

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
UTTERANCES = [protocol for protocol in PROTOCOLS if protocol != "conversations"]


def write_npz(path, n=45, frames=True, **changes):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=n)
    fields = {"x_sound": rng.normal(size=(n, 4, 3)).astype("float32") + 2 * y[:, None, None]}
    fields["length_sound"] = rng.integers(1, 5, size=n)
    if not frames:
        fields = {"x_sound": fields["x_sound"][:, 0]}
    fields |= {"x_lidar": rng.normal(size=(n, 2)).astype("float32") + y[:, None], "y": y, "split": np.arange(n) % 3}
    fields |= changes
    np.savez(path, **{k: v for k, v in fields.items() if v is not None})
    return path


def write_run(folder, data, names=("ebmc", "concat", "sound"), seeds=(1, 2)):
    """A run as train.py leaves it, of models as they were born."""
    folder.mkdir()
    dataset, settings = load(data), Settings(dim=8)
    for name in names:
        for seed in seeds:
            torch.manual_seed(seed)
            spec = Spec.of(dataset, None if name in ("ebmc", "concat") else [name])
            model = checkpoint.build(name, spec, settings)
            for m, encoder in model.encoders.items():
                encoder.standardise(SplitView.of(dataset.splits["train"], spec, CPU).frames(m))
            if name == "ebmc":
                valid = SplitView.of(dataset.splits["valid"], spec, CPU)
                model.start_balancing(valid, valid, {})
                model = model.finalize(valid)
            checkpoint.save(folder / f"{name}-{seed}.pt", name, seed, model, settings)
    return folder


def call(*arguments):
    return command.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("robustness")
    data = write_npz(home / "toy.npz")
    write_run(home / "run", data)
    return home


@pytest.fixture(scope="module")
def found(home):
    """What each protocol wrote."""
    results = {}
    for protocol in UTTERANCES:
        assert call("--evaluate", home / "run", "--data", home / "toy.npz", "--missing", protocol) == 0
        results[protocol] = json.loads((home / f"run/robustness-{protocol}.json").read_text())
    return results


def test_each_protocol_writes_numbers_a_page_and_a_picture(home, found):
    for protocol in UTTERANCES:
        assert (home / f"run/robustness-{protocol}.png").read_bytes().startswith(b"\x89PNG")
        page = (home / f"run/robustness-{protocol}.html").read_text()
        assert page.count("<img") == 3, "a figure for each metric"
        assert not re.search(r"<td>[^<]*(nan|n/a)", page)
    assert not list((home / "run").glob(".*"))


@pytest.mark.parametrize(
    ("protocol", "levels"),
    [
        ("conditions", ["sound+lidar", "sound", "lidar", "avg"]),
        ("random", [*(f"0.{i}" for i in range(8)), "avg"]),
        ("unequal", ["none missing", "sound 0.1 lidar 0.9", "sound 0.9 lidar 0.1", "avg"]),
        ("frames", [*(f"0.{i}" for i in range(10)), "avg"]),
    ],
)
def test_levels_averages_and_losses(found, protocol, levels):
    result = found[protocol]
    assert list(result["models"]) == ["ebmc", "concat", "sound"]
    averaged = levels[:-1] if protocol == "frames" else levels[1:-1]
    for model in result["models"].values():
        assert list(model["test"]) == list(model["loss"]) == levels
        for key in ("acc", "ua", "f1"):
            values = {level: np.array(model["test"][level][key]["values"]) for level in levels}
            losses = {level: model["loss"][level][key]["values"] for level in levels}
            np.testing.assert_allclose(values["avg"], np.mean([values[level] for level in averaged], 0))
            for level in levels:
                np.testing.assert_allclose(losses[level], values[levels[0]] - values[level], atol=1e-9)


def test_untouched_is_the_plain_evaluation(home, found):
    assert call("--evaluate", home / "run", "--data", home / "toy.npz") == 0
    plain = json.loads((home / "run/evaluation.json").read_text())["models"]
    (home / "run/evaluation.json").unlink()
    untouched = {"conditions": "sound+lidar", "random": "0.0", "unequal": "none missing", "frames": "0.0"}
    for protocol, level in {**untouched, "noise": "clean"}.items():
        for name, model in found[protocol]["models"].items():
            assert model["test"][level] == plain[name]["test"]["sound" if name == "sound" else "sound+lidar"]
    for condition in ("sound", "lidar", "sound+lidar"):
        assert found["conditions"]["models"]["ebmc"]["test"][condition] == plain["ebmc"]["test"][condition]


def test_a_model_alone_loses_only_by_its_own_modality(found):
    alone = found["conditions"]["models"]["sound"]["loss"]
    assert alone["sound"]["acc"]["mean"] == 0
    levels = [f"{m}: {kind}" for m in ("sound", "lidar") for kind in ("noise", "noise x2", "frames", "swap")]
    levels.remove("lidar: frames")
    models = found["noise"]["models"]
    assert list(models["ebmc"]["loss"]) == list(models["ebmc"]["detection"]) == levels
    assert list(models["sound"]["loss"]) == levels[:4]
    assert "detection" not in models["concat"]


def test_same_numbers_again(home, found, monkeypatch):
    monkeypatch.setattr(degradation, "write", lambda run, results: again.update(results) or [])
    again = {}
    assert call("--evaluate", home / "run", "--data", home / "toy.npz", "--missing", "noise") == 0
    assert json.loads(json.dumps(again)) == found["noise"]


class Adding(Model):
    """Answers the sum of its modalities' first features, and trusts by how small each is."""

    def __init__(self, names=("a", "b")):
        super().__init__()
        self.spec = Spec("regression", dict.fromkeys(names, 1), (), 1)

    def forward(self, batch):
        x = {m: v[:, 0] * batch.present[m] for m, v in batch.features.items()}
        outputs = torch.stack([sum(x.values()), torch.zeros(len(batch))], -1)
        return Prediction(outputs, outputs, {m: -v.abs() for m, v in x.items()}, {}, torch.zeros(()), {})


def make_split(n=30, seed=0, names=("a", "b")):
    generator = torch.Generator().manual_seed(seed)
    x = {m: torch.randn(n, 1, generator=generator) for m in names}
    here = {m: torch.rand(n, generator=generator) < 0.8 for m in names}
    split = Split(x, {}, here, sum(x.values())[:, 0], ["u"] * n)
    return SplitView.of(split, Adding(names).spec, CPU)


def test_random_against_loops():
    model, split = Adding(), make_split()
    record = robustness.degrade(model, split, robustness.levels("random", split.present, (), draws=3))
    full = metrics.regression(robustness.predict(model, split).outputs[:, 0], split.target)
    for i in range(8):
        maes = []
        for seed in range(3):
            kept = robustness.missing_at_random(split.present, i / 10, seed)
            errors = [
                abs(sum(split.features[m][row, 0].item() for m in "ab" if kept[m][row]) - split.target[row].item())
                for row in range(30)
            ]
            maes.append(sum(errors) / 30)
        assert record["test"][f"0.{i}"]["mae"] == pytest.approx(sum(maes) / 3, abs=1e-6)
        assert record["loss"][f"0.{i}"]["mae"] == pytest.approx(sum(maes) / 3 - full["mae"], abs=1e-6)
    assert record["loss"]["0.5"]["corr"] == pytest.approx(full["corr"] - record["test"]["0.5"]["corr"])


def test_whole_conversations_lack_a_modality_with_the_rate():
    ids = torch.arange(400).repeat_interleave(3)
    talk = Conversation(ids, torch.arange(1200))
    here = {"a": torch.ones(1200, dtype=torch.bool), "b": torch.arange(1200) % 5 != 0}
    levels = {level.name: level.changes for level in robustness.levels("conversations", here, (), talk, draws=1)}
    batch = Batch({}, {}, here, None)
    lacking = {rate: change(batch, torch.arange(1200)).present for rate, (change,) in levels.items()}
    assert all(torch.equal(lacking["0.0"][m], here[m]) for m in here)
    for rate in (0.2, 0.4):
        lost = ~lacking[str(rate)]["a"].view(400, 3)
        whole = here["b"].view(400, 3)  # what has nothing else keeps it
        assert torch.equal(lost, lost.any(1, keepdim=True) & whole)
        assert lost.any(1).float().mean() == pytest.approx(rate * (1 - rate / 2), abs=0.06)
    assert (lacking["0.4"]["a"] <= lacking["0.2"]["a"]).all()


def test_noise_against_loops():
    model, split = Adding(), make_split()
    size = robustness.Size(2.0, torch.tensor([1.5]), "a", 1.0, 0.5, True)
    record = robustness.degrade_by_noise(model, split, {"a": size}, draws=2)
    for level, kind, scale in (("a: noise x2", "noise", torch.tensor([6.0])), ("a: swap", "swap", None)):
        losses, areas = [], []
        for seed in range(2):
            mask = corruption.half(split.present["a"], seed, "a")
            rows = torch.arange(30)
            x = corruption.corruption(split, "a", kind, seed, scale)(split.rows(rows), rows).features["a"][:, 0]
            clean = split.features["a"][:, 0]
            rest = (split.features["b"][:, 0] * split.present["b"]).double()
            errors = [abs(v * split.present["a"] + rest - split.target) for v in (clean, x)]
            losses.append((errors[1][mask] - errors[0][mask]).mean().item())
            both = split.present["a"] & split.present["b"]
            pairs = [(x[i].abs(), x[j].abs()) for i in rows[both & mask] for j in rows[both & ~mask]]
            areas.append(sum((a > b).item() + 0.5 * (a == b).item() for a, b in pairs) / len(pairs))
        assert record["loss"][level]["mae"] == pytest.approx(sum(losses) / 2, abs=1e-6)
        assert record["detection"][level]["auroc"] == pytest.approx(sum(areas) / 2)


def test_noise_size_halves_the_gain():
    models, splits = [Adding(), Adding()], [make_split(200), make_split(200)]
    found = robustness.noise_size("a", "adding", models, splits)
    assert found.halved
    assert found.gain_left == pytest.approx(found.gain / 2, rel=0.02)
    here = splits[0].present["a"]
    alone, target = splits[0].features["a"][here, 0], splits[0].target[here]
    assert found.gain == pytest.approx((target.abs() - (alone - target).abs()).mean().item(), rel=1e-5)
    torch.testing.assert_close(found.std, alone.std(correction=0)[None])


def test_no_gain_takes_one_deviation():
    split = make_split()
    split.target[:] = 0
    found = robustness.noise_size("a", "adding", [Adding()], [split])
    assert (found.size, found.halved) == (1.0, False)


def test_more_than_three_modalities_each_alone_each_left_out():
    here = {m: torch.ones(2, dtype=torch.bool) for m in "abcd"}
    levels = robustness.levels("conditions", here, ())
    assert [level.name.count("+") for level in levels] == [3, 2, 2, 2, 2, 0, 0, 0, 0]
    assert [level.averaged for level in levels] == [False] + [True] * 8


def test_nothing_to_tell_apart_is_no_area():
    """One sample with another modality beside: an area needs both kinds."""
    split = make_split(4)
    split.present["b"][:] = torch.tensor([True, False, False, False])
    split.present["a"][:] = True
    size = robustness.Size(1.0, torch.ones(1), "a", 1.0, 0.5, True)
    record = robustness.degrade_by_noise(Adding(), split, {"a": size}, draws=1)
    assert math.isnan(record["detection"]["a: swap"]["auroc"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evaluate", "run", "--missing", "frame"], "invalid choice: 'frame'"),
        (["--missing", "random"], "--missing: goes with --evaluate RUN"),
        (["--evaluate", "run", "--missing", "random", "--predictions", "p.csv"], "without --predictions"),
    ],
)
def test_misspelt_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("protocol", "changes", "message"),
    [
        ("frames", {"frames": False}, "sound comes pooled, expected it as sequences"),
        ("random", {"y": np.linspace(0, 1, 45).astype("float32")}, "the data are regression, expected classes"),
        ("random", {"y": None, "split": None}, "--missing: the data have no labels, expected labels"),
        ("noise", {"y": None}, "no field y, expected labels"),
        ("conditions", {"x_sound": None, "length_sound": None}, "expected some of ['sound'] as in training"),
    ],
    ids=["pooled", "kind", "labels", "labels of noise", "modality"],
)
def test_other_data_are_one_error(home, tmp_path, capsys, protocol, changes, message):
    data = write_npz(tmp_path / "other.npz", **changes)
    assert call("--evaluate", home / "run", "--data", data, "--missing", protocol) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_frames_need_a_time_axis(tmp_path, capsys):
    data = write_npz(tmp_path / "pooled.npz", frames=False)
    run = write_run(tmp_path / "run", data, ["concat"], [1])
    assert call("--evaluate", run, "--data", data, "--missing", "frames") == 2
    assert "sound, lidar without a time axis, expected a sequence to drop frames of; pass" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["concat-1.pt"]


def test_missing_conversations_need_conversations(home, capsys):
    assert call("--evaluate", home / "run", "--data", home / "toy.npz", "--missing", "conversations") == 2
    assert "expected fields conversation and order; pass --missing random" in capsys.readouterr().err


def test_a_run_without_checkpoints(tmp_path, capsys):
    assert call("--evaluate", tmp_path, "--data", write_npz(tmp_path / "d.npz"), "--missing", "noise") == 2
    assert "holds no checkpoint, expected the folder of a run" in capsys.readouterr().err
