"""How much of the coordinator each modality gets, by its energy on held-out data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modbalance.distributed import Sync, reduce
from modbalance.functional.energy import gate_weights
from modbalance.presence import MaskedSum, masked_sum


class HeldOutGate(nn.Module):
    """Weights `(M,)` from held-out energies; `functional.gate_weights` has the formula.

    `observe` adds to sums of this process; `close` turns the sums of all processes into new weights. The sums are no
    buffers: DistributedDataParallel would overwrite those of every process with those of the first. They are in
    `state_dict` all the same, since a checkpoint is mostly written between a validation and the next training step.
    """

    weight: Tensor
    reference: Tensor

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(modalities))
        self.register_buffer("reference", torch.full((modalities,), torch.inf))
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
        weight, reference = gate_weights(sums.mean(), self.reference, self.weight)
        seen = sums.entries > 0
        self.weight.copy_(torch.where(seen, weight, self.weight))
        self.reference.copy_(torch.where(seen, reference, self.reference))
        self.sums, self.active = None, True

    def scale(self, features: Mapping[str, Tensor], names: list[str]) -> Mapping[str, Tensor]:
        """The same features, whose gradients are multiplied by the weight of their modality."""
        if not self.active:
            return features
        weights = dict(zip(names, self.weight.clone().unbind(), strict=True))  # a later `close` writes in place
        return {m: z.detach() + weights[m].to(z.dtype) * (z - z.detach()) for m, z in features.items()}

    def get_extra_state(self) -> Tensor:
        return self.weight.new_zeros(2, len(self.weight)) if self.sums is None else self.sums

    def set_extra_state(self, state: Tensor) -> None:
        self.sums = state.clone() if bool(state.any()) else None
        self.active = bool(self.reference.isfinite().any())
