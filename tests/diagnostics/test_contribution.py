"""Shapley values against the mean over all orders; shares, and how uneven they are."""

from itertools import permutations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modbalance.diagnostics import imbalance, modality_subsets, shapley_values, shares

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


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.randoms(), st.floats(0.01, 100))
def test_imbalance_lies_in_range_whatever_the_order_and_the_scale(values, random, factor):
    def of(values):
        return imbalance({str(i): x for i, x in enumerate(values)})

    found, shuffled = of(values), random.sample(values, len(values))
    assert -1e-12 <= found <= 1 + 1e-12
    assert of(shuffled) == pytest.approx(found, abs=1e-9)
    assert of([factor * x for x in values]) == pytest.approx(found, abs=1e-9)


@given(st.integers(2, 6), st.floats(0.1, 10))
def test_imbalance_is_zero_for_equal_shares_and_one_for_a_single_contributor(total, value):
    equal = {str(i): value for i in range(total)}
    assert imbalance(equal) == pytest.approx(0, abs=1e-9)
    assert imbalance({**dict.fromkeys(equal, 0.0), "0": value}) == pytest.approx(1)
    assert imbalance({"only": value}) == 0


@pytest.mark.parametrize(("values", "expected"), [((3, 1), 0.5), ((6, 3, 3), 0.25), ((1, 1, 0), 0.5)])
def test_imbalance_is_the_part_that_would_have_to_change_hands(values, expected):
    shares = [x / sum(values) for x in values]
    moved = sum(max(p - 1 / len(values), 0) for p in shares)
    assert imbalance(dict(enumerate(values))) == pytest.approx(moved / (1 - 1 / len(values))) == expected


@pytest.mark.parametrize("sizes", [None, [0, 1], range(4), [1, 2, 3]])
def test_subsets_are_those_of_the_bits(sizes):
    names = ["text", "audio", "vision"]
    every = [tuple(n for i, n in enumerate(names) if bits >> i & 1) for bits in range(8)]
    sizes_ = {1, 2, 3} if sizes is None else set(sizes)
    found = modality_subsets(names, sizes)
    assert sorted(found) == sorted(s for s in every if len(s) in sizes_)
    assert [len(s) for s in found] == sorted(len(s) for s in found)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_subsets_of_doubtful_names_raise(names):
    with pytest.raises(ValueError, match=r"modality_subsets: modalities is .*, expected distinct names.*correct"):
        modality_subsets(names)
