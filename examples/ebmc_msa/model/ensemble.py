"""How far a prediction is to be believed, fitted on validation: its stated uncertainty, and its weight among others.

A teacher is over-confident on what it was trained on. One number a teacher mends that: a temperature for classes
(Guo et al., On calibration of modern neural networks, 2017), a factor of the variance for regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.functional import trust_fusion, trust_weights
from modbalance.tasks import Task, prediction_variance, split_gaussian, task_loss


def fit_scale(task: Task, outputs: Tensor, target: Tensor) -> float:
    """The number that makes held-out `outputs` most likely; 1 without any."""
    if not len(outputs):
        return 1.0
    if task != "gaussian":
        temperatures = torch.logspace(-1, 2, 121).tolist()
        losses = [task_loss(task, outputs / t, target).mean().item() for t in temperatures]
        return temperatures[losses.index(min(losses))]
    mean, log_variance = split_gaussian(outputs)
    return ((mean - target[:, None]).square() * (-log_variance).exp()).mean().clamp(1e-2, 1e3).item()


def calibrate(task: Task, outputs: Tensor, scale: float) -> Tensor:
    """`outputs` with their uncertainty mended; the prediction stays the same."""
    if task != "gaussian":
        return outputs / scale
    mean, log_variance = outputs.chunk(2, -1)
    return torch.cat([mean, log_variance + torch.tensor(scale).log()], -1)


class Vote(NamedTuple):
    """How several predictions become one: `trust_weights` of their variances with this `power` and these biases."""

    power: float | Tensor  # of the trust
    doubt: float | Tensor  # power of the probability that the expert's input is as it should be
    bias: dict[str, float] | dict[str, Tensor]  # by expert

    def __call__(
        self,
        task: Task,
        said: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        typical: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predictions mixed by trust: log-probabilities or logits; for gaussian means, and variances.

        Args:
            said: calibrated head outputs by expert, `(B, width)`.
            present: bool `(B,)` by expert.
            typical: log-probability that nothing was done to the input, `(B,)`, of the experts that have one.
        """
        bias = {
            name: b + self.doubt * typical[name] if name in (typical or {}) else b for name, b in self.bias.items()
        }
        variances = {name: prediction_variance(task, outputs) for name, outputs in said.items()}
        weights = trust_weights(variances, present, power=self.power, bias=bias)
        if task == "classification":
            return trust_fusion({name: outputs.log_softmax(-1) for name, outputs in said.items()}, weights)
        if task == "gaussian":
            apart = {name: split_gaussian(outputs) for name, outputs in said.items()}
            mean = trust_fusion({name: mean for name, (mean, _) in apart.items()}, weights)
            variance = trust_fusion({name: log.exp() for name, (_, log) in apart.items()}, weights)
            return torch.cat([mean, variance.clamp(min=1e-4).log()], -1)
        return trust_fusion(said, weights)


def vote_for(votes: Mapping[tuple[str, ...], Vote], present: Mapping[str, Tensor]) -> Vote:
    """Of votes by set of modalities each sample's own, with numbers `(B,)`; the last one's where its set has none."""
    here = torch.stack(list(present.values()), -1)
    sets = torch.tensor([[name in names for name in present] for names in votes], device=here.device)
    own = (here[:, None] == sets).all(-1)
    own[:, -1] |= ~own.any(-1)
    rows = own.byte().argmax(-1)

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, device=here.device)[rows]

    bias = {name: each([vote.bias[name] for vote in votes.values()]) for name in next(iter(votes.values())).bias}
    return Vote(each([v.power for v in votes.values()]), each([v.doubt for v in votes.values()]), bias)


@torch.enable_grad()
def fit_vote(
    task: Task,
    said: Mapping[str, Tensor],
    target: Tensor,
    present: Mapping[str, Tensor],
    typical: Mapping[str, Tensor] | None = None,
    *,
    weight: Tensor | None = None,
    prior: Mapping[str, float] | None = None,
    shrink: float = 1e-2,
) -> Vote:
    """The powers and biases that meet held-out targets best: by cross-entropy, or by the smooth L1 error of means.

    Args:
        said: held-out head outputs by expert, `(N, width)`.
        target: `(N,)`.
        present: bool `(N,)` by expert.
        typical: as `Vote` takes it.
        weight: of the samples, `(N,)`; all alike by default.
        prior: biases that little data stay near, by expert; 0 by default. Near 0.05 stays the power of the trust, for
            the variances of experts who learnt from the same samples say little more than who is better on the whole,
            and near 0.7 that of doubt.
        shrink: of the penalty on the squared distance from there.

    Returns:
        powers of at least 0; without samples those of the prior.
    """
    start = torch.tensor([-3.0, 0.0, *((prior or {}).get(name, 0.0) for name in said)], dtype=torch.float64)
    free = start.clone().requires_grad_()
    said = {name: outputs.detach().double() for name, outputs in said.items()}
    weight = torch.ones(len(target), device=target.device) if weight is None else weight
    optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def fitted() -> Vote:
        return Vote(*F.softplus(free[:2]), dict(zip(said, free[2:], strict=True)))

    def loss() -> Tensor:
        optimizer.zero_grad()
        mixed = fitted()(task, said, present, typical)
        if task == "gaussian":
            error = F.smooth_l1_loss(mixed[:, 0], target.double(), reduction="none", beta=0.2)
        else:
            error = task_loss(task, mixed, target)
        value = (weight * error).sum() / weight.sum() + shrink * (free - start).square().mean()
        value.backward()
        return value

    if len(target):
        optimizer.step(loss)
    found = fitted()
    return Vote(found.power.item(), found.doubt.item(), {name: b.item() for name, b in found.bias.items()})
