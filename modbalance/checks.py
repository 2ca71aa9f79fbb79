"""Checks of arguments: one clear error that names what came, what was expected and what to pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor, nn

from modbalance.presence import select

Presence: TypeAlias = Mapping[str, Tensor] | Tensor


def check_dims(owner: str, dims: Mapping[str, int]) -> dict[str, int]:
    """The sizes by modality that a component is built for, or one clear error."""
    if not isinstance(dims, Mapping) or len(dims) < 2:
        raise ValueError(
            f"{owner}: dims is {dims!r}, expected a mapping of at least two modality names to sizes; "
            'pass for example dims={"text": 768, "audio": 74}.'
        )
    reserved = nn.ModuleDict()
    for name, size in dims.items():
        if not isinstance(name, str) or not name or "." in name or hasattr(reserved, name):
            raise ValueError(
                f"{owner}: dims has the modality name {name!r}, expected a non-empty string without a dot "
                "that is no attribute of torch.nn.ModuleDict; rename the modality."
            )
        check_size(owner, "pass the feature size of that modality", **{f"dims[{name!r}]": size})
    return dict(dims)


def given(features: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The modalities that are there: None leaves one out."""
    if not isinstance(features, Mapping):
        return features
    return {name: x for name, x in features.items() if x is not None}


def check_inputs(
    owner: str,
    features: Mapping[str, Tensor],
    present: Presence | None,
    dims: Mapping[str, int] | None = None,
    argument: str = "features",
) -> dict[str, Tensor]:
    """Check features and presence; give the bool `(B,)` mask of every modality in `features`.

    A modality that is not in `present` is present for all. With `dims`, features are checked against it.
    """
    if not isinstance(features, Mapping) or not features:
        raise ValueError(
            f"{owner}: {argument} is {_short(features)}, expected a mapping of modality names to tensors "
            f'with at least one modality; pass for example {argument}={{"audio": x}}.'
        )
    known = features if dims is None else dims
    _check_names(owner, argument, features, known)
    first, reference = next(iter(features.items()))
    batch = reference.shape[0] if isinstance(reference, Tensor) and reference.dim() else None
    for name, x in features.items():
        size = "D" if dims is None else dims[name]
        if not isinstance(x, Tensor) or not x.is_floating_point():
            remedy = (
                f"pass {argument}[{name!r}].float()"
                if isinstance(x, Tensor)
                else f"pass torch.as_tensor({argument}[{name!r}])"
            )
            raise TypeError(
                f"{owner}: {argument}[{name!r}] is {_short(x)}, expected a floating-point tensor ({batch}, {size}); "
                f"{remedy}."
            )
        if x.dim() != 2 or (dims is not None and x.shape[1] != dims[name]):
            source = "" if dims is None else " from num_outputs" if argument == "teachers" else " from dims"
            raise ValueError(
                f"{owner}: {argument}[{name!r}] has shape {tuple(x.shape)}, expected ({batch}, {size}){source}; "
                f"{_size_remedy(argument, name, x, dims)}."
            )
        if x.shape[0] != batch:
            raise ValueError(
                f"{owner}: {argument}[{name!r}] has {x.shape[0]} rows, expected {batch} as in "
                f"{argument}[{first!r}]; pass the same samples for every modality and mark absent ones in "
                "present."
            )
        if x.device != reference.device:
            raise ValueError(
                f"{owner}: {argument}[{name!r}] is on {x.device}, expected {reference.device} as "
                f"{argument}[{first!r}]; pass {argument}[{name!r}].to({str(reference.device)!r})."
            )
    return check_present(owner, present, features, known, reference.shape[0], reference.device)


