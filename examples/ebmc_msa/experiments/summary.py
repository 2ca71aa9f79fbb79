"""The table and the plot of a comparison, made of what its jobs wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ebmc_msa.data.files import read_tensors, write_text
from ebmc_msa.experiments import internals
from ebmc_msa.experiments.baselines import BALANCERS, CONTROLS, NAMES
from ebmc_msa.experiments.bootstrap import Interval, interval
from ebmc_msa.report.plots import COLOURS, FAINT, INK, WIDTH, drawing

ByMethod = Mapping[str, Mapping[str, np.ndarray]]


class Measure(NamedTuple):
    name: str
    sign: int  # 1: higher is better
    digits: int


MEASURES = {
    "classes": (Measure("accuracy (%)", 1, 1),),
    "sentiment": (Measure("Acc-2 has0 (%)", 1, 1), Measure("MAE", -1, 3)),
    "regression": (Measure("MAE", -1, 3),),
}


def scores(measure: Measure, said: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What each sample adds to the measure."""
    if measure.name == "MAE":
        return np.abs(said - target)
    return 100.0 * (said == target if measure.name == "accuracy (%)" else (said >= 0) == (target >= 0))


KEYS = {"accuracy (%)": "acc", "Acc-2 has0 (%)": "acc2_has0", "MAE": "mae"}  # as in metrics.py


class Results(NamedTuple):
    kind: str
    said: dict[str, np.ndarray]  # (seeds, conditions, samples) by method, the condition that lacks nothing last
    target: np.ndarray  # (samples,)

    @classmethod
    def read(cls, out: Path, methods: dict[str, str], seeds: list[int], fold: str) -> Results | None:
        """Of the methods that have all the seeds; None without any."""
        said, last = {}, None
        for method, label in methods.items():
            runs = [stored(out, method, seed, fold) for seed in seeds]
            if all(runs):
                said[label] = np.stack([run[fold].double().numpy() for run in runs])
                last = runs[-1]
        return last and cls(last["kind"], said, last[f"{fold}_target"].double().numpy())

    def scores(self, measure: Measure) -> dict[str, dict[str, np.ndarray]]:
        """`(seeds, samples)` by method: with everything present, and averaged over what lacks something."""
        by_method = {method: scores(measure, said, self.target) for method, said in self.said.items()}
        return {method: {"full": s[:, -1], "missing": s[:, :-1].mean(1)} for method, s in by_method.items()}


def stored(out: Path, method: str, seed: int, fold: str) -> dict[str, Any] | None:
    path = result_path(out, method, seed)
    if not path.exists():
        return None
    result = read_tensors(path)
    return result if fold in result else None


def measured(out: Path, methods: dict[str, str], seeds: list[int], fold: str, key: str) -> dict[str, list[Any]]:
    """What was measured on that fold beside the predictions, by seed, of the methods that have it of all seeds."""
    runs = {label: [stored(out, method, seed, fold) for seed in seeds] for method, label in methods.items()}
    # Where the test fold was open, nothing but the predictions is of the validation fold.
    whole = {m: all(run and key in run and ("test" in run) == (fold == "test") for run in r) for m, r in runs.items()}
    return {label: [run[key] for run in runs[label]] for label, there in whole.items() if there}


def result_path(out: Path, method: str, seed: int) -> Path:
    return out / f"{method.replace(' ', '_').replace('/', '_')}-{seed}.pt"


def report(out: Path, name: str, methods: dict[str, str], seeds: list[int], fold: str, command: str) -> str:
    """Write `comparison.md`, `.json` and `.svg` (`valid.*` without the test fold) and return the table.

    `methods` are what jobs were called and what the table is to call them.
    """
    results = Results.read(out, methods, seeds, fold)
    if results is None:
        return "No method has all the seeds yet."
    selection = Results.read(out, methods, seeds, "valid")
    lines = [f"# {name}, {fold} fold", "", f"`{command}`", ""]
    content: dict[str, Any] = {"dataset": name, "fold": fold, "seeds": seeds, "command": command, "measures": {}}
    for measure in MEASURES[results.kind]:
        found = compared(results.scores(measure), selection.scores(measure), measure)
        content["measures"][measure.name] = found
        lines += [*table(found, measure, len(seeds)), ""]
    if fold == "test":
        lines += noise_table(out, methods, seeds, MEASURES[results.kind][0])
    if looked := measured(out, methods, seeds, fold, "inside"):
        lines += internals.tables(looked)
        prefix = "" if fold == "test" else "valid-"
        write_text(out / f"{prefix}inside.svg", internals.picture(looked))
        write_text(out / f"{prefix}features.svg", internals.features(looked))
    stem = out / ("comparison" if fold == "test" else "valid")
    write_text(stem.with_suffix(".md"), "\n".join(lines))
    write_text(stem.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    write_text(stem.with_suffix(".svg"), plot(content["measures"], MEASURES[results.kind]))
    return "\n".join(lines)


def compared(found: ByMethod, held_out: ByMethod, measure: Measure) -> dict[str, Any]:
    """Every method beside the first; and of each group the best on validation."""
    reference = next(iter(found))

    def difference(method: str, part: str) -> Interval:
        return interval(measure.sign * (found[reference][part] - found[method][part]))

    def summary(method: str, part: str) -> dict[str, Any]:
        by_seed = found[method][part].mean(1)
        return {
            "mean": by_seed.mean(),
            "std": by_seed.std(ddof=1) if len(by_seed) > 1 else 0.0,
            "interval": interval(found[method][part]),
            "difference": difference(method, part),
        }

    methods = {
        method: {part: summary(method, part) for part in parts} | {"valid": held_out[method]["full"].mean()}
        for method, parts in found.items()
    }
    best = {}
    for what, group in (("controls", CONTROLS), ("published balancers", BALANCERS)):
        rivals = [method for method in methods if method != reference and method.split()[0] in group]
        if rivals:
            best[what] = max(rivals, key=lambda method: measure.sign * methods[method]["valid"])
    return {"reference": reference, "methods": methods, "best on validation": best}


def table(found: dict[str, Any], measure: Measure, seeds: int) -> list[str]:
    reference, digits = found["reference"], measure.digits

    def shown(difference: Interval) -> str:
        mean, low, high = (f"{value:+.{digits}f}" for value in difference)
        return f"{mean} [{low}, {high}]"

    def cells(method: str, part: str) -> list[str]:
        got = found["methods"][method][part]
        score = f"{got['mean']:.{digits}f} ± {got['std']:.{digits}f}"
        return [score, "" if method == reference else shown(got["difference"])]

    return [
        f"**{measure.name}**, {'higher' if measure.sign > 0 else 'lower'} is better: mean ± standard deviation over "
        f"{seeds} seeds. Differences are paired, with their 95 % interval over samples and seeds; above zero "
        f"{reference} is better.",
        "",
        f"| method | all present | {reference} minus it | something missing, mean | {reference} minus it |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join([m, *cells(m, 'full'), *cells(m, 'missing')])} |" for m in found["methods"]),
        "",
        *(
            f"Best of the {what} on validation: {m}; {reference} minus it "
            f"{shown(found['methods'][m]['full']['difference'])}.  "
            for what, m in found["best on validation"].items()
        ),
    ]


