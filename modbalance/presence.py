"""What "absent" means, once: who is there, zero-safe selection, masked mean and masked softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["masked_mean", "masked_softmax", "select"]


def select(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where `mask` is true, else zero: no value and no gradient of a masked entry gets through.

    Args:
        x: any tensor whose leading dimensions are those of `mask`.
        mask: bool.

    Returns:
        As `x`. Masked entries are 0 and get gradient 0, even where `x` holds NaN or inf.

    Examples:
        >>> select(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    return torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), x, 0.0)


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of the entries of `x` where `mask` is true; 0, still in the graph, where there are none.

    Args:
        x: `(B,)`, `(B, T, D)`, ...: its leading dimensions are those of `mask`.
        mask: bool, `(B,)`, `(B, T)`, ...
        dim: dimensions of `mask` to average over; all of them by default.

    Returns:
        `x` without the dimensions averaged over: pooling `(B, T, D)` with a `(B, T)` mask and `dim=1`
        gives `(B, D)`.

    Examples:
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    return masked_sum(x, mask, dim).mean()


class Sum(NamedTuple):
    """A mean still to be taken."""

    total: Tensor
    entries: Tensor

    def mean(self) -> Tensor:
        return self.total / self.entries.clamp(min=1)


def masked_sum(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Sum:
    """What `masked_mean` divides by what."""
    dims = tuple(range(mask.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple(d % mask.dim() for d in dims)
    entries = mask.sum(dims)
    return Sum(select(x, mask).sum(dims), entries.reshape(entries.shape + (1,) * (x.dim() - mask.dim())))


def masked_softmax(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over the entries of `logits` where `mask` is true: exactly 0 elsewhere, all 0 where none are.

    Args:
        logits: floating point.
        mask: bool, of the shape of `logits`.
        dim: the dimension that sums to one.

    Returns:
        as `logits`.

    Examples:
        >>> masked_softmax(torch.tensor([1.0, 1.0, 9.0]), torch.tensor([True, True, False]), dim=0)
        tensor([0.5000, 0.5000, 0.0000])
    """
    floor = torch.finfo(logits.dtype).min
    return select(torch.where(mask, logits, floor).softmax(dim), mask)


def upcast(x: Tensor) -> Tensor:
    """float64 stays float64; anything shorter is computed in float32."""
    return x if x.dtype == torch.float64 else x.float()


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
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"{owner}: dims[{name!r}] is {size!r}, expected a positive int; "
                "pass the feature size of that modality."
            )
    return dict(dims)


def resolve(
    owner: str,
    features: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None,
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
    for kind, given in ((argument, features), ("present", present or {})):
        for name in given:
            if name not in known:
                raise ValueError(
                    f"{owner}: {kind} has the modality {name!r}, expected one of {sorted(known)}; "
                    "correct the name or build the component with it."
                )
    first, reference = next(iter(features.items()))
    batch = reference.shape[0] if isinstance(reference, Tensor) and reference.dim() else None
    masks = {}
    for name, x in features.items():
        size = "D" if dims is None else dims[name]
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"{owner}: {argument}[{name!r}] is {_short(x)}, expected a floating-point tensor ({batch}, {size}); "
                "convert it with .float()."
            )
        if x.dim() != 2 or (dims is not None and x.shape[1] != dims[name]):
            remedy = (
                "pool or flatten it to two dimensions"
                if x.dim() != 2
                else f'pass {dims and dims[name]} features or set dims={{"{name}": {x.shape[1]}}}'
            )
            raise ValueError(
                f"{owner}: {argument}[{name!r}] has shape {tuple(x.shape)}, expected ({batch}, {size})"
                f"{' from dims' if dims is not None else ''}; {remedy}."
            )
        if x.shape[0] != batch:
            raise ValueError(
                f"{owner}: {argument}[{name!r}] has {x.shape[0]} rows, expected {batch} as in "
                f"{argument}[{first!r}]; pass the same samples for every modality and mark absent ones in "
                "present."
            )
        mask = (present or {}).get(name)
        if mask is None:
            masks[name] = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        else:
            masks[name] = _check_mask(owner, name, mask, x.shape[0])
    return masks


def _check_mask(owner: str, name: str, mask: Tensor, batch: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (batch,):
        raise ValueError(
            f"{owner}: present[{name!r}] is {_short(mask)}, expected a bool tensor ({batch},); "
            "pass one flag a sample, for example mask.bool()."
        )
    return mask


def stack(owner: str, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Modalities of one size as `(M, B, D)`, absent rows zero, and their masks as `(M, B)`."""
    sizes = {name: x.shape[1] for name, x in features.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{owner}: sizes are {sizes}, expected one size for all modalities; project them first.")
    mask = torch.stack([masks[name] for name in features])
    return select(upcast(torch.stack(list(features.values()))), mask), mask


def absent_like(tensors: dict[str, Tensor], dims: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors in the order of `dims`; zeros, or false, for the modalities that are not among them."""
    like = next(iter(tensors.values()))
    return {
        name: tensors[name]
        if name in tensors
        else like.new_zeros(like.shape[:1] + ((size,) if like.dim() > 1 else ()))
        for name, size in dims.items()
    }


def zero_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """A zero that keeps the graph of `tensors`."""
    return torch.stack([(upcast(x) * 0.0).sum() for x in tensors.values()]).sum()


def check_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{owner}: {name} is {value}, expected a positive number; pass one above zero.")


def check_finite(owner: str, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """For `validate=True`: NaN or inf in a present row is an error. Synchronises the device."""
    for name, x in features.items():
        bad = int((~torch.isfinite(select(x, masks[name]))).any(-1).sum())
        if bad:
            raise ValueError(
                f"{owner}: features[{name!r}] has NaN or inf in {bad} present rows, expected finite numbers; "
                "clean the data or mark the rows absent in present."
            )


def _short(x: object) -> str:
    if isinstance(x, Tensor):
        return f"a {x.dtype} tensor {tuple(x.shape)}"
    return f"{type(x).__name__} {x!r}"[:80]
