"""Warnings for training loops in which a component can have no effect."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modbalance.checks import traced

CALLS = 300  # training calls before untrained parameters are reported: beyond any accumulation of gradients
DETACHED = 10  # in a row


class TrainingCheck:
    """Counts the training calls of a component, and warns once of each of two mistakes. Never waits for a device.

    - No optimiser has its parameters: after `CALLS` calls no version counter has moved. Frozen parameters are none
      to train. Not among several processes, where FSDP2 writes parameters past their counters.
    - With `features`: none of them has wanted a gradient in `DETACHED` calls in a row.
    """

    def __init__(self) -> None:
        self.calls = self.detached = 0
        self.before: list[tuple[int, int]] = []

    def count(self, owner: str, module: nn.Module, features: Mapping[str, Tensor] | None = None) -> None:
        parameter = next(module.parameters(), None)
        if not module.training or not torch.is_grad_enabled() or (parameter is not None and traced(parameter)):
            return
        if features is not None and self.detached < DETACHED:
            self.detached = 0 if any(x.requires_grad for x in features.values()) else self.detached + 1
            if self.detached == DETACHED:
                warnings.warn(
                    f"{owner}: no feature has required a gradient in {DETACHED} training calls, so nothing is "
                    "balanced; pass the encoders' outputs without .detach() or torch.no_grad(). Frozen encoders have "
                    "nothing to balance: put what is trained, a projection for example, before the component.",
                    stacklevel=5,
                )
        if self.calls > CALLS or (dist.is_available() and dist.is_initialized()):
            return
        if self.calls in (0, CALLS):
            stamps = [(p._version, p.data_ptr()) for p in module.parameters() if p.requires_grad]
            if self.calls == 0:
                self.before = stamps
            elif stamps and stamps == self.before:
                warnings.warn(
                    f"{owner}: its {len(stamps)} parameters have not changed in {CALLS} training calls, so no "
                    "optimiser has them; add them, for example by "
                    'optimizer.add_param_group({"params": balance.parameters()}), or freeze them by '
                    "balance.requires_grad_(False).",
                    stacklevel=5,
                )
        self.calls += 1
