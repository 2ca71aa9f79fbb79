"""What goes on inside EBMC: who contributes, who gets the gradient, whose energy is low, how sure teachers may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import silhouette_score
from torch import Tensor

from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import Fold, by_length, outputs_and_targets
from ebmc_msa.evaluation.scores import contribution, predict, truth
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.encoders import encode
from ebmc_msa.report.plots import CLASSES, FAINT, INK, MARKERS, WIDTH, drawing, palette
from ebmc_msa.report.sections import project
from ebmc_msa.training.stages import Trained
from modbalance.diagnostics import calibration_error, gaussian_coverage
from modbalance.functional import scale_temperature
from modbalance.tasks import task_loss

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # what `look` found, by method and seed


@torch.no_grad()
def look(ebmc: Trained, folds: Mapping[str, Fold]) -> dict[str, Any]:
    """Numbers by modality of a trained model, on the test fold where there is one, else on validation.

    Returns:
        contribution: Shapley shares, of the model `before` balancing and `after`.
        gradient: share of the encoders' gradient in training, by stage.
        energy: mean energy on the training fold and on the validation fold.
        teachers: negative log-likelihood, calibration and reliability of each, `as stated` and `calibrated`.
        silhouette, fused, group: of the fused features, and by what they are grouped.
    """
    model, student = ebmc.model, ebmc.student
    held, spec = folds.get("test", folds["valid"]), model.spec
    found: dict[str, Any] = {
        "contribution": {"before": contribution(ebmc.stage1, held), "after": contribution(model, held)},
        "gradient": {s.name: _mean([epoch["gradient"] for epoch in s.history]) for s in ebmc.stages if s.history},
        "energy": {fold: energies(student, folds[fold]) for fold in ("train", "valid")},
        "teachers": {},
    }
    for name, temperature in student.temperatures().items():
        here = held.keep(held.present[name])
        stated, target = outputs_and_targets(here, lambda batch, m=name: student.teachers.predict(m, batch))
        found["teachers"][name] = {
            "as stated": reliability(spec, stated, target),
            "calibrated": reliability(spec, scale_temperature(spec.task, stated, temperature), target),
        }
    fused, group = predict(model, held).fused, groups(spec, held.target)
    keep = group >= 0
    found |= {"fused": fused[keep], "group": group[keep]}
    several = len(group[keep].unique()) > 1
    found["silhouette"] = float(silhouette_score(fused[keep].cpu(), group[keep].cpu())) if several else math.nan
    return found


@torch.no_grad()
def energies(model: EBMC, fold: Fold) -> dict[str, float]:
    """Mean energy of each modality over the samples of a fold that have it."""
    model.eval()
    said: dict[str, list[Tensor]] = {name: [] for name in fold.present}
    for batch in (fold.rows(rows) for rows in by_length(fold)):
        energy = model.coordinate(encode(model.encoders, batch), batch.target, batch.present).energy
        for name, here in batch.present.items():
            said[name].append(energy[name][here])
    return {name: torch.cat(parts).mean().item() for name, parts in said.items()}


def reliability(spec: Spec, outputs: Tensor, target: Tensor) -> dict[str, Any]:
    """`nll`; `error`: of the 90 % interval's coverage, or the expected calibration error; the `curve` of the two.

    The curve is `(stated, found)`: coverage of central intervals, or accuracy in fifths of rising confidence.
    """
    nll = task_loss(spec.task, outputs, target).mean().item()
    if spec.task == "gaussian":
        covered = [gaussian_coverage(outputs, target, level=level) for level in LEVELS]
        return {"nll": nll, "error": covered[-1] - LEVELS[-1], "curve": list(zip(LEVELS, covered, strict=True))}
    confidence, label = outputs.softmax(-1).max(-1)
    fifths = confidence.argsort().tensor_split(5)
    curve = [(confidence[f].mean().item(), (label == target)[f].float().mean().item()) for f in fifths if len(f)]
    return {"nll": nll, "error": calibration_error(spec.task, outputs, target), "curve": curve}


def groups(spec: Spec, target: Tensor) -> Tensor:
    """A class for each sample, `(N,)`: of sentiment its sign, of other values the half; -1 in between."""
    if spec.task == "classification":
        return target
    value = truth(spec, target)
    value = value if spec.kind == "sentiment" else value - value.median()
    return torch.where(value == 0, -1, (value > 0).long())


def tables(runs: Runs) -> list[str]:
    """Markdown: mean ± standard deviation over seeds."""
    names = list(next(iter(runs.values()))[0]["contribution"]["after"])
    head, rule = f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"

    def row(label: str, values: Sequence[Mapping[str, float]], digits: int, scale: float = 1.0) -> str:
        return f"| {label} | {' | '.join(cell([scale * v[m] for v in values], digits) for m in names)} |"

    lines = ["**Contribution** (Shapley share of what the answer gains over a constant, %):", "", head, rule]
    for method, found in runs.items():
        for when in ("before", "after"):
            lines.append(row(f"{method}, {when} balancing", [f["contribution"][when] for f in found], 0, 100))
    lines += ["", "**Gradient** (share of the encoders' gradient norm in training, %):", "", head, rule]
    for method, found in runs.items():
        for stage in found[0]["gradient"]:
            lines.append(row(f"{method}, {stage}", [f["gradient"][stage] for f in found], 0, 100))
    lines += ["", "**Energy** (mean at the end, lowest is strongest):", "", head, rule]
    for method, found in runs.items():
        for fold in ("train", "valid"):
            lines.append(row(f"{method}, {fold}", [f["energy"][fold] for f in found], 2))
    first = next(iter(runs.values()))
    if first[0]["teachers"]:
        lines += ["", f"**Teachers** of {next(iter(runs))}:", "", head, rule]
        for key, what in (("nll", "negative log-likelihood"), ("error", "calibration error")):
            for when in ("as stated", "calibrated"):
                values = [{m: f["teachers"][m][when][key] for m in names} for f in first]
                lines.append(row(f"{what}, {when}", values, 2))
    silhouettes = "; ".join(f"{m} {cell([f['silhouette'] for f in found], 3)}" for m, found in runs.items())
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


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def cell(values: Sequence[float], digits: int) -> str:
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}"
