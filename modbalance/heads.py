"""One predictor per modality, the T_m of the paper: probing it leaves no trace."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import module as _hooks
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from modbalance.task_formulas import Task
from modbalance.tasks import output_width

T = TypeVar("T")

_LINEAR_FORWARD = nn.Linear.forward
_GLOBAL_HOOKS = (
    _hooks._global_forward_hooks,
    _hooks._global_forward_pre_hooks,
    _hooks._global_backward_hooks,
    _hooks._global_backward_pre_hooks,
)


def linear_heads(dims: Mapping[str, int], num_outputs: int, task: Task) -> nn.ModuleDict:
    """A linear predictor of the task on each modality's features."""
    return nn.ModuleDict({name: nn.Linear(dim, output_width(task, num_outputs)) for name, dim in dims.items()})


def not_plain(head: nn.Module) -> str | None:
    """Why calling `head` may differ from its weight and bias; None where it is provably the same.

    A hook may only watch, or may change the output; that cannot be detected, so any hook counts.
    """
    if type(head) is not nn.Linear:
        return f"is a {type(head).__name__}"
    if "forward" in vars(head) or nn.Linear.forward is not _LINEAR_FORWARD:
        return "has a forward of its own"
    if head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks:
        return "has hooks"
    if any(_GLOBAL_HOOKS):
        return "is called with global module hooks"
    if any(hasattr(p, "full_tensor") or hasattr(p, "__tensor_flatten__") for p in (head.weight, head.bias)):
        return f"has a weight of type {type(head.weight).__name__}"
    return None


def probe(head: nn.Module, x: Tensor, *, learn: bool = False) -> Tensor:
    """`head(x)` in eval mode; gradients reach `x`, and the head only with `learn`.

    Buffers, attributes and the training mode of the head stay as they were. Wrappers of DDP and FSDP2 are passed
    by: no gradient reaches the head, so there is nothing to reduce; sharded weights are gathered. Attention is that
    of plain formulas, which have a second derivative; a head that works in place works on a copy of `x`.
    """
    if isinstance(head, DistributedDataParallel):
        head = head.module
    tensors = {} if learn else {name: _whole(p).detach() for name, p in head.named_parameters()}
    tensors |= {name: b.clone() for name, b in head.named_buffers()}
    plain = not_plain(head) is None
    with _untouched(head), nullcontext() if plain else _differentiable_attention():
        return functional_call(head, tensors, (x if plain else x.clone(),))  # type: ignore[no-any-return]


def _differentiable_attention() -> AbstractContextManager[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel  # here, since it takes long

    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def _untouched(head: nn.Module) -> Iterator[None]:
    """Eval mode without `train()`, which some modules use to merge weights; afterwards everything is as before."""
    before = [(module, dict(vars(module))) for module in head.modules()]
    for module, attributes in before:
        module.training = False
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            vars(module)[name] = _without_fsdp(attributes[name])
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _without_fsdp(hooks: Mapping[int, object]) -> OrderedDict[int, object]:
    def of_fsdp(hook: object) -> bool:
        return type(getattr(hook, "__self__", None)).__name__ == "FSDPState"

    return OrderedDict((key, hook) for key, hook in hooks.items() if not of_fsdp(hook))


def uncompiled(function: Callable[..., T], *arguments: Any) -> T:
    """Call `function` outside of torch.compile; with fullgraph=True the error below is what the compiler reports.

    A `torch.compiler.disable` around this function would load the compiler whenever this file is imported.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "heads that are not plain nn.Linear are differentiated twice, which torch.compile cannot do; pass "
            "nn.Linear heads, or compile without fullgraph=True: what calls the heads then runs uncompiled."
        )
    if "torch._dynamo" in sys.modules:
        function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return function(*arguments)


def _whole(p: Tensor) -> Tensor:
    gather = getattr(p, "full_tensor", None)  # of a DTensor
    return p if gather is None else gather()


def sharded(head: nn.Module) -> bool:
    """Whether DDP or FSDP2 wraps the head: its gradients are theirs to reduce."""
    return any(
        isinstance(module, DistributedDataParallel) or hasattr(module, "set_requires_gradient_sync")
        for module in head.modules()
    )


def check_heads(
    owner: str, heads: Mapping[str, nn.Module], dims: Mapping[str, int], width: int, joint: bool = False
) -> None:
    """One head a modality, and where it is linear one of the right shape; bare ones where the energy trains them."""
    if set(heads) != set(dims):
        raise ValueError(
            f"{owner}: heads has {sorted(heads)}, expected {sorted(dims)} as in dims; pass one head a modality."
        )
    for name, dim in dims.items():
        head = heads[name]
        if not isinstance(head, nn.Module):
            raise TypeError(
                f"{owner}: heads[{name!r}] is a {type(head).__name__}, expected a torch.nn.Module; "
                f"pass for example nn.Linear({dim}, {width})."
            )
        if any(is_lazy(p) for p in head.parameters()):
            raise ValueError(
                f"{owner}: heads[{name!r}] has parameters without a shape yet, expected initialised ones; "
                "call it once on features before."
            )
        if type(head) is nn.Linear and head.weight.shape != (width, dim):
            raise ValueError(
                f"{owner}: heads[{name!r}] has a weight of shape {tuple(head.weight.shape)}, expected "
                f"{(width, dim)}; pass nn.Linear({dim}, {width})."
            )
        if joint and sharded(head):
            raise ValueError(
                f"{owner}: heads[{name!r}] is wrapped by DDP or FSDP2 with joint=True, expected the bare module; "
                "pass it and wrap the whole model."
            )
