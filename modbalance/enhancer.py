"""Each modality rebuilt with help from the others. EBMC (CVPR 2026), cross-modal complementary enhancement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modbalance.checks import (
    Presence,
    check_dims,
    check_inputs,
    check_nonnegative,
    check_size,
    given,
    is_number,
)
from modbalance.distributed import Sync, alike, reduce
from modbalance.functional.enhancement import generator_inputs, reconstruction_sum
from modbalance.output import no_tensor, scalars
from modbalance.placement import as_parameters, check_placement
from modbalance.presence import MaskedSum, absent_like, masked_sum, select, upcast, zero_of
from modbalance.task_checks import IGNORE_INDEX, check_loss, check_target, check_task, check_values
from modbalance.tasks import Task, check_outputs, labelled, masked_loss
from modbalance.training_check import TrainingCheck

__all__ = ["ComplementaryEnhancer"]


@no_tensor
class EnhancerOutput(NamedTuple):
    """Result of `ComplementaryEnhancer`.

    Attributes:
        loss: the weighted sum of the terms, a scalar; add it to the task loss.
        reconstruction: squared error of the rebuilt features, a scalar.
        task: task loss of the predictions from rebuilt features, a scalar; 0 without `predict` and a target.
        features: rebuilt, by modality, `(B, D_m)`.
        imputed: by modality, bool `(B,)`: absent, and rebuilt from the others.
    """

    loss: Tensor
    reconstruction: Tensor
    task: Tensor
    features: dict[str, Tensor]
    imputed: dict[str, Tensor]

    def scalars(self) -> dict[str, Tensor]:
        """The scalar terms by name, detached."""
        return scalars(self)


class ComplementaryEnhancer(nn.Module):
    r"""Rebuild each modality from its own parts and the shared and private parts of the others.

    $$\tilde z_m = G_m(z^c_m, z^s_m, z^c_{-m}, z^s_{-m}, \epsilon), \qquad
      L_{CCE} = \operatorname{mean}_m \tfrac{1}{D_m}\lVert \tilde z_m - z_m \rVert^2 + \gamma\,
      \operatorname{mean}_m \ell(f(z_1, \dots, \tilde z_m, \dots, z_M), y)$$

    A modality that is absent in a sample is built from the others and flagged in `imputed`; where nothing is
    present the result is zero and not flagged. Built features take part in the label term only with
    `impute=True`; whether they are fused is up to you: pass `present` on, or `present | imputed`.

    Args:
        dims: feature size by modality, at least two.
        dim: size of the shared and of the private parts.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        gamma: weight of the label term. 0.1 is ours.
        noise: standard deviation of the Gaussian noise epsilon added to a generator's input in training.
        hide: probability, per sample and modality, of hiding a modality's own parts from its generator in
            training: else it never learns to stand in for an absent modality.
        hidden: width of a generator's hidden layer; 2 * dim by default.
        own_private: whether a generator reads the own private part (the paper's text) or not (its formula).
        impute: whether features built for absent modalities take part in the label term.
        class_weight: weight of each class in the label term, `(C,)`; classification only.
        ignore_index: label of the rows that the label term leaves out; classification only.
        validate: let a NaN or a label out of range on a GPU raise an error that names it, which waits for the device.
            On a CPU this always happens; a GPU without it stops at an assertion on the device, which torch.compile
            and graph capture leave out.
        sync: True, a process group or False: the processes of a mean in training; see `modbalance.distributed`.

    Shape:
        features `(B, D_m)`, shared and private `(B, dim)` by modality; `predict` maps features by modality to
        outputs `(B, width)` and is called once per modality with only that one replaced; target `(B,)` or
        `(B, C)`; present bool `(B,)` by modality; gates `(B,)` in [0, 1] by modality, how far the others may lean
        on it (a trust, nothing that holds the label; 1 by default, detached) → `features` `(B, D_m)` and `imputed`
        bool `(B,)` for every modality of `dims`; `loss`, `reconstruction`, `task` are scalars. Without `predict`
        or a target `task` is 0.

    Raises:
        ValueError: a name, shape or task does not fit; the message names it and the remedy.

    Source: EBMC (CVPR 2026), cross-modal complementary enhancement, L_CCE. The reconstruction target is
    detached: undetached it shrinks the weak features.

    Examples:
        >>> import torch
        >>> enhance = ComplementaryEnhancer({"text": 8, "audio": 5}, dim=4, num_outputs=3)
        >>> features = {"text": torch.randn(6, 8), "audio": torch.randn(6, 5)}
        >>> parts = {"text": torch.randn(6, 4), "audio": torch.randn(6, 4)}
        >>> enhance(features, parts, parts).features["audio"].shape
        torch.Size([6, 5])
    """

    class_weight: Tensor | None

    def __init__(
        self,
        dims: Mapping[str, int],
        dim: int,
        num_outputs: int,
        task: Task = "classification",
        *,
        gamma: float = 0.1,
        noise: float = 0.0,
        hide: float = 0.0,
        hidden: int | None = None,
        own_private: bool = True,
        impute: bool = False,
        class_weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        validate: bool = False,
        sync: Sync = True,
    ) -> None:
        super().__init__()
        self.dims = check_dims("ComplementaryEnhancer", dims)
        check_task("ComplementaryEnhancer", task, num_outputs, class_weight, ignore_index)
        check_size("ComplementaryEnhancer", "pass the size of the parts", dim=dim)
        if hidden is not None:
            check_size("ComplementaryEnhancer", "pass the width of the generators' hidden layer", hidden=hidden)
        if not (is_number(hide) and 0 <= hide < 1):
            raise ValueError(
                f"ComplementaryEnhancer: hide is {hide!r}, expected a probability in [0, 1); 0 hides nothing."
            )
        check_nonnegative("ComplementaryEnhancer", gamma=gamma, noise=noise)
        self._training_check = TrainingCheck()
        self.dim, self.num_outputs, self.task = dim, num_outputs, task
        self.gamma, self.noise, self.hide = gamma, noise, hide
        self.own_private, self.impute = own_private, impute
        self.ignore_index, self.validate, self.sync = ignore_index, validate, sync
        self.register_buffer("class_weight", class_weight, persistent=False)
        hidden = 2 * dim if hidden is None else hidden
        width = dim * (2 * len(self.dims) - (not own_private))
        self.generators = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, size))
                for name, size in self.dims.items()
            }
        )

    def forward(
        self,
        features: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
        private: Mapping[str, Tensor],
        predict: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        target: Tensor | None = None,
        present: Presence | None = None,
        gates: Mapping[str, Tensor] | None = None,
    ) -> EnhancerOutput:
        """Rebuilt features and losses.

        Args:
            features: `(B, D_m)` by modality; one that is missing or None is absent for all.
            shared: shared parts by modality, `(B, dim)`.
            private: private parts by modality, `(B, dim)`.
            predict: features by modality to outputs `(B, width)`; called once per modality with only that one
                replaced. Without it the label term is 0.
            target: as for `EnergyCoordinator`. Without it the label term is 0.
            present: bool `(B,)` by modality, or `(B, M)` with the columns in the order of `dims`; a modality that is
                not in it is present for all.
            gates: `(B,)` in [0, 1] by modality: how far the others may lean on it.

        Returns:
            `loss`, `reconstruction` and `task`, scalars; `features` `(B, D_m)` and `imputed` bool `(B,)` for every
            modality of `dims`.
        """
        features, shared, private = given(features), given(shared), given(private)
        masks = check_inputs("ComplementaryEnhancer", features, present, self.dims)
        batch = next(iter(masks.values())).shape[0]
        parts = {"shared": shared, "private": private, "gates": gates}
        check_placement("ComplementaryEnhancer", self, features=features, target=target, **parts)
        self._check_parts("shared", shared, features, batch)
        self._check_parts("private", private, features, batch)
        shapes = None if gates is None else {name: tuple(g.shape) for name, g in gates.items()}
        if shapes is not None and shapes != dict.fromkeys(features, (batch,)):
            raise ValueError(
                f"ComplementaryEnhancer: gates has shapes {shapes}, expected ({batch},) for each of "
                f"{list(features)}; pass one number a sample for every modality in features."
            )
        if target is not None:
            check_target("ComplementaryEnhancer", self.task, target, batch, self.num_outputs)
        check_values(
            "ComplementaryEnhancer",
            self.task,
            features,
            masks,
            target,
            self.num_outputs,
            self.ignore_index,
            self.validate,
        )

        sync = self.training and self.sync
        features, masks = alike(features, masks, self.dims, sync)
        inputs = {name: select(x, masks[name]) for name, x in features.items()}
        masks = absent_like(masks, self.dims)
        enhanced, imputed = self._generate(shared, private, masks, gates)
        own = {name: enhanced[name] for name in inputs}
        sums = [reconstruction_sum(own, inputs, masks)]
        if predict is not None and target is not None:
            sums.append(self._label_term(inputs, enhanced, masks, imputed, predict, target))
        reconstruction, *labelled = (s.mean() for s in reduce(sums, sync))
        task = labelled[0] if labelled else zero_of(own)
        loss = reconstruction + self.gamma * task
        check_loss("ComplementaryEnhancer", loss, features)
        self._training_check.count("ComplementaryEnhancer", self)
        return EnhancerOutput(loss, reconstruction, task, enhanced, imputed)

    def _generate(
        self,
        shared: Mapping[str, Tensor],
        private: Mapping[str, Tensor],
        masks: dict[str, Tensor],
        gates: Mapping[str, Tensor] | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shared = absent_like(dict(shared), dict.fromkeys(self.dims, self.dim))
        private = absent_like(dict(private), dict.fromkeys(self.dims, self.dim))
        own = masks
        if self.training and self.hide:
            own = {name: m & (torch.rand(m.shape, device=m.device) >= self.hide) for name, m in masks.items()}
        enhanced, imputed = {}, {}
        if gates is not None:
            gates = absent_like({name: g.detach() for name, g in gates.items()}, dict.fromkeys(self.dims, 1))
        inputs = generator_inputs(shared, private, masks, own=own, own_private=self.own_private, gates=gates)
        anything = torch.stack(list(masks.values())).any(0)
        for name, x in inputs.items():
            if self.training and self.noise:
                x = x + self.noise * torch.randn_like(x)
            enhanced[name] = select(
                self.generators[name](as_parameters("ComplementaryEnhancer", name, x, self.generators[name])),
                anything,
            )
            imputed[name] = anything & ~masks[name]
        return enhanced, imputed

    def _label_term(
        self,
        features: dict[str, Tensor],
        enhanced: dict[str, Tensor],
        masks: dict[str, Tensor],
        imputed: dict[str, Tensor],
        predict: Callable[[Mapping[str, Tensor]], Tensor],
        target: Tensor,
    ) -> MaskedSum:
        valid = labelled(self.task, target, self.num_outputs, self.ignore_index)
        losses, counted = [], []
        for name in self.dims:
            if name not in features and not self.impute:
                continue
            replaced = select(enhanced[name], masks[name] | imputed[name] if self.impute else masks[name])
            outputs = predict({**features, name: replaced})
            check_outputs("ComplementaryEnhancer", "predict", outputs, self.task, self.num_outputs, target.shape[0])
            losses.append(masked_loss(self.task, upcast(outputs), target, self.class_weight, self.ignore_index))
            here = masks[name] | imputed[name] if self.impute else masks[name]
            counted.append(here if valid is None else here & valid)
        return masked_sum(torch.stack(losses), torch.stack(counted))

    def _check_parts(
        self, argument: str, parts: Mapping[str, Tensor], features: Mapping[str, Tensor], batch: int
    ) -> None:
        check_inputs("ComplementaryEnhancer", parts, None, dict.fromkeys(self.dims, self.dim), argument)
        rows = {name: parts[name].shape[0] if name in parts else "missing" for name in features}
        if any(n != batch for n in rows.values()):
            raise ValueError(
                f"ComplementaryEnhancer: {argument} has rows {rows}, expected {batch} for all in features; "
                "pass the parts that SemanticDecoupler gave for these features."
            )

    def extra_repr(self) -> str:
        return f"dims={self.dims}, dim={self.dim}, task={self.task!r}"
