"""What `experiments/internals.py` measured inside EBMC, as Markdown tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ebmc_msa.evaluation.metrics import mean_and_std
from ebmc_msa.report.plots import CLASSES, FAINT, INK, MARKERS, WIDTH, drawing, palette
from ebmc_msa.report.sections import project

Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # what `look` found, by method and seed


def tables(runs: Runs) -> list[str]:
    """Markdown: mean ± standard deviation over seeds."""
    names = list(next(iter(runs.values()))[0]["contribution"]["after"])
    head, rule = f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"

    def row(label: str, values: Sequence[Mapping[str, float]], digits: int, scale: float = 1.0) -> str:
        cells = (mean_and_std([scale * v[m] for v in values], digits) for m in names)
        return f"| {label} | {' | '.join(cells)} |"

    lines = ["**Contribution** (Shapley share of what the prediction gains over a constant, %):", "", head, rule]
    for method, found in runs.items():
        for when in ("before", "after"):
            lines.append(row(f"{method}, {when} balancing", [f["contribution"][when] for f in found], 0, 100))
    lines += ["", "**Gradient** (share of the encoders' gradient norm in training, %):", "", head, rule]
    for method, found in runs.items():
        for stage in found[0]["gradient"]:
            lines.append(row(f"{method}, {stage}", [f["gradient"][stage] for f in found], 0, 100))
    lines += ["", "**Energy** (mean at the end, lowest is strongest):", "", head, rule]
    for method, found in runs.items():
        for split in ("train", "valid"):
            lines.append(row(f"{method}, {split}", [f["energy"][split] for f in found], 2))
    first = next(iter(runs.values()))
    if first[0]["teachers"]:
        lines += ["", f"**Teachers** of {next(iter(runs))}:", "", head, rule]
        for key, what in (("nll", "negative log-likelihood"), ("error", "calibration error")):
            for when in ("as stated", "calibrated"):
                values = [{m: f["teachers"][m][when][key] for m in names} for f in first]
                lines.append(row(f"{what}, {when}", values, 2))
    silhouettes = "; ".join(
        f"{method} {mean_and_std([f['silhouette'] for f in found], 3)}" for method, found in runs.items()
    )
    return [*lines, "", f"**Silhouette** of the fused features: {silhouettes}.", ""]


@drawing
def picture(runs: Runs) -> Figure:
    """Contribution and gradient of every method, and how reliable the teachers of the first are."""
    names = list(next(iter(runs.values()))[0]["contribution"]["after"])
    first = next(iter(runs))
    bars = {f"{first}, before": [f["contribution"]["before"] for f in runs[first]]}
    bars |= {method: [f["contribution"]["after"] for f in found] for method, found in runs.items()}
    pull = {m: [f["gradient"][list(f["gradient"])[-1]] for f in found] for m, found in runs.items()}
    figure = Figure(figsize=(2.4 * WIDTH, max(2.6, 1.0 + 0.32 * len(bars))))
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 0.8])
    _stacked(axes[0], bars, names, "contribution (%)")
    _stacked(axes[1], pull, names, "gradient, last stage (%)")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, handlelength=1, columnspacing=1)
    axes[2].plot([0, 1], [0, 1], color=FAINT, lw=1, ls="--")
    for name, style in palette(names).items() if runs[first][0]["teachers"] else ():
        for when, dash in (("as stated", ":"), ("calibrated", "-")):
            curves = np.array([f["teachers"][name][when]["curve"] for f in runs[first]]).mean(0)
            axes[2].plot(*curves.T, color=style.colour, ls=dash, marker=style.marker, ms=3)
    for when, dash in (("as stated", ":"), ("calibrated", "-")):
        axes[2].plot([], [], color=INK, ls=dash, label=when)
    axes[2].legend(handlelength=1.5)
    axes[2].set(xlabel="teachers state", ylabel="and it is")
    return figure


@drawing
def features(runs: Runs) -> Figure:
    """t-SNE of the fused features of the first seed, a panel a method."""
    figure = Figure(figsize=(3.1 * len(runs), 3.3))
    for axis, (method, found) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        points, group = project(np.asarray(found[0]["fused"])), np.asarray(found[0]["group"])
        for value in np.unique(group):
            look = {"color": CLASSES[int(value) % len(CLASSES)], "marker": MARKERS[int(value) % len(MARKERS)]}
            axis.scatter(*points[group == value].T, s=8, lw=0, label=f"{value}", **look)
        silhouette = np.mean([f["silhouette"] for f in found])
        axis.set(xticks=[], yticks=[], title=f"{method}: silhouette {silhouette:.2f}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", markerscale=2, handletextpad=0.1)
    return figure


def _stacked(axis: Axes, rows: Mapping[str, Sequence[Mapping[str, float]]], names: list[str], label: str) -> None:
    """One bar a row, a part a modality."""
    for y, values in enumerate(rows.values()):
        left = 0.0
        for name, style in palette(names).items():
            width = 100 * float(np.mean([v[name] for v in values]))
            axis.barh(y, width, 0.7, left=left, color=style.colour, label=None if y else name)
            if width > 12:
                axis.text(left + width / 2, y, f"{width:.0f}", ha="center", va="center", color="white")
            left += width
    axis.set_yticks(range(len(rows)), list(rows), color=INK)
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel=label)
