"""Sequences for components that take rows: each token a sample, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from modbalance.checks import traced

__all__ = ["Tokens", "flatten_tokens"]


class Tokens(NamedTuple):
    """Sequences as rows, N for the tokens of all samples that count.

    Attributes:
        features: by modality, `(N, D_m)`.
        target: as given, by row: `(N,)` or `(N, C)`; None without one.
        present: by modality, bool `(N,)`.
        mask: which token of which sample a row came from, bool `(B, T)`.

    Examples:
        >>> tokens = flatten_tokens({"text": torch.ones(2, 3, 4)}, torch.tensor([[True, True, False]] * 2))
        >>> tokens.features["text"].shape, tokens.restore(tokens.features["text"]).shape
        (torch.Size([4, 4]), torch.Size([2, 3, 4]))
    """

    features: dict[str, Tensor]
    target: Tensor | None
    present: dict[str, Tensor]
    mask: Tensor

    def restore(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows `(N, ...)` as `(B, T, ...)`, `fill` where no row came from; a ValueError where N is another."""
        if not traced(rows):
            n = len(next(iter(self.present.values())))  # mask.sum(), without waiting for the device
            if rows.dim() == 0 or len(rows) != n:
                raise ValueError(
                    f"Tokens.restore: rows has shape {tuple(rows.shape)}, expected ({n}, ...), a row for each true "
                    "entry of mask; pass what a component gave for these tokens."
                )
        whole = rows.new_full((*self.mask.shape, *rows.shape[1:]), fill)
        return whole.masked_scatter(self.mask.reshape(self.mask.shape + (1,) * (rows.dim() - 1)), rows)


def flatten_tokens(
    features: Mapping[str, Tensor | None],
    mask: Tensor | Mapping[str, Tensor],
    target: Tensor | None = None,
    *,
    by: Literal["token", "sequence"] | None = None,
) -> Tokens:
    """Aligned sequences `(B, T, D_m)` as rows `(N, D_m)`, one for each token that some modality has.

    For components that take one row a sample, where the sample is a token: labels by token, or one label for a
    sequence, which all of its tokens share. To have one row a sequence instead, pool it:
    `masked_mean(x, mask, dim=1)`.

    Args:
        features: by modality, `(B, T, D_m)` with one T for all; None leaves one out.
        mask: which tokens there are, bool `(B, T)`; one for all, or one by modality, then `present` of a token.
        target: by token `(B, T)` or `(B, T, C)`, or by sequence `(B,)` or `(B, C)`.
        by: which of the two `target` is, `token` or `sequence`; None goes by its shape. Floating-point targets of
            shape `(B, T)` need it: they may as well be `(B, C)` with C equal to T.

    Returns:
        `Tokens`: what a component takes, and `restore`.

    Raises:
        ValueError: shapes do not fit; the message names them and the remedy.

    Examples:
        >>> z = {"text": torch.randn(2, 3, 4), "audio": torch.randn(2, 3, 5)}
        >>> there = torch.tensor([[True, True, False], [True, False, False]])
        >>> tokens = flatten_tokens(z, there, target=torch.tensor([0, 1]))
        >>> tokens.features["audio"].shape, tokens.target
        (torch.Size([3, 5]), tensor([0, 0, 1]))
    """
    x = {name: z for name, z in features.items() if z is not None}
    first = next(iter(x.values()), None)
    if first is None or first.dim() != 3:
        raise ValueError(
            f"flatten_tokens: features has shapes { {name: tuple(z.shape) for name, z in x.items()} }, expected "
            "(B, T, D) by modality; pass sequences with a last dimension of features."
        )
    shape = first.shape[:2]
    masks = dict(mask) if isinstance(mask, Mapping) else dict.fromkeys(x, mask)
    for name, z in x.items():
        here = masks.get(name)
        if z.dim() != 3 or z.shape[:2] != shape or here is None or here.shape != shape or here.dtype != torch.bool:
            what = "missing" if here is None else f"{here.dtype} {tuple(here.shape)}"
            remedy = (
                "align the sequences, or pool each by masked_mean(x, mask, dim=1) where lengths differ between "
                "modalities"
            )
            if here is not None and here.dtype != torch.bool and z.shape[:2] == here.shape == shape:
                remedy = "pass mask.bool()"
            raise ValueError(
                f"flatten_tokens: features[{name!r}] has shape {tuple(z.shape)} and its mask is {what}, expected "
                f"({shape[0]}, {shape[1]}, D) and torch.bool ({shape[0]}, {shape[1]}); {remedy}."
            )
    somewhere = torch.stack([masks[name] for name in x]).any(0)
    return Tokens(
        {name: z[somewhere] for name, z in x.items()},
        _by_row(target, somewhere, by),
        {name: masks[name][somewhere] for name in x},
        somewhere,
    )


def _by_row(target: Tensor | None, mask: Tensor, by: str | None) -> Tensor | None:
    if by not in (None, "token", "sequence"):
        raise ValueError(f"flatten_tokens: by is {by!r}, expected 'token', 'sequence' or None; pass one of them.")
    if target is None:
        return None
    if by is None and target.shape == mask.shape and target.is_floating_point():
        raise ValueError(
            f"flatten_tokens: target is a {target.dtype} tensor {tuple(target.shape)}, which may be (B, T) by token "
            'or (B, C) by sequence; pass by="token" or by="sequence".'
        )
    if by != "sequence" and target.shape[:2] == mask.shape:
        return target[mask]
    if by == "token" or target.dim() == 0 or target.dim() > 2 or target.shape[0] != mask.shape[0]:
        raise ValueError(
            f"flatten_tokens: target has shape {tuple(target.shape)}, expected {tuple(mask.shape)} by token or "
            f"({mask.shape[0]},) by sequence, with C columns where there are several; pass one of them."
        )
    return target.repeat_interleave(mask.sum(1), 0)
