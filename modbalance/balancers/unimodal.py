"""Methods that give every modality a loss of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modbalance.balancers.formulas import blend_weights
from modbalance.checks import Presence, check_dims, check_inputs, check_nonnegative, check_positive, given
from modbalance.distributed import Sync, alike, reduce
from modbalance.heads import check_heads, linear_heads
from modbalance.placement import as_parameters
from modbalance.presence import masked_sum, select, zero_of
from modbalance.protocol import Balancer, BalancerOutput, CombinedOutput, HasLoss
from modbalance.task_checks import IGNORE_INDEX, check_target, check_task, check_values
from modbalance.tasks import Task, check_outputs, labelled, output_width, task_loss
from modbalance.training_check import TrainingCheck

__all__ = ["DetachedFusion", "GradientBlending", "UnimodalLosses"]


class UnimodalLosses(Balancer):
    r"""A head on each encoder that learns with it: the control that every balancer has to beat.

    $$L = L_{task} + \sum_m w_m \operatorname{mean}_{i:\,m\text{ present}} \ell(h_m(z_i^m), y_i)$$

    Hooks in as a loss term. Needs nothing but features; costs one linear layer a modality a step. Works with every
    task, fusion and optimiser. Unlike a probe the head pulls its encoder along.

    Args:
        dims: feature size by modality, at least two.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        weights: w; one number, or one by modality. Yours stands at weight 1.
        heads: predictors of your own by modality, `(B, D_m)` to `(B, width)`. They learn too, but stay yours (not in
            `parameters()`). Linear heads of its own by default.
        class_weight: weight of each class in the loss, `(C,)`; classification only.
        ignore_index: label of the rows that count as absent; classification only.
        sync: in training, take every mean over all processes of a distributed run: True for the default process
            group, a process group, or False for this process alone; see `modbalance.distributed`.

    Shape:
        features `(B, D_m)` by modality, target `(B,)` or `(B, C)`, present bool `(B,)` by modality → a
        `BalancerOutput`; without a target the losses are 0.

    Raises:
        ValueError: a name, shape or task does not fit; the message names it and the remedy.

    Source: auxiliary losses have no single source; the ICML 2024 paper on MMPareto names them as the common form of
    unimodal assistance.

    Examples:
        >>> balance = UnimodalLosses({"audio": 8, "video": 5}, num_outputs=3)
        >>> features = {"audio": torch.randn(6, 8), "video": torch.randn(6, 5)}
        >>> out = balance(features, torch.arange(6) % 3)
        >>> sorted(out.scalars())
        ['loss', 'loss/audio', 'loss/video']
    """

    class_weight: Tensor | None

    def __init__(
        self,
        dims: Mapping[str, int],
        num_outputs: int,
        task: Task = "classification",
        *,
        weights: float | Mapping[str, float] = 1.0,
        heads: Mapping[str, nn.Module] | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.dims = check_dims(owner, dims)
        check_task(owner, task, num_outputs, class_weight, ignore_index)
        if isinstance(weights, Mapping) and set(weights) != set(self.dims):
            raise ValueError(
                f"{owner}: weights has {sorted(weights)}, expected {sorted(self.dims)} as in dims; "
                "pass one weight a modality."
            )
        self.weights = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(self.dims, weights)
        check_nonnegative(owner, **{f"weights[{name!r}]": weight for name, weight in self.weights.items()})
        if heads is not None:
            check_heads(owner, heads, self.dims, output_width(task, num_outputs))
        self.num_outputs, self.task, self.ignore_index, self.sync = num_outputs, task, ignore_index, sync
        self.register_buffer("class_weight", class_weight, persistent=False)
        # A plain dict keeps the user's heads out of the module tree: their parameters have an optimiser already.
        self.heads = linear_heads(self.dims, num_outputs, task) if heads is None else dict(heads)
        self._training_check = TrainingCheck()

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> BalancerOutput | CombinedOutput:
        features = given(features)
        losses = self.losses(features, target, present)
        weighted = [self.weights[name] * loss for name, loss in losses.items()]
        return BalancerOutput(torch.stack(weighted).sum(), losses, features)

    def losses(
        self, features: Mapping[str, Tensor], target: Tensor | None, present: Presence | None
    ) -> dict[str, Tensor]:
        """Each modality's own loss, a mean over the samples that have it; 0 without any, or without a target."""
        owner, features = type(self).__name__, given(features)
        masks = check_inputs(owner, features, present, self.dims)
        sync = self.training and self.sync
        features, masks = alike(features, masks, self.dims, sync)
        z = {name: select(x, masks[name]) for name, x in features.items()}
        batch = next(iter(masks.values())).shape[0]
        if target is None:
            return {name: zero_of({name: x}) for name, x in z.items()}
        check_target(owner, self.task, target, batch, self.num_outputs)
        check_values(owner, self.task, features, masks, target, self.num_outputs, self.ignore_index)
        self._training_check.count(owner, self, features)
        valid = labelled(self.task, target, self.num_outputs, self.ignore_index)
        sums = []
        for name, x in z.items():
            outputs = self.heads[name](as_parameters(owner, name, x, self.heads[name]))
            check_outputs(owner, f"heads[{name!r}]", outputs, self.task, self.num_outputs, batch)
            loss = task_loss(
                self.task, outputs, target, class_weight=self.class_weight, ignore_index=self.ignore_index
            )
            sums.append(masked_sum(loss, masks[name] if valid is None else masks[name] & valid))
        return {name: s.mean() for name, s in zip(z, reduce(sums, sync), strict=True)}

    def extra_repr(self) -> str:
        return f"dims={self.dims}, task={self.task!r}, weights={self.weights}"


