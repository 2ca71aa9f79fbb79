"""Compile the kernels for GPUs that need not be there, and print what each takes as a line of JSON.

    python tests/compile_kernels.py                              # every row of CASES, for each of its targets
    python tests/compile_kernels.py --targets sm_90 gfx942       # for these targets only
    python tests/compile_kernels.py --targets sm_90 --tasks gaussian

With TRITON_INTERPRET unset: the arguments are those of real launches, recorded. The first line holds the versions of
torch and Triton. A row that does not compile has an `error`; the exit status is then 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modbalance.kernels import triton_kernels as kernels
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.tasks import Task

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# task, C, batch, features' dtype, targets. Every row of the table of tiles is here, and every task.
CASES = [
    ("classification", 4, 4096, torch.bfloat16, ("sm_90", "gfx942")),
    ("classification", 7, 4096, torch.float32, ("sm_90",)),
    ("classification", 20, 512, torch.float32, ("sm_80",)),
    ("classification", 64, 4096, torch.bfloat16, ("sm_90",)),
    ("multilabel", 6, 4096, torch.float16, ("sm_90",)),
    ("regression", 1, 512, torch.bfloat16, ("gfx942",)),
    ("gaussian", 1, 4096, torch.bfloat16, ("sm_80",)),
]
DIMS = (1024, 300)
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--tasks", nargs="+", choices=get_args(Task), default=list(get_args(Task)))
    options = parser.parse_args(arguments)
    print(json.dumps({"triton": triton.__version__, "torch": torch.__version__}), flush=True)
    failed = 0
    for task, classes, batch, dtype, targets in CASES:
        for name in targets:
            if task not in options.tasks or name not in options.targets:
                continue
            for kernel, call in record(task, classes, batch, dtype, TARGETS[name].backend):
                row = {"case": f"{kernel}-{task}-{classes}-{str(dtype)[6:]}-{name}"}
                try:
                    row |= usage(*call, TARGETS[name])
                except Exception as error:  # the other rows are worth knowing too
                    row["error"] = f"{type(error).__name__}: {error}"[-2000:]
                    failed += 1
                print(json.dumps(row), flush=True)
    if failed:
        sys.exit(f"compile_kernels: {failed} rows failed under Triton {triton.__version__}; see their errors above.")


def record(task, classes, batch, dtype, backend):
    """Every kernel once by name, with the arguments of its launch, its warps and stages."""
    calls = {}

    def start(kernel, grid, like, workers, **arguments):
        pooled = {"_forward": arguments.get("partial"), "_backward": arguments.get("coefficients")}
        name = kernel.__name__ + "_pooled" * (pooled.get(kernel.__name__) is not None)
        calls[name] = kernel, arguments, workers

    hip = "6.0" if backend == "hip" else None  # decides how dots are taken
    with mock.patch.object(kernels, "_start", start), mock.patch.object(torch.version, "hip", hip):
        launch(task, classes, batch, dtype)
    return calls.items()


def launch(task, classes, batch, dtype):
    """Every kernel, forward and backward."""
    wide, by_class = 2 * classes if task == "gaussian" else classes, task == "classification"
    z = [torch.zeros(batch, d, dtype=dtype) for d in DIMS]
    w = [torch.zeros(wide, d) for d in DIMS]
    b = [torch.zeros(wide) for _ in DIMS]
    y = torch.zeros(batch, dtype=torch.int64) if by_class else torch.zeros(batch, classes)
    terms = EnergyTerms(task, 0.1, 1.0, 0.5, 2.0, True, y, torch.ones(classes) if by_class else None)
    here = torch.ones(len(DIMS), batch, dtype=torch.bool)
    energy, penalty, *saved, _ = kernels.forward(terms, -100, here, z, w, b, None)
    upstream = [energy, penalty, None, None, None, None]
    kernels.backward(0.1, True, z, w, *saved, None, upstream, 0.0, 0.0, True, True)
    *_, (*results, coefficients) = kernels.forward(terms, -100, here, z, w, b, (0.1, 1.0, True))
    # Every upstream gradient there can be; else that of the loss alone.
    upstream = [energy, None, *results] if batch > 2048 else [None] * 5 + results[-1:]
    kernels.backward(0.1, True, z, w, *saved, coefficients, upstream, 0.1, 1.0, True, False)


def usage(kernel, arguments, workers, target):
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if kernel.params[i].is_constexpr:
            signature[name], constants[i,] = "constexpr", arguments[name]
        else:
            special = name not in kernels._UNSPECIALIZED
            signature[name] = describe(arguments[name], (i,), constants, attributes, special)
    warps, stages = workers
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=target, options=options)
    dots = re.findall(r"tt\.dot [^\n]*", compiled.asm["ttir"])
    exact = "tf32x3" if target.backend == "cuda" else None  # ieee is what an unmarked dot of ttir is
    found = {"dots": len(dots), "inexact": sum(not is_exact(dot, exact) for dot in dots)}
    if target.backend == "cuda":
        return {**found, **cuda_usage(compiled.asm["cubin"])}
    spills = re.findall(r"\.vgpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])
    (registers,) = re.findall(r"\.vgpr_count:\s*(\d+)", compiled.asm["amdgcn"])
    return {**found, "registers": int(registers), "spilled": sum(map(int, spills))}


def is_exact(dot, precision):
    stated = re.search(r"inputPrecision = (\w+)", dot)
    return (stated and stated[1]) == precision


def describe(value, path, constants, attributes, special):
    """The type of an argument as Triton's launcher would see it."""
    if isinstance(value, tuple):
        return tuple(describe(v, (*path, i), constants, attributes, special) for i, v in enumerate(value))
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return TYPES[value.dtype]
    if value is None or (special and isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, int) and special and value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if isinstance(value, int) else "fp32"


def cuda_usage(cubin):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return {"registers": int(registers), "spilled": int(stack)}


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("compile_kernels: TRITON_INTERPRET is 1, expected unset; unset it.")
    main()
