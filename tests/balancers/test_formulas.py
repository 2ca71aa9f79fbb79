"""The formulas on numbers, against plain Python."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modbalance.balancers import blend_weights
from modbalance.balancers.formulas import (
    agm_coefficients,
    cggm_coefficients,
    ogm_coefficients,
    pareto_direction,
    pmr_coefficients,
)

POSITIVE = st.lists(st.floats(0.01, 5.0), min_size=2, max_size=4)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def others(values, i, seen):
    rest = [v for k, v in enumerate(values) if k != i and seen[k]]
    return sum(rest) / len(rest) if rest else None


def by_hand(values, seen, one, neutral):
    return [one(i) if seen[i] and others(values, i, seen) is not None else neutral for i in range(len(values))]


CASES = {
    "ogm": lambda v, seen: ogm_coefficients(v, seen, alpha=0.7),
    "agm": lambda v, seen: agm_coefficients(v, v.flip(0) + 0.3, seen, alpha=0.7),
    "cggm": lambda v, seen: cggm_coefficients(v, seen, rho=1.3),
    "pull": lambda v, seen: pmr_coefficients(v, seen)[0],
    "hold": lambda v, seen: pmr_coefficients(v, seen)[1],
}


def expected(name, v, seen):
    mean = [x + 0.3 for x in reversed(v)]

    def ratio(values, i):
        return math.exp(others(values, i, seen) - values[i])

    def ogm(i):
        rho = v[i] / others(v, i, seen)
        return 1 - math.tanh(0.7 * rho) if rho > 1 else 1.0

    def cggm(i):
        total = sum(x for x, here in zip(v, seen, strict=True) if here)
        return min(max(1.3 * (total - v[i]) / total, 0), 1.3)

    one, neutral = {
        "ogm": (ogm, 1.0),
        "agm": (lambda i: math.exp(0.7 * min(ratio(mean, i) - ratio(v, i), 10)), 1.0),
        "cggm": (cggm, 1.0),
        "pull": (lambda i: min(max(others(v, i, seen) / v[i] - 1, 0), 1), 0.0),
        "hold": (lambda i: min(max(v[i] / others(v, i, seen) - 1, 0), 1), 0.0),
    }[name]
    return by_hand(v, seen, one, neutral)


@pytest.mark.parametrize("name", CASES)
@given(values=POSITIVE, data=st.data())
def test_by_hand(name, values, data):
    seen = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    got = CASES[name](tensor(values), torch.tensor(seen))
    torch.testing.assert_close(got, tensor(expected(name, values, seen)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
@given(values=st.lists(st.floats(0.01, 5.0), min_size=3, max_size=3))
def test_order_does_not_matter(name, values):
    seen = torch.ones(3, dtype=torch.bool)
    for order in permutations(range(3)):
        if name == "agm":  # its mean of the case above is in an order of its own
            mean = tensor([0.4, 0.9, 1.7])
            got = agm_coefficients(tensor(values)[list(order)], mean[list(order)], seen, alpha=1.0)
            want = agm_coefficients(tensor(values), mean, seen, alpha=1.0)[list(order)]
        else:
            got, want = CASES[name](tensor(values)[list(order)], seen), CASES[name](tensor(values), seen)[list(order)]
        torch.testing.assert_close(got, want)


def test_two_modalities_are_the_paper():
    k = ogm_coefficients(tensor([0.6, 0.2]), torch.tensor([True, True]), alpha=0.1)
    assert k.tolist() == pytest.approx([1 - math.tanh(0.1 * 3), 1])
    pull, hold = pmr_coefficients(tensor([0.4, 0.6]), torch.tensor([True, True]))
    assert (pull.tolist(), hold.tolist()) == (pytest.approx([0.5, 0]), pytest.approx([0, 0.5]))


def test_extremes_stay_finite():
    seen = torch.tensor([True, True])
    assert agm_coefficients(tensor([9.0, 0.0]), tensor([0.0, 9.0]), seen, alpha=0.5)[0] == pytest.approx(math.exp(5))
    assert ogm_coefficients(tensor([1.0, 0.0]), seen, alpha=1.0).tolist() == [0.0, 1.0]
    assert ogm_coefficients(tensor([0.0, 0.0]), seen, alpha=1.0).tolist() == [1.0, 1.0]
    assert cggm_coefficients(tensor([0.2, -0.2]), seen, rho=1.0).tolist() == [1.0, 1.0]
    assert cggm_coefficients(tensor([0.3, -0.1]), seen, rho=1.0).tolist() == [0.0, 1.0]
    assert all(x.isfinite().all() for x in pmr_coefficients(tensor([0.0, 1.0]), seen))


def test_pareto_direction_where_both_agree():
    a, b = tensor([1.0, 0.0]), tensor([1.0, 2.0])
    torch.testing.assert_close(pareto_direction(a, b, gamma=1.5), 1.5 * (a + b))


@pytest.mark.parametrize("seed", range(5))
def test_pareto_direction_where_they_conflict(seed):
    a, b = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    b = b if a @ b < 0 else -b
    steps = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    candidates = 2 * steps * a + 2 * (1 - steps) * b
    shortest = candidates[candidates.norm(dim=1).argmin()]
    want = 1.5 * shortest * max(1.0, ((a + b).norm() / shortest.norm()).item())
    found = pareto_direction(a, b, gamma=1.5)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)
    assert found @ a >= -1e-9
    assert found @ b >= -1e-9


def test_pareto_direction_of_opposites_is_nothing():
    a = tensor([1.0, 2.0])
    assert pareto_direction(a, -a, gamma=1.5).abs().max() == 0


def test_blend_weights():
    before = {"a": (2.0, 2.0), "b": (2.0, 2.0), "task": (2.0, 2.1), "bad": (2.0, 2.0)}
    after = {"a": (1.0, 1.2), "b": (0.1, 1.0), "task": (0.5, 1.0), "bad": (0.1, 3.0)}
    raw = {"a": 0.8 / 0.2**2, "b": 1.0 / 0.9**2, "task": 1.1 / 0.4**2, "bad": 0.0}
    assert blend_weights(before, after) == pytest.approx({n: w / sum(raw.values()) for n, w in raw.items()})
    assert blend_weights({"a": (1, 1), "b": (1, 1)}, {"a": (0, 2), "b": (0, 2)}) == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match=r"before has \['a'\] and after \['b'\].*same losses"):
        blend_weights({"a": (1, 1)}, {"b": (1, 1)})
