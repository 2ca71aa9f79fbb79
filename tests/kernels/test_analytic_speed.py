"""What the closed form saves, counted rather than timed: dispatched operations, blocks, and what it need not do."""

import pytest
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CLASSES, TASKS, compiles, gradients, make_target, width
from modbalance import task_formulas, tasks
from modbalance.kernels import analytic, energy_penalty

MODALITIES = 3


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def make_inputs(task, batch=8, dim=16, heads=True, dtype=torch.float32):
    z = [torch.randn(batch, dim, dtype=dtype).requires_grad_() for _ in range(MODALITIES)]
    w = [torch.randn(width(task), dim, dtype=dtype).requires_grad_(heads) for _ in range(MODALITIES)]
    b = [torch.randn(width(task), dtype=dtype).requires_grad_(heads) for _ in range(MODALITIES)]
    return z, w, b, make_target(task, batch, dtype=dtype)


def double_backward(task, features, weights, biases, y):
    """As one would write it, without a mask."""
    total = 0.0
    for z, w, b in zip(features, weights, biases, strict=True):
        s = linear(z, w, b)
        energy = z.square().sum(-1) + tasks.task_loss(task, s, y) + tasks.task_uncertainty(task, s)
        (g,) = torch.autograd.grad(energy.sum(), z, create_graph=True)
        total = total + g.square().sum()
    return total


def operations(function, *leaves):
    with Count() as count:
        torch.autograd.grad(function(), leaves)
    return count.calls


# With heads that learn, and with fixed ones: a gate, to be lowered.
OPERATIONS = {"classification": (112, 93), "multilabel": (110, 91), "regression": (88, 69), "gaussian": (146, 127)}


@pytest.mark.parametrize("heads", [True, False], ids=["trained", "fixed"])
@pytest.mark.parametrize("task", TASKS)
def test_the_operations_against_those_of_double_backward(task, heads):
    z, w, b, y = make_inputs(task, heads=heads)
    leaves = [x for x in (*z, *w, *b) if x.requires_grad]
    ours = operations(lambda: energy_penalty(z, w, b, y, task=task, backend="analytic").penalty.sum(), *leaves)
    theirs = operations(lambda: double_backward(task, z, w, b, y), *leaves)
    assert ours <= OPERATIONS[task][not heads] < 0.4 * theirs


def test_fixed_heads_and_no_grad_cost_less():
    z, w, b, y = make_inputs("classification")

    def penalty():
        return energy_penalty(z, w, b, y, backend="analytic").penalty.sum()

    fixed = make_inputs("classification", heads=False)
    ours = operations(lambda: energy_penalty(*fixed, backend="analytic").penalty.sum(), *fixed[0])
    assert ours < operations(penalty, *z, *w, *b)
    with Count() as graph:
        penalty()
    with Count() as no_graph, torch.no_grad():
        penalty()
    assert no_graph.calls < graph.calls


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("task", TASKS)
def test_blocks_of_rows_change_nothing(task, masked, monkeypatch):
    z, w, b, y = make_inputs(task, batch=23, dtype=torch.float64)
    present = torch.rand(MODALITIES, 23) < 0.7 if masked else None

    def run():
        result = energy_penalty(z, w, b, y, task=task, present=present, backend="analytic")
        upstream = torch.linspace(-1, 1, 23, dtype=torch.float64)
        return *result, *gradients(((result.energy + 2 * result.penalty) * upstream).sum(), [*z, *w, *b])

    whole = run()
    monkeypatch.setattr(analytic, "BLOCK", 5 * 16 * MODALITIES)
    assert analytic.Blocks(z).count == 5
    for got, want in zip(run(), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_near_the_minimum_gradients_stay_as_exact_as_those_of_double_backward():
    """Where g is all but zero, terms that would cancel show."""
    z, w, b, y = make_inputs("classification", batch=64, dim=32, dtype=torch.float64)
    for _ in range(60):
        energy = energy_penalty(z, w, b, y, alpha=4.0, backend="analytic").energy.sum()
        z = [(x - 0.1 * g).detach().requires_grad_() for x, g in zip(z, gradients(energy, z), strict=True)]
    rounded = [
        [(x.detach() + noise * torch.randn_like(x)).float() for x in g] for noise, g in ((1e-4, z), (0, w), (0, b))
    ]

    def run(dtype, backend):
        groups = [[x.to(dtype).requires_grad_() for x in group] for group in rounded]
        return gradients(
            energy_penalty(*groups, y, alpha=4.0, backend=backend).penalty.sum(), [x for g in groups for x in g]
        )

    exact = run(torch.float64, "reference")
    for got, twice, want in zip(run(torch.float32, "analytic"), run(torch.float32, "reference"), exact, strict=True):
        assert (got.double() - want).norm() <= 5 * (twice.double() - want).norm() + 1e-6 * want.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
@compiles
@pytest.mark.parametrize("task", TASKS)
def test_compiles_to_one_graph(task):
    z, w, b, y = make_inputs(task, dtype=torch.float64)
    leaves = [*z, *w, *b]

    def penalty(*x):
        heads = x[MODALITIES : 2 * MODALITIES], x[2 * MODALITIES : -1]
        return energy_penalty(x[:MODALITIES], *heads, x[-1], task=task, backend="analytic").penalty.sum()

    compiled = torch.compile(penalty, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(penalty(*leaves, y), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, y), leaves), expected)


def test_classes_are_the_first_axis_of_a_point():
    s = torch.randn(5, CLASSES)
    torch.testing.assert_close(task_formulas.HeadOutputs(s.T).softmax(), s.softmax(-1).T)
