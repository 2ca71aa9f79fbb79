"""The metrics: how each is computed, named and compared, and what each is used for. Accuracies and F1 in percent."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, recall_score
from torch import Tensor

from ebmc_msa.data.task import MOSI

IEMOCAP4 = {"happy", "sad", "neutral", "angry"}

Array = np.ndarray[Any, Any]
Values = Array | Tensor
Entry = Mapping[str, Any]  # {"mean", "std", "values"} over seeds


class Metric(NamedTuple):
    """How a metric is called, written and compared."""

    name: str
    percent: bool = True
    higher: bool = True  # is better
    per_sample: Callable[[Array, Array], Array] | None = None  # prediction, target; its mean is the metric

    @property
    def sign(self) -> int:
        return 1 if self.higher else -1

    @property
    def label(self) -> str:
        return f"{self.name} (%)" if self.percent else self.name

    @property
    def arrowed(self) -> str:
        return f"{self.label}\u00a0{'↑' if self.higher else '↓'}"

    @property
    def digits(self) -> int:
        return 1 if self.percent else 3

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "n/a"

    def cell(self, entry: Entry) -> str:
        """Mean ± standard deviation over seeds."""
        return mean_and_std(entry["values"], self.digits)

    def best(self, values: Iterable[float]) -> float:
        finite = [value for value in values if math.isfinite(value)]
        return (max if self.higher else min)(finite, default=math.nan)

    def better(self, one: float, other: float) -> bool:
        return one > other if self.higher else one < other


class _Metrics(dict[str, Metric]):
    """Metrics by key; that of one label or of a part of the data, such as `acc_happy`, is named after it."""

    def __missing__(self, key: str) -> Metric:
        for start, name in (("acc_", "Acc"), ("f1_", "F1"), ("binary_f1_", "Binary F1")):
            if key.startswith(start) and key != start:
                return Metric(f"{name} {key.removeprefix(start)}")
        raise KeyError(key)


METRICS = _Metrics(
    {
        "acc2_has0": Metric("Acc-2 has0", per_sample=lambda p, y: 100.0 * ((p >= 0) == (y >= 0))),
        "acc2_non0": Metric("Acc-2 non0"),
        "f1_has0": Metric("F1 has0"),
        "f1_non0": Metric("F1 non0"),
        "acc2": Metric("Acc-2"),
        "acc3": Metric("Acc-3"),
        "acc7": Metric("Acc-7"),
        "acc5": Metric("Acc-5"),
        "acc": Metric("Accuracy", per_sample=lambda p, y: 100.0 * (p == y)),
        "ua": Metric("Unweighted accuracy"),
        "f1": Metric("Weighted F1"),
        "binary_f1": Metric("Binary F1, mean"),
        "mae": Metric("MAE", percent=False, higher=False, per_sample=lambda p, y: np.abs(p - y)),
        "corr": Metric("Corr", percent=False),
        "r2": Metric("R²", percent=False),
    }
)


class Kind(NamedTuple):
    """What the metrics of a kind of labels are used for."""

    selects: str  # the epoch
    shown: tuple[str, ...]  # in figures and in short tables
    compared: tuple[str, ...]  # between methods, sample by sample; none: not supported


KINDS = {
    "sentiment": Kind("mae", ("acc2_non0", "mae"), ("acc2_has0", "mae")),
    "classes": Kind("acc", ("f1", "ua"), ("acc",)),
    "multilabel": Kind("f1", ("f1", "acc"), ()),
    "regression": Kind("mae", ("mae", "corr"), ("mae",)),
}


def shown_in_figures(kind: str, keys: Iterable[str]) -> tuple[str, ...]:
    """Two metrics among `keys`; sentiment that is not on MOSI's scale has no Acc-2 non0."""
    return ("acc2", "mae") if "acc2" in keys else KINDS[kind].shown


