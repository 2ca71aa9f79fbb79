"""Contributions: Shapley values against the mean over all orders, shares, gradient norms."""

from itertools import permutations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from modbalance.diagnostics import gradient_norms, shapley_values, shares

PLAYERS = ["text", "audio", "vision"]


def game(worths):
    """A worth for each coalition, whatever the order of its members."""
    return lambda coalition: worths[sum(1 << PLAYERS.index(name) for name in coalition)]


worths = st.lists(st.floats(-10, 10), min_size=8, max_size=8)


@given(worths)
def test_shapley_is_the_mean_gain_over_all_orders(worths):
    value, expected = game(worths), dict.fromkeys(PLAYERS, 0.0)
    for order in permutations(PLAYERS):
        for i, name in enumerate(order):
            expected[name] += (value(order[: i + 1]) - value(order[:i])) / 6
    assert shapley_values(value, PLAYERS) == pytest.approx(expected, abs=1e-9)


@given(worths)
def test_shapley_values_share_out_the_whole_gain(worths):
    value = game(worths)
    assert sum(shapley_values(value, PLAYERS).values()) == pytest.approx(value(PLAYERS) - value([]), abs=1e-9)


def test_each_coalition_is_asked_once_in_the_order_of_the_players():
    asked = []
    shapley_values(lambda coalition: asked.append(coalition) or 0.0, PLAYERS)
    assert len(asked) == len(set(asked)) == 8
    assert all(list(c) == [name for name in PLAYERS if name in c] for c in asked)


@given(st.dictionaries(st.sampled_from(PLAYERS), st.floats(-5, 5), min_size=1))
def test_shares_sum_to_one_and_hold_nothing_negative(values):
    found = shares(values)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= 0


def test_gradient_norms_are_those_of_all_parameters():
    encoders = nn.ModuleDict({"text": nn.Linear(3, 2), "audio": nn.Linear(4, 2)})
    encoders["text"](torch.randn(5, 3)).square().sum().backward()
    found = gradient_norms(encoders)
    flat = torch.cat([p.grad.flatten() for p in encoders["text"].parameters()])
    torch.testing.assert_close(found["text"], flat.norm())
    assert found["audio"] == 0
