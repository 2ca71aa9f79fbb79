"""What a model of the pipeline returns, and what training asks of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ebmc_msa.data import Dataset
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.split import SplitView
from ebmc_msa.model.settings import Settings
from modbalance.distributed import mean
from modbalance.tasks import output_width, task_loss


class Prediction(NamedTuple):
    outputs: Tensor  # (B, width)
    fused: Tensor  # (B, dim)
    trust: dict[str, Tensor]  # (B,) by modality; empty without teachers
    energy: dict[str, Tensor]  # (B,) by modality; empty without a coordinator
    loss: Tensor  # scalar; 0 without a target
    terms: dict[str, Tensor]  # of the loss, scalars


class Model(nn.Module):
    """Base of all models: `forward` maps a batch to a `Prediction`.

    The other methods are what training asks. Their defaults are those of a model with one stage, a plain backward
    pass and no frozen parts.
    """

    spec: Spec
    encoders: nn.ModuleDict
    strength = 1.0  # of all that is not joint training, 0 to 1; set by the training loop at each step
    rest = 0  # epochs without progress on validation that end joint training; 0: no such phase, see `Schedule`
    partly_unused = False  # whether the loss can leave parameters out; DDP must know

    def __call__(self, batch: Batch, *arguments: Any, **keywords: Any) -> Prediction:
        return super().__call__(self.imputed(batch), *arguments, **keywords)

    def forward(self, batch: Batch) -> Prediction:
        raise NotImplementedError

    def imputed(self, batch: Batch) -> Batch:
        """What the model reads: with `spec.impute` absent modalities come from the utterances around."""
        impute = self.spec.impute
        return batch if impute == "none" else batch.imputed(earlier=impute == "earlier")

    def answer(self, batch: Batch) -> Tensor:
        """The outputs of `forward`, `(B, width)`, without the cost of what only the rest of a `Prediction` needs."""
        return self(batch).outputs

    def backward(self, out: Prediction) -> None:
        """Compute gradients; a balancer that changes gradients overrides this."""
        out.loss.backward()

    def stages(self, settings: Settings) -> dict[str, int]:
        """Names of the training stages and the most epochs of each."""
        return {"train": settings.stage1_epochs + settings.stage2_epochs}

    def unimodal_branches(self) -> dict[str, nn.Module]:
        """The branches to keep from their own best epochs, because they will become teachers."""
        return {}

    def start_balancing(
        self, train: SplitView, valid: SplitView, branches: dict[str, dict[str, Tensor]]
    ) -> Self | None:
        """Begin the second stage; returns a frozen copy of the model after the first, or None where there is one.

        Args:
            branches: `state_dict` of each unimodal branch at its own best epoch.
        """
        return None

    def observe(self, valid: SplitView) -> None:
        """Take in validation after each epoch, where a balancer weighs modalities by held-out data."""

    def balance_weights(self) -> dict[str, float]:
        """What share of the balancer's terms each modality gets, 0 to 1; empty where nothing is weighed."""
        return {}

    def undo_balancing(self, stage1: Self) -> None:
        """Predict as after the first stage again, of which `start_balancing` returned a copy."""
        raise NotImplementedError

    def finalize(self, valid: SplitView) -> Model:
        """The model that predicts once training is over."""
        return self

    def frozen(self) -> list[nn.Module]:
        """Frozen networks that prediction needs, outside of `parameters()`."""
        return []

    def experts(self) -> dict[str, list[str]]:
        """Which of several predictors are mixed, by subset of modalities; empty where there is one."""
        return {}

    def temperatures(self) -> dict[str, float]:
        """Fitted temperature of each frozen or fused predictor."""
        return {}


def make_head(spec: Spec, settings: Settings) -> nn.Sequential:
    width = output_width(spec.task, spec.num_outputs)
    return nn.Sequential(nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(settings.dim, width))


def task_term(model: Model, outputs: Tensor, target: Tensor | None) -> Tensor:
    """Mean task loss over the batch, and over processes in training; 0 without a target."""
    if target is None:
        return outputs.new_zeros(())
    return mean(weighted_loss(model.spec, outputs, target), sync=model.training)


def weighted_loss(spec: Spec, outputs: Tensor, target: Tensor) -> Tensor:
    """The task loss of each sample, `(B,)`, weighted by class where the spec has weights."""
    return task_loss(spec.task, outputs, target, class_weight=weight_of(spec, outputs.device))


def weight_of(spec: Spec, device: torch.device | None = None) -> Tensor | None:
    """Weight of each class, `(C,)`, as the components take it."""
    return torch.tensor(spec.class_weight, device=device) if spec.class_weight else None


def spec_of(dataset: Dataset, settings: Settings, modalities: list[str] | None = None) -> Spec:
    """What a model with these settings must know of the data."""
    context = "none" if settings.context == "none" else "shuffled" if settings.shuffled else "ordered"
    spec = Spec.of(dataset, modalities, context=context, balanced=settings.class_weight == "balanced")
    return replace(spec, impute="earlier" if settings.causal else "nearest") if settings.impute_context else spec
