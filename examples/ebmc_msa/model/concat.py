"""The plain baseline: concatenate the encoders' features."""

from __future__ import annotations

import torch
from torch import nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.model.encoders import encode, make_encoders
from ebmc_msa.model.prediction import Model, Prediction, make_head, task_term
from ebmc_msa.model.settings import Settings


class Concat(Model):
    """The encoders of EBMC, their features concatenated. With a `spec` of one modality, a unimodal model."""

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
