"""Held-out energies decide how much of the coordinator each modality gets."""

import copy

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import nn

from cases import CLASSES, DIMS, NAN, TASKS, compiles, leaves, make_batch, poison, randomise
from modbalance import EnergyCoordinator
from modbalance.functional import GateState, gate_weights
from modbalance.tasks import task_loss
from rig import Rig, assert_close, outcome

each_task = pytest.mark.parametrize("task", TASKS)
LEVELS = strategies.sampled_from([0.5, 1.0, 1.0625, 1.5, 2.0, float("nan"), float("inf")])


def make(task="classification", **options):
    return randomise(EnergyCoordinator(DIMS, CLASSES, task, **options))


def observed(model, *energies):
    """The model after observations with these mean energies `(M,)` each."""
    for energy in energies:
        energy = torch.tensor(energy, dtype=torch.float64)
        model.gate.observe(energy[:, None], torch.ones(len(energy), 1, dtype=torch.bool))
        model.gate.close(sync=False)
    return model


def by_hand(energies, margin, floor):
    """The weight of one modality after a sequence of held-out energies."""
    weight, seen = 1.0, []
    for energy in energies:
        if energy != energy or energy == float("inf"):
            weight = max(weight / 4, floor)
            continue
        if not seen or energy < min(seen):
            weight = 1.0
        elif energy - min(seen) > margin * (seen[0] - min(seen)) + 1e-4 * abs(min(seen)):
            weight = max(weight / 4, floor)
        seen.append(energy)
    return weight


@hypothesis.given(
    strategies.lists(strategies.tuples(LEVELS, LEVELS, LEVELS), min_size=1),
    strategies.sampled_from([0.0, 0.1, 0.6]),
    strategies.sampled_from([0.0, 0.2]),
)
def test_the_weights_against_a_few_lines(epochs, margin, floor):
    state = GateState(torch.ones(3), torch.full((3,), torch.inf), torch.full((3,), torch.inf))
    for energies in epochs:
        state = gate_weights(torch.tensor(energies), state, margin=margin, floor=floor)
    for weight, energies in zip(state.weight, zip(*epochs, strict=True), strict=True):
        assert weight == pytest.approx(by_hand(energies, margin, floor))


@hypothesis.given(strategies.lists(LEVELS, min_size=2), strategies.sampled_from([-2.0, 0.0, 8.0]))
def test_unit_and_zero_of_the_energy_do_not_matter(energies, zero):
    state = GateState(torch.ones(2), torch.full((2,), torch.inf), torch.full((2,), torch.inf))
    for energy in energies:
        state = gate_weights(torch.tensor([energy, 4 * energy + zero]), state)
    assert state.weight[0] == state.weight[1]


@each_task
def test_what_is_observed_is_the_loss_of_the_probes(task):
    """beta loss + gamma u over present rows with a label, whatever the batches."""
    model, batch = make(task, beta=0.7), make_batch(task, 9, presence="some")
    for rows in (slice(0, 4), slice(4, 5), slice(5, 9)):
        model.observe(*cut(batch, rows))
    total, entries = model.gate.sums
    for m, name in enumerate(DIMS):
        here = batch.present[name]
        loss = task_loss(task, model.heads[name](batch.features[name][here]), batch.target[here])
        assert entries[m] == here.sum()
        torch.testing.assert_close(total[m], 0.7 * loss.sum())
    assert not model.gate.sums.requires_grad


def cut(batch, rows):
    features = {name: x[rows] for name, x in batch.features.items()}
    return features, batch.target[rows], {name: x[rows] for name, x in batch.present.items()}


def test_rounding_is_no_rise():
    state = GateState(torch.ones(1), torch.full((1,), torch.inf), torch.full((1,), torch.inf))
    for energy in (1.0, 1.000001, 1.0000005, 1.00001):
        state = gate_weights(torch.tensor([energy]), state)
    assert state.weight == 1


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("gap", ["pull", None])
@each_task
def test_what_labels_do_to_features_is_multiplied_and_nothing_else_changes(task, gap, joint):
    """Gap, penalty, loss and uncertainty; values and heads stay, and size descends with the largest weight."""
    plain = make(task, gap=gap, joint=joint, gamma=0.3, alpha=0.2, descent=0.7)
    gated = observed(copy.deepcopy(plain), [1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 1.0, 1.0])
    weights = (0.0625, 0.25, 0.25)
    assert gated.gate.weight.tolist() == list(weights)
    batch = make_batch(task, presence="some")
    inputs = leaves(batch.features), leaves(batch.features)
    results = []
    for model, z in zip((plain, gated), inputs, strict=True):
        results.append(model(z, batch.target, batch.present))
        results[-1].loss.backward()
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=0, atol=0)
    for (name, x), y, weight in zip(inputs[0].items(), inputs[1].values(), weights, strict=True):
        here = batch.present[name][:, None]
        size = 0.7 * 0.2 * torch.where(here, 2 * batch.features[name], 0.0) / DIMS[name] / here.sum()
        torch.testing.assert_close(y.grad, weight * (x.grad - size) + max(weights) * size, msg=name)
        assert results[1].features[name] is y
    for x, y in zip(plain.heads.parameters(), gated.heads.parameters(), strict=True):
        torch.testing.assert_close(y.grad, x.grad)
    assert [float(x) for x in gated(batch.features, None, batch.present).weight.values()] == list(weights)
    assert results[1].scalars()["weight/text"] == 0.0625


