"""The cost benchmark at tiny sizes: every row, ratios to the first, and a clear word where a run holds no times."""

import csv
import json

import pytest
import torch

from ebmc_msa.experiments import cost as benchmark_cost

TINY = [f"--{name}={n}" for name, n in
        {"rounds": 1, "bert-rounds": 1, "batch-size": 4, "frames": 3, "layers": 1, "width": 64}.items()]  # fmt: skip
NAMES = {
    "training step": [
        "concatenation", "EBMC, enhance", "EBMC, balance",
        "SemanticDecoupler", "ComplementaryEnhancer", "EnergyCoordinator", "TrustDistiller",
    ],
    "inference": [
        "concatenation", "EBMC, its student alone", "EBMC with the stage-1 model", "EBMC without it",
    ],
    "1 layers, 64 wide, batch 8 x 64": ["encoder", "encoder + EnergyCoordinator", "EnergyCoordinator alone"],
}  # fmt: skip


def test_every_row_with_its_ratio(tmp_path, capsys):
    assert benchmark_cost.main([*TINY, "--out", str(tmp_path / "cost")]) == 0
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
