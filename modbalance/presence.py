"""Absent modalities: zero-safe selection, masked mean and masked softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

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
        gives `(B, D)`. Half precision is summed in float32.

    Raises:
        TypeError: `mask` is not bool.
        ValueError: `dim` is no dimension of `mask`.

    Examples:
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    mean = masked_sum(x, mask, dim).mean()
    return mean.to(x.dtype) if _half(x) else mean


class MaskedSum(NamedTuple):
    """Numerator and denominator of a masked mean, kept apart so that processes can add them first."""

    total: Tensor
    entries: Tensor

    def mean(self) -> Tensor:
        return self.total / self.entries.clamp(min=1)


def masked_sum(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> MaskedSum:
    """The numerator and the denominator of `masked_mean`; the former is float32 where `x` is of half precision."""
    if mask.dtype != torch.bool:
        raise TypeError(
            f"masked_mean: mask is a {mask.dtype} tensor {tuple(mask.shape)}, expected torch.bool; pass mask.bool()."
        )
    dims = tuple(range(mask.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    for d in dims:
        if not -mask.dim() <= d < mask.dim():
            raise ValueError(
                f"masked_mean: dim is {dim}, expected dimensions of mask, which has {mask.dim()}; pass one of those."
            )
    dims = tuple(d % mask.dim() for d in dims)
    entries = mask.sum(dims)
    total = select(x, mask).sum(dims, dtype=torch.float32 if _half(x) else None)
    return MaskedSum(total, entries.reshape(entries.shape + (1,) * (x.dim() - mask.dim())))


def _half(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16)


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
