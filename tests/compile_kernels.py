"""Compile the kernels for GPUs that need not be there, and print what each takes as a line of JSON.

    python tests/compile_kernels.py                              # every row of CASES, for each of its targets
    python tests/compile_kernels.py --targets sm_90 gfx942       # for these targets only
    python tests/compile_kernels.py --targets sm_90 --tasks gaussian
    python tests/compile_kernels.py --classes 4                  # of one number of classes
    python tests/compile_kernels.py --spills 16                  # a row that spills more words fails

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
from modbalance.kernels import triton_launcher as launcher
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.tasks import Task

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ALIGNED, ODD = (1024, 1024, 1024), (1024, 300)
# task, C, sizes of the features and their dtype, targets. Every tile of the kernels' table is here, and every task.
CASES = [
    ("classification", 4, ALIGNED, torch.bfloat16, ("sm_90", "gfx942")),
    ("classification", 7, ALIGNED, torch.float32, ("sm_90",)),
    ("classification", 20, ODD, torch.float32, ("sm_80",)),
    ("classification", 20, ODD, torch.bfloat16, ("sm_90",)),
    ("classification", 64, ALIGNED, torch.bfloat16, ("sm_90",)),
    ("multilabel", 6, ALIGNED, torch.float16, ("sm_90",)),
    ("regression", 1, ODD, torch.bfloat16, ("gfx942",)),
    ("gaussian", 1, ALIGNED, torch.bfloat16, ("sm_80",)),
]
BATCH = 4096
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
    parser.add_argument("--classes", nargs="+", type=int)
    parser.add_argument("--spills", type=int)
    options = parser.parse_args(arguments)
    print(json.dumps({"triton": triton.__version__, "torch": torch.__version__}), flush=True)
    failed = 0
    for task, classes, dims, dtype, targets in CASES:
        for name in targets:
            if task not in options.tasks or name not in options.targets:
                continue
            if options.classes and classes not in options.classes:
                continue
            for kernel, call in record(task, classes, dims, dtype, TARGETS[name].backend):
                row = {"case": f"{kernel}-{task}-{classes}-{str(dtype)[6:]}-{name}"}
                try:
                    row |= usage(*call, TARGETS[name])
                    if options.spills is not None and row["spilled"] > options.spills:
                        raise RuntimeError(f"{row['spilled']} words are spilled, expected at most {options.spills}")
                except Exception as error:  # the other rows are worth knowing too
                    row["error"] = f"{type(error).__name__}: {error}"[-2000:]
                    failed += 1
                print(json.dumps(row), flush=True)
    if failed:
        sys.exit(f"compile_kernels: {failed} rows failed under Triton {triton.__version__}; see their errors above.")


def record(task, classes, dims, dtype, backend):
    """Every kernel once by name, with the arguments of its launch, its warps and stages."""
    calls = {}

    def start(kernel, grid, like, workers, **arguments):
        pooled = {"forward_kernel": arguments.get("partial"), "backward_kernel": arguments.get("coefficients")}
        name = kernel.__name__ + "_pooled" * (pooled.get(kernel.__name__) is not None)
        calls[name] = kernel, arguments, workers

    hip = "6.0" if backend == "hip" else None  # decides how dots are taken
    with mock.patch.object(launcher, "_start", start), mock.patch.object(torch.version, "hip", hip):
        launch(task, classes, dims, dtype)
    return calls.items()


def launch(task, classes, dims, dtype):
    """Every kernel, forward and backward."""
    wide, by_class = 2 * classes if task == "gaussian" else classes, task == "classification"
    z = [torch.zeros(BATCH, d, dtype=dtype) for d in dims]
    w = [torch.zeros(wide, d) for d in dims]
    b = [torch.zeros(wide) for _ in dims]
    y = torch.zeros(BATCH, dtype=torch.int64) if by_class else torch.zeros(BATCH, classes)
    terms = EnergyTerms(task, 0.1, 1.0, 0.5, 2.0, True, y, torch.ones(classes) if by_class else None)
    here = torch.ones(len(dims), BATCH, dtype=torch.bool)
    energy, penalty, *saved, _ = launcher.forward(terms, -100, here, z, w, b, None)
    upstream = [energy, penalty, None, None, None, None]
    launcher.backward(0.1, True, z, w, *saved, None, upstream, 0.0, 0.0, True, True)
    *_, (*results, coefficients) = launcher.forward(terms, -100, here, z, w, b, (0.1, 1.0, True))
    # Every upstream gradient there can be; or that of the loss alone.
    upstream = [energy, None, *results] if dims == ALIGNED else [None] * 5 + results[-1:]
    launcher.backward(0.1, True, z, w, *saved, coefficients, upstream, 0.1, 1.0, True, False)


def usage(kernel, arguments, workers, target):
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if kernel.params[i].is_constexpr:
            signature[name], constants[i,] = "constexpr", arguments[name]
        else:
            special = name not in kernels.UNSPECIALIZED
            signature[name] = describe(arguments[name], (i,), constants, attributes, special)
    warps, stages = workers
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": arguments.get("fuse", True)}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=target, options=options)
    dots = re.findall(r"tt\.dot [^\n]*", compiled.asm["ttir"])
    exact = "tf32x3" if target.backend == "cuda" else None  # ieee is what an unmarked dot of ttir is
    found = {"dots": len(dots), "inexact": sum(not (of_bfloat16(dot) or is_exact(dot, exact)) for dot in dots)}
    if target.backend == "cuda":
        found["fused"] = len(re.findall(r"\bfma\.", compiled.asm["ptx"]))
        elements = arguments.get("BLOCK_B", 0) * arguments.get("BLOCK_D", 0) / (32 * warps)  # a thread and iteration
        return {**found, **cuda_usage(compiled.asm["cubin"], elements)}
    spills = re.findall(r"\.vgpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])
    (registers,) = re.findall(r"\.vgpr_count:\s*(\d+)", compiled.asm["amdgcn"])
    return {**found, "registers": int(registers), "spilled": sum(map(int, spills))}


def of_bfloat16(dot):
    """Whose products are exact in float32, which they are summed in."""
    return re.search(r": tensor<\d+x\d+xbf16[^>]*> \* tensor<\d+x\d+xbf16[^>]*> -> tensor<\d+x\d+xf32", dot)


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


def cuda_usage(cubin, elements):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", usage)
    found = {"registers": int(registers), "spilled": int(stack)}
    return found | ({"instructions": round(sum(loops(code)) / elements, 1)} if elements else {})


def loops(code):
    """The number of instructions in the body of each loop: from where a branch goes back to, to the branch."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", code)]
    back = [(re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text), at) for at, text in lines]
    spans = [(int(to[1], 16), at) for to, at in back if to and int(to[1], 16) < at]
    outer = [(a, b) for a, b in spans if not any(c <= a and b <= d and (a, b) != (c, d) for c, d in spans)]
    return [sum(a <= at <= b and not text.startswith("NOP") for at, text in lines) for a, b in outer]


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("compile_kernels: TRITON_INTERPRET is 1, expected unset; unset it.")
    main()
