"""Draw a diagnosis, or several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from modbalance.diagnostics.diagnosis import Diagnosis

__all__ = ["plot"]

COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#bbbbbb")
PANELS = {
    "alone": "Score with this modality only\n(dashed: with all)",
    "probe": "What its encoder has learnt: score\nof a linear probe (dashed: with all)",
    "lag": "Lag behind the same encoder\ntrained alone",
    "drop": "Score lost when it is removed",
    "shapley": "Its part of the gain over a guess\n(Shapley value)",
    "gradient": "Share of the gradient in training\n(dotted: equal)",
    "weight": "How much of the balancer it got",
}


def plot(found: Diagnosis | Mapping[str, Diagnosis | Sequence[Diagnosis]]) -> Figure:
    """Bars by modality for every figure that was measured; several models side by side, before and after.

    Args:
        found: a diagnosis; or several by the name of the model, each one diagnosis or one for every seed. Bars
            are means over seeds, whiskers their standard deviation.

    Returns:
        a matplotlib figure: `.savefig("balance.png")`.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> from modbalance.diagnostics import Diagnosis
        >>> found = Diagnosis(score=0.9, imbalance=0.5, shapley={"text": 0.6, "audio": 0.2})
        >>> [panel.get_title(loc="left") for panel in plot({"before": found, "after": [found, found]}).axes]
        ['Its part of the gain over a guess\\n(Shapley value)']
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise ImportError(
            'plot: matplotlib is not installed, expected version 3.8 or later; run pip install "modbalance[plot]".'
        ) from problem
    given = found if isinstance(found, Mapping) else {"": found}
    models = {name: list(x) if isinstance(x, Sequence) else [x] for name, x in given.items()}
    everything = [one for several in models.values() for one in several]
    names = list(everything[0].shapley)
    panels = [panel for panel in PANELS if all(getattr(one, panel) for one in everything)]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = 4.6 * columns, 1.2 + rows * (0.9 + 0.28 * len(names) * len(models))
    figure = Figure(figsize=size, layout="constrained")
    for i, panel in enumerate(panels):
        _bars(figure.add_subplot(rows, columns, i + 1), panel, models, names)
    lines = [
        f"{name + ': ' if name else ''}score with all modalities {_spread([x.score for x in several])}, "
        f"imbalance {_spread([x.imbalance for x in several])}"
        for name, several in models.items()
    ]
    lines.append("(imbalance 0: equal Shapley shares, 1: one modality does everything)")
    figure.suptitle("\n".join(lines), fontsize=10)
    if len(models) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(models), frameon=False)
    return figure


def _bars(axes: Axes, panel: str, models: Mapping[str, Sequence[Diagnosis]], names: list[str]) -> None:
    height = 0.8 / len(models)
    for k, (label, several) in enumerate(models.items()):
        colour, at = COLOURS[k % len(COLOURS)], [i + (k - (len(models) - 1) / 2) * height for i in range(len(names))]
        values = [[getattr(one, panel).get(m, math.nan) for one in several] for m in names]
        means, spreads = zip(*map(_mean_and_spread, values), strict=True)
        bars = axes.barh(
            at,
            means,
            0.9 * height,
            xerr=spreads if len(several) > 1 else None,
            color=colour,
            ecolor="black",
            label=label,
        )
        words = ["" if math.isnan(x) else f"{x:.3f}" for x in means]
        axes.bar_label(bars, words, padding=3, fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        if panel in ("alone", "probe"):
            axes.axvline(
                _mean_and_spread([one.score for one in several])[0],
                color=colour,
                linestyle="--",
                linewidth=1,
                zorder=0,
            )
    if panel == "gradient":
        axes.axvline(1 / len(names), color="grey", linestyle=":", linewidth=1, zorder=0)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(PANELS[panel], loc="left", fontsize=10)


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Over what was measured."""
    known = [x for x in values if not math.isnan(x)]
    return fmean(known) if known else math.nan, stdev(known) if len(known) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    mean, spread = _mean_and_spread(values)
    return f"{mean:.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")
