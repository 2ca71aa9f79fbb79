"""A second run beside this one: the scores of the models that both have, and the settings that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebmc_msa.data import DataError
from ebmc_msa.evaluation.impaired import PARTS
from ebmc_msa.evaluation.metrics import KINDS, METRICS
from ebmc_msa.report.html import Cell, p, table
from ebmc_msa.report.overview import PART_NAMES
from ebmc_msa.report.run_view import Run, full_condition
from ebmc_msa.report.sections import in_words
from ebmc_msa.report.verdict import metric_of, signed


def read(path: Path, kind: str | None) -> dict[str, Any]:
    """The metrics.json of a finished run, as `{"name": ..., **content}`.

    Raises:
        DataError: there is none, or it is of labels of another kind.
    """
    try:
        found = json.loads((path / "metrics.json").read_text())
        theirs = found["kind"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"--against: {path} holds no metrics.json that can be read ({type(problem).__name__}), expected the "
            "folder of a finished run; check the name."
        ) from problem
    if theirs != kind:
        raise DataError(f"--against: {path} is of {theirs} labels, expected {kind}; name a run on such data.")
    return {**found, "name": path.name}


def against(run: Run) -> str:
    """Nothing without another run."""
    if "against" not in run.results:
        return ""
    other = Run.of(run.results["against"])
    names = [name for name in run.models if name in other.models]
    warnings = [
        f"The {what} differ: {', '.join(map(str, here))} here, {', '.join(map(str, there))} there."
        for what, here, there in (
            ("data", [run.results["dataset"]], [other.results["dataset"]]),
            ("seeds", run.results["seeds"], other.results["seeds"]),
        )
        if here != there
    ]
    if not names:
        warnings.append(f"No model is in both: {', '.join(other.names.values())} there.")
    return (
        "".join(p(text, "flag") for text in warnings)
        + (scores(run, other, names) if names else "")
        + differing(run.results.get("settings", {}), other.results.get("settings", {}))
    )


def scores(run: Run, other: Run, names: list[str]) -> str:
    whole = all("parts" in view.models[name] for view in (run, other) for name in names)
    metric = metric_of(run.results) if whole else METRICS[KINDS[run.results["kind"]].selects]
    head, rows = ["Model"], [[run.display(name)] for name in names]
    for part in PARTS if whole else PARTS[:1]:
        head += [f"{metric.arrowed}, {PART_NAMES[part]}", "there", "gain"]
        for name, row in zip(names, rows, strict=True):
            here, there = (entry(view, name, part, whole) for view in (run, other))
            gain = metric.sign * (here["mean"] - there["mean"])
            row += [metric.cell(here), metric.cell(there), Cell(signed(gain, metric), f"{gain:+.5g}")]
    text = "Gain: of this run over the other; above zero this one is better. A difference within ± may be chance."
    return table(head, rows) + p(text, "quiet")


def entry(view: Run, name: str, part: str, whole: bool) -> Mapping[str, Any]:
    found = view.models[name]
    if whole:
        return found["parts"][part]
    return found["test"][full_condition(found["test"])][KINDS[view.results["kind"]].selects]


def differing(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    rows = [
        [name, in_words(here.get(name)), in_words(there.get(name))]
        for name in dict.fromkeys([*here, *there])
        if in_words(here.get(name)) != in_words(there.get(name))
    ]
    return table(["Setting", "Here", "There"], rows, kind="words") if rows else p("All settings are the same.")
