"""When regularisation begins, and when a stage ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

JOINT = 0.7  # share of the warm-up that is joint training at least
ROUNDING = 1e-9  # of a strength


class Schedule(NamedTuple):
    r"""How strong everything but the task loss is, by optimiser step $t$ of a run with a warm-up of $W$ steps.

    $$s(t) = \operatorname{clip}\left(\frac{t / W - t_0}{0.3},\ 0,\ 1\right)$$

    Until $t_0$ a model is trained jointly. Under full regularisation from the first step a network learns what each
    modality shows by itself and stays there: what only several modalities together show pays off late.

    Args:
        warmup: W; 0 is none.
        per_epoch: steps of an epoch.
        rest: epochs without progress on validation that end joint training, which lasts for 70 % of the warm-up at
            least; with 0 that is its end, and its epochs count like any other.
        before: steps of earlier stages.
        begins: t_0, in warm-ups; infinite while joint training goes on. See `after`.
    """

    warmup: int
    per_epoch: int
    rest: int = 0
    before: int = 0
    begins: float = math.inf

    def after(self, scores: Sequence[float], losses: Sequence[float]) -> Schedule:
        """This schedule with t_0 by the validation scores and losses of all epochs since the first stage began.

        Progress is a better score or a lower loss.
        """
        for done in range(int(JOINT * self.warmup // self.per_epoch), len(scores) + 1):
            if self.warmup and done - _last_progress(scores[:done], losses[:done]) >= self.rest:
                return self._replace(begins=max(JOINT, done * self.per_epoch / self.warmup))
        return self._replace(begins=math.inf if self.warmup else 0.0)

    def strength(self, step: int) -> float:
        """s at a step of this stage, counted from 0."""
        if not self.warmup:
            return 1.0
        return min(1.0, max(0.0, ((self.before + step) / self.warmup - self.begins) / (1 - JOINT)))

    def warming(self, epochs: int) -> int:
        """How many of the first `epochs` epochs of a stage begin below full strength; 0 without `rest`."""
        starts = (self.strength(epoch * self.per_epoch) for epoch in range(epochs))
        return sum(strength < 1 - ROUNDING for strength in starts) if self.rest else 0

    def go_on(self, scores: Sequence[float], losses: Sequence[float], patience: int) -> bool:
        """Whether a stage with these validation scores and losses by epoch, higher and lower is better, continues.

        It ends after `patience` epochs without a better score or a lower loss; accuracy can rest on a plateau while
        the loss still falls. The first part of the warm-up does not count, and with `rest` no epoch below full
        strength: what joint training reaches is no measure of a model that is regularised.
        """
        joint = -(-max(round(JOINT * self.warmup) - self.before, 0) // self.per_epoch)
        warming = self.warming(len(scores))
        progress = warming + _last_progress(scores[warming:], losses[warming:])
        return len(scores) - max(progress, joint) < patience

    def extends(self, scores: Sequence[float]) -> bool:
        """Whether the first stage, its epochs over, borrows one from the next: while joint training goes on.

        Teachers that are frozen while the modalities are still being learnt would hold the next stage back.
        """
        return len(scores) > 0 and self.begins == math.inf  # a stage of no epochs stays one


def _last_progress(scores: Sequence[float], losses: Sequence[float]) -> int:
    """The last epoch with a better score or a lower loss than all before, counted from 1; 0 before any."""
    return max(scores.index(max(scores)), losses.index(min(losses))) + 1 if scores else 0
