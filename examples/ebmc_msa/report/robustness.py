"""Results of the robustness protocols: terminal tables, one page, one picture, the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebmc_msa.data.files import replacing
from ebmc_msa.evaluation.metrics import METRICS, Metric, shown_in_figures
from ebmc_msa.report import html, plots
from ebmc_msa.report.run_view import protocol

Results = Mapping[str, Any]
Cells = tuple[list[str], list[list[str]]]  # heads, rows
AUROC = Metric("AUROC", percent=False)
GAIN = "Gain of a modality alone over the constant prediction, on validation."
TITLES = {
    "conditions": "Modalities missing from the whole test split",
    "random": "Modalities missing at random",
    "conversations": "Modalities missing from whole conversations at random",
    "unequal": "Modalities missing at unequal rates",
    "frames": "Frames missing at random",
    "noise": "One modality corrupted in half of the samples",
}


def about(results: Results) -> str:
    """What was done to the test split, in words."""
    draws = f"mean of {results['draws']} draws of the masks"
    sequences = [name for name, has_time in results["modalities"].items() if has_time]
    pooled = [name for name in results["modalities"] if name not in sequences]
    stays = f" {', '.join(pooled)} have no time axis and stay as they are." if pooled else ""
    return {
        "conditions": "Only the named modalities are there. avg: the mean of the conditions that lack something. A "
        "model that reads none of what is left predicts from nothing.",
        "random": f"Each utterance lacks each modality with that probability and keeps at least one; {draws}. avg: "
        "0.1 to 0.7. A model that reads none of what is left answers from nothing.",
        "conversations": "Each conversation lacks each modality with that probability, in all its utterances; each "
        f"utterance keeps at least one; {draws}. avg: 0.1 to 0.7. A model that reads none of what is left answers "
        "from nothing.",
        "unequal": "Each utterance lacks each modality with the probability beside its name and keeps at least one; "
        f"{draws}. avg: both rows. A model that reads none of what is left answers from nothing.",
        "frames": f"That share of each sequence's valid frames is gone, at least one is kept; {draws}. avg: all ten "
        f"rates.{stays}",
        "noise": f"Half of the samples that have the modality have it corrupted; {draws}. noise: Gaussian, at the "
        "size that halves the gain of the modality alone, and x2 at twice that (tokens get none); frames: 70 % of "
        "its frames are gone; swap: it is another utterance's. The loss is that of the corrupted half.",
    }[results["protocol"]]


def write(run: Path, results: Results) -> list[Path]:
    """`robustness-<protocol>.json`, `.html` and `.png` in `run`, each whole or not at all."""
    contents = {
        "json": (json.dumps(results, indent=2) + "\n").encode(),
        "html": render(results).encode(),
        "png": picture(results),
    }
    paths = [run / f"robustness-{results['protocol']}.{kind}" for kind in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        with replacing(path) as file:
            file.write(content)
    return paths


def print_tables(results: Results, console: Console) -> None:
    """The two metrics that the report shows too, each with its loss; and how well low trust detects corruption."""
    metrics = metrics_of(results)
    console.print(Text(TITLES[results["protocol"]], "bold"), Text(about(results)), Text(protocol(results)))
    for key in [key for key in shown_in_figures(results["kind"], metrics) if key in metrics]:
        _print(f"{metrics[key].arrowed}, in brackets the loss", *scores(results, key, brackets=True), console)
    if results.get("sizes"):
        _print(GAIN, *sizes(results), console)
    if any("detection" in found for found in results["models"].values()):
        _print("Low trust as a detector of corruption: AUROC, chance .5", *detection(results), console)


def _print(title: str, head: list[str], rows: list[list[str]], console: Console) -> None:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def metrics_of(results: Results) -> dict[str, Metric]:
    test = next(iter(results["models"].values()))["test"]
    return {key: METRICS[key] for key in next(iter(test.values()))}


def scores(results: Results, key: str, *, part: str = "test", brackets: bool = False) -> Cells:
    """Levels down, models across."""
    models, metric = results["models"], METRICS[key]

    def cell(found: Mapping[str, Any], level: str) -> str:
        if level not in found[part]:
            return ""
        text = metric.cell(found[part][level][key])
        if brackets and level in found["loss"]:
            text += f" ({metric.text(found['loss'][level][key]['mean'])})"
        return text.replace("-" + metric.text(0.0), metric.text(0.0))

    levels = dict.fromkeys(level for found in models.values() for level in found[part])
    rows = [[level, *(cell(found, level) for found in models.values())] for level in levels]
    return [results["protocol"], *_names(results).values()], rows


def detection(results: Results) -> Cells:
    """Levels down, models that trust across."""
    models = {name: found["detection"] for name, found in results["models"].items() if "detection" in found}
    levels = dict.fromkeys(level for found in models.values() for level in found)
    rows = [[level, *(AUROC.cell(found[level]["auroc"]) for found in models.values())] for level in levels]
    return ["corrupted", *(_names(results)[name] for name in models)], rows


def sizes(results: Results) -> Cells:
    """Modalities down: how much noise halves the gain of each."""
    metric = METRICS[results["selection"]["metric"]]
    rows = [
        [
            name,
            f"{size['size']:.2f}" + ("" if size["halved"] else " (nothing halves it)"),
            metric.text(size["gain"]),
            metric.text(size["gain_left"]),
            size["model"],
        ]
        for name, size in results["sizes"].items()
    ]
    return ["modality", "size (standard deviations)", f"{metric.name} alone", "at this size", "measured with"], rows


def render(results: Results) -> str:
    metrics = metrics_of(results)
    figures = [html.figure(draw(results, key), f"{metric.name}{_what(results)}") for key, metric in metrics.items()]
    sections = {"curves": (TITLES[results["protocol"]], html.p(about(results)) + html.grid(figures))}
    if results.get("sizes"):
        sections["sizes"] = ("How much noise", html.p(GAIN) + html.table(*sizes(results)))
    if any("detection" in found for found in results["models"].values()):
        text = html.p(
            "Area under the ROC of low trust in the modality: corrupted against clean samples, of those that have "
            "another modality too. 0.5 is chance."
        )
        sections["trust"] = ("Does low trust detect corruption?", text + html.table(*detection(results)))
    for key, metric in metrics.items():
        loss = html.p("By how much it is worse than untouched; below zero it is better:")
        tables = html.table(*scores(results, key)) + loss + html.table(*scores(results, key, part="loss"))
        sections[key] = (metric.arrowed, tables)
    colours = {_names(results)[name]: style.colour for name, style in _styles(results).items()}
    title = f"{TITLES[results['protocol']]}: {results['dataset']}"
    return html.document(title, protocol(results), colours, sections)


def draw(results: Results, key: str) -> str:
    return plots.degradation(_panels(results, [key]), _styles(results), _names(results))


def picture(results: Results) -> bytes:
    return plots.degradation(_panels(results, metrics_of(results)), _styles(results), _names(results), image="png")


def _what(results: Results) -> str:
    return {
        "random": " by missing rate",
        "conversations": " by missing rate",
        "frames": " by share of frames gone",
        "noise": ": loss where corrupted",
    }.get(results["protocol"], "")


def _panels(results: Results, keys: Iterable[str]) -> dict[str, plots.Panel]:
    """The levels of each model without the average: scores, or under noise the loss."""
    part, prefix = ("loss", "loss of ") if results["protocol"] == "noise" else ("test", "")
    return {
        prefix + METRICS[key].label: {
            name: {level: entry[key]["values"] for level, entry in found[part].items() if level != "avg"}
            for name, found in results["models"].items()
        }
        for key in keys
    }


def _styles(results: Results) -> dict[str, plots.Style]:
    return plots.model_styles(list(results["models"]), list(results["modalities"]))


def _names(results: Results) -> dict[str, str]:
    """For people."""
    return {
        name: "EBMC" if name == "ebmc" else f"{name} alone" if name in results["modalities"] else name
        for name in results["models"]
    }
