"""UMT: encoders that keep to the features of encoders trained alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modbalance.checks import Presence, check_finite, check_inputs, check_positive, given, readable
from modbalance.distributed import Sync, reduce
from modbalance.presence import masked_sum, select, upcast
from modbalance.protocol import Balancer, BalancerOutput

__all__ = ["UMT"]


class UMT(Balancer):
    r"""Uni-modal teachers: draw each encoder's features to those of the same encoder trained alone.

    $$L = L_{task} + \lambda \sum_m \operatorname{mean}_{i:\,m\text{ present}}
      \tfrac1{D_m} \lVert z_i^m - t_i^m \rVert^2$$

    Hooks in as a loss term. Needs features t of trained encoders of the same size, with `Teacher` frozen copies of
    them; costs their forward pass a step, and their training beforehand: M more trainings. Any task, since no label
    enters. Caveat: what a modality learns only together with others is drawn back to what it knows by itself.

    Experimental: the paper was not readable, its abstract was (features by uni-modal distillation, for late fusion);
    the mean squared error is as the field restates it.

    Args:
        weight: lambda, > 0.
        sync: in training, the mean over all processes; see `modbalance.distributed`.

    Shape:
        features `(B, D_m)` by modality, teacher_features the same, present bool `(B,)` by modality → a
        `BalancerOutput`. The target is not used; it is there because every balancer takes one.

    Raises:
        ValueError: a name or a shape does not fit.

    Source: Du et al., On uni-modal feature learning in supervised multi-modal learning, ICML 2023.

    Examples:
        >>> balance = UMT()
        >>> z = {"audio": torch.zeros(2, 3), "video": torch.zeros(2, 4)}
        >>> t = {"audio": torch.ones(2, 3), "video": torch.zeros(2, 4)}
        >>> balance(z, teacher_features=t).loss
        tensor(1.)
    """

    def __init__(self, weight: float = 1.0, *, sync: Sync = True) -> None:
        super().__init__()
        check_positive("UMT", weight=weight)
        self.weight, self.sync = weight, sync

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
        *,
        teacher_features: Mapping[str, Tensor] | None = None,
    ) -> BalancerOutput:
        features = given(features)
        masks = check_inputs("UMT", features, present)
        teachers = given(teacher_features or {})
        missing = set(features) - set(teachers)
        if missing:
            raise ValueError(
                f"UMT: teacher_features lacks {sorted(missing)}, expected the modalities of features; pass "
                "teacher_features={...} with the features of an encoder trained alone for each."
            )
        if readable(next(iter(features.values()))):
            check_finite("UMT", features, masks)
        sums = []
        for name, x in features.items():
            wanted = teachers[name].detach()
            if wanted.shape != x.shape:
                raise ValueError(
                    f"UMT: teacher_features[{name!r}] has shape {tuple(wanted.shape)}, expected {tuple(x.shape)} as "
                    "in features; train the teacher with the same feature size."
                )
            difference = upcast(select(x, masks[name])) - upcast(select(wanted, masks[name]))
            sums.append(masked_sum(difference.square().mean(-1), masks[name]))
        means = [s.mean() for s in reduce(sums, self.training and self.sync)]
        loss = self.weight * torch.stack(means).sum()
        return BalancerOutput(loss, dict(zip(features, means, strict=True)), features)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"
