"""Spoilt training samples: how many, how much, and nothing else."""

import torch

from ebmc_msa.data.augment import corrupt_at_random, drop_frames_at_random
from ebmc_msa.data.batch import Batch

N = 4000


def make():
    features = {"flat": torch.zeros(N, 2), "frames": torch.zeros(N, 4, 3)}
    lengths = {"frames": torch.arange(N) % 4 + 1}
    present = dict.fromkeys(features, torch.ones(N, dtype=torch.bool))
    return Batch(features, lengths, present, None)


def spoilt(rate, seed=0):
    scales = {"flat": torch.tensor([1.0, 10.0]), "frames": torch.ones(3)}
    return corrupt_at_random(make(), scales, rate, torch.Generator().manual_seed(seed))


def test_rate_and_size():
    x = spoilt(0.25).features["flat"]
    hit = (x != 0).all(-1)
    assert abs(hit.float().mean() - 0.25) < 0.03
    # log-uniform from 1/4 to 4: its mean square is (16 - 1/16) / (2 log 16)
    expected = (16 - 1 / 16) / (2 * torch.tensor(16.0).log())
    torch.testing.assert_close(x[hit, 0].square().mean(), expected, rtol=0.15, atol=0)
    torch.testing.assert_close(x[hit, 1].std() / x[hit, 0].std(), torch.tensor(10.0), rtol=0.1, atol=0)


def test_the_same_seed_spoils_the_same_and_rate_zero_nothing():
    a, b = spoilt(0.5), spoilt(0.5)
    assert all(torch.equal(a.features[name], b.features[name]) for name in a.features)
    assert all((x == 0).all() for x in spoilt(0.0).features.values())
    assert torch.equal(spoilt(0.0).lengths["frames"], make().lengths["frames"])


def test_the_order_of_the_scales_does_not_matter():
    scales = {"frames": torch.ones(3), "flat": torch.tensor([1.0, 10.0])}
    other = corrupt_at_random(make(), scales, 0.5, torch.Generator().manual_seed(0))
    assert all(torch.equal(x, other.features[name]) for name, x in spoilt(0.5).features.items())


def test_sequences_lose_frames_or_get_noise_but_not_both():
    batch = spoilt(1.0)
    shorter = batch.lengths["frames"] < make().lengths["frames"]
    noisy = (batch.features["frames"] != 0).flatten(1).any(1)
    assert not (shorter & noisy).any()
    assert abs(noisy.float().mean() - 0.5) < 0.05
    assert (batch.lengths["frames"] >= 1).all()


def test_thinned_keeps_order_and_at_least_one_frame():
    x = torch.arange(1.0, 6).expand(200, 5)[..., None]
    lengths = torch.full((200,), 4)
    kept, left = drop_frames_at_random(x, lengths, torch.full((200,), 0.4), torch.Generator().manual_seed(0))
    for row, n in zip(kept[..., 0].tolist(), left.tolist(), strict=True):
        assert 1 <= n <= 4
        assert row[:n] == sorted(row[:n])
        assert max(row[:n]) <= 4
    assert abs(left.float().mean() - 1.7) < 0.3