class DetachedFusion(UnimodalLosses):
    r"""Encoders learn by their own losses, the fusion on detached features: neither disturbs the other.

    $$L = L_{task}(f(\operatorname{sg}(z^1), \dots, \operatorname{sg}(z^M)), y) + \sum_m w_m L_m(z^m)$$

    with sg the stop-gradient. Hooks in as a loss term, and by what you fuse: **fuse `out.features`**, which are
    detached in training. Costs as `UnimodalLosses`, less the backward of the fusion into the encoders.

    Caveats: no encoder learns what only the modalities together can tell (XOR of two modalities stays at chance); a
    modality without information by itself stays untrained. Arguments as for `UnimodalLosses`.

    Experimental: of the paper the abstract was read, which states both cuts: the fused loss sends no gradient to the
    encoders, the unimodal losses none to the fusion. By a public note the paper takes its unimodal outputs from the
    fusion with the other modalities dropped; heads of their own satisfy both cuts without access to yours.

    Args:
        dims: feature size by modality, at least two.
        num_outputs: number of classes, labels or targets.
        task: as in `UnimodalLosses`, as all that follow.
        weights: as there.
        heads: as there.
        class_weight: as there.
        ignore_index: as there.
        sync: as there.

    Source: Wei et al., Boosting multimodal learning via disentangled gradient learning, ICCV 2025, abstract.

    Examples:
        >>> balance = DetachedFusion({"audio": 8, "video": 5}, num_outputs=3)
        >>> features = {"audio": torch.randn(6, 8, requires_grad=True), "video": torch.randn(6, 5)}
        >>> out = balance(features, torch.arange(6) % 3)
        >>> out.features["audio"].requires_grad, out.loss.requires_grad
        (False, True)
    """

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> BalancerOutput:
        out = super().forward(features, target, present)
        return BalancerOutput(out.loss, out.losses, {name: x.detach() for name, x in out.features.items()})


