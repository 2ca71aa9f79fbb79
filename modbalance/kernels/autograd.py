"""A backward that can be run once: differentiating it again raises, where autograd would silently find zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def forbid_double_backward(
    backend: str, backward: Callable[..., tuple[Tensor | None, ...]], *arguments: Any
) -> tuple[Tensor | None, ...]:
    """`backward(*arguments)`, all of them positional and no tensor inside a container."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        # Compiled or without a graph there is no second backward, and torch raises that error itself.
        return backward(*arguments)
    gradients: tuple[Tensor | None, ...] = _ForbidDoubleBackward.apply(backend, backward, *arguments)  # type: ignore[no-untyped-call]
    return gradients


def apply(function: type[torch.autograd.Function], differentiable: Sequence[Tensor], *arguments: Any) -> Any:
    """`function.apply`; its bare forward where a compiler finds nothing to differentiate.

    There Dynamo would pass a context to a forward that takes any number of arguments.
    """
    if torch.compiler.is_compiling() and not (
        torch.is_grad_enabled() and any(x.requires_grad for x in differentiable)
    ):
        return function.forward(*arguments)
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


class _ForbidDoubleBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        backend: str, backward: Callable[..., tuple[Tensor | None, ...]], *arguments: Any
    ) -> tuple[Tensor | None, ...]:
        return backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = inputs[0]

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor | None) -> Any:
        raise RuntimeError(
            f"energy_penalty: the {ctx.backend} backend was differentiated twice, expected once; "  # type: ignore[attr-defined]
            'pass backend="reference", which can be differentiated any number of times.'
        )


def inside_vmap() -> bool:
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)
