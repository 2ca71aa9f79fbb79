"""Which task the labels of a file are: stated, guessed where that is safe, or refused with the option to pass.

A guess is reported in the data set's note. In the layouts of sentiment analysis (MMSA, MulT, GCNet, tuples) numbers
are sentiment, unless they look like classes; in the general ones (.npz and the like) integers are classes and other
numbers regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.dataset import DataError, Dataset, Kind, Split, listed
from ebmc_msa.data.tasks import TASKS

MOSI, SIMS = (-3.0, 3.0), (-1.0, 1.0)  # ranges of sentiment
IEMOCAP_EMOTIONS = ("neutral", "happy", "sad", "angry")  # MulT's order
MOSEI_EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # CMU-MultimodalSDK's order
_MOST_CLASSES = 100_000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LabelOptions:
    """What the user states about the labels: `--task`, `--range` and `--labels`.

    Args:
        task: `auto` or one of `TASKS`.
        range: lowest and highest sentiment; it implies the task sentiment.
        labels: which labels, of a file that holds several kinds; the values depend on the file.
        expected: kind and range that a trained model expects; taken where the labels are ambiguous, or where
            the file holds labels of several kinds.
    """

    task: str = "auto"
    range: tuple[float, float] | None = None
    labels: str | None = None
    expected: tuple[Kind, tuple[float, float] | None] | None = None

    def __post_init__(self) -> None:
        if self.task not in ("auto", *TASKS):
            raise DataError(f"--task: {self.task!r}, expected auto, {', '.join(TASKS)}; pass one of them.")
        if self.range is None:
            return
        low, high = self.range
        if not (np.isfinite(self.range).all() and low < high):
            raise DataError(f"--range: {low:g} {high:g}, expected the lowest and the highest sentiment; swap them.")
        if self.task not in ("auto", "sentiment"):
            raise DataError(f"--range: goes with --task sentiment, not {self.task}; leave one of them out.")

    def choose(self, where: str, kinds: Sequence[str], default: str | None = None) -> str | None:
        """One of the `kinds` of labels that the file holds.

        Raises:
            DataError: `--labels` names another.
        """
        if self.labels is None:
            return default
        if self.labels not in kinds:
            have = f"holds {' and '.join(kinds)}" if kinds else "holds one kind of labels only"
            raise DataError(
                f"--labels: {self.labels}, but {where} {have}; "
                + (f"pass one of {', '.join(kinds)}." if kinds else "leave it out.")
            )
        return self.labels


class Target(NamedTuple):
    kind: Kind | None  # None: no labels, and nothing states what they would be
    classes: int  # number of classes or of labels, 1 for the other kinds
    values: dict[str, Tensor]  # by split
    note: str = ""
    range: tuple[float, float] | None = None  # of sentiment
    names: tuple[str, ...] = ()  # of labels, or of classes where they are known

    def dataset(self, name: str, splits: dict[str, Split], layout: str) -> Dataset:
        note = f"{self.note}; {layout}" if self.note else layout
        return Dataset(name, self.kind, self.classes, splits, note, self.names, range=self.range)


class Source(NamedTuple):
    """Where labels come from, and what the layout implies about them."""

    where: str  # for the messages
    what: str  # the field
    sentiment: bool = True  # a layout of sentiment analysis; else a general one
    integers: bool = False  # integers are classes by definition of the layout
    range: tuple[float, float] | None = None  # the layout's own scale of sentiment, where it is known
    why: str = ""  # how it is known
    stated: Kind | None = None  # the task that the file itself states; `--task` comes first

    def at(self, split: str) -> str:
        return f"{self.where}[{split!r}]" if split else self.where


def decide(source: Source, labels: Mapping[str, Any], options: LabelOptions) -> Target:
    """Kind and values of the labels of all splits.

    Args:
        labels: by split, or all under an empty name: `(N,)`, `(N, 1)`, `(N, 1, 1)`; one-hot `(N, C)`; 0 and 1
            `(N, C)`; MOSEI's 7 or 6 columns; MulT's `(N, 4, 2)` of IEMOCAP. Empty without labels.

    Raises:
        DataError: the labels are of no such shape, contradict the stated task, or leave it ambiguous.
    """
    asked = TASKS.get(options.task) or ("sentiment" if options.range else source.stated)
    if not labels:
        return Target(asked, 0 if asked in ("classes", "multilabel") else 1, {}, range=options.range)
    arrays = {split: _array(source, split, values) for split, values in labels.items()}
    shapes = {y.shape[1:] for y in arrays.values() if len(y)} or {y.shape[1:] for y in arrays.values()}
    shape = max(shapes, key=len)
    if len(shapes) > 1 or (shape and shape != (4, 2) and len(shape) != 1):
        raise _shape_error(source, arrays)
    arrays = {split: y if len(y) else y.reshape(0, *shape) for split, y in arrays.items()}
    if shape == (4, 2):
        return _iemocap(source, arrays, options, asked)
    return _table(source, arrays, options, asked) if shape else _column(source, arrays, options, asked)


def _iemocap(source: Source, arrays: dict[str, Array], options: LabelOptions, asked: Kind | None) -> Target:
    options.choose(source.where, ("emotions",))
    if asked not in (None, "multilabel"):
        raise DataError(
            f"{source.where}: {source.what} has shape (N, 4, 2), IEMOCAP's four emotions, expected a task of several "
            "labels; pass --task multilabel, or leave --task out."
        )
    if not all(np.isfinite(y).all() for y in arrays.values()):
        raise DataError(
            f"{source.where}: {source.what} holds NaN or infinities, expected (N, 4, 2) numbers; label these "
            "utterances."
        )
    values = {split: torch.from_numpy(y.argmax(-1).astype(np.float32)) for split, y in arrays.items()}
    return Target("multilabel", 4, values, "task multilabel: IEMOCAP's four emotions", names=IEMOCAP_EMOTIONS)


def _table(source: Source, arrays: dict[str, Array], options: LabelOptions, asked: Kind | None) -> Target:
    """Several columns."""
    y = np.concatenate(list(arrays.values())).astype(np.float64)
    width, binary, held = y.shape[1], bool(np.isin(y, (0, 1)).all()), y.sum(1)
    integers = source.integers and all(part.dtype.kind in "iub" for part in arrays.values())
    one_hot = binary and bool((held == 1).all()) and len(y) > 0
    if one_hot and integers and asked is None:
        raise DataError(
            f"{source.where}: {source.what} of shape {y.shape} holds one 1 in each row, which may be classes or "
            "labels, expected a task that is stated; pass --task classification or --task multilabel."
        )
    if one_hot and asked in (None, "classes"):
        options.choose(source.where, ())
        values = {split: torch.from_numpy(part.argmax(1)) for split, part in arrays.items()}
        note = _note(source, options, "classification", f"one-hot rows of {width} columns")
        return Target("classes", width, values, note)
    several = asked is None and (integers or (binary and (held > 1).any()))
    if several or (asked == "multilabel" and (binary or not _mosei(y))):
        options.choose(source.where, ())
        values = {split: _floats(part) for split, part in arrays.items()}
        note = _note(source, options, "multilabel", f"0 or 1 in each of {width} columns")
        return Target("multilabel", width, values, note, names=tuple(map(str, range(width))))
    if not _mosei(y):
        raise _shape_error(source, arrays)
    kinds = ("sentiment", "emotions") if width == 7 else ("emotions",)
    wanted = asked or (options.expected[0] if options.expected else None)
    default = "emotions" if wanted == "multilabel" or width == 6 else "sentiment"
    if options.choose(source.where, kinds, default) == "emotions":
        if asked not in (None, "multilabel"):
            raise DataError(f"--task: emotions are of --task multilabel, not {options.task}; leave one option out.")
        values = {split: torch.from_numpy((part[:, -6:] > 0).astype(np.float32)) for split, part in arrays.items()}
        note = "task multilabel: MOSEI's six emotions, each present where its intensity is above 0"
        note += "; sentiment left out (--labels sentiment)" if width == 7 else ""
        return Target("multilabel", 6, values, note, names=MOSEI_EMOTIONS)
    first = {split: part[:, 0] for split, part in arrays.items()}
    found = _column(source, first, replace(options, labels=None), asked)
    return found._replace(note=f"{found.note}; MOSEI's six emotions left out (--labels emotions)")


def _mosei(y: Array) -> bool:
    """Sentiment from -3 to 3 and six emotions from 0 to 3, or the emotions alone."""
    if y.shape[1] not in (6, 7):
        return False
    with np.errstate(invalid="ignore"):
        emotions = ((y[:, -6:] >= 0) & (y[:, -6:] <= 3)).all()
        return bool(emotions and (y.shape[1] == 6 or (np.abs(y[:, 0]) <= 3).all()))


def _column(source: Source, arrays: dict[str, Array], options: LabelOptions, asked: Kind | None) -> Target:
    """One label a row."""
    options.choose(source.where, ())
    y = np.concatenate([part.astype(np.float64) for part in arrays.values()])
    integers = all(part.dtype.kind in "iub" for part in arrays.values())
    finite = y[np.isfinite(y)]
    found = f"from {finite.min():g} to {finite.max():g}" if len(finite) else "not finite"
    kind = asked or _guess(source, finite, integers, options)
    if kind == "multilabel":
        raise DataError(
            f"{source.where}: {source.what} has shape {y.shape} for task 'multilabel', expected (N, C); correct one "
            "of them."
        )
    if kind == "classes":
        return _classes(source, arrays, finite, options, asked)
    values = {split: _floats(part) for split, part in arrays.items()}
    if kind == "regression":
        return Target(kind, 1, values, _note(source, options, kind, f"labels {found}"))
    scale = options.range or source.range or _scale(source, finite, found, options)
    why = f"labels {found}" + (f", and {source.why}" if source.why else "")
    return Target(kind, 1, values, _note(source, options, f"sentiment in [{scale[0]:g}, {scale[1]:g}]", why), scale)


def _guess(source: Source, y: Array, integers: bool, options: LabelOptions) -> Kind:
    values = np.unique(y)
    whole = len(values) > 0 and bool((values == np.round(values)).all())
    classes = whole and (values.tolist() == [-1, 1] or values.tolist() == list(range(len(values))))
    from_one = whole and len(values) > 1 and values.tolist() == list(range(1, len(values) + 1))
    if integers and (source.integers or classes) and not (len(values) and values[-1] >= max(100, len(y))):
        return "classes"
    if whole and (integers or classes or from_one or source.sentiment):
        if options.expected:
            return options.expected[0]
        raise DataError(
            f"{source.where}: {source.what} are whole numbers only ({listed(f'{v:g}' for v in values)}), which may "
            f"be classes or {'sentiment' if source.sentiment else 'values'}, expected a task that is stated; pass "
            "--task classification, --task sentiment with --range LOW HIGH, or --task regression."
        )
    return "sentiment" if source.sentiment else "regression"


def _scale(source: Source, y: Array, found: str, options: LabelOptions) -> tuple[float, float]:
    if len(y) and np.abs(y).max() <= 1:
        if options.expected and options.expected[0] == "sentiment":
            return options.expected[1] or MOSI
        raise DataError(
            f"{source.where}: {source.what} run {found}, which is the scale of CH-SIMS or a part of MOSI's, expected "
            "a scale that is stated; pass --range -1 1 or --range -3 3."
        )
    return MOSI


def _classes(source: Source, arrays: dict[str, Array], y: Array, options: LabelOptions, asked: Kind | None) -> Target:
    if not (y == np.round(y)).all():
        raise DataError(
            f"{source.where}: {source.what} are not all whole numbers (first: {y[y != np.round(y)][0]:g}), expected "
            "classes 0, 1, …; pass --task regression or --task sentiment, or recode them."
        )
    if sum(map(len, arrays.values())) != len(y):
        raise DataError(f"{source.where}: {source.what} hold NaN or infinities, expected classes; label these rows.")
    top = int(y.max(initial=0))
    if top >= _MOST_CLASSES:
        raise DataError(f"{source.where}: {source.what} run to {top}, expected classes 0, 1, …; recode them.")
    values = {split: torch.from_numpy(part.astype(np.int64)) for split, part in arrays.items()}
    note, warning = f"labels 0 to {top}", ""
    if len(y) and set(np.unique(y)) <= {-1, 1} and y.min() < 0:
        values, top, note = (
            {split: (part > 0).long() for split, part in values.items()},
            1,
            "labels -1 and 1, now 0 and 1",
        )
    elif len(y) and y.min() > 0:
        note, warning = f"labels {y.min():g} to {top}", "; labels do not start at 0, so no utterance has class 0"
    return Target("classes", top + 1, values, _note(source, options, "classification", note) + warning)


def _note(source: Source, options: LabelOptions, task: str, why: str) -> str:
    if options.task != "auto" or options.range:
        return f"task {task}, as stated"
    return f"task {task}, as the file states" if source.stated else f"task {task} (auto: {why})"


def _shape_error(source: Source, arrays: dict[str, Array]) -> DataError:
    split, y = next(iter(arrays.items()))
    return DataError(
        f"{source.at(split)}: {source.what} has shape {y.shape}, expected one label per row, one-hot rows, 0 or 1 "
        "in each column (--task multilabel), MOSEI's 7 columns (sentiment and six emotions) or its 6 emotions; keep "
        "the column you mean."
    )


def _array(source: Source, split: str, values: Any) -> Array:
    """Numbers as the file has them, axes of size 1 dropped."""
    try:
        with np.errstate(over="ignore"):
            y = np.asarray(values)
            if y.dtype == object:
                y = np.asarray(y.tolist())
            y = np.atleast_1d(y if y.dtype.kind in "biuf" else y.astype(np.float32))
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{source.at(split)}: {source.what} are not numbers ({str(error)[:200]}), expected one label per "
            "row; recode them."
        ) from None
    return y.reshape(len(y), *(n for n in y.shape[1:] if n != 1)) if y.size else y.reshape(len(y), *y.shape[1:])


def as_stated(dataset: Dataset, options: LabelOptions) -> Dataset:
    """A data set that was converted, whose task is fixed.

    Raises:
        DataError: the options state another.
    """
    kind, scale = dataset.kind, dataset.range or MOSI
    asked = TASKS.get(options.task) or ("sentiment" if options.range else kind)
    if options.labels is not None or asked != kind or (options.range or scale) != scale:
        task = kind if kind != "sentiment" else f"sentiment in [{scale[0]:g}, {scale[1]:g}]"
        raise DataError(
            f"{dataset.name}: was converted as {task}, expected no other --task, --range or --labels; convert the "
            "source again with them."
        )
    return dataset


def whole(labels: Mapping[str, Any]) -> bool:
    """Whether all labels are whole numbers, one a row; False without any."""
    try:
        arrays = [np.asarray(values, np.float64) for values in labels.values()]
    except (ValueError, TypeError, OverflowError):
        return False
    return bool(arrays) and all(y.size == len(y) and (y == np.round(y)).all() for y in arrays if y.ndim)


def _floats(y: Array) -> Tensor:
    with np.errstate(over="ignore"):  # what is infinite then is reported as such
        return torch.from_numpy(y.astype(np.float32))
