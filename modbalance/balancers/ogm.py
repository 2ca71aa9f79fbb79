"""OGM-GE: slow the encoder that runs ahead."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modbalance.balancers.formulas import ogm_coefficients
from modbalance.balancers.gradients import (
    GradientBalancer,
    Predict,
    over,
    score,
)
from modbalance.checks import check_nonnegative, check_positive
from modbalance.distributed import Sync
from modbalance.presence import MaskedSum
from modbalance.task_checks import IGNORE_INDEX
from modbalance.tasks import Task

__all__ = ["OGMGE"]


class OGMGE(GradientBalancer):
    r"""Scale down the gradient of each encoder that runs ahead, and add noise of the gradient's size.

    $$\rho_m = \frac{s_m}{\operatorname{mean}_{k \ne m} s_k}, \qquad
      k_m = 1 - \tanh(\alpha \rho_m)\,[\rho_m > 1], \qquad
      g_m \leftarrow k_m g_m + \epsilon, \quad \epsilon \sim N(0, \eta^2 \operatorname{var} g_m)$$

    with s_m the mean probability of the true class from modality m alone; with `multilabel` the mean probability of
    the true labels, with values $e^{-\lVert\mu - y\rVert^2 / 2}$, for targets that are standardised (ours; the paper
    has classes only). Every parameter of an encoder is scaled, whatever its shape, and gets noise of the standard
    deviation of its own gradient.

    Hooks in by `step()`. Needs `predict`; costs one call of it a modality a step, without gradients, and a pass over
    the encoders' gradients.

    Caveats: Adam divides by the size of the gradient, so a scale that lasts is divided out again and little but the
    noise remains. The strong modality is slowed, the weak one gets nothing. A modality alone goes through the fused
    head with the others zero, as there is no linear fusion to split; `predict` runs in training mode, so a batch norm
    in the fusion sees these inputs as well.

    Experimental: the paper was not readable; its abstract and a public note that restates the ratio and
    $1 - \tanh(\alpha\rho)$ for $\rho > 1$ were. More than two modalities, `multilabel` and values are ours.

    Args:
        encoders: the module of each modality, at least two, no parameter in common. They stay yours.
        num_outputs: number of classes, labels or targets.
        predict: your fusion and head, `(features, present)` to outputs `(B, width)`; hidden modalities are zero in
            `features` and false in `present`.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        alpha: strength of the modulation, > 0.
        noise: eta, size of the noise; 0 leaves it out (OGM).
        seed: of the noise, the same on every process; it starts anew when a run is continued.
        ignore_index: label of the rows that do not count; classification only.
        sync: score over all processes; see `modbalance.distributed`.

    Shape:
        features `(B, ...)` by modality, target `(B,)` or `(B, C)`, present bool `(B,)` by modality → a
        `BalancerOutput` whose loss is 0.

    Raises:
        ValueError: a name, shape or task does not fit, or two encoders share a parameter.
        RuntimeError: `step` without a call before it.
        NotImplementedError: a gradient is sharded (FSDP) or sparse.

    Source: Peng et al., Balanced multimodal learning via on-the-fly gradient modulation, CVPR 2022.

    Examples:
        >>> encoders = {"audio": nn.Linear(8, 4), "video": nn.Linear(5, 4)}
        >>> head = nn.Linear(8, 3)
        >>> balance = OGMGE(encoders, 3, lambda z, present: head(torch.cat(list(z.values()), 1)))
        >>> z = {"audio": encoders["audio"](torch.randn(6, 8)), "video": encoders["video"](torch.randn(6, 5))}
        >>> target = torch.arange(6) % 3
        >>> out = balance(z, target)
        >>> balance.backward(nn.functional.cross_entropy(head(torch.cat(list(z.values()), 1)), target), out)
        >>> balance.step()
        >>> sorted(balance.coefficients)
        ['audio', 'video']
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_outputs: int,
        predict: Predict,
        task: Task = "classification",
        *,
        alpha: float = 0.8,
        noise: float = 1.0,
        seed: int = 0,
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
    ) -> None:
        super().__init__(encoders, num_outputs, predict, task, ignore_index, sync)
        check_positive("OGMGE", alpha=alpha)
        check_nonnegative("OGMGE", noise=noise)
        self.alpha, self.noise, self.seed = alpha, noise, seed
        self._steps = 0

    def get_extra_state(self) -> Tensor:
        """The number of steps, on which the noise depends; on the CPU, so that no step waits for a device."""
        return torch.tensor(self._steps)

    def set_extra_state(self, state: Tensor) -> None:
        self._steps = int(state)

    def measure(
        self, features: Mapping[str, Tensor], target: Tensor, masks: dict[str, Tensor]
    ) -> dict[str, MaskedSum]:
        valid, sums = self.labelled(target), {}
        for name in features:
            alone = self.outputs(features, masks, (name,))
            sums[name] = over(score(self.task, alone, target, self.ignore_index), masks[name], valid)
        return sums

    def modulation(self, mean: Tensor, seen: Tensor) -> Tensor:
        self._steps += 1
        self._generators = {}
        return ogm_coefficients(mean, seen, alpha=self.alpha)

    def modulate(self, gradient: Tensor, coefficient: Tensor) -> None:
        spread = gradient.std(correction=0)
        super().modulate(gradient, coefficient)
        if self.noise:
            generator = self._generator(gradient.device)
            draw = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
            gradient.add_(self.noise * spread * draw)

    def _generator(self, device: torch.device) -> torch.Generator:
        """One for each step and device: all processes draw the same, or their copies of the model would part."""
        if device not in self._generators:
            seed = (self.seed * 1_000_003 + self._steps) % 2**63
            self._generators[device] = torch.Generator(device).manual_seed(seed)
        return self._generators[device]