def noise_table(out: Path, methods: dict[str, str], seeds: list[int], measure: Measure) -> list[str]:
    """What each method loses on the half of the test fold where a modality is spoilt; nothing without --noise."""
    found = measured(out, methods, seeds, "test", "noise")
    if not found:
        return []
    key, shown = KEYS[measure.name], next(iter(found.values()))[0]["loss"]

    lines = [
        f"**{measure.name} lost** on the half in which one modality is spoilt, mean ± standard deviation:",
        "",
        f"| spoilt | {' | '.join(found)} |",
        f"|---|{'---|' * len(found)}",
    ]
    for what in shown:
        cells = [internals.cell([run["loss"][what][key] for run in runs], measure.digits) for runs in found.values()]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    for method, runs in found.items():
        if runs[0]["detection"]:
            auroc = {what: [run["detection"][what]["auroc"] for run in runs] for what in runs[0]["detection"]}
            told = [f"{what} {internals.cell(values, 2)}" for what, values in auroc.items()]
            lines += [
                "",
                f"How well the trust of {method} tells spoilt from clean samples (AUROC): {'; '.join(told)}.",
            ]
    return [*lines, ""]


@drawing
def plot(found: dict[str, Any], measures: Sequence[Measure]) -> Figure:
    """Each method's mean with its 95 % interval: all present on the left, something missing on the right."""
    methods = list(found[measures[0].name]["methods"])
    figure = Figure(figsize=(2 * WIDTH, (0.26 * len(methods) + 1) * len(measures)))
    for axes, measure in zip(figure.subplots(len(measures), 2, squeeze=False), measures, strict=True):
        for axis, part, title in zip(axes, ("full", "missing"), ("all present", "something missing"), strict=True):
            for y, method in enumerate(methods):
                got: Interval = found[measure.name]["methods"][method][part]["interval"]
                colour = COLOURS[0] if method == methods[0] else INK
                axis.plot([got.low, got.high], [y, y], color=colour)
                axis.plot(got.mean, y, "o", color=colour)
            axis.axvline(found[measure.name]["methods"][methods[0]][part]["mean"], color=FAINT, zorder=0)
            axis.set_yticks(range(len(methods)), methods if part == "full" else [""] * len(methods))
            axis.invert_yaxis()
            axis.set_title(f"{title}: {measure.name}")
    return figure


def sweep_plot(out: Path, methods: dict[str, str], seeds: list[int]) -> Path:
    """The validation measures against the values of one setting, as SVG."""
    results = Results.read(out, methods, seeds, "valid")
    key, *_ = next(iter(results.said)).split()[-1].partition("=")
    path = out / f"sweep-{key}.svg"
    write_text(path, draw_sweep(results, key))
    return path


@drawing
def draw_sweep(results: Results, key: str) -> Figure:
    """Mean and standard deviation over seeds."""
    values, measures = [label.rpartition("=")[2] for label in results.said], MEASURES[results.kind]
    figure = Figure(figsize=(2 * WIDTH, 2.6))
    for axis, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        by_seed = [parts["full"].mean(1) for parts in results.scores(measure).values()]
        spread = [s.std(ddof=1) if len(s) > 1 else 0.0 for s in by_seed]
        axis.errorbar(range(len(values)), [s.mean() for s in by_seed], spread, marker="o", color=COLOURS[0])
        axis.set_xticks(range(len(values)), values)
        axis.set_xlabel(key)
        axis.set_title(f"validation: {measure.name}")
    return figure


def ordered(methods: list[str]) -> list[str]:
    """As in NAMES, variants after what they vary, each once."""
    return sorted(dict.fromkeys(methods), key=lambda method: NAMES.index(method.split()[0]))
