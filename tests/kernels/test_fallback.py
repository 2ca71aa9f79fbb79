"""A kernel that cannot be compiled or launched: the analytic path takes over under "auto", and "triton" raises."""

import os
import warnings

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from cases import CLASSES, DIMS, TASKS, gradients, make_batch, randomise
from modbalance import EnergyCoordinator
from modbalance.kernels import dispatch, energy_penalty, fallback, triton_kernels, triton_launcher, triton_ops
from penalty import CASES, from_option, make_inputs, random_sum

WARNING = r"cannot compile or launch its kernel \w+, cpu, RuntimeError: PassManager::run failed \(torch .*, Triton \d"


class Broken:
    """A kernel that does not compile, and how often that was tried."""

    def __init__(self, name, error=None):
        self.__name__, self.error = name, error or RuntimeError("PassManager::run failed")
        self.tries = 0

    def __getitem__(self, grid):
        def launch(**_):
            self.tries += 1
            raise self.error

        return launch


@pytest.fixture
def auto(monkeypatch):
    """`auto` as on a GPU, before anything has failed."""
    monkeypatch.setattr(fallback, "failed", failed := {})
    monkeypatch.setattr(triton_launcher, "failed", failed)
    monkeypatch.setattr(fallback, "_warned", set())
    monkeypatch.setattr(dispatch, "_tries_triton", lambda name, features: name in ("auto", "triton"))
    monkeypatch.delenv("MODBALANCE_BACKEND", raising=False)


def broken(monkeypatch, name, error=None):
    kernel = Broken(name, error)
    monkeypatch.setattr(triton_kernels, name, kernel)
    return kernel


def run(inputs, **options):
    result = energy_penalty(*inputs, **options)
    return *result, *gradients(random_sum(result), inputs.leaves())


# Every case where the first kernel fails; where a later one does, those that change what it has at hand.
BROKEN = [("forward_kernel", *case) for case in CASES]
BROKEN += [
    (name, task, option)
    for name in ("backward_kernel", "heads_kernel")
    for task in TASKS
    for option in ("present", "no_target", "no_bias")
]


@pytest.mark.parametrize(("name", "task", "option"), BROKEN, ids="-".join)
def test_results_are_those_of_the_analytic_backend(task, option, name, auto, monkeypatch):
    kernel = broken(monkeypatch, name)
    inputs, options = from_option(task, option)
    inputs = inputs.to(torch.float32)
    options = {k: x.float() if isinstance(x, torch.Tensor) and k == "class_weight" else x for k, x in options.items()}
    with pytest.warns(RuntimeWarning, match=WARNING):
        found = run(inputs, task=task, **options)
    assert kernel.tries == 1
    wanted = run(inputs, task=task, backend="analytic", **options)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-5)


def test_one_warning_and_one_try_a_kernel(auto, monkeypatch):
    kernel = broken(monkeypatch, "forward_kernel")
    inputs = make_inputs("classification", dtype=torch.float32)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for batch in (inputs, inputs, make_inputs("classification", batch=9, dtype=torch.float32)):
            energy_penalty(*batch)
    assert (len(seen), kernel.tries) == (1, 1)
    with warnings.catch_warnings(record=True) as seen:  # another kernel, but no other cause
        warnings.simplefilter("always")
        energy_penalty(*make_inputs("regression", dtype=torch.float32), task="regression")
    assert (len(seen), kernel.tries) == (0, 2)


def test_what_failed_is_kept_without_its_tensors(auto, monkeypatch):
    broken(monkeypatch, "forward_kernel")
    with pytest.warns(RuntimeWarning, match=WARNING):
        energy_penalty(*make_inputs("classification", dtype=torch.float32))
    ((variant, cause),) = fallback.failed.items()
    assert isinstance(cause, str)
    assert not any(isinstance(x, torch.Tensor) for x in variant)


def test_triton_by_name_raises(auto, monkeypatch):
    broken(monkeypatch, "forward_kernel")
    inputs = make_inputs("classification", dtype=torch.float32)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=WARNING):
            energy_penalty(*inputs, backend="triton")
    broken(monkeypatch, "backward_kernel")
    monkeypatch.undo()


def test_triton_by_name_raises_in_the_backward_too(auto, monkeypatch):
    broken(monkeypatch, "backward_kernel")
    inputs = make_inputs("classification", dtype=torch.float32)
    energy, penalty = energy_penalty(*inputs, backend="triton")
    with pytest.raises(RuntimeError, match=WARNING):
        (energy.sum() + penalty.sum()).backward()


def test_running_out_of_memory_is_not_a_kernel_that_fails(auto, monkeypatch):
    broken(monkeypatch, "forward_kernel", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        energy_penalty(*make_inputs("classification", dtype=torch.float32))
    assert not fallback.failed


@pytest.mark.parametrize("name", ["forward_kernel", "pool_kernel", "backward_kernel"])
@pytest.mark.parametrize("presence", ["some", "none"])
@pytest.mark.parametrize("task", TASKS)
def test_the_coordinator(task, presence, name, auto, monkeypatch):
    broken(monkeypatch, name)
    model = randomise(EnergyCoordinator(DIMS, CLASSES, task, gamma=0.5)).float()
    batch = make_batch(task, presence=presence, dtype=torch.float32)
    runs = []
    for backend in ("auto", "analytic"):
        model.backend = backend
        z = {n: x.clone().requires_grad_() for n, x in batch.features.items()}
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            out = model(z, batch.target, batch.present)
            scalar = (
                out.loss + 2 * out.gap + 3 * out.penalty * out.descent + sum(e.sum() for e in out.energy.values())
            )
            found = gradients(scalar, [*z.values(), *model.parameters()])
        runs.append([out.loss, out.gap, out.penalty, out.descent, *out.energy.values(), *found])
        assert len(seen) == (backend == "auto")
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_compiled(name, auto, monkeypatch):
    torch._dynamo.reset()
    broken(monkeypatch, name)
    inputs = make_inputs("classification", dtype=torch.float32)
    compiled = torch.compile(lambda *i: energy_penalty(*i), fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match=WARNING):
        found = gradients(random_sum(compiled(*inputs)), inputs.leaves())
    wanted = run(inputs, backend="analytic")[2:]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_reach_the_fallback(auto, monkeypatch):
    broken(monkeypatch, "forward_kernel")
    inputs = make_inputs("classification", dims=(64, 40), dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match=WARNING), torch.autocast("cpu", torch.bfloat16):
        found = run(inputs)
    torch.testing.assert_close(found, run(inputs, backend="analytic"), rtol=1e-5, atol=1e-5)


def test_half_features(auto, monkeypatch):
    for name in ("forward_kernel", "backward_kernel", "heads_kernel"):
        broken(monkeypatch, name)
    inputs = make_inputs("classification", dims=(64, 40), dtype=torch.bfloat16)
    with pytest.warns(RuntimeWarning, match=WARNING):
        found = run(inputs)
    torch.testing.assert_close(found, run(inputs, backend="analytic"), rtol=1e-2, atol=1e-2)
    assert [g.dtype for g in found[2:]] == [torch.bfloat16] * 6


def test_the_operators_are_used(auto, monkeypatch):
    """What `auto` here stands for: the decision that a GPU is there."""
    calls = []
    kernel = triton_ops.energy
    monkeypatch.setattr(triton_ops, "energy", lambda *a, **k: calls.append(k["fall_back"]) or kernel(*a, **k))
    inputs = make_inputs("classification", dtype=torch.float32)
    energy_penalty(*inputs)
    energy_penalty(*inputs, backend="triton")
    assert calls == [True, False]
