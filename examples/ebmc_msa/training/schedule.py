"""When regularisation begins, and when a stage ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

JOINT = 0.7  # share of the warm-up that is joint training alone


class Schedule(NamedTuple):
    r"""How strong everything but the task loss is, by optimiser step $t$ of a run with a warm-up of $W$ steps.

    $$s(t) = \operatorname{clip}\left(\frac{t / W - 0.7}{0.3},\ 0,\ 1\right)$$

    The task loss is alone for 70 % of the warm-up. Under full regularisation from the first step a network learns
    what each modality shows by itself and stays there: what only several modalities together show pays off late.

    Args:
        warmup: W; 0 is none.
        per_epoch: steps of an epoch.
        before: steps of earlier stages.
    """

    warmup: int
    per_epoch: int
    before: int = 0

    def strength(self, step: int) -> float:
        """s at a step of this stage, counted from 0."""
        if self.before + step >= self.warmup:
            return 1.0
        return max(0.0, ((self.before + step) / self.warmup - JOINT) / (1 - JOINT))

    def go_on(self, scores: Sequence[float], losses: Sequence[float], patience: int) -> bool:
        """Whether a stage with these validation scores and losses by epoch, higher and lower is better, continues.

        It ends after `patience` epochs without a better score or a lower loss; accuracy can rest on a plateau while
        the loss still falls. Joint training, the first part of the warm-up, does not count.
        """
        last = max(scores.index(max(scores)), losses.index(min(losses))) + 1 if scores else 0
        joint = -(-max(round(JOINT * self.warmup) - self.before, 0) // self.per_epoch)
        return len(scores) - max(last, joint) < patience

    def extends(self, scores: Sequence[float], losses: Sequence[float]) -> bool:
        """Whether the first stage, its epochs over, borrows one from the next.

        It does where joint training is not over and the last epoch was the best so far: teachers that are frozen
        while the modalities are still being learnt would hold the next stage back.
        """
        if not scores:
            return False  # a stage of no epochs stays one
        last = len(scores) - 1
        improved = last in (scores.index(max(scores)), losses.index(min(losses)))
        return improved and self.before + len(scores) * self.per_epoch < JOINT * self.warmup
