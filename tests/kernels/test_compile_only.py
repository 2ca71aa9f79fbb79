"""The kernels compiled for GPUs that need not be there: next to no register spills, no dot in TF32."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
import compile_kernels  # noqa: E402  (needs Triton)

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "compile_kernels.py"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, SCRIPT, "--targets", "sm_90", "--classes", "4"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    versions, *rows = map(json.loads, run.stdout.splitlines())
    assert versions["triton"] == triton.__version__
    return rows


def test_every_kernel_compiles(compiled):
    """CI does it for every task and target."""
    found = {(x["case"].split("-")[0], x["case"].split("-")[-1]) for x in compiled}
    kernels = (
        "forward_kernel",
        "backward_kernel",
        "heads_kernel",
        "forward_kernel_pooled",
        "pool_kernel",
        "backward_kernel_pooled",
    )
    assert found == {(k, t) for k in kernels for t in ("sm_90",)}


def test_hardly_a_register_is_spilled(compiled):
    """A word or four may go: some versions of ptxas trade them for occupancy. CI looks at all rows."""
    assert not [x for x in compiled if x["spilled"] > 16]


def test_means_are_subtracted_as_they_were_rounded(compiled):
    """Multiplied and subtracted in one step, the lowest mean minus itself is not 0."""
    fused = {x["case"].split("-")[0]: x["fused"] for x in compiled}
    assert fused["pool_kernel"] == 0 < fused["forward_kernel"]


LIMITS = {
    "forward_kernel": 25,
    "forward_kernel_pooled": 25,
    "backward_kernel": 12,
    "backward_kernel_pooled": 12,
    "heads_kernel": 30,
}


@pytest.mark.parametrize("kernel", LIMITS)
def test_instructions_an_element(kernel, compiled):
    """In the loops over D, by thread: three passes at the rate of a copy leave an H100 time for about 59 in all."""
    ((count),) = [x["instructions"] for x in compiled if x["case"] == f"{kernel}-classification-4-bfloat16-sm_90"]
    assert 2 < count <= LIMITS[kernel]


def test_the_loops_that_are_counted():
    code = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   FADD R2, R2, R3 ;
        /*0020*/                   NOP ;
        /*0030*/              @P1  FADD R2, R2, R3 ;
        /*0040*/              @!P0 BRA 0x10 ;
        /*0050*/              @P0  BRA 0x70 ;
        /*0060*/                   FMUL R2, R2, R3 ;
        /*0070*/                   BRA 0x60 ;
        /*0080*/                   EXIT ;
    """
    assert compile_kernels.loops(code) == [3, 2]


def test_no_dot_is_taken_in_tf32(compiled):
    assert all(x["dots"] for x in compiled if not x["case"].startswith("pool_kernel-"))
    assert not [x for x in compiled if x["inexact"]]


def test_a_row_that_does_not_compile_fails_the_run(monkeypatch, capsys):
    monkeypatch.setattr(compile_kernels, "usage", lambda *_: 1 / 0)
    with pytest.raises(SystemExit, match="rows failed under Triton"):
        compile_kernels.main(["--targets", "gfx942", "--tasks", "regression"])
    _, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(rows) == 6
    assert all(row["error"] == "ZeroDivisionError: division by zero" for row in rows)
