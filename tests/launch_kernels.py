"""Launch the kernels through Triton's own binder, compiler and launcher, on a driver that runs nothing.

For `test_launch.py`, which builds the driver from `stub_cuda.c` and puts it on LD_LIBRARY_PATH. Prints one line of
JSON a step: how often a kernel was launched, how many were compiled, and the microseconds the host took.
"""

import ctypes
import json
import time

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

from modbalance import EnergyCoordinator
from modbalance.kernels import energy_penalty, triton_kernels, triton_ops

DIMS = {"text": 512, "audio": 74, "vision": 35}
CLASSES = 4
KERNELS = ("forward_kernel", "pool_kernel", "backward_kernel", "heads_kernel")


class Driver(CudaDriver):
    def __init__(self):
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device=None: 0
        self.get_device_capability = lambda device=None: (9, 0)

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def main():
    stub = ctypes.CDLL("libcuda.so.1")
    triton.runtime.driver.set_active(Driver())
    triton_ops.unsupported_reason = lambda *_: None  # the tensors are on the CPU, and the driver cannot tell

    def report(name, step):
        launched, compiled, start = stub.stub_launches(), variants(), time.perf_counter()
        step()
        microseconds = 1e6 * (time.perf_counter() - start)
        step_launched, step_compiled = stub.stub_launches() - launched, variants() - compiled
        line = {"step": name, "launched": step_launched, "compiled": step_compiled, "us": round(microseconds)}
        print(json.dumps(line), flush=True)

    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype)[6:]
        for batch in (64, 64, 33, 1, 4096):
            report(f"forward {kind} {batch}", lambda b=batch, d=dtype: forward(b, d))
        for batch in (64, 64, 33, 1, 4096):
            report(f"fixed {kind} {batch}", lambda b=batch, d=dtype: step(b, d, False))
        for batch in (64, 64, 33, 1, 4096):
            report(f"learning {kind} {batch}", lambda b=batch, d=dtype: step(b, d, True))
        model = EnergyCoordinator(DIMS, CLASSES, gamma=0.5, backend="triton")
        for batch in (64, 64, 33, 1, 4096):
            report(f"coordinator {kind} {batch}", lambda b=batch, d=dtype, m=model: coordinate(m, b, d))


def variants():
    """How many kernels have been compiled so far."""
    return sum(len(c[0]) for name in KERNELS for c in getattr(triton_kernels, name).device_caches.values())


def make(batch, dtype, learns):
    z = [torch.randn(batch, d).to(dtype).requires_grad_() for d in DIMS.values()]
    w = [torch.randn(CLASSES, d).requires_grad_(learns) for d in DIMS.values()]
    b = [torch.randn(CLASSES).requires_grad_(learns) for _ in DIMS]
    return z, w, b, torch.randint(CLASSES, (batch,))


def forward(batch, dtype):
    with torch.no_grad():
        energy_penalty(*make(batch, dtype, False), present=torch.rand(3, batch) < 0.7, backend="triton")


def step(batch, dtype, learns):
    z, w, b, y = make(batch, dtype, learns)
    result = energy_penalty(z, w, b, y, present=(torch.rand(batch, 3) < 0.7).T, backend="triton")
    (result.penalty.mean() + result.energy.mean()).backward()


def coordinate(model, batch, dtype):
    z = {name: torch.randn(batch, d).to(dtype).requires_grad_() for name, d in DIMS.items()}
    present = {"audio": torch.rand(batch) < 0.7}
    model(z, torch.randint(CLASSES, (batch,)), present).loss.backward()
    assert all(x.grad is not None for x in z.values())


if __name__ == "__main__":
    main()
