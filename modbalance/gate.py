"""How much of the coordinator each modality gets, by its energy on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from modbalance.distributed import Sync, reduce
from modbalance.functional.energy import GateState, gate_weights
from modbalance.presence import MaskedSum, masked_sum


class HeldOutGate(nn.Module):
    """Weights `(M,)` from held-out energies; `functional.gate_weights` has the formula.

    `observe` adds to sums of this process; `close` turns the sums of all processes into new weights. The sums are no
    buffers: DistributedDataParallel would overwrite those of every process with those of the first. They are in
    `state_dict` all the same, since a checkpoint is mostly written between a validation and the next training step.
    """

    weight: Tensor
    first: Tensor
    lowest: Tensor

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(modalities))
        self.register_buffer("first", torch.full((modalities,), torch.inf))
        self.register_buffer("lowest", torch.full((modalities,), torch.inf))
        self.sums: Tensor | None = None  # (2, M), total and count of an open observation
        self.active = False  # whether any weight may differ from 1, known without asking the device

    def observe(self, energy: Tensor, mask: Tensor) -> None:
        """Add a batch of held-out energies, `(M, B)` each."""
        total, entries = masked_sum(energy, mask, dim=1)
        batch = torch.stack([total, entries.to(total.dtype)])
        self.sums = batch if self.sums is None else self.sums.to(batch.device) + batch

    @torch.no_grad()
    def close(self, sync: Sync) -> None:
        """End the observation, if one is open, and set the weights. One collective among several processes."""
        if self.sums is None:
            return
        (sums,) = reduce([MaskedSum(*self.sums.to(self.weight.device))], sync)
        old = GateState(self.weight, self.first, self.lowest)
        for before, after in zip(old, gate_weights(sums.mean(), old), strict=True):
            before.copy_(torch.where(sums.entries > 0, after, before))
        self.sums, self.active = None, True

    def weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """By modality; empty before the first observation ends, when all are 1."""
        # A copy, since a later `close` writes in place what a backward may still need.
        return dict(zip(names, self.weight.clone().unbind(), strict=True)) if self.active else {}

    def scale(self, features: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
        """The same features, whose gradients are multiplied by the weight of their modality."""
        weights = self.weights(names)
        if not weights:
            return features
        return {m: z.detach() + weights[m].to(z.dtype) * (z - z.detach()) for m, z in features.items()}

    def get_extra_state(self) -> Tensor:
        return self.weight.new_zeros(2, len(self.weight)) if self.sums is None else self.sums

    def set_extra_state(self, state: Tensor) -> None:
        self.sums = state.clone() if bool(state.any()) else None
        self.active = bool(self.lowest.isfinite().any())