@pytest.mark.slow
def test_the_fused_kernels_take_the_weights():
    pytest.importorskip("triton")
    batch, results = make_batch("classification", presence="some", dtype=torch.float32), {}
    model = observed(make(gap="pull"), [1.0, 1.0, 1.0], [2.0, 0.5, 2.0]).float()
    for model.backend in ("triton", "analytic"):
        z = leaves(batch.features)
        loss = model(z, batch.target, batch.present).loss
        results[model.backend] = [loss, *torch.autograd.grad(loss, list(z.values()))]
    torch.testing.assert_close(results["triton"], results["analytic"])


def test_a_constant_observation_equals_none():
    """Held-out energies that do not move change no number of the training."""
    heads, held_out = {n: nn.Linear(d, CLASSES).double() for n, d in DIMS.items()}, make_batch("classification")
    encoders = {}
    for watched in (False, True):
        torch.manual_seed(3)
        encoder = nn.ModuleDict({n: nn.Linear(d, d) for n, d in DIMS.items()}).double()
        balance = EnergyCoordinator(DIMS, CLASSES, heads=heads)
        optimiser = torch.optim.Adam(encoder.parameters(), lr=0.1)
        for _ in range(4):
            batch = make_batch("classification")
            balance({n: encoder[n](x) for n, x in batch.features.items()}, batch.target).loss.backward()
            optimiser.step()
            if watched:
                balance.observe(held_out.features, held_out.target)
        encoders[watched] = encoder
    for one, other in zip(*(e.parameters() for e in encoders.values()), strict=True):
        assert torch.equal(one, other)


def test_only_a_training_forward_with_a_target_ends_an_observation():
    model, batch = make(), make_batch("classification")
    model.observe(batch.features, batch.target)
    for ends, training, target in ((False, False, batch.target), (False, True, None), (True, True, batch.target)):
        model.train(training)(batch.features, target)
        assert (model.gate.sums is None) is ends
    assert model.gate.lowest.isfinite().all()


def test_a_modality_that_nobody_has_keeps_its_weight():
    model = observed(make(), [1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    batch, absent = make_batch("classification"), torch.zeros(6, dtype=torch.bool)
    kept = model.gate.lowest.clone()
    model.gate.lowest[1:] = 99.0
    for left_out in ({"text": absent}, None):
        features = batch.features if left_out else {n: x for n, x in batch.features.items() if n != "text"}
        model.observe(poison(features, left_out), batch.target, left_out)
        model(batch.features, batch.target)
        assert model.gate.weight[0] == 0.25
        assert model.gate.lowest[0] == kept[0]
        assert (model.gate.lowest[1:] != 99.0).all()


def test_rows_without_a_label_do_not_count():
    model, batch = make(ignore_index=-1), make_batch("classification")
    batch.target[1:] = -1
    model.observe(batch.features, batch.target)
    assert model.gate.sums[1].tolist() == [1, 1, 1]


def test_energies_that_are_not_finite_count_as_risen_and_are_no_reference():
    model = observed(make(), [1.0, 1.0, 1.0], [NAN, NAN, 0.5])
    assert model.gate.weight.tolist() == [0.25, 0.25, 1.0]
    assert model.gate.lowest.tolist() == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("when", ["open", "closed"])
def test_state_dict_continues_where_it_was(when):
    model, batches = observed(make(), [0.1, 9.0, 0.1]), [make_batch("classification") for _ in range(3)]
    if when == "open":
        model.observe(batches[0].features, batches[0].target)
    other = make()
    other.load_state_dict({key: x.clone() for key, x in model.state_dict().items()})
    if when == "open":
        assert torch.equal(other.gate.sums, model.gate.sums)
    for balance in (model, other):
        for batch in batches[1:]:
            balance.observe(batch.features, batch.target)
            balance(batch.features, batch.target)
    assert model.gate.weight.min() < 1
    assert torch.equal(model.gate.weight, other.gate.weight)
    assert torch.equal(model.gate.lowest, other.gate.lowest)


def test_two_forwards_before_a_backward_with_an_observation_between():
    model, batch = observed(make(), [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]), make_batch("classification")
    z = leaves(batch.features)
    first = model(z, batch.target).loss
    model.observe(batch.features, batch.target)
    (first + model(z, batch.target).loss).backward()
    assert all(x.grad.isfinite().all() for x in z.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_precision(dtype):
    model = observed(make(), [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]).to(dtype)
    batch = make_batch("classification", dtype=dtype)
    model.observe(batch.features, batch.target)
    out = model(batch.features, batch.target)
    assert out.loss.isfinite()
    assert out.weight["text"] in (0.0625, 1.0)


@compiles
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_in_one_graph_before_and_after_an_observation():
    torch._dynamo.reset()
    rig, batch = Rig("coordinator"), make_batch("classification")
    twin = copy.deepcopy(rig)
    rig.compile(fullgraph=True, backend="eager")
    for _ in range(3):
        assert_close(outcome(rig, *batch), outcome(twin, *batch))
        for module in (rig, twin):
            module.component.observe(batch.features, batch.target)
            module.component.gate.lowest.fill_(0.0)
            module.component.gate.first.fill_(0.0)
    assert twin.component.gate.weight.tolist() == rig.component.gate.weight.tolist() == [0.0625] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": torch.zeros(5, dtype=torch.long)}, "6"),
        ({"features": {"text": torch.zeros(6, 4)}}, r"text.*\(6, 4\).*5"),
        ({"present": {"smell": torch.ones(6, dtype=torch.bool)}}, "smell.*expected one of"),
    ],
    ids=["target", "features", "present"],
)
def test_bad_input(wrong, message):
    batch = make_batch("classification")
    with pytest.raises(ValueError, match=message):
        make().observe(**{**batch._asdict(), **wrong})


def test_values_are_checked_where_asked():
    batch = make_batch("classification")
    batch.features["text"][0, 0] = NAN
    with pytest.raises(ValueError, match=r"text.*NaN"):
        make(validate=True).observe(batch.features, batch.target)
