"""What EBMC is compared with: functions from splits to a trained model. Every choice is made on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.frames import std_or_one
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.scores import evaluate, selection_score
from ebmc_msa.experiments.balancers import UMT, Balanced, agm, blending, mmpareto, ogm, unimodal
from ebmc_msa.experiments.stacking import fit_stacking
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ood import pooled
from ebmc_msa.model.prediction import Model, Prediction
from ebmc_msa.model.settings import Settings
from ebmc_msa.training.stages import train
from modbalance.presence import select
from modbalance.tasks import split_gaussian

DROPOUT_RATES = (0.1, 0.3, 0.5)
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Work:
    """What a method is given. `alone` trains or fetches the model of one modality."""

    spec: Spec
    settings: Settings
    train: SplitView
    valid: SplitView
    seed: int
    alone: Callable[[str], Concat]


class Late(Model):
    """The mean of models trained alone, over those whose modality is present: of probabilities, or of means.

    For values the stated variance is the mean of theirs. Of one model: that one.
    """

    def __init__(self, spec: Spec, members: Mapping[str, Concat]) -> None:
        super().__init__()
        self.spec, self.members = spec, nn.ModuleDict(members)

    def forward(self, batch: Batch) -> Prediction:
        outputs_of_each = torch.stack([member(batch).outputs for member in self.members.values()])
        here = torch.stack([batch.present[name] for name in self.members]).float()
        here = torch.where(here.any(0), here, 1.0)
        weights = (here / here.sum(0))[..., None]
        if self.spec.task == "classification":
            outputs = ((outputs_of_each.log_softmax(-1)) + weights.log()).logsumexp(0)
        else:
            mean, log_variance = split_gaussian(outputs_of_each)
            outputs = torch.cat([(weights * mean).sum(0), (weights * log_variance.exp()).sum(0).log()], -1)
        return Prediction(outputs, outputs, {}, {}, outputs.new_zeros(()), {})


class Linear(Model):
    """A linear model of all features, averaged over frames and standardised; 0, their mean, where absent."""

    def __init__(self, spec: Spec, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.spec, self.mean, self.scale = spec, mean, scale
        self.weight, self.bias = torch.zeros(1), torch.zeros(1)

    def design(self, batch: Batch) -> Tensor:
        x, here = side_by_side(batch)
        return select((x - self.mean) / self.scale, here)

    def forward(self, batch: Batch) -> Prediction:
        outputs = self.design(batch) @ self.weight.T + self.bias
        return Prediction(outputs, outputs, {}, {}, outputs.new_zeros(()), {})


def side_by_side(batch: Batch) -> tuple[Tensor, Tensor]:
    """All features side by side, `(B, D)`, and which of them are there."""
    parts, here = [], []
    for name, x in batch.features.items():
        parts.append(pooled(x, batch.lengths.get(name)))
        here.append(batch.present[name][:, None].expand_as(parts[-1]))
    return torch.cat(parts, -1), torch.cat(here, -1)


def linear(work: Work) -> Linear:
    """Ridge or logistic regression of scikit-learn, its strength chosen on validation."""
    spec, candidates = work.spec, []
    batches = [work.train.rows(rows) for rows in torch.arange(len(work.train)).split(256)]
    raw, here = (torch.cat(parts) for parts in zip(*map(side_by_side, batches), strict=True))
    count = here.sum(0).clamp(min=1)
    mean = select(raw, here).sum(0) / count
    scale = std_or_one((select(raw - mean, here).square().sum(0) / count).sqrt(), mean)
    x, y = select((raw - mean) / scale, here).double().numpy(), work.train.target.numpy()
    for strength in STRENGTHS:
        model = Linear(spec, mean, scale)
        if spec.kind == "classes":
            fitted = LogisticRegression(C=strength, max_iter=3000).fit(x, y)
            weight, bias = np.zeros((spec.num_outputs, x.shape[1])), np.full(spec.num_outputs, -30.0)
            two = len(fitted.classes_) == 2
            weight[fitted.classes_] = np.concatenate([-fitted.coef_, fitted.coef_]) / 2 if two else fitted.coef_
            bias[fitted.classes_] = (
                np.concatenate([-fitted.intercept_, fitted.intercept_]) / 2 if two else fitted.intercept_
            )
        else:
            fitted = Ridge(alpha=1 / strength).fit(x, y)
            residual = y - fitted.predict(x)
            weight = np.stack([fitted.coef_, np.zeros_like(fitted.coef_)])
            bias = np.array([fitted.intercept_, np.log(max(residual.var(), 1e-4))])
        model.weight, model.bias = torch.tensor(weight).float(), torch.tensor(bias).float()
        candidates.append(model)
    return best(candidates, work)


def best(models: list[Model], work: Work) -> Model:
    """The one that is best on validation."""
    return max(models, key=lambda model: selection_score(work.spec.kind, evaluate(model, work.valid)))


def trained(model: Model, work: Work) -> Model:
    return train(model, work.train, work.valid, work.settings, work.seed, lambda *_: None).model


def plain(work: Work, rate: float) -> Model:
    """Concatenation at a rate of modality dropout, on samples as they are."""
    settings = replace(work.settings, modality_dropout=rate, corruption=0.0)
    return trained(Concat(work.spec, settings), replace(work, settings=settings))


def dropout_chosen(work: Work) -> Model:
    models = []
    for rate in DROPOUT_RATES:
        torch.manual_seed(work.seed)
        models.append(plain(work, rate))
    return best(models, work)


def single(work: Work) -> Late:
    return best([Late(work.spec, {name: work.alone(name)}) for name in work.spec.dims], work)


def late(work: Work) -> Late:
    return Late(work.spec, {name: work.alone(name) for name in work.spec.dims})


def umt(work: Work) -> Model:
    encoders = {name: work.alone(name).encoders[name] for name in work.spec.dims}
    return trained(UMT(work.spec, work.settings, encoders), work)


def gradient_blending(work: Work) -> Model:
    """Weights from models trained by themselves, then one network with all the heads."""

    def losses(model: Model) -> tuple[float, float]:
        splits = []
        for split in (work.train, work.valid):
            rows = torch.stack([split.present[name] for name in model.spec.dims]).any(0)
            splits.append(evaluate(model, split.select(rows))["loss"])
        return splits[0], splits[1]

    before, after = {}, {}
    for name in [*work.spec.dims, "task"]:
        if name == "task":
            model = Concat(work.spec, work.settings)
            before[name] = losses(standardised(model, work.train))
            after[name] = losses(trained(model, work))
        else:
            model = work.alone(name)
            before[name] = losses(standardised(Concat(model.spec, work.settings), work.train))
            after[name] = losses(model)
    model = Balanced(work.spec, work.settings, blending)
    model.balance.update(before)
    model.balance.update(after)
    return trained(model, work)


def standardised(model: Concat, split: SplitView) -> Concat:
    for name, encoder in model.encoders.items():
        encoder.standardise(split.frames(name))
    return model


CONTROLS: dict[str, Callable[[Work], Model]] = {
    "single": single,
    "linear": linear,
    "concat": lambda work: plain(work, 0.0),
    "dropout": lambda work: trained(Concat(work.spec, work.settings), work),
    "dropout-chosen": dropout_chosen,
    "auxiliary": lambda work: trained(Balanced(work.spec, work.settings, unimodal), work),
    "late": late,
    "composite": lambda work: fit_stacking(work.spec, work.settings, work.train, work.valid, work.seed),
}
BALANCERS: dict[str, Callable[[Work], Model]] = {
    "ogm-ge": lambda work: trained(Balanced(work.spec, work.settings, ogm), work),
    "agm": lambda work: trained(Balanced(work.spec, work.settings, agm), work),
    "mmpareto": lambda work: trained(Balanced(work.spec, work.settings, mmpareto), work),
    "g-blend": gradient_blending,
    "umt": umt,
}
METHODS = {**CONTROLS, **BALANCERS}
NAMES = ("ebmc", *METHODS)
NEED_ALONE = ("single", "late", "umt", "g-blend")
