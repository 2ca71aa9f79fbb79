"""Three modalities of sentiment with known information, for tests and demonstrations without any file."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from ebmc_msa.data.dataset import SPLITS, DataError, Dataset, Split

_ABSENT = 0.04

Modality = tuple[str, Tensor, Tensor]  # name, frames (N, T, D), what it adds to the score (N,)


class _Draws:
    """float64 throughout: float32 differs between processors in its last bits, and labels are rounded."""

    def __init__(self, total: int, seed: int) -> None:
        self.total, self.generator = total, torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, dtype=torch.float64)

    def uniform(self) -> Tensor:
        return torch.rand(self.total, generator=self.generator, dtype=torch.float64)

    def whole(self, low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size or (self.total,), generator=self.generator)


def synthetic(
    *, n: tuple[int, int, int] = (1200, 300, 400), imbalance: float | None = None, seed: int = 0
) -> Dataset:
    r"""Sentiment that every modality shows and that joint training reads off the easiest one.

    $$y = \text{round}(1.5\,s), \qquad v_m = \frac{s + \sigma_m \epsilon_m}{\sqrt{1 + \sigma_m^2}}, \qquad
    \sigma = (0.3,\ 1,\ 0.5)$$

    s is standard normal, y is clipped to [-3, 3]. Each frame of text and audio shows $v_m$ along one direction. Each
    frame of vision shows $(c_1 c_2 v, c_1, c_2)$ along three, with two signs $c$ drawn per utterance: what a gesture
    means depends on who makes it, and only the product of all three shows v. Frames have jitter and noise. Four
    percent of the utterances lack audio, four vision.

    Why this set. Balancing is for a modality that joint training starves, so there must be one, and what starving
    costs must show. Text is plain and learnt in an epoch. Vision knows nearly as much, but no column of it shows
    anything by itself: a network that reads vision alone needs about ten epochs. Once text explains the labels,
    little error is left to learn vision from, and a network that reads both together has not finished after forty.
    With text at hand that costs little; it shows where text is missing or corrupted. Audio is plain and noisy: it
    adds little, and nothing can be gained by leaning on it.

    The set was fixed by how text, audio, vision and their concatenation learn, on validation, before EBMC was run on
    it, and it is not tuned by EBMC's results.

    With `imbalance` another set, of modalities that are unequally informative but equally easy to learn:

    $$y = \sqrt{.4}\,s + \sqrt{.6} \sum_m w_m\,p_m + \text{noise}, \qquad
    w \propto (1, \sqrt{1-i}, \sqrt{1-i})$$

    There every frame shows $(q_m s + \sqrt{1-q_m^2}\,\epsilon,\; p_m)$ through a random two-layer map;
    $q_m = 1$ for text and $\sqrt{1-i}$ for audio and vision.

    Args:
        n: utterances in train, valid and test.
        imbalance: i in [0, 1]; 0: all three equally informative, 1: only text is.
        seed: same seed, same data, on any machine.

    Raises:
        DataError: `imbalance` is outside [0, 1] or a split is empty.
    """
    if not (imbalance is None or 0 <= imbalance <= 1) or len(n) != 3 or min(n) < 1:
        raise DataError(
            f"synthetic: imbalance {imbalance} and n {n}, expected 0 to 1 and three sizes of at least 1; "
            "correct them."
        )
    draws = _Draws(sum(n), seed)
    score = torch.zeros(draws.total, dtype=torch.float64)
    features, lengths, present = {}, {}, {}
    for name, x, share in _starved(draws) if imbalance is None else _unequal(draws, imbalance):
        score = score + share
        frames = x.shape[1]
        here = draws.uniform() >= (_ABSENT if name != "text" else 0)
        length = draws.whole(frames // 4, frames + 1) * here
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
    what = "vision in code, which joint training starves" if imbalance is None else f"imbalance {imbalance:g}"
    return Dataset("synthetic", "sentiment", 1, splits, f"synthetic: {what}; seed {seed}")


def _starved(draws: _Draws) -> Iterator[Modality]:
    """Text plain, audio plain and noisy, vision in code."""
    normal, total = draws.normal, draws.total
    score = normal(total)
    shapes = {"text": (12, 32, 0.3), "audio": (16, 12, 1.0), "vision": (16, 16, 0.5)}  # most frames, features, sigma
    for name, (frames, size, sigma) in shapes.items():
        view = (score + sigma * normal(total)) / sqrt(1 + sigma**2)
        shown = (view[:, None] + 0.5 * normal(total, frames))[..., None]
        if name == "vision":
            signs = 2.0 * draws.whole(0, 2, total, 1, 2) - 1
            shown = torch.cat([shown * signs.prod(-1, keepdim=True), signs.expand(-1, frames, -1)], -1)
        x = shown @ normal(shown.shape[-1], size) + 0.5 * normal(total, frames, size)
        yield name, x, score if name == "text" else torch.zeros_like(score)


def _unequal(draws: _Draws, imbalance: float) -> Iterator[Modality]:
    """One factor that all modalities show and one private to each, of unequal weight."""
    normal, total = draws.normal, draws.total
    shared_share = 0.4  # of the score's variance; the rest is private to the modalities
    weak = sqrt(1 - imbalance)
    strength = {"text": 1.0, "audio": weak, "vision": weak}
    shapes = {"text": (20, 32), "audio": (40, 12), "vision": (30, 16)}  # most frames, features
    norm = sqrt(sum(q**2 for q in strength.values()))
    shared = normal(total)
    common = sqrt(shared_share) * shared + 0.4 * normal(total)
    for name, q in strength.items():
        frames, size = shapes[name]
        private = normal(total)
        share = sqrt(1 - shared_share) * q / norm * private
        seen = torch.stack([q * shared + sqrt(1 - q**2) * normal(total), private], -1)
        seen = seen[:, None] + 0.5 * normal(total, frames, 2)
        hidden = torch.sin(1.6 * seen @ normal(2, size) + 2 * normal(size))
        x = hidden @ normal(size, size) / sqrt(size) + 0.5 * normal(total, frames, size)
        yield name, x, common + share if name == "text" else share
