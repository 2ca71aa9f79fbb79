"""The tensor in what a model returns: a tensor, a `ModelOutput`, a dict or a tuple."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def outputs_of(owner: str, found: Any, batch: int, width: int) -> Tensor:
    """The outputs `(B, width)`: the only entry of that shape, or that named `logits`; `(B,)` will do for width 1."""
    if isinstance(found, Tensor):
        return _column(found, batch, width)
    if isinstance(found, Mapping):
        entries = {f"[{name!r}]": x for name, x in found.items() if isinstance(x, Tensor)}
        logits = found.get("logits")
        if isinstance(logits, Tensor):
            return _column(logits, batch, width)
    elif isinstance(found, (tuple, list)):
        entries = {f"[{i}]": x for i, x in enumerate(found) if isinstance(x, Tensor)}
    else:
        raise TypeError(
            f"{owner}: predict returned a {type(found).__name__}, expected a tensor ({batch}, {width}); return the "
            "outputs of the head."
        )
    fitting = [x for x in entries.values() if tuple(_column(x, batch, width).shape) == (batch, width)]
    if len(fitting) != 1:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in entries.items())
        example = next(iter(entries), "[0]")
        raise ValueError(
            f"{owner}: predict returned a {type(found).__name__} with the tensors {shapes}, "
            f"expected exactly one ({batch}, {width}) or one named 'logits'; return the outputs themselves, for "
            f"example output{example}."
        )
    return _column(fitting[0], batch, width)


def _column(x: Tensor, batch: int, width: int) -> Tensor:
    return x[:, None] if width == 1 and tuple(x.shape) == (batch,) else x
