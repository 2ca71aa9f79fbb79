"""The Triton kernels as operators of PyTorch: registered, with fakes, and one autograd Function around them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from modbalance.kernels.autograd import apply, forbid_double_backward, inside_vmap
from modbalance.kernels.energy_terms import EnergyTerms

MAX_MODALITIES = 8  # each is a branch of its own in the compiled kernel
MAX_WIDTH = 64  # wider heads would spill registers
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_INSTALLED = find_spec("triton") is not None

_library = torch.library.Library("modbalance", "DEF")  # type: ignore[no-untyped-call]
_PROBLEM = (
    "str task, float alpha, float beta, float gamma, float temperature, bool normalize, "
    "Tensor? target, Tensor? class_weight, int ignore_index, Tensor? present, Tensor[] features, Tensor[] weights"
)
_library.define(f"energy_penalty({_PROBLEM}, Tensor?[] biases) -> (Tensor, Tensor, Tensor, Tensor)")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"energy_penalty_backward({_PROBLEM}, Tensor outputs, Tensor products, Tensor? d_energy, Tensor? d_penalty, "
    "bool needs_features, bool needs_heads) -> (Tensor[], Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    f"coordination({_PROBLEM}, Tensor?[] biases, float delta, float rate, bool pull) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    f"coordination_backward({_PROBLEM}, Tensor outputs, Tensor products, Tensor coefficients, Tensor? d_energy, "
    "Tensor?[] d_terms, float delta, float rate) -> Tensor[]"
)


def unsupported_reason(
    features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> str | None:
    """Why the kernels cannot run on these tensors and what would help; None if they can."""
    tensors = [*features, *weights, *(b for b in biases if b is not None)]
    if not _INSTALLED:
        return "Triton is not installed; pip install triton (Linux)"
    device = features[0].device.type
    if device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"the features are on {device!r}; move them to a CUDA or ROCm device"
    if not torch.compiler.is_compiling() and inside_vmap():
        return "torch.func.vmap has no rule for a kernel; call it on the whole batch"
    for x in tensors:
        if x.dtype not in DTYPES:
            return f"a feature, weight or bias is {x.dtype}; convert it to float32, bfloat16 or float16"
    if weights[0].shape[0] > MAX_WIDTH:
        return f"the heads have {weights[0].shape[0]} outputs; pass at most {MAX_WIDTH}"
    if len(features) > MAX_MODALITIES:
        return f"there are {len(features)} modalities; pass at most {MAX_MODALITIES} at a time"
    return None


def energy_penalty(
    problem: EnergyTerms,
    present: Tensor | None,
    ignore_index: int,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Energies and squared gradient norms `(M, B)` under linear heads."""
    *options, target, class_weight = problem
    tensors = [*features, *weights, *biases]
    arguments = (*options, ignore_index), target, class_weight, present, *tensors
    energy, penalty, *_ = apply(_Penalty, [x for x in tensors if x is not None], *arguments)
    return energy, penalty


def coordination(
    problem: EnergyTerms,
    present: Tensor | None,
    ignore_index: int,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    delta: float,
    rate: float,
    pull: bool,
) -> tuple[Tensor, ...]:
    """Energy `(M, B)`, gap, penalty, descent and their sum; the heads get no gradient."""
    *options, target, class_weight = problem
    arguments = (*options, ignore_index, delta, rate, pull), target, class_weight, present
    result: tuple[Tensor, ...] = apply(_Coordination, features, *arguments, *features, *weights, *biases)
    return result[:5]


class _Penalty(torch.autograd.Function):
    @staticmethod
    def forward(
        options: tuple[Any, ...],
        target: Tensor | None,
        class_weight: Tensor | None,
        present: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        *numbers, ignore_index = options
        modalities = len(tensors) // 3
        groups = [list(tensors[i * modalities : (i + 1) * modalities]) for i in range(3)]
        result: tuple[Tensor, ...] = torch.ops.modbalance.energy_penalty(
            *numbers, target, class_weight, ignore_index, present, *groups
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, *tensors = inputs
        _, _, outputs, products = output
        modalities = (len(tensors) - 3) // 3
        ctx.dtypes = [None if x is None else x.dtype for x in tensors[3:]]
        ctx.mark_non_differentiable(outputs, products)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: 3 + 2 * modalities], outputs, products)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        d_energy, d_penalty = upstream[:2]
        if d_energy is None and d_penalty is None:
            return (None,) * len(ctx.needs_input_grad)
        needs = ctx.needs_input_grad[4:]
        gradients = forbid_double_backward(
            "triton", _backward, ctx.options, needs, ctx.dtypes, d_energy, d_penalty, *ctx.saved_tensors
        )
        return None, None, None, None, *gradients


