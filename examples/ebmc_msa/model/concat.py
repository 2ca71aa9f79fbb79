"""What every model here says, the encoders and heads that all share, and the plain model: concatenation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebmc_msa.data import Dataset
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.model.context import ContextEncoder, Contextual
from ebmc_msa.model.encoders import Encoder
from ebmc_msa.model.settings import Settings
from ebmc_msa.model.text_encoder import TextEncoder
from modbalance.distributed import mean
from modbalance.presence import select
from modbalance.tasks import output_width, task_loss


class Prediction(NamedTuple):
    outputs: Tensor  # (B, width)
    fused: Tensor  # (B, dim)
    trust: dict[str, Tensor]  # (B,) by modality; empty where nothing weighs them
    energy: dict[str, Tensor]  # (B,) by modality
    loss: Tensor  # scalar; 0 without a target
    terms: dict[str, Tensor]  # what it is made of


class Concat(nn.Module):
    """The same encoders, their features concatenated. Of one modality: that one alone."""

    def __init__(self, spec: Spec, settings: Settings) -> None:
        super().__init__()
        self.spec = spec
        self.encoders = make_encoders(spec, settings)
        self.mix = nn.Linear(settings.dim * len(spec.dims), settings.dim)
        self.head = make_head(spec, settings)

    def forward(self, batch: Batch) -> Prediction:
        fused = self.mix(torch.cat(list(encode(self.encoders, batch).values()), -1))
        outputs = self.head(fused)
        task = task_term(self, outputs, batch.target)
        return Prediction(outputs, fused, {}, {}, task, {"task": task})


def spec_of(dataset: Dataset, settings: Settings, modalities: list[str] | None = None) -> Spec:
    """What a model with these settings must know of the data."""
    context = "none" if settings.context == "none" else "shuffled" if settings.shuffled else "ordered"
    return Spec.of(dataset, modalities, context=context, balanced=settings.class_weight == "balanced")


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


def scales(encoders: nn.ModuleDict) -> dict[str, Tensor]:
    """Standard deviation of each feature in training, `(D,)` by modality; tokens have none."""
    inner = {name: utterance_encoder(encoder) for name, encoder in encoders.items()}
    return {name: encoder.scale for name, encoder in inner.items() if isinstance(encoder, Encoder)}


def utterance_encoder(encoder: nn.Module) -> nn.Module:
    """The encoder without its context."""
    return encoder.encoder if isinstance(encoder, Contextual) else encoder


def make_head(spec: Spec, settings: Settings) -> nn.Sequential:
    width = output_width(spec.task, spec.num_outputs)
    return nn.Sequential(nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(settings.dim, width))


def encode(encoders: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
    """Features by modality, zero where absent."""
    return {name: select(encoder(*batch.inputs(name)), batch.present[name]) for name, encoder in encoders.items()}


def task_term(model: nn.Module, outputs: Tensor, target: Tensor | None) -> Tensor:
    if target is None:
        return outputs.new_zeros(())
    return mean(weighted_loss(model.spec, outputs, target), sync=model.training)


def weighted_loss(spec: Spec, outputs: Tensor, target: Tensor) -> Tensor:
    """The task loss of each sample, `(B,)`, weighed by class where the spec says so."""
    return task_loss(spec.task, outputs, target, class_weight=weight_of(spec, outputs.device))


def weight_of(spec: Spec, device: torch.device | None = None) -> Tensor | None:
    """Weight of each class, `(C,)`, as the components take it."""
    return torch.tensor(spec.class_weight, device=device) if spec.class_weight else None
