"""Mix the predictions of several experts by trust, with weights fitted on validation."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmc_msa.data.augment import corrupt_at_random
from ebmc_msa.data.batch import Batch
from ebmc_msa.data.missing import conditions, restrict
from ebmc_msa.data.split import SplitView, by_length
from ebmc_msa.model.encoders import feature_std
from ebmc_msa.model.prediction import Model, Prediction
from ebmc_msa.model.teachers import TeacherOutputs
from modbalance.checks import readable
from modbalance.functional import fit_temperature, scale_temperature, trust_fusion, trust_weights
from modbalance.tasks import Task, prediction_variance, split_gaussian, task_loss

FUSED = "fused.model"  # a dot: no modality is named so
NEGLIGIBLE = 0.2  # teachers of less mean weight are left out of a mixture, and not evaluated where none has them


class TrustEnsemble(Model):
    """EBMC's prediction: the unimodal teachers and the fused model, mixed by trust.

    Each subset of modalities has a `Mixture` of its own, fitted on validation; a sample gets that of the modalities
    it has. Teachers whose fitted weight is negligible are left out and the others fitted anew. Trust, energies and
    the loss are those of the fused model.

    Args:
        student: the fused model, an `EBMC` with its teachers.
    """

    def __init__(self, student: Model) -> None:
        super().__init__()
        self.spec, self.student = student.spec, student
        self.temperature = 1.0  # of the student
        self.mixtures: dict[tuple[str, ...], Mixture] = {}

    @property
    def encoders(self) -> nn.ModuleDict:
        return self.student.encoders

    def forward(self, batch: Batch) -> Prediction:
        teachers = self.student.teachers(batch)
        out = self.student(batch, teachers)
        mixture = mixture_of_each(self.mixtures, batch.present)
        return out._replace(outputs=self._mix(batch, mixture, teachers, out.outputs))

    def answer(self, batch: Batch) -> Tensor:
        batch = self.imputed(batch)
        mixture = mixture_of_each(self.mixtures, batch.present)
        used = mixture.used
        teachers = self.student.teachers(batch, [name for name in self.spec.dims if name in used])
        return self._mix(batch, mixture, teachers, self.student.answer(batch))

    def _mix(self, batch: Batch, mixture: Mixture, teachers: TeacherOutputs, student: Tensor) -> Tensor:
        experts = teachers.outputs | {FUSED: scale_temperature(self.spec.task, student, self.temperature)}
        return mixture(self.spec.task, experts, _available(batch.present), teachers.log_in_distribution)

    @torch.no_grad()
    def fit(self, valid: SplitView) -> None:
        """Fit temperatures and mixtures on validation: clean samples and, at a fifth of the weight, corrupted ones.

        Clean samples alone do not show when to distrust a modality that is corrupted at test time.
        """
        self.eval()
        task, count = self.spec.task, len(valid)
        target = torch.cat([valid.target[rows] for rows in by_length(valid)] * 2)
        weight = torch.tensor([0.8, 0.2]).repeat_interleave(count).to(target.device)
        subsets = list(conditions(self.spec.dims).values())
        experts = [self._expert_outputs(valid.with_present(restrict(valid.present, names))) for names in subsets]
        whole = experts[-1].outputs[FUSED]
        self.temperature = fit_temperature(task, whole[:count], target[:count])
        prior = {FUSED: 1.0}  # the teachers' epochs were chosen on this split
        for names, (outputs, present, scores) in zip(subsets, experts, strict=True):
            outputs[FUSED] = scale_temperature(task, outputs[FUSED], self.temperature)

            def fit(kept: Collection[str], data: Experts = (outputs, present, scores)) -> Mixture:
                some = {name: data[0][name] for name in data[0] if name in kept}
                return fit_mixture(task, some, target, data[1], data[2], weight=weight, prior=prior)

            kept = kept_experts(fit(outputs).mean_weights(task, outputs, present, scores))
            self.mixtures[names] = fit(kept)

    @torch.no_grad()
    def calibrated_experts(self, split: SplitView) -> ExpertOutputs:
        """Of all experts, kept or not: on a clean split and then on a corrupted copy, in the order of `by_length`."""
        outputs, present, scores = self.eval()._expert_outputs(split)
        outputs[FUSED] = scale_temperature(self.spec.task, outputs[FUSED], self.temperature)
        return ExpertOutputs(outputs, present, scores)

    def _expert_outputs(self, split: SplitView) -> ExpertOutputs:
        """Of a clean split and then of a corrupted copy, in the order of `by_length`; fused not calibrated."""
        generator, parts = torch.Generator().manual_seed(0), []
        for rate in (0.0, 0.5):
            for rows in by_length(split):
                batch = corrupt_at_random(
                    replace(split.rows(rows), target=None), feature_std(self.encoders), rate, generator
                )
                batch = self.imputed(batch)
                teachers: TeacherOutputs = self.student.teachers(batch)
                outputs = teachers.outputs | {FUSED: self.student.answer(batch)}
                parts.append((outputs, _available(batch.present), teachers.log_in_distribution))
        columns = zip(*parts, strict=True)
        return ExpertOutputs(*({k: torch.cat([x[k] for x in column]) for k in column[0]} for column in columns))

    def experts(self) -> dict[str, list[str]]:
        """The experts that were kept, by subset of modalities."""
        return {"+".join(names): list(mixture.bias) for names, mixture in self.mixtures.items()}

    def frozen(self) -> list[nn.Module]:
        return self.student.frozen()

    def temperatures(self) -> dict[str, float]:
        return self.student.temperatures() | {FUSED: self.temperature}

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "mixtures": {"+".join(names): mixture._asdict() for names, mixture in self.mixtures.items()},
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.temperature = state["temperature"]
        self.mixtures = {tuple(names.split("+")): Mixture(**values) for names, values in state["mixtures"].items()}


Experts = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]  # as in `ExpertOutputs`


class ExpertOutputs(NamedTuple):
    outputs: dict[str, Tensor]  # (N, width) by expert
    present: dict[str, Tensor]  # (N,) bool by expert
    log_in_distribution: dict[str, Tensor]  # (N,) by modality


class Mixture(NamedTuple):
    """`trust_weights` of the experts' variances, with these exponents and biases; one number or one a sample."""

    trust_exponent: float | Tensor
    ood_exponent: float | Tensor  # of the probability that an expert's input is in distribution
    bias: dict[str, float] | dict[str, Tensor]  # by expert

    def __call__(
        self,
        task: Task,
        outputs: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        log_in_distribution: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Mixed predictions, `(B, width)`: log-probabilities, logits, or for gaussian means and variances.

        Args:
            outputs: calibrated head outputs by expert, `(B, width)`.
            present: bool `(B,)` by expert.
            log_in_distribution: OOD scores, `(B,)`, of the experts that have one.
        """
        return mix_experts(task, outputs, self.weights(task, outputs, present, log_in_distribution))

    @property
    def used(self) -> list[str]:
        """The experts that count in any sample; all of them in a traced graph, which is the same for every batch."""
        if torch.compiler.is_compiling():
            return list(self.bias)
        return [name for name, b in self.bias.items() if not isinstance(b, Tensor) or bool((b > -math.inf).any())]

    def weights(
        self,
        task: Task,
        outputs: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        log_in_distribution: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Weights of the experts in `outputs`, `(B,)`; arguments as above."""
        (name, x), *others = outputs.items()
        if not others and isinstance(self.bias.get(name), float):
            return {name: present[name].to(x)}
        scores = log_in_distribution or {}
        bias, here = {}, {}
        for name in outputs:
            b = torch.as_tensor(self.bias.get(name, -math.inf), device=present[name].device)
            here[name] = present[name] & (b > -math.inf)
            bias[name] = torch.where(b > -math.inf, b, 0.0)
            if name in scores:
                bias[name] = bias[name] + self.ood_exponent * scores[name]
        variances = {name: prediction_variance(task, x) for name, x in outputs.items()}
        return trust_weights(variances, here, power=self.trust_exponent, bias=bias)

    def mean_weights(self, *arguments: Any) -> dict[str, float]:
        """Mean of the weights over the samples that have the expert."""
        present = arguments[2]
        return {name: w[present[name]].mean().nan_to_num(0.0).item() for name, w in self.weights(*arguments).items()}


def mix_experts(task: Task, outputs: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Mixed predictions, `(B, width)`, of calibrated outputs `(B, width)` with weights `(B,)`, both by expert.

    Log-probabilities for classification, means and log-variances for gaussian, else logits or values.
    """
    if task == "classification":
        return trust_fusion({name: x.log_softmax(-1) for name, x in outputs.items()}, weights)
    if task == "gaussian":
        apart = {name: split_gaussian(x) for name, x in outputs.items()}
        mean = trust_fusion({name: mean for name, (mean, _) in apart.items()}, weights)
        variance = trust_fusion({name: log.exp() for name, (_, log) in apart.items()}, weights)
        return torch.cat([mean, variance.clamp(min=1e-4).log()], -1)
    return trust_fusion(outputs, weights)


def kept_experts(weights: Mapping[str, float]) -> list[str]:
    """Those of at least negligible weight, and the fused model: it answers where no modality is present."""
    return [name for name, weight in weights.items() if weight >= NEGLIGIBLE or name == FUSED]


def mixture_of_each(mixtures: Mapping[tuple[str, ...], Mixture], present: Mapping[str, Tensor]) -> Mixture:
    """The mixture of each sample's own subset of modalities, with numbers `(B,)`; the last one for other subsets.

    Where all samples have the same modalities, that mixture itself.
    """
    here = torch.stack(list(present.values()), -1)
    if readable(here) and len(here) and bool((here == here[0]).all()):
        there = {name for name, is_there in zip(present, here[0].tolist(), strict=True) if is_there}
        return next((m for names, m in mixtures.items() if set(names) == there), list(mixtures.values())[-1])
    subsets = torch.tensor([[name in names for name in present] for names in mixtures], device=here.device)
    own = (here[:, None] == subsets).all(-1)
    own[:, -1] |= ~own.any(-1)
    rows = own.byte().argmax(-1)
    every = list(mixtures.values())

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, device=here.device)[rows]

    names = dict.fromkeys(name for mixture in every for name in mixture.bias)
    bias = {name: each([mixture.bias.get(name, -math.inf) for mixture in every]) for name in names}
    return Mixture(each([m.trust_exponent for m in every]), each([m.ood_exponent for m in every]), bias)


@torch.enable_grad()
def fit_mixture(
    task: Task,
    outputs: Mapping[str, Tensor],
    target: Tensor,
    present: Mapping[str, Tensor],
    log_in_distribution: Mapping[str, Tensor] | None = None,
    *,
    weight: Tensor | None = None,
    prior: Mapping[str, float] | None = None,
    shrink: float = 1e-2,
) -> Mixture:
    """Exponents and biases with the least held-out loss: cross-entropy, or the smooth L1 error of the means.

    Args:
        outputs: held-out head outputs by expert, `(N, width)`.
        target: `(N,)`.
        present: bool `(N,)` by expert.
        log_in_distribution: as in `Mixture`.
        weight: of the samples, `(N,)`; equal by default.
        prior: biases that the penalty pulls to, by expert; 0 by default. It pulls the trust exponent to 0.05,
            because the variances of experts trained on the same samples add little to the biases, and the OOD
            exponent to 0.7.
        shrink: weight of that penalty, on squared distances.

    Returns:
        exponents of at least 0; those of the prior without samples.
    """
    start = torch.tensor([-3.0, 0.0, *((prior or {}).get(name, 0.0) for name in outputs)], dtype=torch.float64)
    free = start.clone().requires_grad_()
    outputs = {name: x.detach().double() for name, x in outputs.items()}
    weight = torch.ones(len(target), device=target.device) if weight is None else weight
    optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def fitted() -> Mixture:
        return Mixture(*F.softplus(free[:2]), dict(zip(outputs, free[2:], strict=True)))

    def loss() -> Tensor:
        optimizer.zero_grad()
        mixed = fitted()(task, outputs, present, log_in_distribution)
        if task == "gaussian":
            error = F.smooth_l1_loss(mixed[:, 0], target.double(), reduction="none", beta=0.2)
        else:
            error = task_loss(task, mixed, target)
        value = (weight * error).sum() / weight.sum() + shrink * (free - start).square().mean()
        value.backward()
        return value

    if len(target):
        optimizer.step(loss)
    best = fitted()
    return Mixture(
        best.trust_exponent.item(), best.ood_exponent.item(), {name: b.item() for name, b in best.bias.items()}
    )


def _available(present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Presence masks that mark the fused model as always available, even when no modality is present."""
    return {**present, FUSED: torch.ones_like(next(iter(present.values())))}