def _backward(
    options: tuple[Any, ...],
    needs: Sequence[bool],
    dtypes: Sequence[torch.dtype | None],
    d_energy: Tensor | None,
    d_penalty: Tensor | None,
    target: Tensor | None,
    class_weight: Tensor | None,
    present: Tensor | None,
    *saved: Tensor,
) -> tuple[Tensor | None, ...]:
    *numbers, ignore_index = options
    modalities = len(needs) // 3
    features, weights = list(saved[:modalities]), list(saved[modalities:-2])
    needs_features, needs_heads = any(needs[:modalities]), any(needs[modalities:])
    dz, flat = torch.ops.modbalance.energy_penalty_backward(
        *numbers, target, class_weight, ignore_index, present, features, weights, *saved[-2:],
        d_energy, d_penalty, needs_features, needs_heads,
    )  # fmt: skip
    gradients: list[Tensor | None] = [*dz] if needs_features else [None] * modalities
    if not needs_heads:
        return *gradients, *([None] * 2 * modalities)
    sizes = [n for w in weights for n in (w.numel(), w.shape[0])]
    parts = flat.split(sizes)
    gradients += [x.view_as(w) for x, w in zip(parts[::2], weights, strict=True)]
    gradients += parts[1::2]
    return tuple(
        x.to(dtype) if need and x is not None else None
        for x, need, dtype in zip(gradients, needs, dtypes, strict=True)
    )


class _Coordination(torch.autograd.Function):
    @staticmethod
    def forward(
        options: tuple[Any, ...],
        target: Tensor | None,
        class_weight: Tensor | None,
        present: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        *numbers, ignore_index, delta, rate, pull = options
        modalities = len(tensors) // 3
        groups = [list(tensors[i * modalities : (i + 1) * modalities]) for i in range(3)]
        result: tuple[Tensor, ...] = torch.ops.modbalance.coordination(
            *numbers, target, class_weight, ignore_index, present, *groups, delta, rate, pull
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, *tensors = inputs
        modalities = (len(tensors) - 3) // 3
        ctx.mark_non_differentiable(*output[5:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: 3 + 2 * modalities], *output[5:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(x is None for x in upstream[:5]):
            return (None,) * len(ctx.needs_input_grad)
        modalities = (len(ctx.needs_input_grad) - 4) // 3
        needs = ctx.needs_input_grad[4 : 4 + modalities]
        gradients = forbid_double_backward(
            "triton", _coordination_backward, ctx.options, needs, *upstream[:5], *ctx.saved_tensors
        )
        return None, None, None, None, *gradients, *([None] * 2 * modalities)


def _coordination_backward(
    options: tuple[Any, ...],
    needs: Sequence[bool],
    d_energy: Tensor | None,
    d_gap: Tensor | None,
    d_penalty: Tensor | None,
    d_descent: Tensor | None,
    d_loss: Tensor | None,
    target: Tensor | None,
    class_weight: Tensor | None,
    present: Tensor | None,
    *saved: Tensor,
) -> tuple[Tensor | None, ...]:
    *numbers, ignore_index, delta, rate, _ = options
    features, weights = list(saved[: len(needs)]), list(saved[len(needs) : -3])
    gradients = torch.ops.modbalance.coordination_backward(
        *numbers, target, class_weight, ignore_index, present, features, weights, *saved[-3:],
        d_energy, [d_gap, d_penalty, d_descent, d_loss], delta, rate,
    )  # fmt: skip
    return tuple(x if need else None for x, need in zip(gradients, needs, strict=True))


def _forward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    from modbalance.kernels import triton_kernels

    *problem, ignore_index, present, features, weights, biases = arguments
    return triton_kernels.forward(EnergyTerms(*problem), ignore_index, present, features, weights, biases)


def _backward_kernel(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    from modbalance.kernels import triton_kernels

    *problem, ignore_index, present = arguments[:10]
    *tensors, needs_features, needs_heads = arguments[10:]
    return triton_kernels.backward(
        EnergyTerms(*problem), ignore_index, present, *tensors, needs_features=needs_features, needs_heads=needs_heads
    )


def _coordination_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    from modbalance.kernels import triton_kernels

    return triton_kernels.coordination(EnergyTerms(*arguments[:8]), *arguments[8:])


def _coordination_backward_kernel(*arguments: Any) -> list[Tensor]:
    from modbalance.kernels import triton_kernels

    return triton_kernels.coordination_backward(EnergyTerms(*arguments[:8]), *arguments[8:])


def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    features, weights = arguments[10:12]
    shape = (len(features), features[0].shape[0])
    wide = (*shape, weights[0].shape[0])
    return tuple(features[0].new_empty(s, dtype=torch.float32) for s in (shape, shape, wide, wide))


def _backward_fake(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    features, weights = arguments[10:12]
    needs_features, needs_heads = arguments[-2:]
    total = sum(w.numel() + w.shape[0] for w in weights) if needs_heads else 0
    dz = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in features if needs_features]
    return dz, features[0].new_empty(total, dtype=torch.float32)


def _coordination_fake(*arguments: Any) -> tuple[Tensor, ...]:
    energy, _, outputs, products = _forward_fake(*arguments)
    terms = [energy.new_empty(()) for _ in range(4)]
    return energy, *terms, outputs, products, energy.new_empty(2, len(energy))


def _coordination_backward_fake(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(z, memory_format=torch.contiguous_format) for z in arguments[10]]


for _name, _kernel, _fake in (
    ("energy_penalty", _forward_kernel, _forward_fake),
    ("energy_penalty_backward", _backward_kernel, _backward_fake),
    ("coordination", _coordination_kernel, _coordination_fake),
    ("coordination_backward", _coordination_backward_kernel, _coordination_backward_fake),
):
    for _device in ("CUDA", "CPU"):  # the CPU only under Triton's interpreter
        _library.impl(_name, _kernel, _device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"modbalance::{_name}", _fake, lib=_library)
