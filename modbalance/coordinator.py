"""Balance the optimisation of the modalities. EBMC (CVPR 2026), energy-guided modality coordination."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modbalance.checks import (
    Presence,
    check_choice,
    check_dims,
    check_inputs,
    check_nonnegative,
    check_positive,
    check_uncertainty,
    given,
)
from modbalance.coordination_terms import coordination_terms
from modbalance.distributed import Sync, alike, processes, reduce
from modbalance.functional.energy import Gap
from modbalance.gate import HeldOutGate
from modbalance.head_reader import HeadReader
from modbalance.heads import check_heads, linear_heads
from modbalance.kernels.dispatch import Coordination, coordination, pick_backend
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.output import no_tensor, scalars
from modbalance.placement import check_placement
from modbalance.presence import absent_like, masked_mean, masked_sum, select, upcast
from modbalance.protocol import Balancer
from modbalance.task_checks import IGNORE_INDEX, check_loss, check_target, check_task, check_values
from modbalance.tasks import Task, labelled, output_width
from modbalance.training_check import TrainingCheck

__all__ = ["EnergyCoordinator"]


@no_tensor
class CoordinatorOutput(NamedTuple):
    """Result of `EnergyCoordinator`.

    Attributes:
        loss: the sum of the weighted terms, a scalar; add it to the task loss.
        gap: difference of the energies of the modalities, a scalar.
        penalty: squared norm of the gradient of the energy, a scalar.
        descent: mean energy, summed over modalities, a scalar.
        fit: loss of the probes on detached features, a scalar; 0 with heads of your own.
        energy: by modality, `(B,)`, detached.
        features: by modality, `(B, D_m)`, as they came, after the label-free descent if `step` > 0.
        weight: by modality, a scalar in [0, 1], set by `observe`; empty before it.
    """

    loss: Tensor
    gap: Tensor
    penalty: Tensor
    descent: Tensor
    fit: Tensor
    energy: dict[str, Tensor]
    features: dict[str, Tensor]
    weight: dict[str, Tensor]

    def scalars(self) -> dict[str, Tensor]:
        """The scalar terms by name and the weight of each modality as `weight/audio`, detached."""
        return scalars(self) | {f"weight/{name}": x for name, x in self.weight.items()}


class EnergyCoordinator(Balancer):
    r"""Keep the strong modality from starving the others, with one more term in the loss.

    $$E_i(m) = \alpha\lVert z_i^m\rVert^2 + \beta\,\ell(T_m(z_i^m), y_i) + \gamma\,u(T_m(z_i^m))$$

    $$L = L_{gap} + \delta \sum_m \operatorname{mean}_i \lVert \partial E_i(m)/\partial z_i^m\rVert^2
      + \lambda \sum_m \operatorname{mean}_i E_i(m) + L_{fit}$$

    - `gap` draws the energies of the modalities together (`functional.energy_gap`). `pull` compares
      beta loss + gamma u alone, since ||z||^2 would let inflation close it; the paper's forms compare E.
    - `penalty` flattens the energy around each feature (`kernels.energy_penalty`).
    - `descent` is energy descent as a gradient: what reaches z is exactly lambda dE/dz.
    - `observe`, one line in the validation loop, multiplies what gap, penalty, loss and uncertainty do to the
      features of a modality by a weight from 0 to 1, which falls when its held-out energy rises
      (`functional.gate_weights`). ||z||^2 has the largest weight of any modality: it restrains one that over-fits
      in favour of those that do not.
    - `fit` trains the heads T_m, which are probes: it sees detached features, while gap, penalty and descent
      see fixed heads. Otherwise the cheapest way to close the gap is to make the strong head worse.

    No returned feature depends on the target. Add the loss to your own with weight 1.

    Args:
        dims: feature size by modality, at least two.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        alpha: weight of the features' size in the energy, >= 0. 0.1 is ours.
        beta: weight of the loss in the energy. 1 is ours.
        gamma: weight of the uncertainty in the energy; 0, ours, leaves it out. No effect with `regression`, whose
            uncertainty is constant.
        delta: weight of the penalty. 0.1 is ours.
        descent: lambda of energy descent as a gradient. With `descent=1, alpha=0, delta=0, gap=None` the
            coordinator is the plain unimodal auxiliary loss.
        step: lambda of the label-free descent of the returned features; 0 returns the input itself.
        gap: `pull`, `paper`, `paper_per_sample` or None, the default: under strong noise a gap has gained or cost
            some points, depending on the modality. With `joint=True`, `paper` is the paper's own form.
        temperature: T of the entropy, > 0.
        normalize: `||z||^2 / D` in place of `||z||^2`, so that alpha means the same for every D.
        backend: of `kernels.energy_penalty`; heads that are not linear need `auto` or `reference`.
        heads: trained predictors of your own by modality, `(B, D_m)` to `(B, width)`, row by row. They stay
            yours (not in `parameters()`), `fit` is then 0. They are called in eval mode and keep their buffers and
            their mode; a plain `nn.Linear` without hooks is read instead. Linear heads of the coordinator's own by
            default.
        joint: let gap, penalty and descent train the heads too, as the paper's text reads.
        class_weight: weight of each class in the loss, `(C,)`; classification only.
        ignore_index: label of the rows that count as absent; classification only.
        validate: let a NaN or a label out of range on a GPU raise an error that names it, which waits for the device.
            On a CPU this always happens; a GPU without it stops at an assertion on the device, which torch.compile
            and graph capture leave out.
        sync: True, a process group or False: the processes of a mean in training; see `modbalance.distributed`.

    Shape:
        features `(B, D_m)` by modality, target `(B,)` or `(B, C)`, present bool `(B,)` by modality →
        `energy` `(B,)` for every modality of `dims`, 0 where absent; `features` as they came, after the
        label-free descent if `step` > 0; the other fields are scalars. Without a target the losses are 0 and
        energies hold their label-free terms. `uncertainty`, `(B,)` by modality, takes the place of the own
        head's entropy: that of a teacher, for example.

    Raises:
        ValueError: a name, shape, task or backend does not fit; the message names it and the remedy.

    Source: EBMC (CVPR 2026), energy-guided modality coordination, L_EMC. The probes, `pull` and the
    label-free descent are ours.

    Examples:
        >>> import torch
        >>> balance = EnergyCoordinator({"audio": 8, "video": 5}, num_outputs=3)
        >>> features = {"audio": torch.randn(6, 8), "video": torch.randn(6, 5)}
        >>> out = balance(features, torch.arange(6) % 3)
        >>> sorted(out.scalars()), out.energy["audio"].shape
        (['descent', 'fit', 'gap', 'loss', 'penalty'], torch.Size([6]))
    """

    class_weight: Tensor | None

    def __init__(
        self,
        dims: Mapping[str, int],
        num_outputs: int,
        task: Task = "classification",
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        gamma: float = 0.0,
        delta: float = 0.1,
        descent: float = 1.0,
        step: float = 0.0,
        gap: Gap | None = None,
        temperature: float = 1.0,
        normalize: bool = True,
        backend: str = "auto",
        heads: Mapping[str, nn.Module] | None = None,
        joint: bool = False,
        class_weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        validate: bool = False,
        sync: Sync = True,
    ) -> None:
        super().__init__()
        self.dims = check_dims("EnergyCoordinator", dims)
        check_task("EnergyCoordinator", task, num_outputs, class_weight, ignore_index)
        check_positive("EnergyCoordinator", temperature=temperature)
        weights = {"alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta, "descent": descent, "step": step}
        check_nonnegative("EnergyCoordinator", **weights)
        check_choice("EnergyCoordinator", ("pull", "paper", "paper_per_sample", None), gap=gap)
        if heads is not None:
            check_heads("EnergyCoordinator", heads, self.dims, output_width(task, num_outputs), joint)
        self.num_outputs, self.task = num_outputs, task
        self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta
        self.descent, self.step_size, self.gap, self.temperature = descent, step, gap, temperature
        self.normalize, self.backend, self.joint = normalize, backend, joint
        self.ignore_index, self.validate, self.sync = ignore_index, validate, sync
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.gate = HeldOutGate(len(self.dims))
        self.owns_heads = heads is None
        # A plain dict keeps the user's heads out of the module tree: their parameters have an optimiser already.
        self.heads = linear_heads(self.dims, num_outputs, task) if heads is None else dict(heads)
        pick_backend(backend)
        self._warn_of_route, self._training_check = True, TrainingCheck()
        self._read()

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
        uncertainty: Mapping[str, Tensor] | None = None,
    ) -> CoordinatorOutput:
        """Energies and losses.

        Args:
            features: `(B, D_m)` by modality; one that is missing or None is absent for all.
            target: `(B,)` class indices or `(B, C)` probabilities for classification, else `(B, C)`, or `(B,)` for
                one regression target. None gives losses of 0 and the label-free energies.
            present: bool `(B,)` by modality, or `(B, M)` with the columns in the order of `dims`; a modality that is
                not in it is present for all.
            uncertainty: `(B,)` by modality, in place of the entropy of the own head; detached. It needs gamma > 0.

        Returns:
            `loss` and its terms `gap`, `penalty`, `descent` and `fit`, scalars; `energy` `(B,)` for every modality of
            `dims`; `features` as they came, after the label-free descent if `step` > 0.
        """
        features = given(features)
        masks = self._check(features, target, present)
        if uncertainty is not None:
            check_uncertainty("EnergyCoordinator", uncertainty, masks, self.gamma)

        problem = self._problem(target, self.gamma if uncertainty is None else 0.0)
        sync = self.training and self.sync
        if self.training and target is not None:
            self.gate.close(sync)
        ungated, features = features, self.gate.scale(features, self.dims)
        heads = self._read()
        fused = None
        if heads.plain and uncertainty is None and processes(sync) is None:
            fused = self._fused(problem, heads, features, masks if present is not None else None)
        if fused is not None:
            energy, gap, penalty, descent, loss = fused
            fit = energy[:0].sum()
            if self.owns_heads:
                z, mask = self._rows(problem, features, masks)
                fit = masked_mean(heads.fit(problem, z), mask, dim=1).sum()
                loss = loss + fit
            energies = dict(zip(features, energy, strict=True))
        else:
            z, mask = self._rows(problem, *alike(features, masks, self.dims, sync))
            stated = None
            if uncertainty is not None:
                everywhere = absent_like(dict(uncertainty), self.dims)
                stated = self.gamma * torch.stack([upcast(everywhere[name]).detach() for name in z])
            energy, gap, penalty, descent, fit = coordination_terms(
                problem, heads, z, mask, stated, gap=self.gap, fits=self.owns_heads, sync=sync
            )
            descent = self.descent * descent
            loss = gap + self.delta * penalty + descent + fit
            energies = dict(zip(z, energy, strict=True))
        if self.gate.active and target is not None:
            loss = loss + self._kept(problem, ungated, masks, sync)
        check_loss("EnergyCoordinator", loss, features)
        if target is not None:
            self._training_check.count("EnergyCoordinator", self, features)
        return CoordinatorOutput(
            loss,
            gap,
            penalty,
            descent,
            fit,
            absent_like(energies, self.dims),
            heads.descended(problem, ungated, masks, self.step_size) if self.step_size else dict(ungated),
            self.gate.weights(self.dims),
        )

    @torch.no_grad()
    def observe(self, features: Mapping[str, Tensor], target: Tensor, present: Presence | None = None) -> None:
        """Take in a batch of held-out data, in the validation loop: from it comes the weight of each modality.

        The next training forward ends the observation and sets the weights by `functional.gate_weights`, from the
        mean of beta loss + gamma u over all batches and processes. Until then nothing changes. Whatever is chosen on
        the same data afterwards, an epoch for example, looks better there than it is; never pass test data.

        Among several processes each must call it at least once between two training forwards, or none; a process
        without held-out rows passes an empty batch.

        Args:
            features: held-out features, as `forward` takes them. Encoders belong in eval mode.
            target: their targets.
            present: as in `forward`.

        Raises:
            ValueError: as `forward` does.
        """
        features = given(features)
        masks = self._check(features, target, present)
        problem = self._problem(target, self.gamma)
        z, mask = self._rows(problem, features, masks)
        energy = self._read().potentials(problem, z)
        masks = absent_like(dict(zip(z, mask, strict=True)), dict.fromkeys(self.dims, 0))
        self.gate.observe(torch.stack([*absent_like(energy, self.dims).values()]), torch.stack([*masks.values()]))

    def _check(
        self, features: Mapping[str, Tensor], target: Tensor | None, present: Presence | None
    ) -> dict[str, Tensor]:
        masks = check_inputs("EnergyCoordinator", features, present, self.dims)
        rows, width, ignored = next(iter(masks.values())).shape[0], self.num_outputs, self.ignore_index
        heads = None if self.owns_heads else {m: next(self.heads[m].parameters(), None) for m in self.dims}
        check_placement("EnergyCoordinator", self, features=features, heads=heads, target=target)
        if target is not None:
            check_target("EnergyCoordinator", self.task, target, rows, width)
        check_values("EnergyCoordinator", self.task, features, masks, target, width, ignored, self.validate)
        return masks

    def _read(self) -> HeadReader:
        """The heads as this call reads them, with one warning where that is slower than it need be."""
        heads = {name: self.heads[name] for name in self.dims}
        found = HeadReader.of(heads, self.task, self.num_outputs, self.ignore_index, self.backend, self.joint)
        if found.slow and self._warn_of_route:
            warnings.warn(
                f"EnergyCoordinator: {found.slow}, so the heads are called as modules by the reference "
                'backend, which is slower; pass backend="reference" if that is what you want.',
                stacklevel=5,
            )
            self._warn_of_route = False
        return found

    def _problem(self, target: Tensor | None, gamma: float) -> EnergyTerms:
        return EnergyTerms.of(
            self.task, self.alpha, self.beta, gamma, self.temperature, self.normalize, target, self.class_weight
        )

    def _kept(
        self, problem: EnergyTerms, features: Mapping[str, Tensor], masks: dict[str, Tensor], sync: Sync
    ) -> Tensor:
        """A zero with the gradient on the features' size that the gate took: of that, all get the largest weight."""
        z, mask = self._rows(problem, *alike(features, masks, self.dims, sync))
        sizes = [problem.norm_weight(x.shape[1]) * upcast(x).square().sum(-1) for x in z.values()]
        (size,) = reduce([masked_sum(torch.stack(sizes), mask, dim=1)], sync)
        weights = self.gate.weights(self.dims)
        weight = torch.stack([weights[name] for name in z])
        lost = self.gate.weight.amax() - weight
        kept = self.descent * (lost * size.mean()).sum()
        return kept - kept.detach()

    def _rows(
        self, problem: EnergyTerms, features: Mapping[str, Tensor], masks: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Features with zeros where a modality is absent, and the rows that count, `(M, B)`."""
        z = {name: select(x, masks[name]) for name, x in features.items()}
        mask = torch.stack(list(masks.values()))
        valid = labelled(self.task, problem.target, self.num_outputs, self.ignore_index)
        return z, mask if valid is None else mask & valid

    def _fused(
        self, problem: EnergyTerms, heads: HeadReader, features: Mapping[str, Tensor], masks: dict[str, Tensor] | None
    ) -> Coordination | None:
        """energy, gap, penalty, descent and loss by the kernels; None for what they do not cover."""
        if problem.target is None or self.joint or self.gap not in ("pull", None):
            return None
        weights, biases = zip(*(heads.linear(name) for name in features), strict=True)
        return coordination(
            problem,
            list(features.values()),
            weights,
            biases,
            present=None if masks is None else torch.stack(list(masks.values())),
            ignore_index=self.ignore_index,
            delta=self.delta,
            descent=self.descent,
            pull=self.gap == "pull",
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"dims={self.dims}, task={self.task!r}, alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}, "
            f"delta={self.delta}, descent={self.descent}, step={self.step_size}, gap={self.gap!r}, joint={self.joint}"
        )
