"""MMPareto: combine the fused and the unimodal gradient of each encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modbalance.balancers.formulas import pareto_direction
from modbalance.balancers.gradients import check_encoders, gradients_of
from modbalance.balancers.unimodal import UnimodalLosses
from modbalance.checks import Presence, check_positive, given
from modbalance.distributed import Sync, processes
from modbalance.presence import upcast
from modbalance.protocol import CombinedOutput, HasLoss, Scale
from modbalance.task_checks import IGNORE_INDEX
from modbalance.tasks import Task

__all__ = ["MMPareto"]


class MMPareto(UnimodalLosses):
    r"""Each encoder follows a direction that serves the fused and its own loss, never shorter than their sum.

    With g of the fused and g_m of modality m's own loss on encoder m: $h = g + g_m$ where $g \cdot g_m \ge 0$, else
    $h = 2 a g + 2 (1 - a) g_m$ with $a \in [0, 1]$ of the smallest norm, stretched to $\lVert g + g_m \rVert$; the
    encoder gets $\gamma h$, everything else the plain gradient of the sum.

    Hooks in by `backward(loss, out)`, in place of `loss.backward()`; there is no loss to add, so a trainer that calls
    `backward` itself needs an override: see *In a trainer* in the docs. Costs the heads, a second backward pass
    through the encoders and two copies of their gradients a step.

    - Accumulation: call `backward` for every micro-batch; each is combined by itself.
    - `GradScaler`: `balance.backward(loss, out, scale=scaler.scale)`; clip after `scaler.unscale_`.
    - DDP: as it is, within `no_sync()` too; gradients are averaged before they are combined. Not for FSDP, nor for
      reentrant activation checkpointing, which has no second backward pass.

    Caveats: gamma multiplies the step size of the encoders even where nothing conflicts, so tune the control's
    learning rate as well. The direction is that of one noisy batch.

    Experimental: of the paper the abstract was read; the direction and its stretch are as restated in public, with
    its gamma of 1.5.

    Args:
        encoders: the module of each modality, the names of `dims`, no parameter in common. They stay yours.
        dims: feature size by modality, at least two.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        gamma: what the direction is multiplied by, > 0.
        heads: as in `UnimodalLosses`.
        class_weight: as there.
        ignore_index: as there.
        sync: as there; the gradients are averaged over these processes.

    Raises:
        ValueError: a name, shape or task does not fit, or two encoders share a parameter.
        TypeError: `out.loss` or `total` is asked for.

    Source: Wei and Hu, MMPareto: boosting multimodal learning with innocent unimodal assistance, ICML 2024.

    Examples:
        >>> encoders = {"audio": nn.Linear(8, 4), "video": nn.Linear(5, 4)}
        >>> head = nn.Linear(8, 3)
        >>> balance = MMPareto(encoders, {"audio": 4, "video": 4}, num_outputs=3)
        >>> z = {"audio": encoders["audio"](torch.randn(6, 8)), "video": encoders["video"](torch.randn(6, 5))}
        >>> target = torch.arange(6) % 3
        >>> out = balance(z, target)
        >>> balance.backward(nn.functional.cross_entropy(head(torch.cat(list(z.values()), 1)), target), out)
        >>> encoders["audio"].weight.grad.shape
        torch.Size([4, 8])
    """

    solver = True

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        dims: Mapping[str, int],
        num_outputs: int,
        task: Task = "classification",
        *,
        gamma: float = 1.5,
        heads: Mapping[str, nn.Module] | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
    ) -> None:
        super().__init__(
            dims, num_outputs, task, heads=heads, class_weight=class_weight, ignore_index=ignore_index, sync=sync
        )
        check_positive("MMPareto", gamma=gamma)
        self.encoders = check_encoders("MMPareto", encoders, self.dims)
        self.gamma = gamma

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> CombinedOutput:
        remedy = "a solver combines its gradients: call balance.backward(loss, out) in place of loss.backward()"
        return CombinedOutput(self.losses(features, target, present), given(features), remedy)

    def total(self, loss: Tensor, out: HasLoss) -> Tensor:
        """Not to be had: the gradients are combined, not the losses."""
        raise TypeError(
            "MMPareto: total(loss, out) was asked for, but a solver combines its gradients, and no loss has them; "
            "call balance.backward(loss, out) in place of loss.backward()."
        )

    def backward(self, loss: Tensor, out: HasLoss, *, scale: Scale | None = None) -> None:
        """Backward of all losses, with the encoders' gradients combined; see `Balancer.backward`."""
        assert isinstance(out, CombinedOutput)
        groups = {
            name: [p for p in encoder.parameters() if p.requires_grad] for name, encoder in self.encoders.items()
        }
        parameters = [p for group in groups.values() for p in group]
        fused_loss = loss if scale is None else scale(loss)
        own = torch.stack(list(out.losses.values())).sum()
        found = torch.autograd.grad(
            fused_loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        fused = {id(p): g for p, g in zip(parameters, found, strict=True)}
        before = {id(p): None if p.grad is None else p.grad.clone() for p in parameters}
        (fused_loss + (own if scale is None else scale(own))).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, group in groups.items():
                gradients_of("MMPareto", name, self.encoders[name])
                used = [p for p in group if p.grad is not None]
                if used:
                    self._combine(used, fused, before)

    def _combine(
        self, group: list[nn.Parameter], fused: Mapping[int, Tensor], before: Mapping[int, Tensor | None]
    ) -> None:
        """Write the direction of one encoder on top of what had been accumulated before."""
        gradients = [p.grad for p in group if p.grad is not None]
        earlier = [before[id(p)] for p in group]
        added = [g if b is None else g - b for g, b in zip(gradients, earlier, strict=True)]
        both, joint = self._averaged(_flat(added), _flat([fused[id(p)] for p in group]))
        direction = pareto_direction(joint, both - joint, gamma=self.gamma)
        pieces = torch.split(direction, [g.numel() for g in gradients])
        for gradient, b, piece in zip(gradients, earlier, pieces, strict=True):
            new = piece.view_as(gradient).to(gradient.dtype)
            gradient.copy_(new if b is None else b + new)

    def _averaged(self, both: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Means over the processes; DDP has averaged the first already, except within `no_sync()`."""
        group = processes(self.training and self.sync)
        if group is None:
            return both, joint
        packed = torch.stack([both, joint])
        dist.all_reduce(packed, group=group)
        both, joint = (packed / dist.get_world_size(group)).unbind()
        return both, joint


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([upcast(x).flatten() for x in tensors])
