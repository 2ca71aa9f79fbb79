"""The benchmark writes what it says, and refuses what it cannot time."""

import csv

import pytest
import torch

import benchmark_kernel
from modbalance import kernels

COLUMNS = (
    "date device torch triton task dtype heads B D C M method p20_us p50_us p80_us host_us graph_us peak_bytes "
    "floor_us floor_share speedup graph_speedup feature_bytes"
)


@pytest.mark.slow
def test_quick_writes_a_table_and_a_plot(tmp_path, capsys):
    benchmark_kernel.main(["--quick", "--seconds", "0.001", "--out", str(tmp_path)])
    assert "copy bandwidth" in capsys.readouterr().out
    assert (tmp_path / "kernel.png").stat().st_size > 0
    with open(tmp_path / "kernel.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS.split()
    assert {r["method"] for r in rows} >= {"eager", "analytic"}
    assert {r["heads"] for r in rows} == {"trained", "fixed"}
    for row in rows:
        assert 0 < float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert all(row[name] for name in ("device", "torch", "triton", "date"))


def test_on_a_gpu_the_kernel_is_among_the_methods(monkeypatch):
    for name in ("gradients", "make_inputs"):
        monkeypatch.setattr(benchmark_kernel, name, lambda *a: None)
    makes = {d: benchmark_kernel.make_methods("classification", d, None, False) for d in ("cpu", "cuda")}
    assert [*makes["cpu"]] == ["eager", "analytic"]
    assert [*makes["cuda"]] == ["eager", "analytic", "triton"]


def test_a_kernel_that_cannot_run_is_not_left_out_in_silence(monkeypatch):
    def cannot(*a):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(benchmark_kernel, "make_inputs", lambda *a: None)
    monkeypatch.setattr(benchmark_kernel, "gradients", cannot)
    with pytest.raises(SystemExit, match="analytic cannot run here: no kernel image"):
        benchmark_kernel.make_methods("classification", "cuda", None, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--task", "ranking"], "invalid choice: 'ranking'"),
        (["--seconds", "0"], "expected numbers above zero"),
        (["--out", __file__], "is a file, expected a folder"),
    ],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark_kernel.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("task", ["multilabel", "regression", "gaussian"])
def test_other_tasks(task, tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark_kernel.SHAPES, "quick", [(5, 8, 3, 2)])
    benchmark_kernel.main(["--quick", "--seconds", "0.001", "--task", task, "--out", str(tmp_path)])


def test_a_wrong_backend_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark_kernel.SHAPES, "quick", [(5, 8, 3, 2)])
    right = kernels.BACKENDS["analytic"]
    monkeypatch.setitem(kernels.BACKENDS, "analytic", lambda *x: tuple(2 * y for y in right(*x)))
    with pytest.raises(SystemExit, match=r"analytic is .* off the float64 reference"):
        benchmark_kernel.main(["--quick", "--out", str(tmp_path)])
    assert not (tmp_path / "kernel.csv").exists()


def test_a_method_that_runs_out_of_memory_leaves_its_cells_empty(tmp_path, monkeypatch, capsys):
    make = benchmark_kernel.make_methods

    def too_large(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark_kernel, "make_methods", lambda *a: {**make(*a), "eager": too_large})
    monkeypatch.setitem(benchmark_kernel.SHAPES, "quick", [(5, 8, 3, 2)])
    benchmark_kernel.main(["--quick", "--seconds", "0.001", "--out", str(tmp_path)])
    assert "out of memory" in capsys.readouterr().out
    with open(tmp_path / "kernel.csv") as file:
        rows = {(r["method"], r["heads"]): r for r in csv.DictReader(file)}
    assert rows["eager", "fixed"]["p50_us"] == rows["analytic", "fixed"]["speedup"] == ""
    assert float(rows["analytic", "fixed"]["p50_us"]) > 0
