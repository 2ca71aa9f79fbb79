from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmc_msa.data.batch import Batch
from ebmc_msa.data.missing import conditions, drop_frames, missing_at_random, restrict, unequal_rates
from ebmc_msa.data.rng import uniform


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
    with pytest.raises(ValueError, match=r"modality_subsets: modalities is \[.*\], expected distinct names.*correct"):
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


def oracle_missing(present, rate, seed):
    """Row by row: whatever was drawn under the rate goes, unless it was the row's largest draw."""
    rows = torch.arange(len(next(iter(present.values()))))
    draws = {m: uniform(rows, 1, seed, f"missing {m}")[:, 0].tolist() for m in present}
    kept = {m: [] for m in present}
    for i in rows.tolist():
        had = [m for m in present if present[m][i]]
        last = max(had, key=lambda m: draws[m][i], default=None)
        for m in present:
            kept[m].append(m in had and (draws[m][i] >= rate or m == last))
    return kept


RATES = st.sampled_from([i / 10 for i in range(11)])
PRESENCE = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1).map(
    lambda rows: dict(zip("abc", torch.tensor(rows).unbind(1), strict=True))
)


@given(PRESENCE, RATES, RATES, st.integers(0, 9))
def test_missing_at_random(present, rate, higher, seed):
    kept = missing_at_random(present, rate, seed)
    assert {m: here.tolist() for m, here in kept.items()} == oracle_missing(present, rate, seed)
    assert torch.equal(torch.stack(list(kept.values())).any(0), torch.stack(list(present.values())).any(0))
    if rate == 0:
        assert all(torch.equal(kept[m], present[m]) for m in present)
    rarer = missing_at_random(present, max(rate, higher), seed)
    assert not any((rarer[m] & ~kept[m]).any() for m in present), "missing at a rate, missing at every higher one"


def test_missing_at_random_is_pinned():
    present = {"text": torch.ones(8, dtype=torch.bool), "audio": torch.ones(8, dtype=torch.bool)}
    kept = missing_at_random(present, 0.5, 0)
    assert {m: "".join("01"[v] for v in here) for m, here in kept.items()} == {
        "text": "11010100",
        "audio": "11101011",
    }


def test_unequal_rates_of_two_and_three_and_one_modality():
    assert unequal_rates(["vision", "audio", "text"]) == [
        {"text": 0.1, "audio": 0.5, "vision": 0.9},
        {"text": 0.9, "audio": 0.5, "vision": 0.1},
    ]
    assert unequal_rates(["a", "b"]) == [{"a": 0.1, "b": 0.9}, {"a": 0.9, "b": 0.1}]
    assert unequal_rates(["a"])[0] == {"a": 0.1}


def test_missing_at_unequal_rates():
    """Of 1 - r is left by itself, and of what would leave a row empty one comes back, each as likely."""
    present = {name: torch.ones(4000, dtype=torch.bool) for name in ("text", "audio", "vision")}
    rates, _ = unequal_rates(present)
    kept = missing_at_random(present, rates, 0)
    back = 0.1 * 0.5 * 0.9 / 3
    for name, rate in rates.items():
        assert kept[name].float().mean().item() == pytest.approx(1 - rate + back, abs=0.025)


def make_batch(lengths, frames=9):
    lengths = torch.tensor(lengths)
    x = torch.arange(1.0, 1 + len(lengths) * frames).reshape(-1, frames, 1).expand(-1, -1, 2).clone()
    x[torch.arange(frames) >= lengths[:, None]] = 0
    pooled = torch.ones(len(lengths), 3)
    here = lengths > 0
    return Batch(
        {"text": x, "audio": pooled}, {"text": lengths}, {"text": here, "audio": torch.ones_like(here)}, None
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), RATES, RATES, st.integers(0, 9))
def test_drop_frames(lengths, rate, higher, seed):
    batch, rows = make_batch(lengths), torch.arange(len(lengths))
    found = drop_frames(batch, "text", rate, rows, seed)
    draws = uniform(rows, 9, seed, "frames text")
    fewer = drop_frames(batch, "text", max(rate, higher), rows, seed)
    for i, length in enumerate(lengths):
        left = min(length, max(1, round(length * (1 - rate))))
        best = sorted(sorted(range(length), key=lambda t: -draws[i, t])[:left])
        frames = found.features["text"][i, :, 0].tolist()
        assert found.lengths["text"][i] == left
        assert frames == [batch.features["text"][i, t, 0].item() for t in best] + [0] * (9 - left)
        assert set(fewer.features["text"][i, :, 0].tolist()) <= {*frames, 0.0}
    assert found.features["audio"] is batch.features["audio"]
    if rate == 0:
        assert torch.equal(found.features["text"], batch.features["text"])


def test_drop_frames_in_chunks_and_with_other_padding():
    lengths = [5, 9, 1, 0, 7, 8]
    whole = drop_frames(make_batch(lengths), "text", 0.5, torch.arange(6), 3)
    some = make_batch(lengths).rows(slice(2, 5))
    shorter = replace(some, features={"text": some.features["text"][:, :7]})
    part = drop_frames(shorter, "text", 0.5, torch.arange(2, 5), 3)
    assert torch.equal(part.lengths["text"], whole.lengths["text"][2:5])
    assert torch.equal(part.features["text"], whole.features["text"][2:5, :7])


def test_drop_frames_of_token_ids():
    batch = Batch(
        {"text": torch.arange(1, 11).reshape(1, 10)},
        {"text": torch.tensor([6])},
        {"text": torch.tensor([True])},
        None,
    )
    found = drop_frames(batch, "text", 0.5, torch.arange(1), 0)
    kept = found.features["text"][0, :3].tolist()
    assert kept == sorted(kept)
    assert set(kept) <= set(range(1, 7))
    assert not found.features["text"][0, 3:].any()


@pytest.mark.parametrize(
    ("modality", "rate", "message"),
    [
        ("audio", 0.5, r"drop_frames: audio has no time axis, expected one of \['text'\]; name"),
        ("text", 1.5, r"drop_frames: rate 1.5, expected a probability from 0 to 1; correct"),
    ],
)
def test_drop_frames_refuses(modality, rate, message):
    with pytest.raises(ValueError, match=message):
        drop_frames(make_batch([3]), modality, rate, torch.arange(1), 0)


def test_missing_at_random_refuses_rates():
    with pytest.raises(ValueError, match="rate is -1, expected a probability"):
        missing_at_random({"text": torch.ones(1, dtype=torch.bool)}, -1, 0)
