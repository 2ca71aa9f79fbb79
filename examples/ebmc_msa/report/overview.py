"""What the report opens with: the verdict, three figures that matter, and the models beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ebmc_msa.evaluation.bootstrap import Interval
from ebmc_msa.evaluation.impaired import PARTS
from ebmc_msa.evaluation.metrics import METRICS, Metric, shown_in_figures
from ebmc_msa.report import verdict
from ebmc_msa.report.html import Card, Cell, bar, cards, details, p, table
from ebmc_msa.report.run_view import Run, Scores, full_condition, in_tables, protocol

HAS0 = "has0 counts zero as positive, over all utterances; non0 leaves utterances labelled zero out."
PART_NAMES = {"full": "all present", "missing": "some missing", "corrupted": "one corrupted"}
HOW = (
    "Some missing: the mean over every set that lacks a modality. One corrupted: one modality of each utterance, "
    "drawn at random, has noise, has lost 70 % of its frames, or is another utterance's; the mean of the three. All "
    "models are tested on the same utterances; one that reads nothing of what is left predicts from nothing."
)
KINDS = {"better": "good", "worse": "flag", "level": "level"}


def overview(run: Run) -> str:
    differences = verdict.differences(run.results)
    words = verdict.sentences(run.results, run.names)
    opening = ""
    if differences:
        outcomes = {difference.outcome for part, difference in differences.items() if part != "full"}
        parts = [differences["full"].outcome, outcomes.pop() if len(outcomes) == 1 else "level"]
        opening = "".join(p(text, KINDS[kind]) for text, kind in zip(words, parts, strict=True))
    elif len(run.models) == 1:
        name = run.display(run.model)
        control = verdict.control_to_get(run.results)
        opening = p(
            f"This run trained {name} and nothing beside it, so it does not show whether {name} is better than "
            f"anything: the same command with --compare trains EBMC, concatenation and each modality alone{control}.",
            "level",
        )
    flags = [*run.constant(), verdict.unfinished(run.results, run.names)]
    return (
        opening
        + three_figures(run, differences)
        + "".join(p(text, "flag") for text in flags if text)
        + p(" ".join([verdict.caution(run.results)] * bool(differences) + [HOW] * (len(run.modalities) > 1)), "quiet")
        + p(protocol(run.results), "quiet")
    )


def three_figures(run: Run, differences: Mapping[str, verdict.Difference]) -> str:
    """What EBMC gains in each part, or without a comparison the scores themselves."""
    metric = verdict.metric_of(run.results)
    if not differences:
        return cards(plain_figures(run))
    limit = 1.15 * max(abs(end) for d in differences.values() for end in (d.interval.low, d.interval.high)) or 1.0
    colour = {"better": "good", "worse": "bad", "level": "level"}
    return cards(
        Card(
            f"Gain in {metric.label}, {PART_NAMES[d.part]}",
            verdict.signed(d.interval.mean, metric),
            f"{metric.text(d.ours)} against {metric.text(d.theirs)} of {run.display(d.rival)}; 95 % interval "
            f"{verdict.signed(d.interval.low, metric)} to {verdict.signed(d.interval.high, metric)}",
            bar(*d.interval, limit, colour[d.outcome]),
        )
        for d in differences.values()
    )


def plain_figures(run: Run) -> list[Card]:
    """The scores in each part; of a single modality two metrics and the selected epoch."""
    metric, found = verdict.metric_of(run.results), run.models[run.model]
    if len(run.modalities) > 1 and found.get("parts"):
        notes = {
            "full": "on the test split",
            "missing": "mean over what may be missing",
            "corrupted": "mean of three kinds",
        }
        return [Card(f"{metric.arrowed}, {PART_NAMES[p]}", metric.cell(found["parts"][p]), notes[p]) for p in PARTS]
    scores = run.test[full_condition(run.test)]
    shown = [METRICS[key] for key in shown_in_figures(run.results["kind"], scores)]
    values = [scores[key] for key in shown_in_figures(run.results["kind"], scores)]
    own = [Card(m.arrowed, m.cell(value), "on the test split") for m, value in zip(shown, values, strict=True)]
    epochs = ", ".join(str(sum(stages.values())) for stages in found["selection"]["epochs"].values())
    return [*own, Card("Epochs up to the best", epochs, "chosen on validation")]


def models(run: Run) -> str:
    """A table of gains, and all metrics folded away."""
    body = gains(run) if len(run.models) > 1 and verdict.differences(run.results) else ""
    scores = run.whole()
    every = "".join(
        (p(f"{title[0].upper()}{title[1:]}:") if title else "") + by_model(scores, columns)
        for title, columns in in_tables(run.results["kind"], next(iter(scores.values()))).items()
    )
    every += p(HAS0, "quiet") if "acc2_has0" in next(iter(scores.values())) else ""
    return body + (details("All metrics, all modalities present", every) if body else every)


def gains(run: Run) -> str:
    """Each model with what EBMC gains over it."""
    metric = verdict.metric_of(run.results)
    head, rows, bold = ["Model"], [], set()
    for column, part in enumerate(PARTS):
        head += [f"{metric.arrowed}, {PART_NAMES[part]}", "EBMC's gain"]
        top = metric.best(found["parts"][part]["mean"] for found in run.models.values())
        bold |= {(i, 1 + 2 * column) for i, x in enumerate(run.models.values()) if x["parts"][part]["mean"] == top}
    for name, found in run.models.items():
        row: list[str | Cell] = [run.display(name)]
        for part in PARTS:
            entry = found["parts"][part]
            row += [Cell(metric.cell(entry), by_seed(run.results, entry)), gain_cell(entry, metric)]
        rows.append(row)
    return table(head, rows, bold) + p(
        "Bold: best of the column. Green and red: the interval does not hold 0.", "quiet"
    )


def gain_cell(entry: Mapping[str, Any], metric: Metric) -> Cell:
    if "difference" not in entry:
        return Cell("")
    mean, low, high = found = Interval(*entry["difference"])
    ends = verdict.gain(found, metric).partition(" ")[2]
    return Cell(verdict.signed(mean, metric), "", ends, "good" if low > 0 else "bad" if high < 0 else "")


def by_seed(results: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    return ", ".join(
        f"seed {seed}: {value:.5g}" for seed, value in zip(results["seeds"], entry["values"], strict=False)
    )


def by_model(scores: Mapping[str, Scores], metrics: Mapping[str, Metric]) -> str:
    """A table of models, the best of each column in bold."""
    bold = set()
    for j, (key, metric) in enumerate(metrics.items(), 1):
        top = metric.best(score[key]["mean"] for score in scores.values())
        if len(scores) > 1 and math.isfinite(top):
            bold |= {(i, j) for i, score in enumerate(scores.values()) if score[key]["mean"] == top}
    rows = [[name, *(metric.cell(s[key]) for key, metric in metrics.items())] for name, s in scores.items()]
    return table(["Model", *(metric.arrowed for metric in metrics.values())], rows, bold)
