"""One encoder per modality: features or padded sequences of features to one vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.frames import frame_mask, std_or_one
from ebmc_msa.model.attention import Block, positions
from ebmc_msa.model.context import ContextEncoder, Contextual
from ebmc_msa.model.settings import Settings
from ebmc_msa.model.text_encoder import TextEncoder
from modbalance import masked_mean
from modbalance.presence import select

Sequence = Literal["transformer", "mean"]


class Encoder(nn.Module):
    """`(B, D)`, or `(B, T, D)` with lengths `(B,)`, to `(B, dim)`.

    Inputs are standardised by statistics of the training split, kept in the checkpoint. The frames of a sequence see
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
        """Set mean and scale from `(n, D)` blocks of what is really there in the training split."""
        mean, scale = moments(blocks, len(self.mean))
        self.mean.copy_(mean)
        self.scale.copy_(std_or_one(scale, mean))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = (x - self.mean).div_(self.scale)  # in place: sequences are large
        if self.frames is not None:
            assert lengths is not None
            valid = frame_mask(x.shape[1], lengths)
            x = x.masked_fill_(~valid[..., None], 0.0)
            x = masked_mean(self.frames(x, valid), valid, dim=1)
        return self.body(x)


def make_encoders(spec: Spec, settings: Settings) -> nn.ModuleDict:
    return nn.ModuleDict({name: make_encoder(name, size, spec, settings) for name, size in spec.dims.items()})


def make_encoder(name: str, size: int, spec: Spec, settings: Settings) -> nn.Module:
    """From an utterance's input to its features; with context, to features that have read the conversation too."""
    encoder = make_utterance_encoder(name, size, spec, settings)
    if spec.context == "none":
        return encoder
    context = ContextEncoder(
        settings.dim, settings.context, causal=settings.causal, speakers=spec.speakers, dropout=settings.dropout
    )
    return Contextual(encoder, context)


def make_utterance_encoder(name: str, size: int, spec: Spec, settings: Settings) -> nn.Module:
    if name == "text" and spec.text is not None:
        return TextEncoder(spec.text, settings.dim, dropout=settings.dropout)
    sequence = settings.encoder if name in spec.sequences else None
    return Encoder(size, settings.dim, sequence=sequence, dropout=settings.dropout)


def encode(encoders: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
    """Features by modality, zero where absent."""
    return {name: select(encoder(*batch.inputs(name)), batch.present[name]) for name, encoder in encoders.items()}


def feature_std(encoders: nn.ModuleDict) -> dict[str, Tensor]:
    """Standard deviation of each input feature in training, `(D,)` by modality; token ids have none."""
    inner = {name: e.encoder if isinstance(e, Contextual) else e for name, e in encoders.items()}
    return {name: encoder.scale for name, encoder in inner.items() if isinstance(encoder, Encoder)}


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
        # An empty sequence attends to its first frame, whose output is masked: a softmax over nothing is NaN.
        keys = valid | (torch.arange(x.shape[1], device=x.device) == 0)
        for block in self.blocks:
            x = block(x, keys[:, None, None])
        return self.norm(x)


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
