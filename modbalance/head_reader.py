"""How the heads of one call are read: plain linear ones by weight and bias, all others by calling them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance.functional.energy import descend
from modbalance.heads import not_plain, probe, uncompiled
from modbalance.kernels import energy_penalty, reference
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.presence import select, upcast
from modbalance.tasks import Task, check_outputs, masked_loss

OWNER = "EnergyCoordinator"


class HeadReader(NamedTuple):
    heads: dict[str, nn.Module]
    task: Task
    num_outputs: int
    ignore_index: int
    backend: str
    learn: bool  # whether the energy trains the heads
    plain: bool  # whether all heads are read by weight and bias
    slow: str  # why a linear head is called all the same; empty where none is

    @classmethod
    def of(
        cls, heads: dict[str, nn.Module], task: Task, num_outputs: int, ignore_index: int, backend: str, learn: bool
    ) -> HeadReader:
        reasons = {name: not_plain(head) for name, head in heads.items()}
        name, reason = next(((name, why) for name, why in reasons.items() if why), ("", ""))
        if reason and backend in ("analytic", "triton"):
            raise ValueError(
                f"{OWNER}: backend is {backend!r} and heads[{name!r}] {reason}, expected a plain "
                'nn.Linear, since this backend reads weights and calls no module; pass backend="reference".'
            )
        slow = reason and backend != "reference" and isinstance(heads[name], nn.Linear)
        note = f"heads[{name!r}] {reason}" if slow else ""
        return cls(heads, task, num_outputs, ignore_index, backend, learn, not reason, note)

    def linear(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        head = self.heads[name]
        assert isinstance(head, nn.Linear)
        if self.learn:
            return head.weight, head.bias
        return head.weight.detach(), None if head.bias is None else head.bias.detach()

    def outputs(self, name: str, z: Tensor) -> Tensor:
        """`(B, width)`."""
        if self.plain:
            x, (weight, bias) = upcast(z), self.linear(name)
            return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        outputs = probe(self.heads[name], self._cast(name, z), learn=self.learn)
        check_outputs(OWNER, f"heads[{name!r}]", outputs, self.task, self.num_outputs, z.shape[0])
        return upcast(outputs)

    def potentials(self, problem: EnergyTerms, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """beta loss + gamma u by modality, `(B,)`."""
        return {name: problem.potential(self.outputs(name, x)) for name, x in z.items()}

    def energy(self, problem: EnergyTerms, z: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and squared norms of their gradients, `(M, B)`."""
        if not self.plain:
            heads = [partial(self.outputs, name) for name in z]
            return uncompiled(reference.energy_penalty, problem, mask, [upcast(x) for x in z.values()], heads)
        weights, biases = zip(*(self.linear(name) for name in z), strict=True)
        return energy_penalty(
            list(z.values()),
            weights,
            biases,
            present=mask,
            ignore_index=self.ignore_index,
            backend=self.backend,
            **problem._asdict(),
        )

    def fit(self, problem: EnergyTerms, z: dict[str, Tensor]) -> Tensor:
        """Loss of each head on detached features, `(M, B)`."""
        assert problem.target is not None
        losses = [
            masked_loss(
                self.task,
                upcast(self.heads[name](self._cast(name, x.detach()))),
                problem.target,
                problem.class_weight,
                self.ignore_index,
            )
            for name, x in z.items()
        ]
        return torch.stack(losses)

    def descended(
        self, problem: EnergyTerms, features: Mapping[str, Tensor], masks: dict[str, Tensor], step: float
    ) -> dict[str, Tensor]:
        """Features after a step down the label-free energy; absent ones as they came."""
        label_free = problem.with_target(None, problem.class_weight)
        moved = {}
        for name, x in features.items():
            z = self._cast(name, select(x, masks[name]))
            if self.plain:
                weight, _ = self.linear(name)
                new = descend(
                    z,
                    self.outputs(name, z),
                    weight,
                    step=step,
                    task=self.task,
                    alpha=problem.alpha,
                    gamma=problem.gamma,
                    temperature=problem.temperature,
                    normalize=problem.normalize,
                )
            else:
                head = partial(self.outputs, name)
                _, gradient = uncompiled(reference.energy_and_gradient, label_free, upcast(z), head)
                new = z - step * gradient
            moved[name] = torch.where(masks[name][:, None], new.to(x.dtype), x)
        return moved

    def _cast(self, name: str, x: Tensor) -> Tensor:
        """In the type of the head's parameters: features of any floating type will do."""
        p = next(self.heads[name].parameters(), None)
        return x if p is None else x.to(p.dtype)
