"""Shared and private parts of each modality. EBMC (CVPR 2026), semantic decoupling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from modbalance.checks import (
    Presence,
    check_choice,
    check_dims,
    check_inputs,
    check_nonnegative,
    check_positive,
    check_size,
    given,
)
from modbalance.distributed import Sync, alike, reduce
from modbalance.functional.decoupling import alignment_sum, check_ids, preservation_sum, redundancy_sum
from modbalance.heads import linear_heads
from modbalance.output import no_tensor, scalars
from modbalance.placement import as_parameters, check_placement
from modbalance.presence import absent_like, select, stack, zero_of
from modbalance.task_checks import IGNORE_INDEX, check_loss, check_target, check_task, check_values
from modbalance.tasks import Task, output_width
from modbalance.training_check import TrainingCheck

__all__ = ["SemanticDecoupler"]


@no_tensor
class DecouplerOutput(NamedTuple):
    """Result of `SemanticDecoupler`; tensors by modality are zero where it is absent.

    Attributes:
        loss: the weighted sum of the terms, a scalar; add it to the task loss.
        alignment: InfoNCE of the shared parts, a scalar.
        redundancy: similarity of the private parts of different modalities, a scalar.
        preservation: task loss of the predictions from the private parts, a scalar; 0 without a target.
        shared: by modality, `(B, dim)`.
        private: by modality, `(B, dim)`.
        predictions: from the private part, by modality, `(B, width)`.
    """

    loss: Tensor
    alignment: Tensor
    redundancy: Tensor
    preservation: Tensor
    shared: dict[str, Tensor]
    private: dict[str, Tensor]
    predictions: dict[str, Tensor]

    def scalars(self) -> dict[str, Tensor]:
        """The scalar terms by name, detached."""
        return scalars(self)


class SemanticDecoupler(nn.Module):
    r"""Split each modality into a part it shares with the others and a part of its own.

    $$L_{MSD} = L_{inv} + \lambda_1 L_{dis} + \lambda_2 L_{uni}$$

    Shared parts are drawn together (`functional.alignment_loss`), private parts apart
    (`functional.redundancy_loss`), and each private part must still predict the target by itself
    (`functional.preservation_loss`). Each part is a two-layer perceptron on the modality's features.

    Args:
        dims: feature size by modality, at least two.
        dim: size of both parts.
        num_outputs: number of classes, labels or targets.
        task: `classification`, `multilabel`, `regression` or `gaussian`; see `modbalance.tasks`.
        temperature: tau of the InfoNCE term. 0.1 is ours.
        lambda_1: weight of L_dis; 0.1 is the paper's.
        lambda_2: weight of L_uni; 0.1 is the paper's.
        cosine: `squared` (least at orthogonal parts) or `plain` in L_dis.
        class_weight: weight of each class in L_uni, `(C,)`; classification only.
        ignore_index: label of the rows that L_uni leaves out; classification only.
        validate: let a NaN or a label out of range on a GPU raise an error that names it, which waits for the device.
            On a CPU this always happens; a GPU without it stops at an assertion on the device, which torch.compile
            and graph capture leave out.
        sync: True, a process group or False: the processes of a mean in training; see `modbalance.distributed`.
        max_batch: rows of the largest batch of any process: spares the exchange of InfoNCE's negatives one more
            collective and the host a wait.

    Shape:
        features `(B, D_m)` by modality, target `(B,)` or `(B, C)`, present bool `(B,)` by modality →
        `shared`, `private` `(B, dim)` and `predictions` `(B, width)` for every modality of `dims`, zero where
        absent; `loss` and its three terms are scalars. Without a target `preservation` is 0.

    Raises:
        ValueError: a name, shape or task does not fit; the message names it and the remedy.

    Source: EBMC (CVPR 2026), semantic decoupling, L_MSD.

    Examples:
        >>> import torch
        >>> decouple = SemanticDecoupler({"text": 8, "audio": 5}, dim=4, num_outputs=3)
        >>> out = decouple({"text": torch.randn(6, 8), "audio": torch.randn(6, 5)}, torch.arange(6) % 3)
        >>> out.shared["audio"].shape, sorted(out.scalars())
        (torch.Size([6, 4]), ['alignment', 'loss', 'preservation', 'redundancy'])
    """

    class_weight: Tensor | None

    def __init__(
        self,
        dims: Mapping[str, int],
        dim: int,
        num_outputs: int,
        task: Task = "classification",
        *,
        temperature: float = 0.1,
        lambda_1: float = 0.1,
        lambda_2: float = 0.1,
        cosine: Literal["squared", "plain"] = "squared",
        class_weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        validate: bool = False,
        sync: Sync = True,
        max_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.dims = check_dims("SemanticDecoupler", dims)
        check_task("SemanticDecoupler", task, num_outputs, class_weight, ignore_index)
        check_size("SemanticDecoupler", "pass the size of the parts", dim=dim)
        check_positive("SemanticDecoupler", temperature=temperature)
        check_nonnegative("SemanticDecoupler", lambda_1=lambda_1, lambda_2=lambda_2)
        check_choice("SemanticDecoupler", ("squared", "plain"), cosine=cosine)
        if max_batch is not None:
            check_size("SemanticDecoupler", "pass the rows of the largest batch", max_batch=max_batch)
        self.dim, self.num_outputs, self.task = dim, num_outputs, task
        self.temperature, self.lambda_1, self.lambda_2, self.cosine = temperature, lambda_1, lambda_2, cosine
        self.ignore_index, self.validate = ignore_index, validate
        self.sync, self.max_batch = sync, max_batch
        self._training_check = TrainingCheck()
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.shared = nn.ModuleDict({name: _projection(size, dim) for name, size in self.dims.items()})
        self.private = nn.ModuleDict({name: _projection(size, dim) for name, size in self.dims.items()})
        self.heads = linear_heads(dict.fromkeys(self.dims, dim), num_outputs, task)

    def forward(
        self,
        features: Mapping[str, Tensor],
        target: Tensor | None = None,
        present: Presence | None = None,
        ids: Tensor | None = None,
    ) -> DecouplerOutput:
        """Parts, predictions and losses.

        Args:
            features: `(B, D_m)` by modality; one that is missing or None is absent for all.
            target: `(B,)` class indices or `(B, C)` probabilities for classification, else `(B, C)`, or `(B,)` for
                one regression target. None leaves out L_uni.
            present: bool `(B,)` by modality, or `(B, M)` with the columns in the order of `dims`; a modality that is
                not in it is present for all.
            ids: `(B,)` integers; samples with the same one are no negatives of each other in L_inv. Among several
                processes on each or on none.

        Returns:
            `loss`, `alignment`, `redundancy` and `preservation`, scalars; `shared` and `private` `(B, dim)` and
            `predictions` `(B, width)` for every modality of `dims`, zero where absent.
        """
        features = given(features)
        masks = check_inputs("SemanticDecoupler", features, present, self.dims)
        batch = next(iter(masks.values())).shape[0]
        check_placement("SemanticDecoupler", self, features=features, present=present, target=target)
        check_ids("SemanticDecoupler", ids, next(iter(masks.values())))
        if target is not None:
            check_target("SemanticDecoupler", self.task, target, batch, self.num_outputs)
        check_values(
            "SemanticDecoupler",
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
        inputs = {
            name: as_parameters("SemanticDecoupler", name, select(x, masks[name]), self.shared[name])
            for name, x in features.items()
        }
        shared = {name: select(self.shared[name](x), masks[name]) for name, x in inputs.items()}
        private = {name: select(self.private[name](x), masks[name]) for name, x in inputs.items()}
        predictions = {name: select(self.heads[name](x), masks[name]) for name, x in private.items()}

        z, mask = stack("SemanticDecoupler", shared, masks)
        sums = [alignment_sum(z, mask, self.temperature, sync, self.max_batch, ids)]
        sums.append(redundancy_sum(*stack("SemanticDecoupler", private, masks), self.cosine))
        if target is not None:
            outputs, mask = stack("SemanticDecoupler", predictions, masks)
            sums.append(preservation_sum(outputs, mask, target, self.task, self.class_weight, self.ignore_index))
        alignment, redundancy, *labelled = (s.mean() for s in reduce(sums, sync))
        preservation = labelled[0] if labelled else zero_of(predictions)
        loss = alignment + self.lambda_1 * redundancy + self.lambda_2 * preservation
        check_loss("SemanticDecoupler", loss, features)
        self._training_check.count("SemanticDecoupler", self)
        return DecouplerOutput(
            loss,
            alignment,
            redundancy,
            preservation,
            absent_like(shared, dict.fromkeys(self.dims, self.dim)),
            absent_like(private, dict.fromkeys(self.dims, self.dim)),
            absent_like(predictions, dict.fromkeys(self.dims, output_width(self.task, self.num_outputs))),
        )

    def extra_repr(self) -> str:
        return f"dims={self.dims}, dim={self.dim}, task={self.task!r}"


def _projection(size: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, dim), nn.GELU(), nn.Linear(dim, dim))