def compute(
    kind: str,
    prediction: Values,
    target: Values,
    num_classes: int = 1,
    labels: Sequence[str] = (),
    scale: tuple[float, float] | None = None,
) -> dict[str, float]:
    """The metrics of a data set's kind, by key; predictions are in label units.

    `scale` is the range of sentiment, -3 to 3 without it.
    """
    if kind == "sentiment":
        return sentiment(prediction, target) if scale in (None, MOSI) else scaled(prediction, target, *scale)
    if kind == "classes":
        return classes(prediction, target, num_classes, labels)
    if kind == "multilabel":
        return multilabel(prediction, target, labels)
    if kind == "regression":
        return regression(prediction, target)
    raise ValueError(f"metrics: kind {kind!r}, expected {', '.join(KINDS)}; pass one of them.")


def mean_and_std(values: Sequence[float], digits: int) -> str:
    """`mean ± standard deviation`, the latter where there is more than one value."""
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return "n/a"
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def sentiment(prediction: Values, target: Values) -> dict[str, float]:
    """Acc-2 and weighted F1 with and without neutral targets, Acc-7, Acc-5, MAE, Pearson.

    has0 asks `>= 0` of all; non0 asks `> 0` where the target is not 0, and is NaN if every target is.
    """
    p, y = _pair(prediction, target)
    has0 = p >= 0, y >= 0
    non0 = p[y != 0] > 0, y[y != 0] > 0
    return {
        "acc2_has0": _accuracy(*has0),
        "acc2_non0": _accuracy(*non0),
        "f1_has0": _f1(*has0),
        "f1_non0": _f1(*non0),
        "acc7": _accuracy(*(np.round(np.clip(v, -3, 3)).astype(int) for v in (p, y))),
        "acc5": _accuracy(*(np.round(np.clip(v, -2, 2)).astype(int) for v in (p, y))),
        "mae": float(mean_absolute_error(y, p)),
        "corr": _pearson(p, y),
    }


def scaled(prediction: Values, target: Values, low: float, high: float) -> dict[str, float]:
    """CH-SIMS's metrics of sentiment: Acc-2, Acc-3, Acc-5, weighted F1 of the two classes, MAE, Pearson.

    On CH-SIMS's own scale from -1 to 1, values are clipped to it and cut at 0 (two classes: `> 0` or not); at -0.1
    and 0.1; and at -0.7, -0.1, 0.1 and 0.7, each class with its upper end. On another scale the cut points move with
    it. MAE and Pearson are of the clipped values, in label units. Cut points: Yu et al., CH-SIMS, ACL 2020, as MMSA
    computes them.
    """
    p, y = (np.clip(values, low, high) for values in _pair(prediction, target))
    # float32 labels of 0.1 lie above 0.1, and so may values that were standardised and scaled back
    unit_p, unit_y = (np.round((2 * values - low - high) / (high - low), 6) for values in (p, y))

    def cut(*points: float) -> tuple[Array, Array]:
        return np.digitize(unit_p, points, right=True), np.digitize(unit_y, points, right=True)

    return {
        "acc2": _accuracy(*cut(0.0)),
        "acc3": _accuracy(*cut(-0.1, 0.1)),
        "acc5": _accuracy(*cut(-0.7, -0.1, 0.1, 0.7)),
        "f1": _f1(*cut(0.0)),
        "mae": float(mean_absolute_error(y, p)),
        "corr": _pearson(p, y),
    }


