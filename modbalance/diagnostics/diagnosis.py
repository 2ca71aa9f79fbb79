"""What a monitor found, as numbers, as a table and as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modbalance.diagnostics.plot import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis"]

Figures = dict[str, float]


@dataclass(frozen=True)
class Diagnosis:
    """What a `ModalityMonitor` found. Every figure is a mapping by modality, empty where it was not asked for.

    Scores are those of `task_score` (accuracy or R²), higher is better; NaN marks what could not be measured, a
    modality that is nowhere present for example. `print` gives a table, `scalars()` a flat mapping for a logger.

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

    Examples:
        >>> found = Diagnosis(score=0.9, imbalance=0.5, shapley={"text": 0.6, "audio": 0.2})
        >>> print(found)
                            all   text  audio
        score             0.900
        Shapley value            0.600  0.200
        imbalance         0.500  (0: equal shares, 1: one modality does everything)
        >>> found.scalars()
        {'score': 0.9, 'imbalance': 0.5, 'shapley/text': 0.6, 'shapley/audio': 0.2}
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

    def scalars(self) -> Figures:
        """Every figure under a name such as `shapley/audio`, for any logger."""
        flat = {"score": self.score, "imbalance": self.imbalance}
        for name, figures in {**self._by_modality(), **self.calibration}.items():
            flat |= {f"{name}/{modality}": value for modality, value in figures.items()}
        return flat

    def plot(self) -> Figure:
        """`modbalance.diagnostics.plot` of this diagnosis."""
        return plot(self)

    def _by_modality(self) -> dict[str, Figures]:
        names = ("shapley", "alone", "drop", "probe", "reference", "lag", "energy", "gradient")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        columns = ["all", *self.shapley]
        width = max(7, *(len(name) + 1 for name in columns))
        rows = {
            "score": {"all": self.score, **self.alone},
            "drop if removed": self.drop,
            "Shapley value": self.shapley,
            "probe": self.probe,
            "probe, alone": self.reference,
            "lag": self.lag,
            "energy": self.energy,
            "gradient share": self.gradient,
            **self.calibration,
        }
        lines = [" " * 16 + "".join(f"{name:>{width}}" for name in columns)]
        for label, figures in rows.items():
            if figures:
                cells = (f"{figures[name]:>{width}.3f}" if name in figures else " " * width for name in columns)
                lines.append(f"{label:<16}{''.join(cells)}".rstrip())
        note = "(0: equal shares, 1: one modality does everything)"
        return "\n".join([*lines, f"{'imbalance':<16}{self.imbalance:>{width}.3f}  {note}"])
