"""One predictor per modality: the T_m of the paper."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from modbalance.tasks import Task, output_width


def linear_heads(dims: Mapping[str, int], num_outputs: int, task: Task) -> nn.ModuleDict:
    """A linear predictor of the task on each modality's features."""
    return nn.ModuleDict({name: nn.Linear(dim, output_width(task, num_outputs)) for name, dim in dims.items()})


def probe(head: nn.Module, x: Tensor) -> Tensor:
    """`head(x)` with the head held fixed: gradients reach `x` and never the head."""
    fixed = {name: p.detach() for name, p in head.named_parameters()}
    return functional_call(head, fixed, (x,))  # type: ignore[no-any-return]
