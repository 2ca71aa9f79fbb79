"""The specification of the data that a model was made for, and the batches it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ebmc_msa.data import DataError, Dataset
from ebmc_msa.data.check import check_conversations
from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.dataset import listed
from ebmc_msa.data.task import MOSI
from modbalance.tasks import Task

TASKS: dict[str, Task] = {
    "sentiment": "gaussian",
    "regression": "gaussian",
    "classes": "classification",
    "multilabel": "multilabel",
}


@dataclass(frozen=True)
class Spec:
    """What a checkpoint must know to read data again."""

    kind: str
    dims: dict[str, int]
    sequences: tuple[str, ...]  # modalities with a time axis
    num_outputs: int
    mean: float = 0.0  # of the training targets; models predict standardised ones
    scale: float = 1.0
    labels: tuple[str, ...] = ()  # names of labels or of classes, where the data have them
    text: dict[str, str] | None = None  # the model that reads text, if one is fine-tuned
    context: Literal["none", "ordered", "shuffled"] = "none"  # whether conversations are read whole; the control
    speakers: bool = False  # whether it reads who speaks
    class_weight: tuple[float, ...] = ()  # of the loss, by class; all alike if empty
    range: tuple[float, float] | None = None  # of sentiment
    impute: Literal["none", "nearest", "earlier"] = "none"  # which utterance of the conversation fills an absence

    @property
    def task(self) -> Task:
        return TASKS[self.kind]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        tuples = {name: tuple(values.get(name, ())) for name in ("sequences", "labels", "class_weight")}
        return cls(**{**values, **tuples, "range": tuple(values["range"]) if values.get("range") else None})

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        modalities: list[str] | None = None,
        *,
        context: Literal["none", "ordered", "shuffled"] = "none",
        balanced: bool = False,
    ) -> Spec:
        """What there is to know of the training split.

        Args:
            modalities: only these.
            context: `ordered` reads whole conversations; `shuffled` too, in random order.
            balanced: weigh classes by N / (C n_c), so that all count alike and the mean weight is 1.
        """
        train = dataset.splits["train"]
        names = modalities or dataset.modalities
        dims = {name: dataset.dims[name] for name in names}
        sequences = tuple(name for name in names if name in train.lengths)
        text = dataset.text if "text" in names else None
        talk = train.conversation
        assert talk is not None or context == "none"
        speakers = context != "none" and talk is not None and talk.speaker is not None
        conversations: dict[str, Any] = {"context": context, "speakers": speakers}
        if dataset.kind in ("classes", "multilabel"):
            spec = cls(dataset.kind, dims, sequences, dataset.classes, labels=dataset.labels, text=text)
            weights = class_weights(train.target, dataset.classes) if balanced else ()
            return replace(spec, **conversations, class_weight=weights)
        assert train.target is not None
        scale = train.target.std(correction=0).item() or 1.0
        mean = train.target.mean().item()
        spec = cls(dataset.kind, dims, sequences, 1, mean, scale, text=text, range=dataset.range)
        return replace(spec, **conversations)

    def check(self, dataset: Dataset, where: str) -> None:
        """Whether a model of this spec can read `dataset`; modalities may lack, others are not looked at."""
        if dataset.kind is not None and dataset.kind != self.kind:
            raise DataError(
                f"{where}: the data are {dataset.kind}, expected {self.kind} as in training; pass data of that kind."
            )
        if dataset.kind == "sentiment" and (dataset.range or MOSI) != (self.range or MOSI):
            (low, high), (lowest, highest) = dataset.range or MOSI, self.range or MOSI
            raise DataError(
                f"{where}: the data have sentiment from {low:g} to {high:g}, expected {lowest:g} to {highest:g} as "
                f"in training; pass --range {lowest:g} {highest:g} if that is their scale."
            )
        if dataset.classes > self.num_outputs:
            raise DataError(
                f"{where}: the data have {dataset.classes} classes, expected at most {self.num_outputs} as in "
                "training; pass the data it was made for."
            )
        if dataset.kind == "multilabel" and dataset.labels != self.labels:
            raise DataError(
                f"{where}: the data are labelled {listed(dataset.labels)}, expected {listed(self.labels)} as in "
                "training; pass the data it was made for."
            )
        if self.context != "none":
            otherwise = "evaluate a run that was trained with --context none"
            check_conversations(where, dataset, speakers=self.speakers, otherwise=otherwise)
        shared = [name for name in self.dims if name in dataset.dims]
        if not shared:
            raise DataError(
                f"{where}: the data have {dataset.modalities}, expected some of {list(self.dims)} as in training; "
                "pass the data it was made for."
            )
        for name in shared:
            if dataset.dims[name] != self.dims[name]:
                raise DataError(
                    f"{where}: {name} has {dataset.dims[name]} features, expected {self.dims[name]} as in training; "
                    "extract it with the same encoder."
                )
            if (name in next(iter(dataset.splits.values())).lengths) != (name in self.sequences):
                raise DataError(
                    f"{where}: {name} comes {'pooled' if name in self.sequences else 'as sequences'}, expected it "
                    f"{'as sequences' if name in self.sequences else 'pooled'} as in training; pass the same layout."
                )


@dataclass(frozen=True)
class Batch:
    features: dict[str, Tensor]
    lengths: dict[str, Tensor]
    present: dict[str, Tensor]
    target: Tensor | None  # standardised for both regressions
    conversation: Conversation | None = None  # of models with context: all rows of each conversation are there

    def inputs(self, name: str) -> tuple[Any, ...]:
        """What the encoder of a modality is called with: features and lengths; with context, who is there too."""
        context = () if self.conversation is None else (self.present[name], self.conversation)
        return self.features[name], self.lengths.get(name), *context

    def __len__(self) -> int:
        return len(next(iter(self.present.values())))

    def rows(self, rows: Tensor | slice) -> Batch:
        return Batch(
            {k: v[rows] for k, v in self.features.items()},
            {k: v[rows] for k, v in self.lengths.items()},
            {k: v[rows] for k, v in self.present.items()},
            None if self.target is None else self.target[rows],
            None if self.conversation is None else self.conversation.rows(rows),
        )

    def with_present(self, present: dict[str, Tensor]) -> Batch:
        return replace(self, present=present)

    def imputed(self, *, earlier: bool) -> Batch:
        """With the inputs of the nearest utterance of the conversation that has them where a modality is absent.

        It counts as present there; one that the conversation has nowhere stays absent. With `earlier` only utterances
        before count.
        """
        assert self.conversation is not None
        features, lengths, present = dict(self.features), dict(self.lengths), dict(self.present)
        for name, here in self.present.items():
            source, present[name] = self.conversation.nearest(here, earlier=earlier)
            features[name] = features[name][source]
            if name in lengths:
                lengths[name] = lengths[name][source]
        return replace(self, features=features, lengths=lengths, present=present)


def class_weights(target: Tensor, classes: int) -> tuple[float, ...]:
    """N / (C n_c) by class, as scikit-learn's `balanced`; 1 for a class that does not occur."""
    count = target.bincount(minlength=classes)
    return tuple(torch.where(count > 0, len(target) / (classes * count.clamp(min=1)), 1.0).tolist())
