import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import oracle
from cases import DIMS, PRESENCE, TASKS, assert_same, gradients, leaves, make_batch, width
from modbalance.functional import distillation_loss, trust_fusion, trust_weights

each_presence = pytest.mark.parametrize("presence", PRESENCE)


def make_variances(presence, columns=3):
    batch = make_batch("regression", 6, dict.fromkeys(DIMS, columns), presence)
    return {name: x.exp() for name, x in batch.features.items()}, batch.present


@each_presence
@pytest.mark.parametrize("floor", [1e-6, 0.5])
@pytest.mark.parametrize("columns", [None, 1, 3], ids=["vector", "one", "three"])
def test_weights_against_the_oracle(columns, floor, presence):
    variances, present = make_variances(presence, columns or 1)
    if columns is None:
        variances = {name: v[:, 0] for name, v in variances.items()}
    ours, expected = trust_weights(variances, present, min_variance=floor), oracle.trust(variances, present, floor)
    torch.testing.assert_close(ours, expected)


@each_presence
@pytest.mark.parametrize("chance", [None, torch.full((3,), 0.7)], ids=["paper", "chance"])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_power_bias_and_chance_against_the_oracle(power, chance, presence):
    variances, present = make_variances(presence)
    bias = {name: 0.5 * i for i, name in enumerate(variances)}
    ours = trust_weights(variances, present, chance=chance, power=power, bias=bias)
    torch.testing.assert_close(ours, oracle.trust(variances, present, 1e-6, chance, power, bias))


def test_who_knows_nothing_beyond_chance_gets_nothing_beside_who_knows():
    weights = trust_weights({"a": torch.tensor([0.5]), "b": torch.tensor([1.3])}, chance=torch.ones(1))
    assert weights["b"] < 2e-3
    alike = trust_weights({"a": torch.tensor([1.1]), "b": torch.tensor([1.1])}, chance=torch.ones(1))
    assert alike["a"] == alike["b"] == 0.5


def test_power_and_bias_can_be_fitted():
    variances, _ = make_variances("all")
    free = torch.ones(2, dtype=torch.float64, requires_grad=True)
    bias = dict.fromkeys(variances, 0.0) | {next(iter(variances)): free[1]}
    weights = trust_weights(variances, power=free[0], bias=bias)
    weights[next(iter(variances))].sum().backward()
    assert (free.grad != 0).all()


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from([0.0, 1e-30, 1.0, 1e6, 3e38]),
    st.integers(0, 99),
)
def test_weights_are_exact_over_what_is_present(rows, scale, seed):
    mask = torch.tensor(rows)
    values = torch.rand(len(rows), 4, 2, generator=torch.Generator().manual_seed(seed)) * scale
    values[~mask] = float("nan")
    names = [str(m) for m in range(len(rows))]
    result = trust_weights(dict(zip(names, values, strict=True)), dict(zip(names, mask, strict=True)))
    weights = torch.stack([result[name] for name in names])
    count = mask.sum(0)
    assert (weights[~mask] == 0).all()
    assert (weights[mask] >= 0).all()
    assert (weights[:, count == 1].sum(0) == 1).all()
    assert (weights[:, count == 0] == 0).all()
    torch.testing.assert_close(weights.sum(0), (count > 0).float())


def test_the_surer_modality_is_trusted_more_and_two_certain_ones_alike():
    weights = trust_weights({"a": torch.tensor([0.1, 0.0]), "b": torch.tensor([0.9, 0.0])})
    assert weights["a"][0] > weights["b"][0]
    assert weights["a"][1] == weights["b"][1] == 0.5


def test_trust_is_no_path_for_gradients():
    variances = leaves(make_variances("all")[0])
    assert not any(w.requires_grad for w in trust_weights(variances).values())


def make_lesson(task, presence):
    batch = make_batch(task, 6, dict.fromkeys(DIMS, width(task)), presence)
    student = torch.randn(6, width(task), dtype=torch.float64, requires_grad=True)
    variances = {name: torch.rand(6, dtype=torch.float64) for name in DIMS}
    return student, leaves(batch.features), trust_weights(variances, batch.present)


