"""What the methods that change the encoders' gradients have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from modbalance.checks import Presence, check_inputs, check_present, given
from modbalance.distributed import Sync, reduce
from modbalance.presence import MaskedSum, masked_sum, select, upcast
from modbalance.protocol import Balancer, BalancerOutput, no_loss
from modbalance.task_checks import check_target, check_task, check_values
from modbalance.task_formulas import split_gaussian
from modbalance.tasks import Task, check_outputs, labelled, task_loss

MANY = 1000
Predict = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]


class GradientBalancer(Balancer):
    """Measures in `forward`, scales the gradients of the encoders in `step`.

    What several micro-batches measured before a `step` is averaged, so that accumulated gradients are changed as
    those of one large batch. `coefficients` holds the last ones by modality, for a log.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_outputs: int,
        predict: Predict | None,
        task: Task,
        ignore_index: int,
        sync: Sync,
    ) -> None:
        super().__init__()
        # A plain dict keeps the encoders out of the module tree: they are the user's.
        self.encoders = check_encoders(type(self).__name__, encoders)
        if predict is not None and not callable(predict):
            raise TypeError(_no_predict(type(self).__name__, predict))
        check_task(type(self).__name__, task, num_outputs, None, ignore_index)
        self.num_outputs, self.predict, self.task = num_outputs, predict, task
        self.ignore_index, self.sync = ignore_index, sync
        self.coefficients: dict[str, Tensor] = {}
        self._window: MaskedSum | None = None
        self._calls = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
    ) -> BalancerOutput:
        owner, features = type(self).__name__, given(features)
        masks = check_rows(owner, features, present, self.encoders)
        if target is not None and self.training:
            check_batch(owner, self.task, features, masks, target, self.num_outputs, self.ignore_index)
            with torch.no_grad():
                self.record(self.measure(features, target, masks))
        return BalancerOutput(no_loss(features), {}, features)

    def measure(
        self, features: Mapping[str, Tensor], target: Tensor, masks: dict[str, Tensor]
    ) -> dict[str, MaskedSum]:
        """What the coefficients depend on, summed over the samples that count, by modality."""
        raise NotImplementedError

    def outputs(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], keep: Sequence[str]) -> Tensor:
        """The fused outputs from the features of `keep`, the others zero and absent."""
        owner = type(self).__name__
        if self.predict is None:
            raise TypeError(_no_predict(owner, None))
        return predict_from(owner, self.predict, features, masks, keep, self.task, self.num_outputs)

    def labelled(self, target: Tensor) -> Tensor | None:
        """The rows whose label counts, `(B,)` bool; None where every row does."""
        return labelled(self.task, target, self.num_outputs, self.ignore_index)

    def record(self, sums: Mapping[str, MaskedSum]) -> None:
        """Add a measurement of each modality that is there, over all processes."""
        like = next(iter(sums.values()))
        zero = MaskedSum(torch.zeros_like(like.total), torch.zeros_like(like.entries))
        self._calls += 1
        if self._calls == MANY:
            owner = type(self).__name__
            warnings.warn(
                f"{owner}: {MANY} batches without step(), so that nothing is balanced; call balance.step() before "
                "the optimiser's step.",
                RuntimeWarning,
                stacklevel=5,
            )
        parts = [sums.get(name, zero) for name in self.encoders]
        stacked = MaskedSum(
            torch.stack([part.total.detach() for part in parts]), torch.stack([part.entries for part in parts])
        )
        total, entries = reduce([stacked], self.sync)[0]
        before = self._window
        self._window = (
            MaskedSum(total, entries) if before is None else MaskedSum(before.total + total, before.entries + entries)
        )

    def measured(self) -> tuple[Tensor, Tensor]:
        """The mean measurement by modality since the last step, `(M,)`, and which modalities were seen."""
        if self._window is None:
            owner = type(self).__name__
            raise RuntimeError(
                f"{owner}: step() before anything was measured, expected a call with a target in training mode; call "
                "balance(features, target, present) first, once a batch."
            )
        return self._window.mean(), self._window.entries > 0

    @torch.no_grad()
    def step(self) -> None:
        """Scale the gradient of every parameter of every encoder."""
        mean, seen = self.measured()
        scales = self.modulation(mean, seen)
        self.coefficients = dict(zip(self.encoders, scales.unbind(), strict=True))
        for name, encoder in self.encoders.items():
            for gradient in gradients_of(type(self).__name__, name, encoder):
                self.modulate(gradient, self.coefficients[name])
        self._window, self._calls = None, 0

    def modulation(self, mean: Tensor, seen: Tensor) -> Tensor:
        """The coefficient of each modality, `(M,)`."""
        raise NotImplementedError

    def modulate(self, gradient: Tensor, coefficient: Tensor) -> None:
        """Change a gradient in place."""
        gradient.mul_(coefficient.to(gradient.dtype))

    def extra_repr(self) -> str:
        return f"encoders={sorted(self.encoders)}"


