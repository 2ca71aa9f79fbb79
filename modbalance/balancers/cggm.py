"""CGGM: the classifiers of the modalities tell who needs more."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from modbalance.balancers.formulas import cggm_coefficients
from modbalance.balancers.gradients import GradientBalancer, Predict, check_batch, check_encoders, over
from modbalance.checks import Presence, check_dims, check_inputs, check_nonnegative, check_positive, given
from modbalance.distributed import Sync, reduce
from modbalance.heads import linear_heads
from modbalance.placement import as_parameters
from modbalance.presence import masked_mean, select, upcast
from modbalance.protocol import BalancerOutput, no_loss
from modbalance.task_checks import IGNORE_INDEX
from modbalance.task_formulas import HeadOutputs, loss_slope, split_gaussian
from modbalance.tasks import Task, task_loss
from modbalance.training_check import TrainingCheck

__all__ = ["CGGM"]


class CGGM(GradientBalancer):
    r"""Scale the encoders' gradients, and turn the fused one, towards the modality that improves least.

    $$B_m = \rho\,\frac{\sum_{k \ne m} \Delta\varepsilon_k}{\sum_k \Delta\varepsilon_k}, \qquad
      g_m \leftarrow B_m g_m, \qquad
      L_{gm} = \operatorname{mean}_m \bigl(|B_m| - B_m \cos(\nabla, \nabla_m)\bigr)$$

    Delta eps_m is what the metric of modality m's classifier gained since the step before: its accuracy, that of all
    labels, or minus the mean absolute error of values. The classifiers are linear and learn from detached features;
    they are not needed after training. B is cut to [0, rho]; the first step changes nothing.

    The gradients whose directions are compared are those of the losses with respect to the outputs, a row a sample,
    cos over each row and a mean over the samples: they exist for any fusion. That of the classifier is held fixed, so
    that L_gm turns the fused outputs.

    Hooks in by a loss term (the classifiers' losses and $\lambda L_{gm}$) and by `step()`. Costs M linear layers a
    step and, with `direction` > 0, one call of `predict` with its backward pass.

    Caveats: Delta eps is the difference of two accuracies of single batches, so B is mostly noise with small batches;
    as with OGM-GE, Adam divides a lasting scale out again. With one output (a single value) the cosine of a row is a
    sign.

    Experimental: of the paper the abstract and the first pages were read; B and L_gm are as restated in a public note
    on it, with rho of 1.3 and lambda of 0.2 from there. Gradients by output, the cut of B and linear classifiers are
    ours.

    Args:
        encoders: the module of each modality, the names of `dims`, no parameter in common. They stay yours.
        dims: feature size by modality, at least two.
        num_outputs: number of classes, labels or targets.
        predict: your fusion and head, `(features, present)` to outputs `(B, width)`; needed for `direction` > 0.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        rho: amplification of the gradients, > 0.
        direction: lambda, weight of L_gm; 0 leaves it out.
        ignore_index: label of the rows that do not count; classification only.
        sync: losses and metrics over all processes; see `modbalance.distributed`.

    Shape:
        features `(B, D_m)` by modality, target `(B,)` or `(B, C)`, present bool `(B,)` by modality → a
        `BalancerOutput`; without a target the losses are 0.

    Raises:
        ValueError: a name, shape or task does not fit, two encoders share a parameter, or `predict` is missing.
        RuntimeError: `step` without a call before it.
        NotImplementedError: a gradient is sharded (FSDP) or sparse.

    Source: Guo et al., Classifier-guided gradient modulation for enhanced multimodal learning, NeurIPS 2024.

    Examples:
        >>> encoders = {"audio": nn.Linear(8, 4), "video": nn.Linear(5, 4)}
        >>> head = nn.Linear(8, 3)
        >>> dims = {"audio": 4, "video": 4}
        >>> balance = CGGM(encoders, dims, 3, lambda z, present: head(torch.cat(list(z.values()), 1)))
        >>> z = {"audio": encoders["audio"](torch.randn(6, 8)), "video": encoders["video"](torch.randn(6, 5))}
        >>> sorted(balance(z, torch.arange(6) % 3).scalars())
        ['loss', 'loss/audio', 'loss/video']
    """

    last: Tensor
    known: Tensor

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        dims: Mapping[str, int],
        num_outputs: int,
        predict: Predict | None = None,
        task: Task = "classification",
        *,
        rho: float = 1.3,
        direction: float = 0.2,
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
    ) -> None:
        super().__init__(encoders, num_outputs, predict, task, ignore_index, sync)
        self.dims = check_dims("CGGM", dims)
        check_encoders("CGGM", encoders, self.dims)
        check_positive("CGGM", rho=rho)
        check_nonnegative("CGGM", direction=direction)
        if direction and predict is None:
            raise ValueError(
                f"CGGM: predict is None with direction={direction}, expected your fusion and head; pass "
                "predict=lambda features, present: outputs, or direction=0."
            )
        self.rho, self.direction = rho, direction
        self.classifiers = linear_heads(self.dims, num_outputs, task)
        self._training_check = TrainingCheck()
        self.register_buffer("last", torch.zeros(len(self.encoders)))
        self.register_buffer("known", torch.zeros(len(self.encoders), dtype=torch.bool))

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> BalancerOutput:
        features = given(features)
        masks = check_inputs("CGGM", features, present, self.dims)
        zero = no_loss(features)
        if target is None:
            return BalancerOutput(zero, dict.fromkeys(features, zero), features)
        check_batch("CGGM", self.task, features, masks, target, self.num_outputs, self.ignore_index)
        valid = self.labelled(target)
        sync = self.training and self.sync
        names = list(self.dims) if sync else [name for name in self.dims if name in features]
        outputs, losses, metrics = {}, [], {}
        for name in names:
            if name not in features:  # in another process it is there
                nothing = {name: features[next(iter(features))].new_zeros(len(target), self.dims[name])}
                mask = torch.zeros(len(target), dtype=torch.bool, device=target.device)
            else:
                nothing, mask = {name: features[name]}, masks[name]
            classifier = self.classifiers[name]
            x = as_parameters("CGGM", name, select(nothing[name].detach(), mask), classifier)
            outputs[name] = upcast(classifier(x))
            loss = task_loss(self.task, outputs[name], target, ignore_index=self.ignore_index)
            losses.append(over(loss, mask, valid))
            metrics[name] = over(self._metric(outputs[name].detach(), target), mask, valid)
        if self.training:
            self.record(metrics)
        means = {name: s.mean() for name, s in zip(names, reduce(losses, sync), strict=True)}
        loss = torch.stack(list(means.values())).sum()
        if self.direction and self.training:
            loss = loss + self.direction * self._turn(features, outputs, target, masks, valid)
        self._training_check.count("CGGM", self, features)
        return BalancerOutput(loss, means, features)

    def _turn(
        self,
        features: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        target: Tensor,
        masks: dict[str, Tensor],
        valid: Tensor | None,
    ) -> Tensor:
        """L_gm."""
        fused = self.outputs(features, masks, list(features))
        slope = loss_slope(self.task, HeadOutputs(fused.T), target).T
        terms = dict(zip(self.encoders, self._terms().unbind(), strict=True))
        sums = []
        for name in self.dims:
            own = outputs[name].detach() if name in outputs else fused.detach()
            mask = masks[name] if name in masks else torch.zeros(len(target), dtype=torch.bool, device=target.device)
            cosine = cosine_similarity(slope, loss_slope(self.task, HeadOutputs(own.T), target).T, dim=-1)
            sums.append(over(cosine, mask, valid))
        sums = reduce(sums, self.sync)
        cosine = torch.stack([s.mean() for s in sums])
        seen = torch.stack([s.entries > 0 for s in sums])
        term = torch.stack([terms[name] for name in self.dims])
        return masked_mean(term.abs() - term * cosine, seen)

    def _metric(self, outputs: Tensor, target: Tensor) -> Tensor:
        """`(B,)`, higher is better."""
        if self.task == "classification":
            label = target.argmax(-1) if target.is_floating_point() else target
            return (outputs.argmax(-1) == label).to(outputs.dtype)
        if self.task == "multilabel":
            return ((outputs > 0) == (target > 0.5)).to(outputs.dtype).mean(-1)
        mean = split_gaussian(outputs)[0] if self.task == "gaussian" else outputs
        return -(mean - target.view_as(mean)).abs().mean(-1)

    def _terms(self) -> Tensor:
        mean, seen = self.measured()
        return cggm_coefficients(mean - self.last.to(mean.dtype), seen & self.known, rho=self.rho)

    def modulation(self, mean: Tensor, seen: Tensor) -> Tensor:
        terms = self._terms()
        self.last.copy_(torch.where(seen, mean, self.last.to(mean.dtype)))
        self.known |= seen
        return terms