@each_presence
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("direction", ["paper", "forward"])
@pytest.mark.parametrize("task", TASKS)
def test_distillation_against_the_oracle(task, direction, temperature, presence):
    student, teachers, weights = make_lesson(task, presence)
    options = {"temperature": temperature, "direction": direction}
    ours = distillation_loss(student, teachers, weights, task=task, **options)
    expected = oracle.distillation(task, student, teachers, weights, **options)
    assert_same(ours, expected, [student, *teachers.values()], 1e-8)


@pytest.mark.parametrize("direction", ["paper", "forward"])
@pytest.mark.parametrize("task", TASKS)
def test_distillation_is_zero_for_a_student_like_its_teachers(task, direction):
    student, _, weights = make_lesson(task, "all")
    loss = distillation_loss(student, dict.fromkeys(weights, student), weights, task=task, direction=direction)
    torch.testing.assert_close(loss.detach(), torch.zeros((), dtype=torch.float64))
    assert gradients(loss, [student])[0].abs().max() < 1e-12


@pytest.mark.parametrize("direction", ["paper", "forward"])
@pytest.mark.parametrize("task", TASKS)
def test_extreme_logits_stay_finite(task, direction):
    student = torch.full((2, width(task)), 1e4)
    student[:, 0] *= -1
    student.requires_grad_()
    loss = distillation_loss(student, {"a": -student}, {"a": torch.ones(2)}, task=task, direction=direction)
    assert loss.isfinite()
    assert gradients(loss, [student])[0].isfinite().all()


@each_presence
def test_fusion_against_the_oracle(presence):
    batch = make_batch("regression", 6, dict.fromkeys(DIMS, 4), presence)
    weights = trust_weights({name: torch.rand(6, dtype=torch.float64) for name in DIMS}, batch.present)
    tensors = leaves(batch.features)
    ours = trust_fusion(tensors, weights)
    assert_same(ours.square().sum(), oracle.fusion(tensors, weights).square().sum(), tensors.values())
    torch.testing.assert_close(ours, oracle.fusion(tensors, weights))


X, W = torch.zeros(4, 3), torch.ones(4)
BAD = {
    "floor": (
        lambda: trust_weights({"a": W}, min_variance=0.0),
        "trust_weights: min_variance is 0.0, expected a positive number; the default is",
    ),
    "rows": (
        lambda: trust_weights({"a": W, "b": W[:2]}),
        "variances['b'] has 2 rows, expected 4 as in variances['a']",
    ),
    "direction": (
        lambda: distillation_loss(X, {"a": X}, {"a": W}, direction="both"),
        "direction is 'both', expected 'paper'.*pass one",
    ),
    "teacher": (
        lambda: distillation_loss(X, {"a": X[:, :2]}, {"a": W}),
        "teachers['a'] has shape (4, 2), expected (4, 3) as the student; pass outputs",
    ),
    "sizes": (
        lambda: trust_fusion({"a": X, "b": X[:, :2]}, {"a": W, "b": W}),
        "shapes are {'a': (4, 3), 'b': (4, 2)}.*project",
    ),
    "weights": (
        lambda: trust_fusion({"a": X, "b": X}, {"a": W}),
        "trust_fusion: weights['b'] is missing, expected (4,); pass one weight a sample",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        call()


def test_a_bias_by_sample_is_that_of_each_sample_alone():
    variances, present = make_variances("some")
    bias = {name: torch.randn(len(v), dtype=torch.float64) for name, v in variances.items()}
    for name, b in bias.items():
        b[~present[name]] = float("nan")  # absent: never looked at
    together = trust_weights(variances, present, bias=bias)
    for i in range(len(next(iter(bias.values())))):
        alone = trust_weights(
            {name: v[i : i + 1] for name, v in variances.items()},
            {name: here[i : i + 1] for name, here in present.items()},
            bias={name: b[i].item() for name, b in bias.items()},
        )
        torch.testing.assert_close({name: w[i : i + 1] for name, w in together.items()}, alone)


def test_bias_has_one_number_a_sample():
    with pytest.raises(ValueError, match=re.escape("bias['a'] has shape (3,), expected (2,) or a number; pass one")):
        trust_weights({"a": torch.ones(2)}, bias={"a": torch.zeros(3)})


def test_bias_must_name_the_modalities():
    with pytest.raises(ValueError, match=re.escape("bias has ['b'], expected ['a']; pass one for each")):
        trust_weights({"a": torch.ones(2)}, bias={"b": 0.0})