def check_encoders(
    owner: str, encoders: Mapping[str, nn.Module], dims: Mapping[str, int] | None = None
) -> dict[str, nn.Module]:
    """Encoders by modality, those of `dims`, none of which shares a parameter with another."""
    if not isinstance(encoders, Mapping) or len(encoders) < 2:
        raise ValueError(
            f"{owner}: encoders is a {type(encoders).__name__}, expected a mapping of at least two modality names to "
            'modules; pass for example encoders={"audio": model.audio, "video": model.video}.'
        )
    owners: dict[int, str] = {}
    for name, encoder in encoders.items():
        if not isinstance(encoder, nn.Module) or not any(True for _ in encoder.parameters()):
            raise ValueError(
                f"{owner}: encoders[{name!r}] is {type(encoder).__name__}, expected a module with parameters; pass "
                "the module itself, several as an nn.ModuleList."
            )
        for key, p in encoder.named_parameters():
            other = owners.setdefault(id(p), name)
            if other != name:
                raise ValueError(
                    f"{owner}: encoders[{name!r}] shares its parameter {key!r} with encoders[{other!r}], expected "
                    "encoders that have none in common; pass the parts that belong to one modality."
                )
    if dims is not None and set(encoders) != set(dims):
        raise ValueError(
            f"{owner}: encoders has {sorted(encoders)}, expected {sorted(dims)} as in dims; "
            "pass one encoder a modality."
        )
    return dict(encoders)


def gradients_of(owner: str, name: str, encoder: nn.Module) -> list[Tensor]:
    """The gradients that an encoder has, or one clear error."""
    found = [p.grad for p in encoder.parameters() if p.grad is not None]
    for gradient in found:
        if hasattr(gradient, "placements"):
            raise NotImplementedError(
                f"{owner}: encoders[{name!r}] has a gradient that is sharded over processes, expected whole ones; "
                "use DistributedDataParallel, or a balancer that is a loss term, such as UnimodalLosses."
            )
        if gradient.layout is not torch.strided:
            raise NotImplementedError(
                f"{owner}: encoders[{name!r}] has a gradient of layout {gradient.layout}, expected a dense one; "
                "build the embedding with sparse=False."
            )
    return found


def check_rows(
    owner: str, features: Mapping[str, Tensor], present: Presence | None, encoders: Mapping[str, object]
) -> dict[str, Tensor]:
    """The masks of features of any shape `(B, ...)`."""
    if not isinstance(features, Mapping):
        return check_inputs(owner, features, None)
    for name in features:
        if name not in encoders:
            raise ValueError(
                f"{owner}: features has the modality {name!r}, expected one of {sorted(encoders)}; correct the name "
                "or build the balancer with it."
            )
    rows = {name: _rows(x) for name, x in features.items()}
    first = next(iter(check_inputs(owner, rows, None).values()))
    return check_present(owner, present, features, encoders, len(first), first.device)


def check_batch(
    owner: str,
    task: Task,
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    target: Tensor,
    num_outputs: int,
    ignore_index: int,
) -> None:
    """The target, and the values of features of any shape `(B, ...)`."""
    check_target(owner, task, target, next(iter(masks.values())).shape[0], num_outputs)
    flat = {name: x.flatten(1) for name, x in features.items()}
    check_values(owner, task, flat, masks, target, num_outputs, ignore_index)


def _rows(x: Tensor) -> Tensor:
    """A view of two dimensions."""
    return x[(slice(None),) + (0,) * (x.dim() - 2)] if isinstance(x, Tensor) and x.dim() > 2 else x


def _no_predict(owner: str, predict: object) -> str:
    return (
        f"{owner}: predict is {predict!r}, expected your fusion and head; pass predict=lambda features, present: "
        "outputs."
    )


def predict_from(
    owner: str,
    predict: Predict,
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    keep: Sequence[str],
    task: Task,
    num_outputs: int,
) -> Tensor:
    """The fused outputs from the features of `keep`, the others zero and absent."""
    shown = {name: mask if name in keep else torch.zeros_like(mask) for name, mask in masks.items()}
    z = {name: select(x, shown[name]) for name, x in features.items()}
    outputs = predict(z, shown)
    check_outputs(owner, "predict", outputs, task, num_outputs, next(iter(masks.values())).shape[0])
    return upcast(outputs)


def error(task: Task, outputs: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """`(B,)`: cross-entropy, or half the squared error, which is that of a Gaussian of variance 1."""
    if task in ("classification", "multilabel"):
        return task_loss(task, outputs, target, ignore_index=ignore_index)
    mean = split_gaussian(outputs)[0] if task == "gaussian" else outputs
    return 0.5 * task_loss("regression", mean, target)


def score(task: Task, outputs: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """`(B,)` in [0, 1]: the probability of the truth; of labels their mean; of values `exp(-error)`."""
    if task == "multilabel":
        p = outputs.sigmoid()
        return (target * p + (1 - target) * (1 - p)).mean(-1)
    return (-error(task, outputs, target, ignore_index)).exp()


def over(values: Tensor, mask: Tensor, valid: Tensor | None) -> MaskedSum:
    """Sum over the samples that have the modality and a label."""
    return masked_sum(values, mask if valid is None else mask & valid)
