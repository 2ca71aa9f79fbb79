"""Every launch through Triton's own binder, compiler and launcher, with a CUDA driver that runs nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton")
TESTS = Path(__file__).parents[1]
LAUNCHES = {"forward": 1, "fixed": 2, "learning": 3, "coordinator": 3}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler, as Triton itself does")
    library = folder / "libcuda.so.1"
    build = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, TESTS / "stub_cuda.c"]
    subprocess.run(build, check=True)
    (folder / "libcuda.so").symlink_to(library)
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MODBALANCE_BACKEND")}
    environment |= {"LD_LIBRARY_PATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    run = subprocess.run(
        [sys.executable, TESTS / "launch_kernels.py"], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_the_number_of_launches(steps):
    assert len(steps) == 2 * 4 * 5
    for step in steps:
        assert step["launched"] == LAUNCHES[step["step"].split()[0]], step


def test_another_batch_size_compiles_nothing_anew(steps):
    for i, step in enumerate(steps):
        first = i % 5 == 0  # of five batches for each way and dtype
        assert (step["compiled"] > 0) == first, step
