"""The comparison of the balancers on a toy of the digits: it ends with a table, and goes on where it stopped."""

import csv
import sys

import pytest
import torch

import balancer_data
import balancer_table
import compare_balancers

np = pytest.importorskip("numpy")


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = {name: torch.randn(90, size, generator=generator) + 2 * y[:, None] for name, size in (("fou", 5), ("fac", 7))}
    (tmp_path / "mfeat").mkdir()
    split = torch.arange(90) // 30
    np.savez(tmp_path / "mfeat/mfeat.npz", y=y, split=split, **{f"x_{name}": v for name, v in x.items()})
    return tmp_path


@pytest.mark.slow
def test_it_ends_with_a_table_and_goes_on_where_it_stopped(folder, monkeypatch, capsys):
    monkeypatch.setattr(compare_balancers, "STEPS", 2)
    monkeypatch.setattr(compare_balancers, "EVERY", 1)
    monkeypatch.setattr(compare_balancers, "TUNED", {"sgd": (0.01, 0.1), "adam": (0.001, 0.01)})
    monkeypatch.setattr(compare_balancers, "SEEDS", (11, 12))
    out = folder / "out"
    monkeypatch.setattr(sys, "argv", ["", "--data", str(folder), "--out", str(out), "--tune"])
    compare_balancers.main()
    tuned = 2 * 3 * 12 * 2  # optimisers, conditions, methods, rates
    final = 2 * 2 * 3 * (12 + 3)  # seeds, optimisers, conditions, methods and controls
    assert f"{tuned} of {tuned} runs to do: digits, tuning" in capsys.readouterr().out
    lines = (out / "runs.jsonl").read_text().splitlines()
    assert len(lines) == tuned + final
    assert not any("correct" in line for line in lines[:tuned])  # settings are chosen without the test split
    with (out / "balancers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == final / 2
    assert {row["minus_control"] for row in rows if row["method"] == "unimodal"} == {"0.00"}
    assert (out / "balancers.png").stat().st_size > 10_000
    first = (out / "table.md").read_text()
    assert first.count("\n") == 2 + 15

    (out / "runs.jsonl").write_text("\n".join(lines[:-7]) + '\n{"run": ["cut')
    compare_balancers.main()
    assert f"7 of {final} runs to do: digits, test" in capsys.readouterr().out
    strip = [line.rpartition("|")[0].rpartition("|")[0] for line in first.splitlines()]  # without the cost
    assert [
        line.rpartition("|")[0].rpartition("|")[0] for line in (out / "table.md").read_text().splitlines()
    ] == strip


def test_a_run_that_diverges_keeps_its_best_state(folder, monkeypatch):
    """At a rate that others are tuned with, a method may go to infinity; the other runs go on."""
    monkeypatch.setattr(compare_balancers, "STEPS", 30)
    monkeypatch.setattr(compare_balancers, "EVERY", 1)
    run = compare_balancers.Run("digits", "clean", "sgd", "unimodal", 1e6, 1, True, True)
    record = compare_balancers.do(folder, run)
    assert len(record["correct"]) == 30
    assert record["valid"] > -float("inf")

    monkeypatch.setattr(compare_balancers, "EVERY", 40)  # it diverges before it is ever scored
    views = balancer_data.load(folder, "digits", "clean")
    model = compare_balancers.train(run, views, tuple(views.x)).model
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_seeds_that_all_have():
    def record(method, seed, correct):
        return {"run": ["d", "clean", "sgd", method, 0.1, seed, True, False], "seconds": 1.0, "correct": correct}

    records = [record("unimodal", s, [1, 0, None]) for s in (1, 2)] + [record("joint", 1, [1, 1, None])]
    results = balancer_table.collect(records)
    found = results["d", "clean", "sgd"]
    assert found["unimodal"].correct.tolist() == [[1, 0]]
    assert balancer_table.differences(results, "joint", "unimodal", results).mean == pytest.approx(50)


def test_utterances_are_averaged_over_their_frames(monkeypatch, tmp_path):
    from types import SimpleNamespace

    import ebmc_msa.data

    values = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [9.0], [9.0]]])
    split = SimpleNamespace(
        features={"text": values, "audio": torch.ones(2, 4)},
        lengths={"text": torch.tensor([2, 1])},
        target=torch.tensor([0.5, -1.0]),
    )
    dataset = SimpleNamespace(splits={"train": split, "valid": split, "test": split})
    monkeypatch.setattr(ebmc_msa.data, "load", lambda path: dataset)
    x, y, parts = balancer_data.utterances(tmp_path, ("audio", "text"))
    assert x["text"].tolist() == [[2.0], [5.0]] * 3
    assert x["audio"].shape == (6, 4)
    assert parts.tolist() == [0, 0, 1, 1, 2, 2]
    assert y.tolist() == [0.5, -1.0] * 3
