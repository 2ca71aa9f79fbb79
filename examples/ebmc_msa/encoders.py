"""One encoder per modality: features or padded sequences of features to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modbalance import masked_mean


class Encoder(nn.Module):
    """`(B, D)`, or `(B, T, D)` with lengths `(B,)`, to `(B, dim)`.

    Inputs are standardised by statistics of the training fold, kept in the checkpoint. A sequence goes frame by
    frame through one layer and is averaged over its valid frames, so padding never counts.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, dim: int, *, sequence: bool, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.frame = nn.Sequential(nn.Linear(size, dim), nn.GELU()) if sequence else None
        self.body = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(dim if sequence else size, dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(dim, dim),
        )

    @torch.no_grad()
    def standardise(self, x: Tensor, lengths: Tensor | None, present: Tensor) -> None:
        """Set mean and scale from the rows and frames of the training fold that are really there."""
        x = x[present]
        if lengths is not None:
            x = x[torch.arange(x.shape[1], device=x.device) < lengths[present][:, None]]
        self.mean.copy_(x.mean(0))
        scale = x.std(0, correction=0)
        # A column that never moves says nothing: divide it by 1, not by almost zero.
        self.scale.copy_(torch.where(scale > 1e-6 * x.abs().amax(0), scale, 1.0))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = (x - self.mean) / self.scale
        if self.frame is not None:
            assert lengths is not None
            valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            x = masked_mean(self.frame(x), valid, dim=1)
        return self.body(x)
