"""What every loader returns: the three splits of one data set, modality by modality."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.conversation import Conversation

Kind = Literal["sentiment", "classes", "multilabel", "regression"]

SPLITS = ("train", "valid", "test")


class DataError(ValueError):
    """Everything a user's file can do wrong: who, what came, what was expected; what to do."""


@dataclass(frozen=True)
class Split:
    """One split. Features are zero where absent or padding; they may lie in a file: take rows first, then float()."""

    features: dict[str, Tensor]  # (N, D), or (N, T, D) with lengths; float32 or float16
    lengths: dict[str, Tensor]  # (N,) int64, valid frames first, 0 where absent; only with a time axis
    present: dict[str, Tensor]  # (N,) bool; every row has at least one modality
    target: Tensor | None  # (N,) int64 classes, (N, C) float32 of 0 and 1, or (N,) float32; None without labels
    id: list[str]
    group: list[str] | None = None  # video, conversation or speaker
    words: list[str] | Tensor | None = None  # utterances as written, or MMSA's text_bert (N, 3, T)
    conversation: Conversation | None = None  # which one each row belongs to, and its place in it
    own: dict[str, Tensor] = field(default_factory=dict)  # (N,) float32, CH-SIMS's labels of single modalities

    def __len__(self) -> int:
        return len(self.id)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Rows that are also scored apart, `(N,)` bool by name: IEMOCAP's improvised and scripted dialogues.

        A script recurs in every session, so a model of the text gains there by remembering it.
        """
        rows = {
            part: torch.tensor([f"_{part}" in i for i in self.id], dtype=torch.bool) for part in ("impro", "script")
        }
        return (
            rows if all(here.any() for here in rows.values()) and bool((rows["impro"] ^ rows["script"]).all()) else {}
        )


@dataclass(frozen=True)
class Dataset:
    name: str
    kind: Kind | None  # None: a file without labels that does not state what they would be
    classes: int  # number of classes or of labels, 1 for the other kinds, 0 for classes without labels
    splits: dict[str, Split] = field(repr=False)  # "train", "valid", "test", as far as they exist
    note: str = ""  # what the loader decided, for the report: layout, split off by seed, ...
    labels: tuple[str, ...] = ()  # names of the labels or of the classes, as far as the file has them
    text: dict[str, str] | None = None  # the model whose token ids stand for text
    conversational: bool = False  # its rows are conversations in order: `--context auto` reads them so
    range: tuple[float, float] | None = None  # lowest and highest sentiment

    @property
    def modalities(self) -> list[str]:
        return list(next(iter(self.splits.values())).features)

    @property
    def dims(self) -> dict[str, int]:
        return {name: x.shape[-1] for name, x in next(iter(self.splits.values())).features.items()}


def canonical(names: Iterable[str]) -> list[str]:
    """Text, audio, vision, then the others in the order they came."""
    names = list(names)
    first = [name for name in ("text", "audio", "vision") if name in names]
    return first + [name for name in names if name not in first]


def scalars(who: str, what: str, values: object) -> list[str]:
    """One name per row, as the files have them: strings, Python 2's bytes, or numbers."""
    if isinstance(values, np.ndarray):
        values = np.atleast_1d(values).tolist()
    names = list(values) if isinstance(values, Iterable) and not isinstance(values, (str, bytes)) else [values]
    for name in names:
        if not isinstance(name, (str, bytes, int, float, np.generic)):
            raise DataError(f"{who}: {what} holds a {type(name).__name__}, expected one name per row; flatten it.")
    texts = (name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # half a surrogate pair can be no file


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Names for an error message, cut where the list grows long."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}{'s' * (number != 1)}"
