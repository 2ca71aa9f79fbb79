"""The terminal's tables: the models of a run, and one model with modalities missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebmc_msa.evaluation.metrics import Metric
from ebmc_msa.report.run_view import Run, Scores, in_tables, protocol


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """One table of the test metrics; with several models, a second one of EBMC's missing conditions."""
    run = Run.of(results)
    tables = {}
    if len(run.models) > 1:
        tables[f"Models on {results['dataset']}"] = "model", run.whole()
    if len(run.models) == 1 or len(run.test) > 1:
        rows = {name: run.test[condition] for condition, name in run.conditions().items()}
        tables[f"{run.title}: which modalities are present"] = "present", rows
    for title, (corner, rows) in tables.items():
        for part, metrics in in_tables(results["kind"], next(iter(rows.values()))).items():
            whole = f"{title}, {part}" if part else title
            _print(console, whole, corner, rows, metrics, protocol(results), mark=corner == "model")
    for sentence in run.constant():
        console.print(f"Note: {sentence}", markup=False, highlight=False)


def _print(
    console: Console,
    title: str,
    corner: str,
    rows: Mapping[str, Scores],
    metrics: Mapping[str, Metric],
    caption: str,
    *,
    mark: bool,
) -> None:
    """`mark` sets the best of each column in bold."""
    heads = [metric.arrowed.replace(" (%)", "") for metric in metrics.values()]
    lines = [[metric.cell(row[key]) for key, metric in metrics.items()] for row in rows.values()]
    width = max(map(len, [corner, *rows])) + 2
    width += sum(max(map(len, column)) + 2 for column in zip(heads, *lines, strict=True))
    if width > console.width:  # two lines to a cell rather than cut figures
        heads, *lines = (
            [text.replace("\u00a0", " ").replace(" ", "\n") for text in line] for line in (heads, *lines)
        )
    tops = [metric.best(row[key]["mean"] for row in rows.values()) for key, metric in metrics.items()]

    table = Table(
        title=Text(title), caption=Text(caption), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
    )
    table.add_column(corner, no_wrap=True)
    for head in heads:
        table.add_column(Text(head), justify="right")
    for (name, row), line in zip(rows.items(), lines, strict=True):
        bold = [mark and row[key]["mean"] == top for key, top in zip(metrics, tops, strict=True)]
        table.add_row(Text(name), *(Text(text, "bold" if b else "") for text, b in zip(line, bold, strict=True)))
    console.print(table)
