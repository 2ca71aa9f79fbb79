import re

import pytest
import torch

import oracle
from cases import NAN, PRESENCE, TASKS, assert_same, gradients, make_present, make_target, width
from modbalance.functional import descend, energy, energy_gap
from modbalance.tasks import task_loss, task_uncertainty

KINDS = ("pull", "paper", "paper_per_sample")
each_kind = pytest.mark.parametrize("kind", KINDS)


def make_energies(presence, modalities=3, batch=6):
    names = [str(m) for m in range(modalities)]
    present = make_present(presence, batch, names)
    mask = torch.ones(modalities, batch, dtype=torch.bool) if present is None else torch.stack(list(present.values()))
    values = torch.where(mask, torch.randn(modalities, batch, dtype=torch.float64), NAN)
    return values.requires_grad_(), mask


@pytest.mark.parametrize("normalize", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("task", TASKS)
def test_energy_against_the_oracle(task, normalize):
    z, w = torch.randn(4, 5, dtype=torch.float64), torch.randn(width(task), 5, dtype=torch.float64)
    y, weights = make_target(task, 4), {"alpha": 0.3, "beta": 0.8, "gamma": 0.6}
    z.requires_grad_()
    s = z @ w.T
    ours = energy(z, task_loss(task, s, y), task_uncertainty(task, s), normalize=normalize, **weights)
    expected = [oracle.energy(task, z[i], lambda x: w @ x, y[i], normalize=normalize, **weights) for i in range(4)]
    torch.testing.assert_close(ours, torch.stack(expected))
    assert_same(ours.square().sum(), torch.stack(expected).square().sum(), [z])


@pytest.mark.parametrize("presence", PRESENCE)
@pytest.mark.parametrize("modalities", [1, 2, 4])
@each_kind
def test_gap_against_the_oracle(kind, modalities, presence):
    energies, mask = make_energies(presence, modalities)
    assert_same(energy_gap(energies, mask, kind), oracle.gap(energies, mask, kind), [energies])


@each_kind
def test_gap_does_not_change_when_the_batch_is_duplicated(kind):
    energies, mask = make_energies("some")
    twice = energy_gap(torch.cat([energies, energies], 1), torch.cat([mask, mask], 1), kind)
    torch.testing.assert_close(twice, energy_gap(energies, mask, kind))


@each_kind
def test_gap_closes_at_equal_energies_and_only_there(kind):
    equal, mask = torch.full((3, 4), 2.0), torch.ones(3, 4, dtype=torch.bool)
    assert energy_gap(equal, mask, kind) == 0
    equal[1] += 1
    assert energy_gap(equal, mask, kind) > 0


def test_pull_moves_only_what_is_above_the_lowest():
    energies = torch.tensor([[1.0, 3.0], [5.0, 5.0], [9.0, 7.0]], requires_grad=True)
    (gradient,) = gradients(energy_gap(energies, torch.ones(3, 2, dtype=torch.bool)), [energies])
    assert (gradient[0] == 0).all()
    assert (gradient[1:] > 0).all()


def test_the_papers_gap_raises_the_lowest():
    energies = torch.tensor([[1.0], [5.0]], requires_grad=True)
    (gradient,) = gradients(energy_gap(energies, torch.ones(2, 1, dtype=torch.bool), "paper"), [energies])
    assert gradient[0] < 0 < gradient[1]


def test_the_papers_gap_compares_only_common_samples():
    energies = torch.tensor([[1.0, 2.0, 100.0], [1.0, 2.0, NAN]])
    mask = torch.tensor([[True] * 3, [True, True, False]])
    assert energy_gap(energies, mask, "paper") == 0
    assert energy_gap(energies, mask, "paper_per_sample") == 0


@each_kind
def test_squared_gap_of_energies_of_size_1e9_is_finite_in_float32(kind):
    energies = torch.tensor([[1e9, 1e9], [-1e9, -1e9]], requires_grad=True)
    gap = energy_gap(energies, torch.ones(2, 2, dtype=torch.bool), kind)
    assert gap.isfinite()
    assert gradients(gap, [energies])[0].isfinite().all()


@pytest.mark.parametrize("normalize", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("task", TASKS)
def test_descend_follows_the_label_free_gradient(task, normalize):
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(width(task), 5, dtype=torch.float64)
    options = {"alpha": 0.3, "gamma": 0.6, "temperature": 2.0, "normalize": normalize}
    ours = descend(z, z @ w.T, w, step=0.4, task=task, **options)
    total = sum(oracle.energy(task, row, lambda x: w @ x, None, beta=1.0, **options) for row in z)
    (gradient,) = torch.autograd.grad(total, z, create_graph=True)
    torch.testing.assert_close(ours, z - 0.4 * gradient)
    assert_same(ours.square().sum(), (z - 0.4 * gradient).square().sum(), [z])


Z, V, E, M = torch.zeros(4, 3), torch.zeros(4), torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool)
BAD = {
    "loss": (
        lambda: energy(Z, V[:2], V),
        "energy: loss has shape (2,), expected (4,) as z has that many rows; pass one",
    ),
    "uncertainty": (lambda: energy(Z, V, Z), "energy: uncertainty has shape (4, 3), expected (4,)"),
    "rank": (
        lambda: energy_gap(V, M[0]),
        "energy_gap: energies (4,) and torch.bool present (4,), expected (M, B).*stack",
    ),
    "present": (
        lambda: energy_gap(E, M.float()),
        "energy_gap: energies (2, 4) and torch.float32 present (2, 4), expected (M, B) and bool",
    ),
    "kind": (
        lambda: energy_gap(E, M, "push"),
        "kind is 'push', expected 'pull', 'paper' or 'paper_per_sample'; pass one",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        call()


def test_one_class_has_no_uncertainty():
    assert task_uncertainty("classification", torch.randn(3, 1)).tolist() == [0.0] * 3
    assert task_loss("classification", torch.randn(3, 1), torch.zeros(3, dtype=torch.long)).tolist() == [0.0] * 3
