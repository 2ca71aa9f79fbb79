"""What a monitor measured: as numbers, as a table, as JSON, in words and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from modbalance.diagnostics.plot import plot
from modbalance.diagnostics.verdict import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis"]

Figures = dict[str, float]
LABELS = {
    "drop": "drop if removed",
    "shapley": "Shapley value",
    "probe": "probe",
    "reference": "probe, alone",
    "lag": "lag",
    "energy": "energy",
    "gradient": "gradient share",
    "weight": "weight",
}
NOTE = "(0: equal shares, 1: one modality does everything)"


@dataclass(frozen=True)
class Diagnosis:
    """What a `ModalityMonitor` measured. Every figure is a mapping by modality, empty where it was not asked for.

    Scores are those of `task_score` (accuracy or R²), higher is better; NaN marks what could not be measured, a
    modality that is nowhere present for example. `print` gives a table, `verdict()` words, `scalars()` a flat mapping
    for a logger, `to_json()` and `from_json` a round trip; a notebook shows a table.

    Args:
        score: of the fused model with every modality that is there.
        imbalance: `imbalance(shapley)`, from 0, equal shares, to 1, one modality does everything.
        shapley: how much of what the model gains over a constant guess each modality brings, on average over all
            orders of adding them; they sum to that gain.
        alone: score of the fused model given one modality and no other, over the samples that have it.
        drop: score lost when the modality is removed.
        probe: score of a linear probe on the modality's features.
        reference: the same for the features of its encoder trained alone.
        lag: reference minus probe: what the encoder did not learn because it was trained with the others.
        energy: mean energy of the features under that probe.
        gradient: share of the norm of the gradient, mean over steps.
        calibration: by figure (`ece`; `nll` and `coverage`), then by modality, and `all` for the fused model.
        coalitions: score by coalition, `()` being the constant guess.
        errors: standard errors by figure, then by modality: of `drop`, `lag` and `unused` (probe minus alone) over
            samples, of `shapley` where it is an estimate from sampled orders.
        ignored: modalities whose removal changed no output at all.
        weight: how much of a balancer each modality got in training, mean over steps.

    Examples:
        >>> found = Diagnosis(score=0.9, imbalance=0.5, shapley={"text": 0.6, "audio": 0.2})
        >>> print(found)
                            all   text  audio
        score             0.900
        Shapley value            0.600  0.200
        imbalance         0.500  (0: equal shares, 1: one modality does everything)
        >>> found.scalars()
        {'score': 0.9, 'imbalance': 0.5, 'shapley/text': 0.6, 'shapley/audio': 0.2}
        >>> Diagnosis.from_json(found.to_json()) == found
        True
    """

    score: float
    imbalance: float
    shapley: Figures
    alone: Figures = field(default_factory=dict)
    drop: Figures = field(default_factory=dict)
    probe: Figures = field(default_factory=dict)
    reference: Figures = field(default_factory=dict)
    lag: Figures = field(default_factory=dict)
    energy: Figures = field(default_factory=dict)
    gradient: Figures = field(default_factory=dict)
    calibration: dict[str, Figures] = field(default_factory=dict)
    coalitions: dict[tuple[str, ...], float] = field(default_factory=dict)
    errors: dict[str, Figures] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    weight: Figures = field(default_factory=dict)

    def scalars(self) -> Figures:
        """Every figure under a name such as `shapley/audio`, for any logger."""
        flat = {"score": self.score, "imbalance": self.imbalance}
        by_modality = {name: getattr(self, name) for name in ("shapley", "alone", *LABELS)}
        for name, figures in {**by_modality, **self.calibration}.items():
            flat |= {f"{name}/{modality}": value for modality, value in figures.items()}
        return flat

    def verdict(self) -> str:
        """In words: which modality is starved, which contributes nothing, and what to try. Read it as a hint."""
        return verdict(self)

    def plot(self) -> Figure:
        """`modbalance.diagnostics.plot` of this diagnosis."""
        return plot(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers that JSON can hold: coalitions as a list, NaN as None."""
        found: dict[str, Any] = {
            f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "coalitions"
        }
        coalitions = [{"modalities": list(s), "score": _plain(x)} for s, x in self.coalitions.items()]
        return {**found, "coalitions": coalitions}

    def to_json(self, **options: Any) -> str:
        """`to_dict` as JSON; `options` are those of `json.dumps`, `indent=2` for example."""
        return json.dumps(self.to_dict(), allow_nan=False, **options)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The diagnosis that `to_dict` was made from; figures of a later version are left out."""
        known = {f.name for f in fields(cls)} - {"coalitions", "ignored"}
        given = {name: _numbers(value) for name, value in found.items() if name in known}
        coalitions = {tuple(s["modalities"]): _numbers(s["score"]) for s in found.get("coalitions", [])}
        return cls(**given, coalitions=coalitions, ignored=tuple(found.get("ignored", ())))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The diagnosis that `to_json` was made from."""
        return cls.from_dict(json.loads(text))

    def __str__(self) -> str:
        head, *rows = self._table()
        width = max(7, *(len(cell) + 2 for row in rows for cell in row[1:]), *(len(cell) + 1 for cell in head))
        first = max(16, *(len(row[0]) + 1 for row in rows))
        lines = ["".join([f"{row[0]:<{first}}", *(f"{cell:>{width}}" for cell in row[1:])]).rstrip() for row in rows]
        lines = ["".join([" " * first, *(f"{cell:>{width}}" for cell in head[1:])]), *lines]
        return "\n".join([*lines[:-1], f"{lines[-1]}  {NOTE}"])

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        body = [
            "".join(
                f"<{tag}>{escape(cell)}</{tag}>" for tag, cell in zip(["th"] + ["td"] * len(row), row, strict=False)
            )
            for row in rows
        ]
        title = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = "".join(f"<tr>{row}</tr>" for row in body)
        words = "<br>".join(escape(line) for line in self.verdict().splitlines())
        return f"<table><thead><tr>{title}</tr></thead><tbody>{lines}</tbody></table><p>{words}</p>"

    def _table(self) -> list[list[str]]:
        """Header and rows of text; the last row is the imbalance."""
        columns = ["all", *self.shapley]
        rows = {"score": {"all": self.score, **self.alone}}
        rows |= {label: getattr(self, name) for name, label in LABELS.items()}
        rows |= self.calibration
        cells = [
            [label, *(f"{figures[name]:.3f}" if name in figures else "" for name in columns)]
            for label, figures in rows.items()
            if figures
        ]
        if "shapley" in self.errors:
            cells.append(["  std. error", "", *(f"{self.errors['shapley'][name]:.3f}" for name in self.shapley)])
        return [["", *columns], *cells, ["imbalance", f"{self.imbalance:.3f}"]]


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, tuple):
        return list(x)
    return x if math.isfinite(x) else None


def _numbers(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: _numbers(value) for key, value in x.items()}
    return math.nan if x is None else x
