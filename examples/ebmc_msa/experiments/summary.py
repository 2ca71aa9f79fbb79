"""The table and the plot of a comparison, made of what its jobs wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ebmc_msa.data.files import read_tensors, write_text
from ebmc_msa.evaluation.bootstrap import Interval, interval
from ebmc_msa.evaluation.metrics import KINDS, METRICS, Metric, mean_and_std
from ebmc_msa.evaluation.robustness import DRAWS
from ebmc_msa.experiments.baselines import BALANCERS, CONTROLS
from ebmc_msa.experiments.method import Method
from ebmc_msa.experiments.trust import trust_summary, trust_table
from ebmc_msa.report import internals
from ebmc_msa.report.plots import COLOURS, FAINT, INK, WIDTH, drawing

VERSION = 4  # of a stored result; one of another version is measured anew
Methods = Mapping[str, Method]  # by label
Scores = Mapping[str, Mapping[str, np.ndarray]]  # (seeds, samples) by label and part


class Results(NamedTuple):
    kind: str
    predictions: dict[str, np.ndarray]  # (seeds, conditions, samples) by label; the last condition lacks nothing
    target: np.ndarray  # (samples,)

    @classmethod
    def read(cls, out: Path, methods: Methods, seeds: list[int], split: str) -> Results | None:
        """Of the methods that have all the seeds; None without any."""
        predictions, last = {}, None
        for label, method in methods.items():
            runs = [stored(out, method, seed, split) for seed in seeds]
            if all(runs):
                predictions[label] = np.stack([run[split].double().numpy() for run in runs])
                last = runs[-1]
        return last and cls(last["kind"], predictions, last[f"{split}_target"].double().numpy())

    def scores(self, metric: Metric) -> dict[str, dict[str, np.ndarray]]:
        """`(seeds, samples)` by label: with all modalities present, and averaged over the other conditions."""
        by_label = {label: metric.per_sample(x, self.target) for label, x in self.predictions.items()}
        return {label: {"full": s[:, -1], "missing": s[:, :-1].mean(1)} for label, s in by_label.items()}


def stored(out: Path, method: Method, seed: int, split: str) -> dict[str, Any] | None:
    """The result of a job on that split; None where there is none or one of a method that has changed since."""
    path = result_path(out, method, seed)
    if not path.exists():
        return None
    result = read_tensors(path)
    return result if split in result and result.get("version") == VERSION else None


def measured(out: Path, methods: Methods, seeds: list[int], split: str, key: str) -> dict[str, list[Any]]:
    """Measurements on that split, by label and seed, of the methods that have them of all seeds."""
    runs = {label: [stored(out, method, seed, split) for seed in seeds] for label, method in methods.items()}
    # Where the test split was open, nothing but the predictions is of the validation split.

    def usable(run: dict[str, Any] | None) -> bool:
        return run is not None and key in run and ("test" in run) == (split == "test")

    return {label: [run[key] for run in group] for label, group in runs.items() if all(map(usable, group))}


def result_path(out: Path, method: Method, seed: int) -> Path:
    return out / f"{str(method).replace(' ', '_').replace('/', '_')}-{seed}.pt"


def report(out: Path, name: str, methods: Methods, seeds: list[int], split: str, command: str) -> str:
    """Write `comparison.md`, `.json` and `.svg` (`valid.*` without the test split) and return the table.

    `methods` are by their label in the table.
    """
    results = Results.read(out, methods, seeds, split)
    if results is None:
        return "No method has all the seeds yet."
    selection = Results.read(out, methods, seeds, "valid")
    lines = [f"# {name}, {split} split", "", f"`{command}`", ""]
    content: dict[str, Any] = {"dataset": name, "split": split, "seeds": seeds, "command": command, "metrics": {}}
    for key in KINDS[results.kind].compared:
        metric = METRICS[key]
        found = compared(results.scores(metric), selection.scores(metric), metric, methods)
        content["metrics"][key] = found
        lines += [*table(found, metric, len(seeds)), ""]
    if split == "test":
        lacking = measured(out, methods, seeds, split, "unequal")
        content["unequal"] = {
            key: unequal(lacking, METRICS[key], results.target) for key in KINDS[results.kind].compared if lacking
        }
        for key, patterns in content["unequal"].items():
            lines += unequal_table(patterns, METRICS[key])
        lines += noise_table(out, methods, seeds, KINDS[results.kind].compared[0])
    if inspected := measured(out, methods, seeds, split, "internals"):
        lines += internals.tables(inspected)
        content["trust"] = trust_summary(inspected)
        lines += trust_table(content["trust"], METRICS[KINDS[results.kind].selects])
        prefix = "" if split == "test" else "valid-"
        write_text(out / f"{prefix}internals.svg", internals.picture(inspected))
        write_text(out / f"{prefix}features.svg", internals.features(inspected))
    stem = out / ("comparison" if split == "test" else "valid")
    write_text(stem.with_suffix(".md"), "\n".join(lines))
    write_text(stem.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    write_text(stem.with_suffix(".svg"), plot(content["metrics"]))
    return "\n".join(lines)


def compared(found: Scores, held_out: Scores, metric: Metric, methods: Methods) -> dict[str, Any]:
    """Every method beside the first; and of each group the best on validation."""
    reference = next(iter(found))

    def difference(method: str, part: str) -> Interval:
        return interval(metric.sign * (found[reference][part] - found[method][part]))

    def summary(method: str, part: str) -> dict[str, Any]:
        by_seed = found[method][part].mean(1)
        return {
            "mean": by_seed.mean(),
            "std": by_seed.std(ddof=1) if len(by_seed) > 1 else 0.0,
            "interval": interval(found[method][part]),
            "difference": difference(method, part),
        }

    summaries = {
        label: {part: summary(label, part) for part in parts} | {"valid": held_out[label]["full"].mean()}
        for label, parts in found.items()
    }
    best = {}
    for what, group in (("controls", CONTROLS), ("published balancers", BALANCERS)):
        rivals = [label for label in summaries if label != reference and methods[label].name in group]
        if rivals:
            best[what] = max(rivals, key=lambda label: metric.sign * summaries[label]["valid"])
    return {"reference": reference, "methods": summaries, "best on validation": best}


def table(found: dict[str, Any], metric: Metric, seeds: int) -> list[str]:
    reference, digits = found["reference"], metric.digits

    def cells(method: str, part: str) -> list[str]:
        got = found["methods"][method][part]
        score = f"{got['mean']:.{digits}f} ± {got['std']:.{digits}f}"
        return [score, "" if method == reference else signed(got["difference"], digits)]

    return [
        f"**{metric.label}**, {'higher' if metric.higher else 'lower'} is better: mean ± standard deviation over "
        f"{seeds} seeds. Differences are paired, with their 95 % interval over samples and seeds; above zero "
        f"{reference} is better.",
        "",
        f"| method | all present | {reference} minus it | something missing, mean | {reference} minus it |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join([m, *cells(m, 'full'), *cells(m, 'missing')])} |" for m in found["methods"]),
        "",
        *(
            f"Best of the {what} on validation: {m}; {reference} minus it "
            f"{signed(found['methods'][m]['full']['difference'], digits)}.  "
            for what, m in found["best on validation"].items()
        ),
    ]


def signed(difference: Interval, digits: int) -> str:
    mean, low, high = (f"{value:+.{digits}f}" for value in difference)
    return f"{mean} [{low}, {high}]"


def unequal(found: dict[str, list[Any]], metric: Metric, target: np.ndarray) -> dict[str, dict[str, Any]]:
    """By pattern of missing rates every method beside the first, averaged over the draws."""
    reference, patterns = next(iter(found)), next(iter(found.values()))[0]
    table: dict[str, dict[str, Any]] = {}
    for pattern in patterns:
        scores = {
            label: np.stack([metric.per_sample(run[pattern].double().numpy(), target).mean(0) for run in runs])
            for label, runs in found.items()
        }
        table[pattern] = {
            label: {"by seed": list(x.mean(1)), "difference": interval(metric.sign * (scores[reference] - x))}
            for label, x in scores.items()
        }
    return table


def unequal_table(table: dict[str, dict[str, Any]], metric: Metric) -> list[str]:
    reference, *others = next(iter(table.values()))
    columns = (f"missing: {pattern} | {reference} minus it" for pattern in table)
    better = "higher" if metric.higher else "lower"
    lines = [
        f"**{metric.label}**, {better} is better, with each modality missing at the rate beside its name and at "
        f"least one left: mean of {DRAWS} draws ± standard deviation over seeds. Differences as above.",
        "",
        f"| method | {' | '.join(columns)} |",
        f"|---|{'---|---|' * len(table)}",
    ]
    for label in (reference, *others):
        cells = []
        for found in table.values():
            difference = "" if label == reference else signed(found[label]["difference"], metric.digits)
            cells += [mean_and_std(found[label]["by seed"], metric.digits), difference]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def noise_table(out: Path, methods: Methods, seeds: list[int], key: str) -> list[str]:
    """What each method loses on the half of the test split with a corrupted modality; nothing without --noise."""
    found = measured(out, methods, seeds, "test", "noise")
    if not found:
        return []
    metric, shown = METRICS[key], next(iter(found.values()))[0]["loss"]

    lines = [
        f"**{metric.label} lost** on the half in which one modality is corrupted, mean ± standard deviation:",
        "",
        f"| corrupted | {' | '.join(found)} |",
        f"|---|{'---|' * len(found)}",
    ]
    for what in shown:
        cells = [mean_and_std([run["loss"][what][key] for run in runs], metric.digits) for runs in found.values()]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    for method, runs in found.items():
        if runs[0]["detection"]:
            auroc = {what: [run["detection"][what]["auroc"] for run in runs] for what in runs[0]["detection"]}
            shares = [f"{what} {mean_and_std(values, 2)}" for what, values in auroc.items()]
            lines += [
                "",
                f"How well low trust of {method} separates corrupted samples (AUROC): {'; '.join(shares)}.",
            ]
    return [*lines, ""]


@drawing
def plot(found: dict[str, Any]) -> Figure:
    """Each method's mean with its 95 % interval: all present on the left, something missing on the right."""
    metrics = list(found)
    methods = list(found[metrics[0]]["methods"])
    figure = Figure(figsize=(2 * WIDTH, (0.26 * len(methods) + 1) * len(metrics)))
    for axes, key in zip(figure.subplots(len(metrics), 2, squeeze=False), metrics, strict=True):
        for axis, part, title in zip(axes, ("full", "missing"), ("all present", "something missing"), strict=True):
            for y, method in enumerate(methods):
                got: Interval = found[key]["methods"][method][part]["interval"]
                colour = COLOURS[0] if method == methods[0] else INK
                axis.plot([got.low, got.high], [y, y], color=colour)
                axis.plot(got.mean, y, "o", color=colour)
            axis.axvline(found[key]["methods"][methods[0]][part]["mean"], color=FAINT, zorder=0)
            axis.set_yticks(range(len(methods)), methods if part == "full" else [""] * len(methods))
            axis.invert_yaxis()
            axis.set_title(f"{title}: {METRICS[key].label}")
    return figure


def sweep_plot(out: Path, methods: Methods, seeds: list[int]) -> Path:
    """The validation metrics against the values of one setting, as SVG."""
    results = Results.read(out, methods, seeds, "valid")
    key = next(iter(methods)).split()[-1].partition("=")[0]
    path = out / f"sweep-{key}.svg"
    write_text(path, draw_sweep(results, key))
    return path


@drawing
def draw_sweep(results: Results, key: str) -> Figure:
    """Mean and standard deviation over seeds."""
    values = [label.rpartition("=")[2] for label in results.predictions]
    metrics = [METRICS[name] for name in KINDS[results.kind].compared]
    figure = Figure(figsize=(2 * WIDTH, 2.6))
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        by_seed = [parts["full"].mean(1) for parts in results.scores(metric).values()]
        spread = [s.std(ddof=1) if len(s) > 1 else 0.0 for s in by_seed]
        axis.errorbar(range(len(values)), [s.mean() for s in by_seed], spread, marker="o", color=COLOURS[0])
        axis.set_xticks(range(len(values)), values)
        axis.set_xlabel(key)
        axis.set_title(f"validation: {metric.label}")
    return figure
