"""Published balancers, written from their formulas, on the encoders and the fusion of `Concat`.

Each is a `Concat` with another loss, or with a `backward` that changes gradients. A modality's own error is the
cross-entropy, or half the squared error of the standardised target where the papers have classes only. Means are over
the samples that have the modality, and with more than two modalities "the other" becomes the mean of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.encoders import encode
from ebmc_msa.model.prediction import Prediction, weighted_loss
from ebmc_msa.model.settings import Settings
from modbalance import Teacher
from modbalance.diagnostics import shapley_values
from modbalance.presence import select
from modbalance.tasks import output_width, task_loss


class Fusion(Concat):
    """`Concat` whose features its heirs can use; by itself the same model."""

    def forward(self, batch: Batch) -> Prediction:
        features = encode(self.encoders, batch)
        fused = self.mix(torch.cat(list(features.values()), -1))
        outputs = self.head(fused)
        terms = {"task": outputs.new_zeros(())}
        if batch.target is not None:
            terms = {"task": weighted_loss(self.spec, outputs, batch.target).mean()}
            terms |= self.extra(features, batch)
        return Prediction(outputs, fused, {}, {}, torch.stack(list(terms.values())).sum(), terms)

    def extra(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss beside the task's; called with a target only."""
        return {}

    def only(self, features: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
        """What the fused model says with the features of all but `names` set to zero."""
        kept = [x if name in names else torch.zeros_like(x) for name, x in features.items()]
        return self.head(self.mix(torch.cat(kept, -1)))


class Auxiliary(Fusion):
    r"""A linear head on each encoder, learning with it: $L = w L_{task} + \sum_m w_m L_m$, all weights 1."""

    def __init__(self, spec: Spec, settings: Settings, weights: Mapping[str, float] | None = None) -> None:
        """`weights` by modality, that of the fused head under "task"."""
        super().__init__(spec, settings)
        width = output_width(spec.task, spec.num_outputs)
        self.heads = nn.ModuleDict({name: nn.Linear(settings.dim, width) for name in spec.dims})
        self.weights = dict.fromkeys([*spec.dims, "task"], 1.0) if weights is None else weights

    def forward(self, batch: Batch) -> Prediction:
        out = super().forward(batch)
        loss = sum(self.weights[name] * term for name, term in out.terms.items())
        return out._replace(loss=loss)

    def extra(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {
            name: over_present(weighted_loss(self.spec, self.heads[name](z), batch.target), batch.present[name])
            for name, z in features.items()
        }


class OGM(Fusion):
    r"""OGM-GE: the gradient of each encoder that runs ahead is scaled down, and noise of the gradient's size added.

    $$\rho_m = \frac{s_m}{\text{mean}_{k \ne m}\, s_k}, \qquad
    k_m = 1 - \tanh(\alpha \rho_m)\,[\rho_m > 1], \qquad
    g_m \leftarrow k_m g_m + \epsilon, \quad \epsilon \sim N(0, \text{var}(g_m))$$

    $s_m$ is the mean probability of the true class from modality m alone; for values $e^{-(\mu - y)^2 / 2}$.

    Source: Peng et al., Balanced multimodal learning via on-the-fly gradient modulation, CVPR 2022. Our choice:
    alpha 0.8; m alone goes through the fused head with the others zero, as there is no linear fusion to split.
    """

    alpha = 0.8
    noise = 1.0

    def extra(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            errors = {m: error(self.spec.task, self.only(features, (m,)), batch.target) for m in features}
            scores = {m: over_present((-e).exp(), batch.present[m]).item() for m, e in errors.items()}
        self.coefficients = ogm_coefficients(scores, self.alpha)
        return {}

    def backward(self, out: Prediction) -> None:
        out.loss.backward()
        for name, encoder in self.encoders.items():
            for p in encoder.parameters():
                enhancement = self.noise * p.grad.std(correction=0) * torch.randn_like(p)
                p.grad.mul_(self.coefficients[name]).add_(enhancement)


class AGM(Fusion):
    r"""The gradient of an encoder is scaled down while its modality is further ahead than it used to be.

    $$r_m = \exp\bigl(\text{mean}_{k \ne m}(s_k - s_m)\bigr), \qquad \kappa_m = e^{\alpha (\tau_m - r_m)}, \qquad
    g_m \leftarrow \kappa_m g_m$$

    $s_m$ is the error of modality m's Shapley share of the fused outputs (nothing at all says 0), $\tau_m$ is $r_m$
    of the mean errors of all steps before.

    Source: Li et al., Boosting multi-modal model performance with adaptive gradient modulation, ICCV 2023. The
    exponent is cut at 10 alpha as in the authors' code; our choice: alpha 1.
    """

    alpha = 1.0

    def __init__(self, spec: Spec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.steps, self.mean = 0, dict.fromkeys(spec.dims, 0.0)

    def extra(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if not self.training:
            return {}
        with torch.no_grad():
            shares = shapley_values(lambda s: self.only(features, s) if s else torch.zeros(()), list(features))
            errors = {m: error(self.spec.task, share, batch.target) for m, share in shares.items()}
            now = {m: over_present(e, batch.present[m]).item() for m, e in errors.items()}
        self.coefficients = agm_coefficients(now, self.mean if self.steps else now, self.alpha)
        self.steps += 1
        self.mean = {m: mean + (now[m] - mean) / self.steps for m, mean in self.mean.items()}
        return {}

    def backward(self, out: Prediction) -> None:
        out.loss.backward()
        for name, encoder in self.encoders.items():
            for p in encoder.parameters():
                p.grad.mul_(self.coefficients[name])


class MMPareto(Auxiliary):
    r"""Each encoder follows a direction that serves the fused and the unimodal loss, never shorter than their sum.

    With $g$ of the fused and $g_m$ of modality m's own loss on encoder m: $h = g + g_m$ where $g \cdot g_m \ge 0$,
    else $h = 2 a g + 2 (1 - a) g_m$ with $a \in [0, 1]$ of the smallest norm, stretched to $\lVert g + g_m \rVert$;
    the encoder gets $\gamma h$.

    Source: Wei and Hu, MMPareto: boosting multimodal learning with innocent unimodal assistance, ICML 2024; their
    gamma of 1.5.
    """

    gamma = 1.5

    def backward(self, out: Prediction) -> None:
        out.terms["task"].backward(retain_graph=True)
        groups = {name: list(encoder.parameters()) for name, encoder in self.encoders.items()}
        fused = {name: [p.grad.clone() for p in group] for name, group in groups.items()}
        torch.stack([out.terms[name] for name in groups]).sum().backward()
        for name, group in groups.items():
            both = torch.cat([p.grad.flatten() for p in group])
            joint = torch.cat([g.flatten() for g in fused[name]])
            direction = pareto_direction(joint, both - joint, self.gamma)
            for p, piece in zip(group, direction.split([p.numel() for p in group]), strict=True):
                p.grad.copy_(piece.view_as(p))


class UMT(Fusion):
    r"""Encoders learn the features of encoders trained alone: $L_{task} + \lambda \sum_m \text{mean}(z_m - z_m^T)^2$.

    Source: Du et al., On uni-modal feature learning in supervised multi-modal learning, ICML 2023. Our choice:
    lambda 1.
    """

    weight = 1.0

    def __init__(self, spec: Spec, settings: Settings, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__(spec, settings)
        self.teachers = {name: Teacher(encoder) for name, encoder in encoders.items()}

    def extra(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        terms = {}
        for name, z in features.items():
            taught = self.teachers[name](*batch.inputs(name))
            terms[f"taught {name}"] = self.weight * over_present((z - taught).square().mean(-1), batch.present[name])
        return terms


def blend_weights(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    r"""Gradient Blending (offline): how much each loss gained on held-out data for what it over-fitted, squared.

    $$w_k \propto G_k / O_k^2, \qquad \sum_k w_k = 1, \qquad
    G = L^v_{before} - L^v_{after}, \quad O = (L^v - L^t)_{after} - (L^v - L^t)_{before}$$

    Args:
        before, after: (training loss, validation loss) of each model trained by itself, the fused one included.

    Source: Wang et al., What makes training multi-modal classification networks hard?, CVPR 2020. Our choice: O is at
    least 0.01, G at least 0; all weights equal where nothing gained.
    """
    weights = {}
    for name, (train, valid) in before.items():
        gain = max(valid - after[name][1], 0.0)
        overfit = max((after[name][1] - after[name][0]) - (valid - train), 0.01)
        weights[name] = gain / overfit**2
    total = sum(weights.values())
    return {name: w / total if total else 1 / len(weights) for name, w in weights.items()}


def ogm_coefficients(scores: Mapping[str, float], alpha: float) -> dict[str, float]:
    ratios = {name: score / _others(scores, name) for name, score in scores.items()}
    return {name: 1 - math.tanh(alpha * r) if r > 1 else 1.0 for name, r in ratios.items()}


def agm_coefficients(now: Mapping[str, float], mean: Mapping[str, float], alpha: float) -> dict[str, float]:
    def ratio(errors: Mapping[str, float], name: str) -> float:
        return math.exp(min(_others(errors, name) - errors[name], 50.0))

    return {name: math.exp(alpha * min(ratio(mean, name) - ratio(now, name), 10.0)) for name in now}


def pareto_direction(fused: Tensor, alone: Tensor, gamma: float) -> Tensor:
    plain = fused + alone
    if fused @ alone >= 0:
        return gamma * plain
    gap = alone - fused
    a = ((gap @ alone) / (gap @ gap)).clamp(0, 1)
    shortest = 2 * a * fused + 2 * (1 - a) * alone
    return gamma * shortest * (plain.norm() / shortest.norm().clamp(min=1e-12)).clamp(min=1)


def error(task: str, outputs: Tensor, target: Tensor) -> Tensor:
    """A modality's own error by sample: cross-entropy, or half the squared error of the mean."""
    if task == "classification":
        return task_loss(task, outputs, target)
    return 0.5 * (outputs[:, 0] - target).square()


def over_present(values: Tensor, here: Tensor) -> Tensor:
    """Mean over the samples that have the modality; 0 without any."""
    return select(values, here).sum() / here.sum().clamp(min=1)


def _others(values: Mapping[str, float], name: str) -> float:
    rest = [value for other, value in values.items() if other != name]
    return sum(rest) / len(rest)
