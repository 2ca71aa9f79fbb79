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


def check_heads(owner: str, heads: Mapping[str, nn.Module], dims: Mapping[str, int], width: int) -> None:
    """One head a modality, and where it is linear one of the right shape."""
    if set(heads) != set(dims):
        raise ValueError(
            f"{owner}: heads has {sorted(heads)}, expected {sorted(dims)} as in dims; pass one head a modality."
        )
    for name, dim in dims.items():
        head = heads[name]
        if type(head) is nn.Linear and head.weight.shape != (width, dim):
            raise ValueError(
                f"{owner}: heads[{name!r}] has a weight of shape {tuple(head.weight.shape)}, expected "
                f"{(width, dim)}; pass nn.Linear({dim}, {width})."
            )
