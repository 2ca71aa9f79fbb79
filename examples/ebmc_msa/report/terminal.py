"""The terminal's tables: the models of a run, and one model with modalities missing; and the verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebmc_msa.evaluation.impaired import PARTS
from ebmc_msa.evaluation.metrics import Metric
from ebmc_msa.report import verdict
from ebmc_msa.report.run_view import Run, Scores, in_tables, protocol

Bold = Collection[tuple[int, int]]  # row and column, from 0


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """The test metrics: of one model by which modalities are present, or of several models beside each other."""
    run = Run.of(results)
    if verdict.differences(results):
        _print_compared(run, console)
    else:
        _print_all(run, console)
    for sentence in run.constant():
        console.print(f"Note: {sentence}", markup=False, highlight=False)


def print_verdict(results: Mapping[str, Any], console: Console) -> None:
    """The two sentences, or how to get them; and before them whether training ended too early."""
    names = Run.of(results).names
    notes, words = [verdict.unfinished(results, names)], verdict.sentences(results, names)
    if list(names) == ["ebmc"]:
        control = verdict.control_to_get(results)
        notes.append(f"Whether that is better than the plain models: the same command with --compare{control}.")
    for note in filter(None, notes):
        console.print(note, markup=False, highlight=False)
    for sentence in words:
        console.print(Text(sentence, "bold"))


def _print_compared(run: Run, console: Console) -> None:
    """All present, something missing, one corrupted, each with what EBMC gains; a star: the interval lacks 0."""
    metric, ebmc = verdict.metric_of(run.results), run.display("ebmc")
    rows, bold = [], set()
    for part in PARTS:
        top = metric.best(found["parts"][part]["mean"] for found in run.models.values())
        at = 1 + 2 * PARTS.index(part)
        bold |= {(i, at) for i, x in enumerate(run.models.values()) if x["parts"][part]["mean"] == top}
    for name, found in run.models.items():
        row = [run.display(name)]
        for part in PARTS:
            entry = found["parts"][part]
            mean, low, high = entry.get("difference", (0.0, 0.0, 0.0))
            star = "*" if low > 0 or high < 0 else " "
            row += [metric.cell(entry), verdict.signed(mean, metric) + star if "difference" in entry else ""]
        rows.append(row)
    heads = ["all present", "gain", "some missing", "gain", "one corrupted", "gain"]
    caption = f"gain: of {ebmc} over that model; *: its 95 % interval does not hold 0. {protocol(run.results)}"
    _print(console, f"{metric.arrowed} on {run.results['dataset']}", ["model", *heads], rows, caption, bold)


def _print_all(run: Run, console: Console) -> None:
    results, tables = run.results, {}
    if len(run.models) > 1:
        tables[f"Models on {results['dataset']}"] = "model", run.whole()
    if len(run.models) == 1 or len(run.test) > 1:
        rows = {name: run.test[condition] for condition, name in run.conditions().items()}
        tables[f"{run.title}: which modalities are present"] = "present", rows
    for title, (corner, rows) in tables.items():
        for part, metrics in in_tables(results["kind"], next(iter(rows.values()))).items():
            whole = f"{title}, {part}" if part else title
            bold = best_of_each(rows, metrics) if corner == "model" else ()
            lines = [
                [name, *(metric.cell(row[key]) for key, metric in metrics.items())] for name, row in rows.items()
            ]
            heads = [corner, *(metric.arrowed.replace(" (%)", "") for metric in metrics.values())]
            _print(console, whole, heads, lines, protocol(results), bold)


def best_of_each(rows: Mapping[str, Scores], metrics: Mapping[str, Metric]) -> Bold:
    """Where the best of each metric's column stands; the first column holds the names."""
    tops = {key: metric.best(row[key]["mean"] for row in rows.values()) for key, metric in metrics.items()}
    return {
        (i, j)
        for i, row in enumerate(rows.values())
        for j, (key, top) in enumerate(tops.items(), 1)
        if row[key]["mean"] == top
    }


def _print(
    console: Console, title: str, heads: Sequence[str], lines: Sequence[Sequence[str]], caption: str, bold: Bold
) -> None:
    """A table whose first column holds names; two lines to a cell rather than cut figures."""
    width = sum(max(map(len, column)) + 2 for column in zip(heads, *lines, strict=True))
    if width > console.width:
        heads, *lines = (
            [
                row[0],
                *(
                    text.strip().replace("\u00a0", " ").replace(" ± ", "\n±\u00a0").replace(" ", "\n")
                    for text in row[1:]
                ),
            ]
            for row in (heads, *lines)
        )
    table = Table(
        title=Text(title),
        caption=Text(caption),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    table.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        table.add_column(Text(head), justify="right")
    for i, row in enumerate(lines):
        table.add_row(*(Text(text, "bold" if (i, j) in bold else "") for j, text in enumerate(row)))
    console.print(table)
