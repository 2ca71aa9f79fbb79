"""Draws against Philox written out, and independent of how a split is cut."""

from zlib import crc32

import pytest
import torch

from ebmc_msa.data.rng import normal, order, uniform

WORD = 2**64


def philox(counter, key):
    """Philox4x64-10 on Python integers."""
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = (
            right // WORD ^ counter[1] ^ key[0], right % WORD, left // WORD ^ counter[3] ^ key[1], left % WORD,
        )  # fmt: skip
        key = (key[0] + 0x9E3779B97F4A7C15) % WORD, (key[1] + 0xBB67AE8584CAA73B) % WORD
    return counter


@pytest.mark.parametrize("seed", [0, 7, 2**63])
def test_uniform_is_philox_by_row(seed):
    rows = torch.tensor([0, 1, 4711])
    key = seed, crc32(b"frames text")
    want = [
        [(word // 2**12 + 0.5) / 2**52 for block in (1, 2) for word in philox((block, 0, 0, row), key)]
        for row in rows.tolist()
    ]
    assert uniform(rows, 8, seed, "frames text").tolist() == want


def test_rows_do_not_depend_on_each_other_or_on_the_count():
    rows, some = torch.arange(20), torch.tensor([13, 2])
    for draw, short, long in ((uniform, 3, 9), (normal, (3, 2), (9, 2))):
        assert torch.equal(draw(some, short, 1, "a"), draw(rows, long, 1, "a")[some, :3])
        assert not torch.equal(draw(rows, short, 1, "a"), draw(rows, short, 2, "a"))
        assert not torch.equal(draw(rows, short, 1, "a"), draw(rows, short, 1, "b"))
        assert len(draw(rows[:0], short, 1, "a")) == 0


def test_distributions():
    draw = uniform(torch.arange(2000), 10, 0, "a")
    assert 0 < draw.min() < draw.max() < 1
    assert draw.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draw.var().item() == pytest.approx(1 / 12, abs=0.002)
    draw = normal(torch.arange(2000), (10,), 0, "a")
    assert draw.mean().item() == pytest.approx(0, abs=0.02)
    assert draw.std().item() == pytest.approx(1, abs=0.02)


def test_order_shuffles():
    rows = torch.tensor([3, 5, 8, 9, 11, 20])
    assert sorted(order(rows, 0, "a").tolist()) == rows.tolist()
    assert len({tuple(order(rows, seed, "a").tolist()) for seed in range(20)}) > 10
