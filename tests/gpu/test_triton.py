"""The kernels on a GPU: all that holds under the interpreter, and what only a device can show."""

import os

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a CUDA device and TRITON_INTERPRET unset", allow_module_level=True)

from cases import gradients
from modbalance.kernels import energy_penalty, triton_kernels, triton_ops
from penalty import make_inputs, random_sum
from triton_suite import *  # noqa: F403

pytestmark = pytest.mark.gpu


@pytest.fixture
def device():
    return "cuda"


def large(dtype=torch.bfloat16, batch=4096, dims=(1024, 300, 64)):
    inputs = make_inputs("classification", batch=batch, dims=dims, classes=7, scale=0.05).to(torch.float32, "cuda")
    return inputs._replace(features=[z.detach().to(dtype).requires_grad_() for z in inputs.features])


def run(inputs):
    result = energy_penalty(*inputs, backend="triton")
    return *result, *gradients(result.energy.mean() + result.penalty.mean(), inputs.leaves())


def test_auto_picks_the_kernels(monkeypatch):
    monkeypatch.delenv("MODBALANCE_BACKEND", raising=False)
    calls = []
    kernel = triton_ops.energy
    monkeypatch.setattr(triton_ops, "energy", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    inputs = large(batch=8)
    energy_penalty(*inputs)
    energy_penalty(*inputs.to(torch.float64))
    assert calls == [1]


@pytest.mark.parametrize(
    ("dtype", "limits"), [(torch.float32, (1e-5, 1e-5)), (torch.bfloat16, (1e-2, 1e-4))], ids=["float32", "bfloat16"]
)
def test_large_inputs_agree_with_the_analytic_backend_and_repeat_themselves(dtype, limits):
    inputs = large(dtype)
    first, second = run(inputs), run(inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    exact = inputs.to(torch.float64)
    result = energy_penalty(*exact, backend="analytic")
    wanted = (*result, *gradients(result.energy.mean() + result.penalty.mean(), exact.leaves()))
    # of bfloat16 features the heads' gradients keep 16 binary digits, those of the features the 8 of their type
    kinds = ("values", 2, 1e-5), ("features", 3, limits[0]), ("heads", 6, limits[1])
    each = [limit for _, count, limit in kinds for _ in range(count)]
    for got, want, limit in zip(first, wanted, each, strict=True):
        assert (got.double() - want).norm() <= limit * want.norm()


def test_rows_beyond_two_to_the_31_elements():
    rows, dim = 2**21 + 5, 1024
    z = torch.zeros(rows, dim, dtype=torch.bfloat16, device="cuda")
    z[-1] = 1.0
    z.requires_grad_()
    w = torch.zeros(2, dim, device="cuda")
    y = torch.zeros(rows, dtype=torch.int64, device="cuda")
    energy, penalty = energy_penalty([z], [w], [None], y, gamma=0.0, backend="triton")
    (gradient,) = torch.autograd.grad(energy.sum(), z)
    assert penalty[0, -1] == 4 * dim
    assert (gradient[-1] == 2).all()
    assert not gradient[-2].any()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_nothing_waits_for_the_device():
    inputs = large()
    run(inputs)
    try:
        torch.cuda.set_sync_debug_mode("error")
        run(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_launch_forward_and_one_backward():
    torch.use_deterministic_algorithms(False)  # which would fill what is allocated, by kernels of its own
    inputs = large()
    for x in inputs.weights + inputs.biases:
        x.requires_grad_(False)

    def step():
        energy, penalty = energy_penalty(*inputs, backend="triton")
        torch.autograd.grad([energy, penalty], inputs.features, [energy, penalty])
        torch.cuda.synchronize()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    ours = [name for name in names if hasattr(triton_kernels, name)]  # others check the labels
    assert sorted(ours) == ["backward_kernel", "forward_kernel"]


def test_cuda_graph():
    inputs = large()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(inputs)
    with torch.no_grad():
        for z in inputs.features:
            z.copy_(torch.randn_like(z))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(inputs), strict=True))


def test_no_memory_is_leaked():
    inputs = large()
    run(inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        run(inputs)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_the_current_one():
    inputs = make_inputs("classification").to(torch.float32, "cuda:1")
    result = energy_penalty(*inputs, backend="triton")
    assert random_sum(result).isfinite()
