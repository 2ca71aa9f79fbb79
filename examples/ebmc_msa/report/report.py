"""`report.html`: one self-contained page of what a run found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ebmc_msa.data.files import write_text
from ebmc_msa.report import against, html, losses, overview, plots, sections, verdict
from ebmc_msa.report.record import Record
from ebmc_msa.report.run_view import Run
from ebmc_msa.report.terminal import print_table, print_verdict

__all__ = ["print_table", "print_verdict", "write_report"]

SECTIONS = {
    "verdict": ("Verdict", overview.overview),
    "models": ("Models", overview.models),
    "against": ("Beside another run", against.against),
    "contribution": ("Contribution of each modality", sections.contribution),
    "balance": ("Energy and gradient over time", sections.balance),
    "missing": ("Missing modalities", sections.missing),
    "trust": ("Trust by sample", sections.trust),
    "features": ("Fused features", sections.features),
    "losses": ("Losses by stage", losses.losses),
    "cost": ("Time and cost", sections.cost),
    "run": ("How it was run", sections.provenance),
}


def write_report(path: Path, results: dict[str, Any], records: Sequence[Record]) -> None:
    """Write the page to `path` in one step: a reader sees the old report or the whole new one.

    `results` are metrics.json's, with what `against.read` returns as `against` where another run stands beside.
    """
    write_text(path, render(Run.of(results, records)))


def render(run: Run) -> str:
    """The page; a section that has nothing to show of this run is left out."""
    bodies = {name: (title, draw(run)) for name, (title, draw) in SECTIONS.items()}
    about = f"Figures are about {run.display(run.model)}. Each modality keeps its colour:"
    colours = {name: style.colour for name, style in plots.palette(run.modalities).items()}
    if not verdict.differences(run.results):
        bodies["verdict"] = ("At a glance", bodies["verdict"][1])
    if "against" in run.results:
        bodies["against"] = (f"Beside {run.results['against']['name']}", bodies["against"][1])
    return html.document(run.title, about, colours, {name: body for name, body in bodies.items() if body[1]})