def check_present(
    owner: str,
    present: Presence | None,
    names: Iterable[str],
    known: Mapping[str, object],
    batch: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """The mask of every one of `names`, from masks by name or from the columns of one tensor in `known`'s order."""
    if isinstance(present, Tensor):
        if present.dtype != torch.bool or present.shape != (batch, len(known)):
            raise ValueError(
                f"{owner}: present is {_short(present)}, expected bool ({batch}, {len(known)}) with the columns "
                f"{list(known)}, or a mask by modality; pass one flag a sample and modality."
            )
        present = dict(zip(known, present.unbind(1), strict=True))
    present = present or {}
    _check_names(owner, "present", present, known)
    masks = {}
    for name in names:
        mask = present.get(name)
        if mask is None:
            masks[name] = torch.ones(batch, dtype=torch.bool, device=device)
        else:
            masks[name] = _check_mask(owner, name, mask, batch, device)
    return masks


def check_device(owner: str, argument: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(
            f"{owner}: {argument} is on {x.device}, expected {device} as the features; "
            f"pass {argument}.to({str(device)!r})."
        )


def _check_names(owner: str, argument: str, given: Iterable[str], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(
                f"{owner}: {argument} has the modality {name!r}, expected one of {sorted(known)}; "
                "correct the name or build the component with it."
            )


def _size_remedy(argument: str, name: str, x: Tensor, dims: Mapping[str, int] | None) -> str:
    if x.dim() == 3:
        return (
            f"pool it, for example masked_mean({argument}[{name!r}], mask, dim=1), or make rows of its tokens by "
            "modbalance.tokens.flatten_tokens"
        )
    if x.dim() < 2:
        return f"pass one row of features a sample, for example {argument}[{name!r}][:, None]"
    if x.dim() > 2 or dims is None:
        return f"pass {argument}[{name!r}].flatten(1), or pool it to two dimensions"
    if argument == "teachers":
        return f"pass outputs of width {dims[name]}, or build it with the num_outputs and the task of the teachers"
    return f'pass {dims[name]} features or set dims={{"{name}": {x.shape[1]}}}'


def _check_mask(owner: str, name: str, mask: Tensor, batch: int, device: torch.device) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (batch,):
        raise ValueError(
            f"{owner}: present[{name!r}] is {_short(mask)}, expected a bool tensor ({batch},); "
            "pass one flag a sample, for example mask.bool()."
        )
    check_device(owner, f"present[{name!r}]", mask, device)
    return mask


def check_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not (is_number(value) and value > 0):
            raise ValueError(f"{owner}: {name} is {value!r}, expected a positive number; pass one above zero.")


def check_nonnegative(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not (is_number(value) and value >= 0):
            raise ValueError(f"{owner}: {name} is {value!r}, expected a number of at least 0; 0 leaves the term out.")


def check_size(owner: str, remedy: str, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{owner}: {name} is {value!r}, expected a positive int; {remedy}.")


def check_choice(owner: str, choices: tuple[str | None, ...], **values: str | None) -> None:
    for name, value in values.items():
        if value not in choices:
            *most, last = map(repr, choices)
            raise ValueError(f"{owner}: {name} is {value!r}, expected {', '.join(most)} or {last}; pass one of them.")


def check_uncertainty(
    owner: str, uncertainty: Mapping[str, Tensor], masks: Mapping[str, Tensor], gamma: float
) -> None:
    if not gamma:
        raise ValueError(
            f"{owner}: uncertainty is given and gamma is 0, expected gamma > 0; build it with "
            "gamma=0.1, for example, or leave uncertainty out."
        )
    for name, mask in masks.items():
        if name not in uncertainty or uncertainty[name].shape != mask.shape:
            raise ValueError(
                f"{owner}: uncertainty[{name!r}] is "
                f"{tuple(uncertainty[name].shape) if name in uncertainty else 'missing'}, expected "
                f"{tuple(mask.shape)}; pass one value a sample for every modality in features."
            )


def is_number(x: object) -> bool:
    """A number, or a tensor that holds one; True and False are none."""
    if isinstance(x, Tensor):
        return x.numel() == 1 and x.dtype != torch.bool
    return isinstance(x, Real) and not isinstance(x, bool)


def readable(x: Tensor) -> bool:
    """Whether looking at values is free and sound: on a CPU, not while anything traces or transforms."""
    return x.device.type == "cpu" and not traced(x)


def assert_on_device(ok: Tensor, message: str) -> None:
    """An error on the device without waiting for it; nothing under compile, transforms and graph capture."""
    if not traced(ok) and not (ok.is_cuda and torch.cuda.is_current_stream_capturing()):
        torch._assert_async(ok, message)


def traced(x: Tensor) -> bool:
    """Whether something traces, compiles or transforms: values are no numbers then."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or x.is_meta
        or type(x) not in (Tensor, nn.Parameter)
        or bool(torch._C._functorch.get_interpreter_stack())
    )


def all_finite(x: Tensor) -> bool:
    """By the sum first: one pass without a mask, enough wherever it is finite."""
    return math.isfinite(x.detach().sum().item()) or bool(torch.isfinite(x).all())


def check_finite(
    owner: str, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], argument: str = "features"
) -> None:
    """NaN or inf in a present row is an error. Looks at values: synchronises a device."""
    for name, x in features.items():
        if all_finite(x):
            continue
        bad = int((~torch.isfinite(select(x, masks[name]))).any(-1).sum())
        if bad:
            raise ValueError(
                f"{owner}: {argument}[{name!r}] has NaN or inf in {bad} present rows, expected finite numbers; "
                "clean the data or mark the rows absent in present."
            )


def _short(x: object) -> str:
    if isinstance(x, Tensor):
        return f"a {x.dtype} tensor {tuple(x.shape)}"
    if hasattr(x, "shape"):
        return f"a {type(x).__name__} {tuple(x.shape)}"
    return f"{type(x).__name__} {x!r}"[:80]
