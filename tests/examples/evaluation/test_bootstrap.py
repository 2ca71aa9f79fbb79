"""Intervals of paired differences on cases whose answer is known."""

import numpy as np
import pytest

from ebmc_msa.evaluation.bootstrap import interval


def test_no_difference_has_no_width():
    assert interval(np.zeros((3, 20))) == (0, 0, 0)


def test_a_constant_difference_is_certain():
    assert interval(np.full((5, 40), 2.5)) == pytest.approx((2.5, 2.5, 2.5))


def test_samples_alone_give_the_normal_interval():
    x = np.random.default_rng(0).normal(0.3, 1, 400)
    found = interval(np.tile(x, (5, 1)))
    half = 1.96 * x.std() / 20
    assert found == pytest.approx((x.mean(), x.mean() - half, x.mean() + half), abs=0.015)


def test_seeds_alone_widen_it():
    by_seed = np.array([-1.0, 0.0, 1.0, 2.0, 3.0])
    found = interval(np.tile(by_seed[:, None], (1, 50)))
    half = 1.96 * by_seed.std() / np.sqrt(5)
    assert found == pytest.approx((1, 1 - half, 1 + half), abs=0.15)


def test_what_both_share_cancels():
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, (1, 200))  # samples differ far more than the methods do
    a, b = (hard + shift + rng.normal(0, 0.1, (5, 200)) for shift in (1.0, 0.9))
    paired = interval(a - b)
    assert paired.low > 0
    assert interval(a).high - interval(a).low > 20 * (paired.high - paired.low)


def test_covers_the_truth_at_about_its_level():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        scores = rng.normal(0, 0.2, (8, 1)) + rng.normal(0, 1, (1, 60)) + rng.normal(0, 0.5, (8, 60))
        found = interval(scores, draws=400)
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 1


@pytest.mark.parametrize(
    "scores", [np.zeros(4), np.zeros((0, 3)), np.full((2, 2), np.nan)], ids=["1-d", "empty", "nan"]
)
def test_refuses(scores):
    with pytest.raises(ValueError, match=r"interval: .* expected finite \(seeds, samples\); pass one row a seed"):
        interval(scores)