def classes(prediction: Values, target: Values, num_classes: int, labels: Sequence[str] = ()) -> dict[str, float]:
    """Accuracy, unweighted accuracy (mean recall over the classes that occur) and weighted F1.

    Where the classes have names, the F1 of each too, NaN for one that does not occur. For IEMOCAP's four also what
    papers report beside MulT: each emotion against the rest, as binary weighted F1, and the mean of the four.
    """
    p, y = _pair(prediction, target)
    for name, values in (("prediction", p), ("target", y)):
        if (values != np.round(values)).any() or values.min() < 0 or values.max() >= num_classes:
            raise ValueError(
                f"metrics: {name} runs from {values.min():g} to {values.max():g}, expected labels 0 to "
                f"{num_classes - 1}; pass predicted labels (argmax), not scores."
            )
    p, y = p.astype(int), y.astype(int)
    recall = recall_score(y, p, labels=np.unique(y), average="macro", zero_division=0)
    found = {"acc": _accuracy(p, y), "ua": 100 * float(recall), "f1": _f1(p, y)}
    if set(labels) == IEMOCAP4:
        binary = {f"binary_f1_{label}": _f1(p == i, y == i) for i, label in enumerate(labels)}
        found |= {"binary_f1": float(np.mean(list(binary.values()))), **binary}
    if labels:
        each = f1_score(y, p, labels=range(len(labels)), average=None, zero_division=0)
        occurs = np.isin(range(len(labels)), y)
        found |= {
            f"f1_{label}": 100 * float(value) if there else float("nan")
            for label, value, there in zip(labels, each, occurs, strict=True)
        }
    return found


def multilabel(prediction: Values, target: Values, labels: Sequence[str]) -> dict[str, float]:
    """Binary accuracy and weighted F1, averaged over the labels and of each, from `(N, C)` of 0 and 1."""
    p, y = _pair(prediction, target, columns=len(labels))
    for name, values in (("prediction", p), ("target", y)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"metrics: {name} runs from {values.min():g} to {values.max():g}, expected 0 or 1 for each label; "
                "pass decisions, not scores."
            )
    each = {label: (_accuracy(p[:, i], y[:, i]), _f1(p[:, i], y[:, i])) for i, label in enumerate(labels)}
    acc, f1 = (float(np.mean(values)) for values in zip(*each.values(), strict=True))
    return {
        "acc": acc,
        "f1": f1,
        **{f"acc_{label}": found for label, (found, _) in each.items()},
        **{f"f1_{label}": found for label, (_, found) in each.items()},
    }


def regression(prediction: Values, target: Values) -> dict[str, float]:
    """MAE, Pearson and R², which is NaN for a single utterance."""
    p, y = _pair(prediction, target)
    r2 = float(r2_score(y, p)) if len(y) > 1 else float("nan")
    return {"mae": float(mean_absolute_error(y, p)), "corr": _pearson(p, y), "r2": r2}


def accuracy(prediction: Values, target: Values) -> float:
    """Of predicted labels, in percent."""
    return _accuracy(*_pair(prediction, target))


def _pair(prediction: Values, target: Values, columns: int | None = None) -> tuple[Array, Array]:
    p, y = (np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v, np.float64) for v in (prediction, target))
    rest, shape = ((), "(N,)") if columns is None else ((columns,), f"(N, {columns})")
    if p.shape[1:] != rest or p.shape != y.shape or not p.size:
        raise ValueError(
            f"metrics: prediction has shape {p.shape} and target {y.shape}, expected two of one shape {shape}, "
            "N > 0; "
            + ("pass one column per label." if rest else "squeeze the last axis, and pass one value per utterance.")
        )
    for name, values in (("prediction", p), ("target", y)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"metrics: {(~np.isfinite(values)).sum()} of {values.size} values of {name} are NaN or "
                "infinite, expected numbers; if they are predictions, training has diverged: lower the "
                "learning rate."
            )
    return p, y


def _accuracy(p: Array, y: Array) -> float:
    return 100 * float(accuracy_score(y, p)) if len(y) else float("nan")


def _f1(p: Array, y: Array) -> float:
    return 100 * float(f1_score(y, p, average="weighted", zero_division=0)) if len(y) else float("nan")


def _pearson(p: Array, y: Array) -> float:
    """Pearson correlation; 0 where either side is constant."""
    if np.ptp(p) == 0 or np.ptp(y) == 0:
        return 0.0
    p, y = p - p.mean(), y - y.mean()
    scale = np.sqrt((p @ p) * (y @ y))
    return float(p @ y / scale) if scale > 0 else 0.0
