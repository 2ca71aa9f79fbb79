"""AGM: slow an encoder while its modality is further ahead than it used to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from modbalance.balancers.formulas import agm_coefficients
from modbalance.balancers.gradients import (
    GradientBalancer,
    Predict,
    error,
    over,
)
from modbalance.checks import check_positive
from modbalance.distributed import Sync
from modbalance.presence import MaskedSum
from modbalance.shapley import shapley_values
from modbalance.task_checks import IGNORE_INDEX
from modbalance.tasks import Task

__all__ = ["AGM"]


class AGM(GradientBalancer):
    r"""Scale the gradient of each encoder by how far ahead its modality is, against how far it used to be.

    $$r_m = \exp\bigl(\operatorname{mean}_{k \ne m}(s_k - s_m)\bigr), \qquad
      \kappa_m = e^{-\alpha (r_m - \tau_m)}, \qquad g_m \leftarrow \kappa_m g_m$$

    s_m is the mean error of modality m's Shapley share of the fused outputs, where nothing at all gives 0: the
    cross-entropy, or half the squared error for values, which should be standardised. tau_m is r_m of the mean
    errors of all steps before; the first step changes nothing.

    Hooks in by `step()`. Needs `predict`; costs 2^M - 1 calls of it a step, without gradients.

    Caveats: the cost doubles with every modality; as with OGM-GE, Adam divides a lasting scale out again, and a batch
    norm in the fusion sees inputs with modalities hidden. The scale may exceed 1.

    Experimental: the paper was not readable; its abstract was, which names the Shapley share. Ratio, running mean and
    exponent are as the field restates them; values, `limit` and "all steps before" are ours.

    Args:
        encoders: the module of each modality, at least two, no parameter in common. They stay yours.
        num_outputs: number of classes, labels or targets.
        predict: your fusion and head, `(features, present)` to outputs `(B, width)`; hidden modalities are zero in
            `features` and false in `present`.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        alpha: strength of the modulation, > 0.
        limit: tau - r is cut here; at alpha 1 the scale stays below e^limit.
        ignore_index: label of the rows that do not count; classification only.
        sync: errors over all processes; see `modbalance.distributed`.

    Shape:
        features `(B, ...)` by modality, target `(B,)` or `(B, C)`, present bool `(B,)` by modality → a
        `BalancerOutput` whose loss is 0.

    Raises:
        ValueError: a name, shape or task does not fit, or two encoders share a parameter.
        RuntimeError: `step` without a call before it.
        NotImplementedError: a gradient is sharded (FSDP) or sparse.

    Source: Li et al., Boosting multi-modal model performance with adaptive gradient modulation, ICCV 2023.

    Examples:
        >>> encoders = {"audio": nn.Linear(8, 4), "video": nn.Linear(5, 4)}
        >>> head = nn.Linear(8, 3)
        >>> balance = AGM(encoders, 3, lambda z, present: head(torch.cat(list(z.values()), 1)))
        >>> z = {"audio": encoders["audio"](torch.randn(6, 8)), "video": encoders["video"](torch.randn(6, 5))}
        >>> out = balance(z, torch.arange(6) % 3)
        >>> balance.step()
        >>> balance.coefficients
        {'audio': tensor(1.), 'video': tensor(1.)}
    """

    mean: Tensor
    steps: Tensor

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_outputs: int,
        predict: Predict,
        task: Task = "classification",
        *,
        alpha: float = 1.0,
        limit: float = 10.0,
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
    ) -> None:
        super().__init__(encoders, num_outputs, predict, task, ignore_index, sync)
        check_positive("AGM", alpha=alpha, limit=limit)
        self.alpha, self.limit = alpha, limit
        self.register_buffer("mean", torch.zeros(len(self.encoders)))
        self.register_buffer("steps", torch.zeros(len(self.encoders)))

    def measure(
        self, features: Mapping[str, Tensor], target: Tensor, masks: dict[str, Tensor]
    ) -> dict[str, MaskedSum]:
        def outputs(subset: tuple[str, ...]) -> float:
            # A share of outputs is computed as a share of numbers is.
            return cast(float, self.outputs(features, masks, subset)) if subset else 0.0

        shares, valid = cast(dict[str, Tensor], shapley_values(outputs, list(features))), self.labelled(target)
        return {
            name: over(error(self.task, share, target, self.ignore_index), masks[name], valid)
            for name, share in shares.items()
        }

    def modulation(self, mean: Tensor, seen: Tensor) -> Tensor:
        before = self.mean.to(mean.dtype)
        past = seen & (self.steps > 0)
        scales = agm_coefficients(mean, before, past, alpha=self.alpha, limit=self.limit)
        self.steps += seen
        self.mean += torch.where(seen, (mean - before) / self.steps.clamp(min=1), 0.0)
        return scales
