"""Three modalities of sentiment with known information, for tests and demonstrations without any file."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from ebmc_msa.data.dataset import SPLITS, DataError, Dataset, Split

_SHAPES = {"text": (20, 32), "audio": (40, 12), "vision": (30, 16)}  # most frames, features
_SHARED = 0.4  # of the sentiment's variance; the rest is private to the modalities
_ABSENT = 0.04


def synthetic(*, n: tuple[int, int, int] = (1200, 300, 400), imbalance: float = 0.8, seed: int = 0) -> Dataset:
    r"""Sentiment as a sum of one factor that all modalities show and one private to each.

    $$y = \sqrt{.4}\,s + \sqrt{.6} \sum_m w_m\,p_m + \text{noise}, \qquad
    w \propto (1, \sqrt{1-i}, \sqrt{1-i})$$

    Every frame shows $(q_m s + \sqrt{1-q_m^2}\,\epsilon,\; p_m)$ with jitter, through a random two-layer map;
    $q_m = 1$ for text and $\sqrt{1-i}$ for audio and vision. Four percent lack audio, four lack vision.

    Args:
        n: utterances in train, valid and test.
        imbalance: i in [0, 1]; 0: all three equally informative, 1: only text is.
        seed: same seed, same data, on any machine.

    Raises:
        DataError: `imbalance` is outside [0, 1] or a split is empty.
    """
    if not 0 <= imbalance <= 1 or len(n) != 3 or min(n) < 1:
        raise DataError(
            f"synthetic: imbalance {imbalance} and n {n}, expected 0 to 1 and three sizes of at least 1; "
            "correct them."
        )
    generator = torch.Generator().manual_seed(seed)

    # float64 throughout: float32 differs between processors in its last bits, and labels are rounded
    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    weak = sqrt(1 - imbalance)
    strength = {"text": 1.0, "audio": weak, "vision": weak}
    norm = sqrt(sum(q**2 for q in strength.values()))
    total = sum(n)
    shared = normal(total)
    score = sqrt(_SHARED) * shared + 0.4 * normal(total)
    features, lengths, present = {}, {}, {}
    for name, q in strength.items():
        frames, size = _SHAPES[name]
        private = normal(total)
        score = score + sqrt(1 - _SHARED) * q / norm * private
        seen = torch.stack([q * shared + sqrt(1 - q**2) * normal(total), private], -1)
        seen = seen[:, None] + 0.5 * normal(total, frames, 2)
        hidden = torch.sin(1.6 * seen @ normal(2, size) + 2 * normal(size))
        x = hidden @ normal(size, size) / sqrt(size) + 0.5 * normal(total, frames, size)

        here = torch.rand(total, generator=generator, dtype=torch.float64) >= (_ABSENT if name != "text" else 0)
        length = torch.randint(frames // 4, frames + 1, (total,), generator=generator) * here
        x[torch.arange(frames) >= length[:, None]] = 0
        features[name], lengths[name], present[name] = x.float(), length, here
    target = (1.5 * score).round().clamp(-3, 3).float() + 0.0  # no -0

    splits, start = {}, 0
    for split, rows in zip(SPLITS, n, strict=True):
        part = slice(start, start := start + rows)
        splits[split] = Split(
            {name: x[part] for name, x in features.items()},
            {name: x[part] for name, x in lengths.items()},
            {name: x[part] for name, x in present.items()},
            target[part],
            [f"{split}-{i}" for i in range(rows)],
        )
    return Dataset("synthetic", "sentiment", 1, splits, f"synthetic: imbalance {imbalance:g}, seed {seed}")
