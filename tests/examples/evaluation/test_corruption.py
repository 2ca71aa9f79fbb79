"""Noise by instance against a few lines written out: who is hit, what is put there, and that the others stay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmc_msa.data import Split
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.missing import drop_frames
from ebmc_msa.data.rng import normal
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.corruption import KINDS, corrupt, corruption, feature_std, half, halving_size, partners

CPU = torch.device("cpu")
PRESENT = st.lists(st.booleans(), min_size=1, max_size=12).map(torch.tensor)


def make_split(lengths=(3, 0, 5, 2, 4, 1)):
    lengths = torch.tensor(lengths)
    n = len(lengths)
    text = torch.randn(n, 5, 2)
    text[torch.arange(5) >= lengths[:, None]] = 0
    here = {"text": lengths > 0, "audio": torch.arange(n) != 2}
    audio = torch.randn(n, 3) * here["audio"][:, None]
    split = Split({"text": text, "audio": audio}, {"text": lengths}, here, torch.zeros(n), ["u"] * n)
    return SplitView.of(split, Spec("regression", {"text": 2, "audio": 3}, ("text",), 1), CPU)


def changed(split, change):
    rows = torch.arange(len(split))
    return split.rows(rows), change(split.rows(rows), rows)


@given(PRESENT, st.integers(0, 5))
def test_half_of_those_present(present, seed):
    hit = half(present, seed, "text")
    assert hit.sum() == present.sum() // 2
    assert not (hit & ~present).any()
    assert torch.equal(hit, half(present, seed, "text"))


@given(PRESENT, st.integers(0, 5))
def test_partners_are_others_that_have_it(present, seed):
    found = partners(present, seed, "text")
    there = present.nonzero()[:, 0].tolist()
    assert sorted(found[there].tolist()) == there, "each is taken once"
    assert len(there) < 2 or all(found[i] != i for i in there)
    assert found[~present].tolist() == (~present).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", ["text", "audio"])
def test_only_one_modality_of_half_the_samples_changes(kind, modality):
    split = make_split()
    if (kind, modality) == ("frames", "audio"):
        with pytest.raises(ValueError, match="drop_frames: audio has no time axis"):
            changed(split, corruption(split, modality, kind, 0))
        return
    clean, spoilt = changed(split, corruption(split, modality, kind, 0, torch.tensor(2.0)))
    hit = half(split.present[modality], 0, modality)
    other = "audio" if modality == "text" else "text"
    assert torch.equal(spoilt.features[other], clean.features[other])
    assert all(torch.equal(spoilt.present[m], clean.present[m]) for m in clean.present)
    for i in range(len(split)):
        same = torch.equal(spoilt.features[modality][i], clean.features[modality][i])
        assert same == (not hit[i] or (kind == "frames" and clean.lengths["text"][i] == 1))
        if modality == "text":
            assert not spoilt.features["text"][i, spoilt.lengths["text"][i] :].any(), "padding stays empty"


def test_gaussian_noise_is_the_drawn_one_times_the_std():
    split, std = make_split(), torch.tensor([0.0, 1.0, 10.0])
    clean, spoilt = changed(split, corruption(split, "audio", "noise", 3, std))
    hit = half(split.present["audio"], 3, "audio")
    drawn = normal(torch.arange(6), (3,), 3, "noise audio") * hit[:, None]
    torch.testing.assert_close(spoilt.features["audio"], clean.features["audio"] + std * drawn)
    many = Batch({"a": torch.zeros(4000, 2)}, {}, {"a": torch.ones(4000, dtype=torch.bool)}, None)
    noisy = corrupt(many, "a", "noise", many.present["a"], torch.arange(4000), 0, std=torch.tensor([1.0, 3.0]))
    assert noisy.features["a"].std(0).tolist() == pytest.approx([1, 3], rel=0.05)


def test_frames_are_dropped_as_by_drop_frames():
    split = make_split((10, 20, 0, 13, 20, 7))
    clean, spoilt = changed(split, corruption(split, "text", "frames", 1))
    dropped = drop_frames(clean, "text", 0.7, torch.arange(6), 1)
    for i, hit in enumerate(half(split.present["text"], 1, "text")):
        want = dropped if hit else clean
        assert spoilt.lengths["text"][i] == want.lengths["text"][i]
        assert torch.equal(spoilt.features["text"][i], want.features["text"][i])


def test_swapped_features_come_with_their_length():
    split = make_split()
    clean, spoilt = changed(split, corruption(split, "text", "swap", 2))
    hit, partner = half(split.present["text"], 2, "text"), partners(split.present["text"], 2, "text")
    for i in range(6):
        source = partner[i] if hit[i] else i
        assert spoilt.lengths["text"][i] == clean.lengths["text"][source]
        assert torch.equal(spoilt.features["text"][i], clean.features["text"][source])


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_spoilt_as_the_whole(kind):
    split = make_split()
    change = corruption(split, "text", kind, 0, torch.ones(2))
    _, whole = changed(split, change)
    for rows in (torch.tensor([5, 3]), torch.tensor([0, 2, 4, 1])):
        part = change(split.rows(rows), rows)
        frames = part.features["text"].shape[1]
        assert torch.equal(part.lengths["text"], whole.lengths["text"][rows])
        assert torch.equal(part.features["text"], whole.features["text"][rows, :frames])
        assert not whole.features["text"][rows, frames:].any()


def test_feature_std_of_what_is_there():
    split = make_split()
    frames = torch.cat([split.features["text"][i, :n] for i, n in enumerate(split.lengths["text"])])
    torch.testing.assert_close(feature_std(split, "text"), frames.std(0, correction=0))
    audio = split.features["audio"][split.present["audio"]]
    torch.testing.assert_close(feature_std(split, "audio"), audio.std(0, correction=0))


@pytest.mark.parametrize(
    ("worth", "size"),
    [
        (lambda s: 10 * math.exp(-s), math.log(2)),
        (lambda s: 8 - s / 25, 100),
        (lambda s: 3.0 if s < 0.01 else 1.0, 0.01),
        (lambda s: -1.0 - s, None),
        (lambda s: 0.0, None),
        (lambda s: 5.0, None),
        (lambda s: math.nan, None),
    ],
    ids=["exponential", "linear", "step", "worse than nothing", "nothing", "never halved", "nan"],
)
def test_halving_size(worth, size):
    assert halving_size(worth) == (size if size is None else pytest.approx(size, rel=0.02, abs=5e-4))


@pytest.mark.parametrize(("kind", "lacks"), [("noise", "std"), ("swap", "others"), ("blur", "std")])
def test_corrupt_refuses(kind, lacks):
    batch = make_split().rows(torch.arange(6))
    with pytest.raises(ValueError, match=rf"corrupt: kind '{kind}' without {lacks}, expected one of .*pass these"):
        corrupt(batch, "text", kind, torch.ones(6, dtype=torch.bool), torch.arange(6), 0)
