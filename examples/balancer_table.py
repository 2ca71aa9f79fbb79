"""What `compare_balancers.py` found, as a table, a CSV and a figure."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from ebmc_msa.evaluation.bootstrap import Interval, interval

Cell = tuple[str, str, str]  # data, condition, optimizer


class Result(NamedTuple):
    """A method in a cell."""

    correct: np.ndarray[Any, Any]  # (seeds, samples)
    seconds: float  # processor time of a step, the median of the seeds
    rate: float

    @property
    def mean(self) -> float:
        return 100 * float(self.correct.mean())

    @property
    def deviation(self) -> float:
        return 100 * stdev(self.correct.mean(1).tolist()) if len(self.correct) > 1 else float("nan")


Results = dict[Cell, dict[str, Result]]


def collect(records: Iterable[Mapping[str, Any]]) -> Results:
    """The final runs by cell and method, of the seeds that all methods in all cells of a data set have."""
    runs: dict[tuple[Cell, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        data, condition, optimizer, method, _, seed, test, _ = record["run"]
        if test:
            runs.setdefault(((data, condition, optimizer), method), {})[seed] = record
    seeds: dict[str, set[int]] = {}
    for (cell, _), found in runs.items():
        seeds[cell[0]] = seeds.get(cell[0], set(found)) & set(found)
    results: Results = {}
    for (cell, method), found in runs.items():
        kept = [found[seed] for seed in sorted(seeds[cell[0]])]
        if not kept:
            continue
        correct = np.array([[np.nan if hit is None else hit for hit in record["correct"]] for record in kept])
        seconds = float(np.median([record["seconds"] for record in kept]))
        result = Result(correct[:, ~np.isnan(correct).any(0)], seconds, kept[0]["run"][4])
        results.setdefault(cell, {})[method] = result
    return results


def differences(results: Results, method: str, control: str, cells: Iterable[Cell]) -> Interval | None:
    """Points above the control, a mean over cells of one data set: the same seeds and the same samples."""
    both = [
        100 * (results[c][method].correct - results[c][control].correct)
        for c in cells
        if method in results[c] and control in results[c]
    ]
    return interval(np.mean(both, 0)) if both else None


def signed(found: Interval | None) -> str:
    return "" if found is None else f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def table(results: Results, control: str, methods: list[str]) -> str:
    """One line a method: points above the control by data set, cells above and below it, cost of a step."""
    sets = list(dict.fromkeys(cell[0] for cell in results))
    by_set = {data: [cell for cell in results if cell[0] == data] for data in sets}
    lines = ["| method | " + " | ".join(sets) + " | cells above / below | step |", "|---" * (len(sets) + 3) + "|"]
    for method in methods:
        row = []
        for data in sets:
            found = [results[c][method].mean for c in by_set[data] if method in results[c]]
            change = "" if method == control else signed(differences(results, method, control, by_set[data]))
            row.append(f"{fmean(found):.1f}" + (f" {change}" if change else "") if found else "n/a")
        intervals = [differences(results, method, control, [c]) for c in results if method in results[c]]
        above = sum(i.low > 0 for i in intervals if i)
        below = sum(i.high < 0 for i in intervals if i)
        ratios = [results[c][method].seconds / results[c]["joint"].seconds for c in results if method in results[c]]
        counts = "control" if method == control else f"{above} / {below} of {len(intervals)}"
        lines.append(f"| `{method}` | " + " | ".join(row) + f" | {counts} | {np.median(ratios):.1f} |")
    return "\n".join(lines) + "\n"


def write(results: Results, control: str, file: Path) -> None:
    """Every cell and method."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        header = "data condition optimizer method rate seeds mean sd minus_control low high ms_a_step"
        writer.writerow(header.split())
        for cell, methods in results.items():
            for method, r in methods.items():
                d = differences(results, method, control, [cell])
                assert d is not None
                numbers = [r.mean, r.deviation, d.mean, d.low, d.high]
                row = [*cell, method, r.rate, len(r.correct), *(f"{x:.2f}" for x in numbers)]
                writer.writerow([*row, f"{1000 * r.seconds:.2f}"])


def draw(source: Path, control: str, methods: list[str], file: Path) -> None:
    """Points above the control, cell by cell, from the CSV; a ring where the interval holds zero."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with source.open() as lines:
        rows = list(csv.DictReader(lines))
    cells = list(dict.fromkeys((row["data"], row["condition"], row["optimizer"]) for row in rows))
    shown = [method for method in methods if method != control]
    values = np.full((len(shown), len(cells)), np.nan)
    sure = np.zeros(values.shape, bool)
    for row in rows:
        if row["method"] in shown:
            at = shown.index(row["method"]), cells.index((row["data"], row["condition"], row["optimizer"]))
            values[at] = float(row["minus_control"])
            sure[at] = float(row["low"]) > 0 or float(row["high"]) < 0
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    limit = 6
    image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for i, j in product(*map(range, values.shape)):
        if not np.isnan(values[i, j]):
            dark = abs(values[i, j]) > 3.2
            weight = "bold" if sure[i, j] else "normal"
            colour = "white" if dark else "black" if sure[i, j] else "0.3"
            axes.text(j, i, f"{values[i, j]:+.1f}", ha="center", va="center", fontsize=7, color=colour, weight=weight)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_xticks(
        range(len(cells)), [f"{condition}, {optimizer}" for _, condition, optimizer in cells], rotation=90
    )
    sets = list(dict.fromkeys(cell[0] for cell in cells))
    for data in sets:
        places = [j for j, cell in enumerate(cells) if cell[0] == data]
        axes.text(fmean(places), -0.6, data, ha="center", va="bottom", weight="bold")
        if places[0]:
            axes.axvline(places[0] - 0.5, color="black", linewidth=1.5)
    axes.tick_params(length=0, labelsize=8)
    figure.colorbar(image, ax=axes, label=f"points above {control} losses", extend="both", pad=0.01)
    figure.savefig(file, dpi=150)
    plt.close(figure)
