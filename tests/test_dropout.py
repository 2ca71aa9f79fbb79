import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modbalance import ModalityDropout
from modbalance.dropout import modality_dropout


def by_rows(present, rate, draws):
    """One sample at a time, in plain Python."""
    names, rows = list(present), []
    for i, draw in enumerate(draws.tolist()):
        had = [name for name in names if present[name][i]]
        kept = [n for n in had if draw[names.index(n)] >= (rate[n] if isinstance(rate, dict) else rate)]
        if had and not kept:
            scale = rate if isinstance(rate, dict) else dict.fromkeys(names, rate)
            kept = [max(had, key=lambda n: draw[names.index(n)] / scale[n])]
        rows.append([name in kept for name in names])
    return torch.tensor(rows).reshape(-1, len(names))


@given(
    rows=st.lists(st.tuples(*[st.booleans()] * 3), max_size=20),
    rate=st.sampled_from([0.0, 0.3, 0.9, 1.0, {"a": 0.9, "b": 0.2, "c": 1.0}]),
    seed=st.integers(0, 99),
)
def test_rows_are_those_of_the_loop(rows, rate, seed):
    present = {n: torch.tensor([r[j] for r in rows], dtype=torch.bool) for j, n in enumerate("abc")}
    draws = torch.rand(len(rows), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = torch.stack(list(modality_dropout(present, rate, uniform=draws).values()), 1)
    assert torch.equal(kept, by_rows(present, rate, draws))


def test_each_goes_at_its_rate_and_none_loses_all():
    present = {name: torch.ones(40_000, dtype=torch.bool) for name in "ab"}
    kept = modality_dropout(present, 0.5, generator=torch.Generator().manual_seed(0))
    a, b = (kept[name].double().mean().item() for name in "ab")
    assert (kept["a"] | kept["b"]).all()
    assert (a, b) == pytest.approx((0.625, 0.625), abs=0.01)  # 1/2, and half of the quarter that would lose both


def test_the_same_generator_draws_the_same():
    present = {name: torch.ones(50, dtype=torch.bool) for name in "abc"}
    first, second = (modality_dropout(present, 0.4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in "abc")


def test_the_module_drops_in_training_only():
    present = {name: torch.ones(200, dtype=torch.bool) for name in "ab"}
    drop = ModalityDropout(0.5)
    assert not drop(present)["a"].all()
    assert drop.eval()(present)["a"].all()
    assert "0.5" in repr(drop)


@pytest.mark.parametrize(
    ("present", "rate", "uniform", "match"),
    [
        ({"a": torch.ones(2, dtype=torch.bool)}, 1.5, None, r"rate is 1.5, expected a probability.*correct"),
        ({"a": torch.ones(2, dtype=torch.bool)}, {"b": 0.5}, None, r"rate has \['b'\], expected one for each of"),
        (
            {"a": torch.ones(2)},
            0.5,
            None,
            r"present\['a'\] is a torch.float32 tensor \(2,\), expected a bool.*bool\(",
        ),
        ({"a": torch.ones(2, dtype=torch.bool)}, 0.5, torch.rand(3, 1), r"uniform has shape \(3, 1\).*\(2, 1\)"),
        ({}, 0.5, None, r"present is {}, expected a mapping.*pass for example"),
    ],
)
def test_what_does_not_fit_raises(present, rate, uniform, match):
    with pytest.raises(ValueError, match=match):
        modality_dropout(present, rate, uniform=uniform)
