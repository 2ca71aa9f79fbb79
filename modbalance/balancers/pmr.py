"""PMR: class prototypes pull the modality that lags."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modbalance.balancers.formulas import pmr_coefficients
from modbalance.checks import Presence, check_dims, check_inputs, check_nonnegative, given, is_number
from modbalance.distributed import Sync, alike, reduce
from modbalance.presence import MaskedSum, masked_sum, select, upcast
from modbalance.protocol import Balancer, BalancerOutput, no_loss
from modbalance.task_checks import IGNORE_INDEX, check_target, check_task, check_values
from modbalance.tasks import labelled

__all__ = ["PMR"]


class PMR(Balancer):
    r"""Draw the features of a modality that lags to the prototypes of their classes, and hold the leader back early.

    $$L = L_{task} + \alpha \sum_m \beta_m L^m_{PCE} - \mu \sum_m \gamma_m H^m, \qquad
      p^m(c \mid z) = \operatorname{softmax}_c\bigl(-\lVert z - c^m_c \rVert\bigr)$$

    $L^m_{PCE}$ is the mean of $-\log p^m(y)$ and $H^m$ the mean entropy of $p^m$; with s_m the mean of $p^m(y)$ and
    $\bar s_m$ that of the others, $\beta_m = \operatorname{clip}(\bar s_m / s_m - 1, 0, 1)$ and
    $\gamma_m = \operatorname{clip}(s_m / \bar s_m - 1, 0, 1)$. Prototypes are class means of the features, moved with
    every training batch: $c \leftarrow \mu_c c + (1 - \mu_c)\,\text{mean}$; no gradient reaches them.

    Hooks in as a loss term. Needs class labels: for labels or values there are no class means. Costs B times C
    distances a modality a step. Caveats: with many classes and small batches the prototypes are stale; distances
    depend on the size of the features, which nothing bounds.

    Experimental: the paper was not readable; its abstract was, and a public note that names Eqs. 9 to 13. The note
    moves the prototypes once an epoch and has the momentum as an option; by batch, the momentum of 0.9 and the
    weights are ours.

    Args:
        dims: feature size by modality, at least two.
        num_outputs: C, number of classes.
        task: `classification`; nothing else has prototypes.
        alpha: weight of the prototypical cross-entropy, >= 0.
        mu: weight of the entropy, >= 0.
        early: number of training batches for which the entropy counts; the paper has it in the first epochs alone.
        momentum: mu_c, from 0 to 1.
        ignore_index: label of the rows that count as absent.
        sync: in training, means and prototypes over all processes; see `modbalance.distributed`.

    Shape:
        features `(B, D_m)` by modality, target `(B,)`, present bool `(B,)` by modality → a `BalancerOutput`; without
        a target the losses are 0.

    Raises:
        ValueError: a name or shape does not fit, or the task is not classification.

    Source: Fan et al., PMR: prototypical modal rebalance for multimodal learning, CVPR 2023.

    Examples:
        >>> balance = PMR({"audio": 8, "video": 5}, num_outputs=3)
        >>> features = {"audio": torch.randn(6, 8), "video": torch.randn(6, 5)}
        >>> balance(features, torch.arange(6) % 3).loss.shape, balance.prototypes["audio"].shape
        (torch.Size([]), torch.Size([3, 8]))
    """

    seen: Tensor
    batches: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_outputs: int,
        task: str = "classification",
        *,
        alpha: float = 1.0,
        mu: float = 0.01,
        early: int = 1000,
        momentum: float = 0.9,
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
    ) -> None:
        super().__init__()
        self.dims = check_dims("PMR", dims)
        check_task("PMR", task, num_outputs, None, ignore_index)
        if task != "classification":
            raise ValueError(
                f"PMR: task is {task!r}, expected 'classification', since a prototype is the mean of a class; use "
                "UnimodalLosses or MMPareto for this task."
            )
        check_nonnegative("PMR", alpha=alpha, mu=mu, early=early)
        if not (is_number(momentum) and 0 <= momentum <= 1):
            raise ValueError(f"PMR: momentum is {momentum!r}, expected a number from 0 to 1; correct it.")
        self.num_outputs, self.alpha, self.mu, self.early = num_outputs, alpha, mu, early
        self.momentum, self.ignore_index, self.sync = momentum, ignore_index, sync
        for i, size in enumerate(self.dims.values()):
            self.register_buffer(f"prototypes_{i}", torch.zeros(num_outputs, size))
        self.register_buffer("seen", torch.zeros(len(self.dims), num_outputs, dtype=torch.bool))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @property
    def prototypes(self) -> dict[str, Tensor]:
        """By modality, `(C, D_m)`."""
        return {name: self.get_buffer(f"prototypes_{i}") for i, name in enumerate(self.dims)}

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> BalancerOutput:
        features = given(features)
        masks = check_inputs("PMR", features, present, self.dims)
        if target is None:
            zero = no_loss(features)
            return BalancerOutput(zero, dict.fromkeys(features, zero), features)
        check_target("PMR", "classification", target, next(iter(masks.values())).shape[0], self.num_outputs)
        if target.is_floating_point():
            raise ValueError(
                f"PMR: target is a {target.dtype} tensor, expected class indices torch.int64, since a prototype is "
                "the mean of a class; pass target.argmax(1), or use UnimodalLosses or MMPareto for soft labels."
            )
        check_values("PMR", "classification", features, masks, target, self.num_outputs, self.ignore_index)
        sync = self.training and self.sync
        shared, masks = alike(features, masks, self.dims, sync)
        valid = labelled("classification", target, self.num_outputs, self.ignore_index)
        label = target.clamp(0, self.num_outputs - 1)
        z = {name: upcast(select(x, masks[name])) for name, x in shared.items()}
        masks = {name: mask if valid is None else mask & valid for name, mask in masks.items()}
        if self.training:
            self._move(z, label, masks, sync)
        sums = [s for name, x in z.items() for s in self._terms(name, x, label, masks[name])]
        reduced = reduce(sums, sync)
        score, own, entropy = (torch.stack([s.mean() for s in reduced[i::3]]) for i in range(3))
        there = torch.stack([s.entries > 0 for s in reduced[::3]])
        pull, hold = pmr_coefficients(score.detach(), there)
        loss = self.alpha * (pull * own).sum()
        if self.mu:
            early = self.batches <= self.early
            loss = loss - self.mu * torch.where(early, (hold * entropy).sum(), 0.0)
        return BalancerOutput(loss, dict(zip(z, own.unbind(), strict=True)), features)

    def _terms(self, name: str, z: Tensor, label: Tensor, mask: Tensor) -> tuple[MaskedSum, MaskedSum, MaskedSum]:
        """Probability of the class, its negative log, and the entropy, summed over the samples that count."""
        i = list(self.dims).index(name)
        known = self.seen[i]
        logits = -torch.cdist(z, self.prototypes[name].to(z.dtype))
        log_p = torch.where(known, logits, torch.finfo(z.dtype).min).log_softmax(-1)
        p = log_p.exp()
        counts = mask & known[label]
        own = log_p.gather(1, label[:, None])[:, 0]
        entropy = -(p * torch.where(known, log_p, 0.0)).sum(-1)
        return masked_sum(own.exp(), counts), masked_sum(-own, counts), masked_sum(entropy, counts)

    @torch.no_grad()
    def _move(self, z: Mapping[str, Tensor], label: Tensor, masks: Mapping[str, Tensor], sync: Sync) -> None:
        classes = torch.arange(self.num_outputs, device=label.device)
        sums = []
        for name, x in z.items():
            one_hot = ((label[:, None] == classes) & masks[name][:, None]).to(x.dtype)
            sums.append(MaskedSum(one_hot.T @ x, one_hot.sum(0)[:, None]))
        for name, s in zip(z, reduce(sums, sync), strict=True):
            i, kept = list(self.dims).index(name), self.prototypes[name]
            there = s.entries[:, 0] > 0
            moved = torch.where(
                self.seen[i][:, None], self.momentum * kept + (1 - self.momentum) * s.mean(), s.mean()
            )
            kept.copy_(torch.where(there[:, None], moved, kept))
            self.seen[i] |= there
        self.batches += 1
