"""The Triton kernels as two operators of PyTorch, with fakes, and one autograd Function around them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from modbalance.kernels import fallback
from modbalance.kernels.autograd import apply, forbid_double_backward, inside_vmap
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.placement import without_autocast

MAX_MODALITIES = 8  # each is an argument of its own of the compiled kernel
MAX_WIDTH = 64  # wider heads would spill registers
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_INSTALLED = find_spec("triton") is not None

_library = torch.library.Library("modbalance", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "energy(str task, float alpha, float beta, float gamma, float temperature, bool normalize, Tensor? target, "
    "Tensor? class_weight, int ignore_index, Tensor? present, Tensor[] features, Tensor[] weights, Tensor[] biases, "
    "bool pooled, float delta, float rate, bool pull, bool fall_back) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[])"
)
_library.define(  # type: ignore[no-untyped-call]
    "energy_backward(float alpha, bool normalize, Tensor[] features, Tensor[] weights, Tensor counted, "
    "Tensor slopes, Tensor curvatures, Tensor? coefficients, Tensor?[] upstream, float delta, float rate, "
    "bool needs_features, bool needs_heads, bool fall_back) -> (Tensor[], Tensor)"
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


def energy(
    terms: EnergyTerms,
    present: Tensor | None,
    ignore_index: int,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    pooled: tuple[float, float, bool] | None = None,
    fall_back: bool,
) -> tuple[Tensor, ...]:
    """Energies and squared gradient norms `(M, B)` under linear heads.

    With `pooled` (delta, rate, pull): energies `(M, B)`, gap, penalty, descent, and their sum.
    """
    given = [b for b in biases if b is not None]
    if 0 < len(given) < len(biases):
        given = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    tensors = [x for group in (features, weights, given) for x in _of_one_dtype(group)]
    options = (*terms.with_target(None, None), ignore_index, pooled or (), fall_back, len(features))
    result = apply(_Energy, tensors, options, terms.target, terms.class_weight, present, *tensors)
    return tuple(result[:2]) if pooled is None else (result[0], *result[5:9])


def _of_one_dtype(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """A kernel picks a modality by its number, so all of them have one type."""
    return tensors if len({x.dtype for x in tensors}) < 2 else [x.float() for x in tensors]


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(
        options: tuple[Any, ...],
        target: Tensor | None,
        class_weight: Tensor | None,
        present: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        *numbers, _, _, ignore_index, pooled, fall_back, modalities = options
        groups = [list(tensors[i * modalities : (i + 1) * modalities]) for i in range(3)]
        *results, more = torch.ops.modbalance.energy(
            *numbers, target, class_weight, ignore_index, present, *groups,
            bool(pooled), *(pooled or (0.0, 0.0, False)), fall_back,
        )  # fmt: skip
        return (*results, *more)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, _, _, _, *tensors = inputs
        modalities = ctx.options[-1]
        coefficients = output[9] if len(output) > 5 else None
        ctx.dtypes = [x.dtype for x in tensors[modalities:]]
        ctx.mark_non_differentiable(*output[2:5], *output[9:], *(output[1:2] if len(output) > 5 else ()))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(coefficients, *output[2:5], *tensors[: 2 * modalities])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        used = *upstream[:2], *(upstream[5:9] or (None,) * 4)
        if all(x is None for x in used):
            return (None,) * len(ctx.needs_input_grad)
        needs = ctx.needs_input_grad[4:]
        gradients = forbid_double_backward(
            "triton", _backward, ctx.options, needs, ctx.dtypes, *used, *ctx.saved_tensors
        )
        return None, None, None, None, *gradients


# autograd.Function works the signature out anew at every call.
_Energy.forward.__signature__ = inspect.signature(_Energy.forward)  # type: ignore[attr-defined]


def _backward(
    options: tuple[Any, ...], needs: Sequence[bool], dtypes: Sequence[torch.dtype], *tensors: Any
) -> tuple[Tensor | None, ...]:
    _, alpha, _, _, _, normalize, _, _, _, pooled, fall_back, modalities = options
    upstream, (coefficients, counted, slopes, curvatures), rest = tensors[:6], tensors[6:10], tensors[10:]
    features, weights = list(rest[:modalities]), list(rest[modalities:])
    needs_features, needs_heads = any(needs[:modalities]), any(needs[modalities:])
    dz, flat = torch.ops.modbalance.energy_backward(
        alpha, normalize, features, weights, counted, slopes, curvatures, coefficients, list(upstream),
        *(pooled[:2] or (0.0, 0.0)), needs_features, needs_heads, fall_back,
    )  # fmt: skip
    gradients: list[Tensor | None] = [*dz] if needs_features else [None] * modalities
    if needs_heads:
        parts = flat.split([n for w in weights for n in (w.numel(), w.shape[0])])
        heads = [*(x.view_as(w) for x, w in zip(parts[::2], weights, strict=True)), *parts[1::2]]
        gradients += [x.to(dtype) for x, dtype in zip(heads, dtypes, strict=False)]
    else:
        gradients += [None] * len(dtypes)
    return tuple(x if need else None for x, need in zip(gradients, needs, strict=True))


def _energy_operator(*arguments: Any) -> tuple[Any, ...]:
    *terms, ignore_index, present, features, weights, biases, pooled, delta, rate, pull, fall_back = arguments
    given = EnergyTerms(*terms), ignore_index, present, features, weights, biases
    return _run("forward", fall_back, features, *given, (delta, rate, pull) if pooled else None)


def _energy_backward_operator(*arguments: Any) -> tuple[Any, ...]:
    *given, fall_back = arguments
    return _run("backward", fall_back, given[2], *given)


def _run(name: str, fall_back: bool, features: Sequence[Tensor], *arguments: Any) -> tuple[Any, ...]:
    """By the kernels; where they cannot be compiled or launched, and it may be so, by plain torch."""
    try:
        from modbalance.kernels import triton_launcher

        return getattr(triton_launcher, name)(*arguments)  # type: ignore[no-any-return]
    except fallback.LaunchError as error:
        if not fall_back:
            raise
        fallback.warn(error)
    with without_autocast(features[0]):
        return getattr(fallback, name)(*arguments)  # type: ignore[no-any-return]


def _energy_fake(*arguments: Any) -> tuple[Any, ...]:
    features, weights, pooled = arguments[10], arguments[11], arguments[13]
    shape = (len(features), features[0].shape[0])
    energy, penalty = (features[0].new_empty(shape, dtype=torch.float32) for _ in range(2))
    slopes, curvatures = (energy.new_empty(weights[0].shape[0], *shape) for _ in range(2))
    more = [*(energy.new_empty(()) for _ in range(4)), energy.new_empty(2, len(features))] if pooled else []
    return energy, penalty, energy.new_empty(shape, dtype=torch.bool), slopes, curvatures, more


def _energy_backward_fake(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    features, weights = arguments[2:4]
    needs_features, needs_heads = arguments[11:13]
    total = sum(w.numel() + w.shape[0] for w in weights) if needs_heads else 0
    dz = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in features if needs_features]
    return dz, features[0].new_empty(total, dtype=torch.float32)


for _name, _operator, _fake in (
    ("energy", _energy_operator, _energy_fake),
    ("energy_backward", _energy_backward_operator, _energy_backward_fake),
):
    for _device in ("CUDA", "CPU"):  # the CPU only under Triton's interpreter
        _library.impl(_name, _operator, _device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"modbalance::{_name}", _fake, lib=_library)
