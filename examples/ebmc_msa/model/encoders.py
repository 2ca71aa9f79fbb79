"""One encoder per modality: features or padded sequences of features to one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from modbalance import masked_mean
from modbalance.presence import select

Sequence = Literal["transformer", "mean"]


class Encoder(nn.Module):
    """`(B, D)`, or `(B, T, D)` with lengths `(B,)`, to `(B, dim)`.

    Inputs are standardised by statistics of the training fold, kept in the checkpoint. The frames of a sequence see
    each other in a small transformer, or pass one layer each (`sequence="mean"`), and are averaged where valid:
    padding never counts.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, dim: int, *, sequence: Sequence | None, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.frames: nn.Module | None = None
        if sequence == "transformer":
            self.frames = Transformer(size, dim, dropout=dropout)
        elif sequence == "mean":
            self.frames = Frames(size, dim)
        self.body = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(dim if sequence else size, dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(dim, dim),
        )

    @torch.no_grad()
    def standardise(self, blocks: Iterable[Tensor]) -> None:
        """Set mean and scale from `(n, D)` blocks of what is really there in the training fold."""
        mean, scale = moments(blocks, len(self.mean))
        self.mean.copy_(mean)
        # A column that never moves says nothing: divide it by 1, not by almost zero.
        self.scale.copy_(torch.where(scale > 1e-6 * mean.abs(), scale, 1.0))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = (x - self.mean) / self.scale
        if self.frames is not None:
            assert lengths is not None
            valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            x = masked_mean(self.frames(select(x, valid), valid), valid, dim=1)
        return self.body(x)


class Frames(nn.Module):
    """One layer, frame by frame: `(B, T, D)` to `(B, T, dim)`."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(size, dim), nn.GELU())

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.layer(x)


class Transformer(nn.Module):
    """Frames that see each other: `(B, T, D)` and valid `(B, T)` to `(B, T, dim)`.

    Pre-norm with sinusoidal positions, so any length goes (Vaswani et al., Attention is all you need, 2017; Xiong
    et al., On layer normalization in the transformer architecture, 2020).
    """

    def __init__(self, size: int, dim: int, *, layers: int = 1, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.Linear(size, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.dropout(x + positions(x.shape[1], x.shape[2]).to(x))
        # An empty sequence attends to its first frame, which nobody reads: a softmax over nothing is NaN.
        keys = valid | (torch.arange(x.shape[1], device=x.device) == 0)
        for block in self.blocks:
            x = block(x, keys[:, None, None])
        return self.norm(x)


class Block(nn.Module):
    """Self-attention under a mask, `(B, heads, T, T)` or broadcast to it, then a perceptron, each a residual."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attend, self.think = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(self.attend(x)), "b t (n h d) -> n b h t d", n=3, h=self.heads)
        seen = scaled_dot_product_attention(*qkv, attn_mask=mask)
        x = x + self.dropout(self.out(rearrange(seen, "b h t d -> b t (h d)")))
        return x + self.dropout(self.mlp(self.think(x)))


def positions(frames: int, dim: int) -> Tensor:
    """Sines and cosines of geometrically spaced periods, `(frames, dim)` for even `dim`."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(frames)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


def moments(blocks: Iterable[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by column over `(n, size)` blocks; zeros where all are empty.

    Sums of squares are joined by the pairwise update of Chan, Golub and LeVeque (1983), in float64.
    """
    count, (mean, squares) = 0, torch.zeros(2, size, dtype=torch.float64)
    for x in blocks:
        if not len(x):
            continue
        middle = x.mean(0)
        apart = x - middle  # two passes over a block that fits in the cache: var_mean takes three times as long
        spread = apart.square().mean(0).double().cpu()
        middle = middle.double().cpu() + apart.mean(0).double().cpu()  # what float32 rounded away
        total = count + len(x)
        squares += spread * len(x) + (middle - mean).square() * (count * len(x) / total)
        mean += (middle - mean) * (len(x) / total)
        count = total
    return mean, (squares / max(count, 1)).sqrt()