class GradientBlending(UnimodalLosses):
    r"""Weigh the fused and the unimodal losses by what each gains on held-out data for what it over-fits.

    $$L = w_{task} L_{task} + \sum_m w_m L_m, \qquad w_k \propto G_k / O_k^2, \qquad \sum_k w_k = 1$$

    G is the fall of the validation loss between two checkpoints and O the rise of the gap between validation and
    training loss; see `formulas.blend_weights`. Hooks in by `backward(loss, out)`, or by `total(loss, out)` in a
    trainer. Needs validation losses: call `update` at the end of every super-epoch, online, or twice before training
    with the losses of models trained by themselves, offline. All weights are equal until then.

    Costs as `UnimodalLosses` a step and one pass over training and validation data a super-epoch. Caveat: the ratio
    of two small differences is noisy; with few validation samples the weights jump.

    Experimental: the paper was not readable, its optimum $w_k \propto \langle \nabla L^*, v_k\rangle / \sigma_k^2$
    was read in two public notes on it; $G / O^2$ is its estimate from losses. `floor` is ours.

    Args:
        dims: feature size by modality, at least two; none may be called `task`.
        num_outputs: number of classes, labels or targets.
        task: as in `UnimodalLosses`.
        floor: the least that O counts as, > 0.
        heads: as there.
        class_weight: as there.
        ignore_index: as there.
        sync: as there.

    Raises:
        ValueError: a name, shape or task does not fit, or `update` lacks a loss or gets one that is not finite.

    Source: Wang et al., What makes training multi-modal classification networks hard?, CVPR 2020.

    Examples:
        >>> balance = GradientBlending({"audio": 8, "video": 5}, num_outputs=3)
        >>> start = {"audio": (1.1, 1.1), "video": (1.1, 1.1), "task": (1.1, 1.1)}
        >>> balance.update(start)
        >>> balance.update({"audio": (0.6, 0.9), "video": (0.1, 0.9), "task": (0.6, 0.8)})
        >>> {name: round(w, 2) for name, w in balance.blend.items()}
        {'audio': 0.22, 'video': 0.03, 'task': 0.75}
    """

    values: Tensor
    before: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_outputs: int,
        task: Task = "classification",
        *,
        floor: float = 0.01,
        heads: Mapping[str, nn.Module] | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        sync: Sync = True,
    ) -> None:
        super().__init__(
            dims, num_outputs, task, heads=heads, class_weight=class_weight, ignore_index=ignore_index, sync=sync
        )
        if "task" in self.dims:
            raise ValueError(
                "GradientBlending: dims has the modality 'task', expected another name, since the fused loss has "
                "this one; rename the modality."
            )
        check_positive("GradientBlending", floor=floor)
        self.floor = floor
        # Buffers, so that a run that is continued goes on with its weights; NaN until the first update.
        self.register_buffer("before", torch.full((len(self.dims) + 1, 2), float("nan")))
        self.register_buffer("values", torch.full((len(self.dims) + 1,), 1 / (len(self.dims) + 1)))

    @property
    def blend(self) -> dict[str, float]:
        """w by modality, that of the fused loss under `task`."""
        return dict(zip([*self.dims, "task"], self.values.tolist(), strict=True))

    def update(self, losses: Mapping[str, tuple[float, float]]) -> None:
        """Weights anew, from the losses now and those of the call before.

        Args:
            losses: (training loss, validation loss) by modality, and of the fused outputs under `task`, finite; the
                same on every process.
        """
        names = [*self.dims, "task"]
        if set(losses) != set(names):
            raise ValueError(
                f"GradientBlending: losses has {sorted(losses)}, expected {sorted(names)}; pass a pair "
                "(training loss, validation loss) for each."
            )
        now = {name: (float(losses[name][0]), float(losses[name][1])) for name in names}
        for name, pair in now.items():
            if not all(map(math.isfinite, pair)):
                raise ValueError(
                    f"GradientBlending: losses[{name!r}] is {pair}, expected finite numbers; leave this update out, "
                    "or find where the loss diverged."
                )
        if not bool(self.before.isnan().any()):
            before = {name: (row[0], row[1]) for name, row in zip(names, self.before.tolist(), strict=True)}
            weights = blend_weights(before, now, floor=self.floor)
            self.values.copy_(torch.tensor([weights[name] for name in names], dtype=torch.float64))
        self.before.copy_(torch.tensor([now[name] for name in names], dtype=torch.float64))

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> CombinedOutput:
        remedy = (
            "the weights of all losses sum to 1: call balance.backward(loss, out) or use balance.total(loss, out)"
        )
        return CombinedOutput(self.losses(features, target, present), given(features), remedy)

    def total(self, loss: Tensor, out: HasLoss) -> Tensor:
        """The blended loss; see `Balancer.total`."""
        assert isinstance(out, CombinedOutput)
        terms = torch.stack([*(out.losses.get(name, torch.zeros_like(loss)) for name in self.dims), loss])
        return terms @ self.values.to(terms.dtype)
