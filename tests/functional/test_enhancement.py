import re

import pytest
import torch

import oracle
from cases import DIMS, NAN, PRESENCE, assert_same, gradients, leaves, make_batch
from modbalance.functional import generator_inputs, reconstruction_loss

SAME = dict.fromkeys(DIMS, 2)


@pytest.mark.parametrize("presence", PRESENCE)
def test_reconstruction_against_the_oracle(presence):
    target, rebuilt = make_batch("regression", presence=presence), make_batch("regression")
    built, features = leaves(rebuilt.features), leaves(target.features)
    ours = reconstruction_loss(built, features, target.present)
    expected = oracle.reconstruction(built, features, target.present)
    assert_same(ours, expected, [*built.values(), *features.values()])


def test_reconstruction_leaves_its_target_alone():
    built, features = leaves({"a": torch.ones(2, 3)}), leaves({"a": torch.zeros(2, 3)})
    loss = reconstruction_loss(built, features)
    assert (gradients(loss, built.values())[0] != 0).all()
    assert (gradients(loss, features.values())[0] == 0).all()


@pytest.mark.parametrize("own_private", [True, False])
def test_a_generator_reads_its_own_parts_first_then_those_of_the_others(own_private):
    shared = {name: torch.full((1, 2), float(i)) for i, name in enumerate("abc")}
    private = {name: x + 10 for name, x in shared.items()}
    masks = dict.fromkeys("abc", torch.ones(1, dtype=torch.bool))
    inputs = generator_inputs(shared, private, masks, own_private=own_private)
    read = {name: x[0, ::2].tolist() for name, x in inputs.items()}
    own = {"a": [0.0, 10.0], "b": [1.0, 11.0], "c": [2.0, 12.0]}
    others = {"a": own["b"] + own["c"], "b": own["a"] + own["c"], "c": own["a"] + own["b"]}
    assert read == {name: own[name][: 1 + own_private] + others[name] for name in "abc"}


def test_absent_and_hidden_parts_read_as_zero():
    parts = {name: torch.full((3, 2), NAN if name == "b" else 1.0) for name in "ab"}
    masks = {"a": torch.tensor([True, True, False]), "b": torch.zeros(3, dtype=torch.bool)}
    own = {"a": torch.tensor([True, False, False]), "b": masks["b"]}
    inputs = generator_inputs(parts, parts, masks, own=own)
    assert inputs["a"].sum(-1).tolist() == [4.0, 0.0, 0.0]
    assert inputs["b"].sum(-1).tolist() == [4.0, 4.0, 0.0]


def test_gates_scale_what_the_others_read_and_not_ones_own():
    parts = {name: torch.ones(2, 3) for name in "abc"}
    masks = dict.fromkeys("abc", torch.ones(2, dtype=torch.bool))
    gates = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.5, 1.0]), "c": torch.ones(2)}
    inputs = generator_inputs(parts, parts, masks, gates=gates)
    assert inputs["a"].sum(-1).tolist() == [6 + 3 + 6, 18]
    assert inputs["b"].sum(-1).tolist() == [6 + 0 + 6, 18]
    assert inputs["c"].sum(-1).tolist() == [6 + 0 + 3, 18]


X = torch.zeros(4, 3)
BAD = {
    "missing": (
        lambda: reconstruction_loss({"a": X}, {"b": X}),
        "features['a'] is missing, expected (4, 3) as in enhanced['a']; pass",
    ),
    "shape": (
        lambda: reconstruction_loss({"a": X}, {"a": X[:, :2]}),
        "features['a'] is (4, 2), expected (4, 3) as in enhanced['a']",
    ),
    "rank": (
        lambda: reconstruction_loss({"a": X[0]}, {"a": X[0]}),
        "enhanced['a'] has shape (3,), expected (3, D); pass one row of features a sample",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match="reconstruction_loss: " + re.escape(message)):
        call()
