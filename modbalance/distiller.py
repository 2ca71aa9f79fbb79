"""Trust between modalities, by sample. EBMC (CVPR 2026), instance-aware modality trust distillation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from modbalance.checks import Presence, check_inputs, check_positive, given, readable
from modbalance.distributed import Sync, reduce
from modbalance.functional.trust import Direction, distillation_sum, trust_fusion, trust_weights
from modbalance.output import no_tensor, scalars
from modbalance.placement import check_placement
from modbalance.presence import select
from modbalance.task_checks import check_loss, check_task
from modbalance.tasks import Task, output_width, prediction_variance

__all__ = ["TrustDistiller"]

T = TypeVar("T")


@no_tensor
class DistillerOutput(NamedTuple):
    """Result of `TrustDistiller`.

    Attributes:
        loss: trust-weighted divergence between student and teachers, a scalar; add it to the task loss.
        weights: trust by modality, `(B,)`, 0 where absent, else summing to 1 over the modalities.
    """

    loss: Tensor
    weights: dict[str, Tensor]

    def scalars(self) -> dict[str, Tensor]:
        """The scalar terms by name, detached."""
        return scalars(self)


class TrustDistiller(nn.Module):
    r"""Weigh the modalities of each sample by how far their teachers are to be trusted, and learn from them.

    Trust is `functional.trust_weights` of the teachers' variances, the loss `functional.distillation_loss`,
    and `fuse` the weighted sum by trust, the same in training and at inference. The component has no
    parameters.

    Args:
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        temperature: T of the softened probabilities, > 0; classification and multilabel only.
        direction: `paper` is KL(student || teacher), `forward` is KL(teacher || student).
        min_variance: floor of a teacher's variance.
        beyond_chance: trust what a teacher knows beyond chance, `chance` of `functional.trust_weights`: classes
            or labels all alike, or variance 1, the training target's. False is the paper's form.
        sync: True, a process group or False: the processes of a mean in training; see `modbalance.distributed`.

    Shape:
        student `(B, width)`, teachers `(B, width)` by modality, variances `(B,)` or `(B, C)` by modality,
        present bool `(B,)` by modality, bias numbers or `(B,)` by modality, as `functional.trust_weights` takes
        them → `weights` `(B,)` by modality: 0 where absent, else summing to 1; `loss` is a scalar. Without
        `variances` they are read from the teachers: p(1-p), or the Gaussian's own.

    Raises:
        ValueError: a shape or option does not fit, or the task is `regression` and no variances came.

    Source: EBMC (CVPR 2026), instance-aware modality trust distillation, L_IMTD.

    Examples:
        >>> import torch
        >>> distill = TrustDistiller(num_outputs=3)
        >>> teachers = {"text": torch.tensor([[9.0, 0.0, 0.0]]), "audio": torch.zeros(1, 3)}
        >>> out = distill(torch.zeros(1, 3), teachers)
        >>> bool(out.weights["text"] > out.weights["audio"])
        True
        >>> distill.fuse({"text": torch.ones(1, 4), "audio": torch.zeros(1, 4)}, out.weights).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        num_outputs: int,
        task: Task = "classification",
        *,
        temperature: float = 1.0,
        direction: Direction = "paper",
        min_variance: float = 1e-6,
        beyond_chance: bool = False,
        sync: Sync = True,
    ) -> None:
        super().__init__()
        check_task("TrustDistiller", task, num_outputs)
        check_positive("TrustDistiller", temperature=temperature, min_variance=min_variance)
        if direction not in ("paper", "forward"):
            raise ValueError(
                f"TrustDistiller: direction is {direction!r}, expected 'paper' (student || teacher) or 'forward' "
                "(teacher || student); pass one of them."
            )
        self.num_outputs, self.task = num_outputs, task
        self.temperature, self.direction, self.min_variance, self.sync = temperature, direction, min_variance, sync
        self.beyond_chance = beyond_chance

    def forward(
        self,
        student: Tensor,
        teachers: Mapping[str, Tensor | None],
        variances: Mapping[str, Tensor] | None = None,
        present: Presence | None = None,
        bias: Mapping[str, float | Tensor] | None = None,
    ) -> DistillerOutput:
        """Trust and the distillation loss.

        Args:
            student: outputs of the fused model, `(B, width)`.
            teachers: outputs by modality, `(B, width)`; detached. One that is None is absent for all,
                whatever the other arguments hold of it, and its weights are 0.
            variances: `(B,)` or `(B, C)` by modality; read from the teachers without them.
            present: bool `(B,)` by modality, or `(B, M)` with the columns in the order of `teachers`; a modality that
                is not in it is present for all.
            bias: numbers or `(B,)` by modality, added to the logarithm of its trust.

        Returns:
            `loss`, a scalar, and `weights` `(B,)` by modality, 0 where absent, else summing to 1.
        """
        weights = self.trust(teachers, variances, present, bias)
        teachers = given(teachers)
        check_placement("TrustDistiller", student=student, teachers=teachers)
        width = output_width(self.task, self.num_outputs)
        if student.shape != next(iter(teachers.values())).shape or student.shape[-1] != width:
            raise ValueError(
                f"TrustDistiller: student has shape {tuple(student.shape)}, expected "
                f"({len(next(iter(teachers.values())))}, {width}) as the teachers; pass the fused model's outputs."
            )
        guided = torch.stack(list(weights.values())).any(0)
        _check_nan("student", {"": student}, {"": guided})
        terms = distillation_sum(student, teachers, weights, self.task, self.temperature, self.direction)
        (terms,) = reduce([terms], self.training and self.sync)
        loss = terms.mean()
        check_loss("TrustDistiller", loss, {"student": student})
        return DistillerOutput(loss, weights)

    def trust(
        self,
        teachers: Mapping[str, Tensor | None],
        variances: Mapping[str, Tensor] | None = None,
        present: Presence | None = None,
        bias: Mapping[str, float | Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The weights alone, before there is a student: what fusion needs. The arguments are those of `forward`."""
        names = list(teachers) if isinstance(teachers, Mapping) else []
        teachers = given(teachers)
        absent = set(names) - set(teachers)
        if isinstance(present, Tensor) and absent and present.dim() == 2 and present.shape[1] == len(names):
            present = dict(zip(names, present.unbind(1), strict=True))
        if isinstance(present, Mapping):
            present = _without(absent, present)
        bias = None if bias is None else _without(absent, bias)
        variances = None if variances is None else _without(absent, variances)
        width = output_width(self.task, self.num_outputs)
        masks = check_inputs("TrustDistiller", teachers, present, dict.fromkeys(teachers, width), "teachers")
        check_placement("TrustDistiller", teachers=teachers, variances=variances, bias=bias)
        if variances is None:
            if self.task == "regression":
                raise ValueError(
                    'TrustDistiller: variances is None with task="regression", expected one variance a modality, '
                    'since a regression output states none; pass variances=... or use task="gaussian".'
                )
            variances = {
                name: prediction_variance(self.task, select(x.detach(), masks[name])) for name, x in teachers.items()
            }
        elif set(variances) != set(teachers):
            raise ValueError(
                f"TrustDistiller: variances has {sorted(variances)}, expected {sorted(teachers)} as in teachers; "
                "pass a variance for each teacher."
            )
        for name, v in variances.items():
            batch = masks[name].shape[0]
            if v.shape not in ((batch,), (batch, self.num_outputs)):
                raise ValueError(
                    f"TrustDistiller: variances[{name!r}] has shape {tuple(v.shape)}, expected ({batch},) or "
                    f"({batch}, {self.num_outputs}); pass one variance a sample or one an output."
                )
        _check_nan("teachers", teachers, masks)
        _check_nan("variances", variances, masks)
        found = trust_weights(variances, masks, min_variance=self.min_variance, chance=self.chance(), bias=bias)
        nothing = torch.zeros_like(next(iter(found.values())))
        return {name: found.get(name, nothing) for name in names}

    def chance(self) -> Tensor | None:
        """Variance of a prediction that knows nothing, `(C,)`; None in the paper's form."""
        if not self.beyond_chance:
            return None
        p = {"classification": 1 / self.num_outputs, "multilabel": 0.5}.get(self.task)
        return torch.full((self.num_outputs,), 1.0 if p is None else p * (1 - p))

    def fuse(self, tensors: Mapping[str, Tensor | None], weights: Mapping[str, Tensor]) -> Tensor:
        """Sum of `tensors` weighted by `weights`, per sample; None is left out. See `functional.trust_fusion`."""
        return trust_fusion(given(tensors), weights)

    def extra_repr(self) -> str:
        return f"num_outputs={self.num_outputs}, task={self.task!r}, direction={self.direction!r}"


def _without(absent: set[str], by_name: Mapping[str, T]) -> dict[str, T]:
    return {name: x for name, x in by_name.items() if name not in absent}


def _check_nan(argument: str, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """On a CPU. A logit of -inf rules a class out and is fine."""
    for name, x in tensors.items():
        if readable(x) and math.isnan(x.detach().sum().item()):
            rows = int(select(x.isnan().reshape(len(x), -1).any(1), masks[name]).sum())
            what = f"{argument}[{name!r}]" if name else argument
            if rows:
                raise ValueError(
                    f"TrustDistiller: {what} has NaN in {rows} present rows, expected numbers; correct the model "
                    "that gave them, or mark the rows absent in present."
                )
