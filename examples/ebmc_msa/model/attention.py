"""Attention over a padded sequence: what encoders of frames and of conversations are made of."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


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
