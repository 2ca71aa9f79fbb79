import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from missing import conditions, random_drop, restrict


def test_seven_conditions_in_canonical_order_full_last():
    found = conditions(["vision", "text", "audio"])
    assert list(found) == [
        "text",
        "audio",
        "vision",
        "text+audio",
        "text+vision",
        "audio+vision",
        "text+audio+vision",
    ]
    assert found["text+vision"] == ("text", "vision")


def test_more_than_three_each_alone_each_left_out_all():
    found = conditions(["fou", "fac", "text", "mor"])
    assert len(found) == 9
    assert list(found)[-1] == "text+fou+fac+mor"
    assert {len(kept) for kept in found.values()} == {1, 3, 4}


def test_one_modality():
    assert conditions(["audio"]) == {"audio": ("audio",)}


@pytest.mark.parametrize("names", [[], ["text", "text"]])
def test_conditions_refuses_none_and_repeated(names):
    with pytest.raises(ValueError, match=r"conditions: modalities \[.*\], expected distinct names.*correct"):
        conditions(names)


def test_restrict_switches_the_others_off_and_leaves_its_input_alone():
    present = {"text": torch.tensor([True, False]), "audio": torch.tensor([True, True])}
    kept = restrict(present, ["text"])
    assert kept["text"].tolist() == [True, False]
    assert kept["audio"].tolist() == [False, False]
    assert present["audio"].all()


def test_restrict_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"restrict: keep names \['video'\], expected some of \['text'\]; correct"):
        restrict({"text": torch.ones(2, dtype=torch.bool)}, ["video"])


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_random_drop_refuses_rates(rate):
    with pytest.raises(ValueError, match=rf"random_drop: rate {rate}, expected a probability .*correct"):
        random_drop({"text": torch.ones(1, dtype=torch.bool)}, rate, torch.Generator())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1), st.floats(0, 1), st.integers(0, 99))
def test_random_drop_keeps_one_and_invents_none(rows, rate, seed):
    had = torch.tensor(rows)
    present = dict(zip("abc", had.unbind(1), strict=True))
    kept = torch.stack(list(random_drop(present, rate, torch.Generator().manual_seed(seed)).values()), 1)
    assert not (kept & ~had).any()
    assert torch.equal(kept.any(1), had.any(1))
    if rate == 0:
        assert torch.equal(kept, had)
    if rate == 1:
        assert torch.equal(kept.sum(1), had.any(1).long())


def test_random_drop_frequencies():
    """Each dropped with probability r; where all three would go (r³), one comes back, evenly."""
    present = {name: torch.ones(40000, dtype=torch.bool) for name in "abc"}
    kept = random_drop(present, 0.5, torch.Generator().manual_seed(0))
    for here in kept.values():
        assert here.float().mean().item() == pytest.approx(0.5 + 0.5**3 / 3, abs=0.01)
