"""Where tensors are and of which type: one device a call, and features in the type of the parameters they meet."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def check_placement(owner: str, module: nn.Module | None = None, **given: Tensor | Mapping[str, Any] | None) -> None:
    """One device for all tensors, and for the parameters and buffers of the component that takes them."""
    first, device = "", None
    for argument, value in given.items():
        for key, x in value.items() if isinstance(value, Mapping) else ((None, value),):
            if not isinstance(x, Tensor) or x.device == device:
                continue
            name = argument if key is None else f"{argument}[{key!r}]"
            if device is not None:
                raise ValueError(
                    f"{owner}: {name} is on {x.device}, expected {device} as {first}; "
                    f"pass {name}.to({str(device)!r})."
                )
            first, device = name, x.device
    for x in () if module is None or device is None else (*module.parameters(), *module.buffers()):
        if x.device != device:
            raise ValueError(
                f"{owner}: its parameters or buffers are on {x.device}, expected {device} as {first}; "
                f"move the component there with .to({str(device)!r})."
            )


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where `x` is; a meta tensor is nowhere."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def as_parameters(owner: str, name: str, x: Tensor, module: nn.Module) -> Tensor:
    """`x` in the floating type of the module's parameters, which must not be the narrower one; unless autocast is on.

    So half-precision features meet float32 parameters without a rounding and without autocast.
    """
    if autocasts(x):
        return x
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype)
    if dtype.itemsize < x.dtype.itemsize:
        raise ValueError(
            f"{owner}: features[{name!r}] is {x.dtype} and the parameters {dtype}, expected one type outside "
            f"torch.autocast; pass x.to({dtype}), or move the component with .to({x.dtype})."
        )
    return x.to(dtype)
