"""The cost benchmark at tiny sizes: every row, ratios to the first, and a clear word where a run holds no times."""

import csv
import json

import numpy as np
import pytest
import torch

from ebmc_msa.experiments import cost as benchmark_cost
from ebmc_msa.experiments.context_cost import peak_bytes

TINY = [f"--{name}={n}" for name, n in
        {"rounds": 1, "bert-rounds": 1, "batch-size": 4, "frames": 3, "layers": 1, "width": 64}.items()]  # fmt: skip
NAMES = {
    "training step": [
        "concatenation", "EBMC, enhance", "EBMC, balance", "EBMC, balance, without CCE",
        "SemanticDecoupler", "ComplementaryEnhancer", "EnergyCoordinator", "TrustDistiller",
    ],
    "inference": [
        "concatenation", "EBMC, its student alone", "EBMC, its student alone, without CCE",
        "EBMC with no teacher", "EBMC with its text teacher", "EBMC with all its teachers",
    ],
    "1 layers, 64 wide, batch 8 x 64": ["encoder", "encoder + EnergyCoordinator", "EnergyCoordinator alone"],
}  # fmt: skip


@pytest.mark.parametrize("frames", [3, 0], ids=["sequences", "vectors"])
def test_every_row_with_its_ratio(tmp_path, capsys, frames):
    assert benchmark_cost.main([*TINY, "--frames", str(frames), "--out", str(tmp_path / "cost")]) == 0
    assert "EnergyCoordinator" in capsys.readouterr().out
    with open(tmp_path / "cost/cost.csv") as file:
        rows = list(csv.DictReader(file))
    assert {what: [row["name"] for row in rows if row["table"] == what] for what in NAMES} == NAMES
    for what in NAMES:
        mine = [row for row in rows if row["table"] == what]
        for row in mine:
            assert float(row["ratio"]) == pytest.approx(float(row["ms"]) / float(mine[0]["ms"]), rel=1e-3)
            assert all(row[column] for column in ("date", "device", "torch"))


def test_all_take_turns_and_the_first_round_does_not_count(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(benchmark_cost.time, "process_time", lambda: now[0])

    def method(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds[calls.count(name) - 1]

        return call

    methods = {"a": method("a", [9, 1, 2, 6]), "b": method("b", [9, 4, 4, 5])}
    found = benchmark_cost.interleaved(methods, 3, torch.device("cpu"))
    assert found == {"a": 2000, "b": 4000}
    assert calls == ["a", "b"] * 4


def test_where_the_time_of_a_run_went(tmp_path, capsys):
    cost = {"enhance": {"seconds": 12.5, "epochs": 4.0, "step_ms": 3.25}}
    (tmp_path / "metrics.json").write_text(json.dumps({"model": "ebmc", "cost": cost}))
    assert benchmark_cost.main(["--run", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("ebmc, enhance", "12.5", "4.0", "3.25"))
    (tmp_path / "metrics.json").write_text(json.dumps({"models": {"text": {"cost": cost}}}))
    assert benchmark_cost.main(["--run", str(tmp_path)]) == 0
    assert "text, enhance" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_context_adds(tmp_path, capsys):
    rng, talk = np.random.default_rng(0), np.arange(60).repeat(3)
    x = {f"x_{name}": rng.normal(size=(180, 4)).astype("float32") for name in "ab"}
    order = {"conversation": talk, "order": np.arange(180)}
    np.savez(tmp_path / "talks.npz", y=rng.integers(3, size=180), split=talk % 3, **x, **order)
    options = ["--data", tmp_path / "talks.npz", "--rounds", "2", "--batch-size", "6", "--out", tmp_path]
    assert benchmark_cost.main([str(option) for option in options]) == 0
    with open(tmp_path / "context.csv") as file:
        rows = {row["name"]: {key: row[key] for key in ("ms", "utterances", "ms/100 utterances", "ratio", "MB")}
                for row in csv.DictReader(file)}  # fmt: skip
    models = ("concatenation", "EBMC, enhance", "EBMC, balance")
    assert list(rows) == [f"{model}, {context} context" for context in ("no", "gru") for model in models]
    first = float(rows["concatenation, no context"]["ms/100 utterances"])
    for row in rows.values():
        row = {key: float(value) for key, value in row.items()}
        assert row["utterances"] == 6  # two conversations
        assert row["ms/100 utterances"] == pytest.approx(100 * row["ms"] / row["utterances"], rel=1e-3)
        assert row["ratio"] == pytest.approx(row["ms/100 utterances"] / first, rel=1e-3)
    for model in models:
        assert float(rows[f"{model}, gru context"]["MB"]) > float(rows[f"{model}, no context"]["MB"])


def test_peak_memory_is_that_of_what_is_alive_at_a_time():
    def step(_):
        for _ in range(3):  # one after the other, 8 MB and 4 MB at a time
            x = torch.zeros(2_000_000)
            y = x[:1_000_000] + 1
            del x, y

    assert peak_bytes(step, None) == pytest.approx(12e6, rel=0.01)


@pytest.mark.parametrize("content", [None, "{}", "no json", '{"model": "ebmc"}'])
def test_a_run_without_times(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert benchmark_cost.main(["--run", str(tmp_path)]) == 2
    assert "holds no times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--rounds", "0"], "--rounds 0: expected a whole number from 1"),
        (["--width", "100"], "--width 100: expected a multiple of 64"),
    ],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark_cost.main(arguments)
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert benchmark_cost.main([*TINY, "--out", str(tmp_path / "file")]) == 2
    assert "error:" in capsys.readouterr().err
