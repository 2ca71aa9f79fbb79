"""Is EBMC better than the best other model? Differences with their intervals, and two sentences made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ebmc_msa.evaluation.bootstrap import Interval, interval
from ebmc_msa.evaluation.impaired import PARTS, compared_by
from ebmc_msa.evaluation.metrics import METRICS, Metric
from ebmc_msa.report.record import Record
from ebmc_msa.report.run_view import CONTROL


def parts(records: Iterable[Record], kind: str) -> dict[str, dict[str, Any]]:
    """Scores by model and part, `compared_by` the kind's metric, as metrics.json keeps them.

    By part: `values` by seed, their `mean`, the mean on `valid`, and where EBMC was trained too its paired
    `difference`: mean, low and high end of the 95 % interval over seeds and utterances, above zero where EBMC is
    better.
    """
    sign = METRICS[compared_by(kind)].sign
    by_model: dict[str, list[Record]] = {}
    for record in records:
        by_model.setdefault(record.model, []).append(record)
    scores = {
        name: {part: np.array([record.samples[part] for record in group]) for part in PARTS}
        for name, group in by_model.items()
        if all(record.samples for record in group)
    }
    found: dict[str, dict[str, Any]] = {}
    for name, by_part in scores.items():
        found[name] = {}
        for part, values in by_part.items():
            valid = [record.valid[part] for record in by_model[name] if record.valid]
            entry = {"mean": float(values.mean()), "values": values.mean(1).tolist()}
            entry |= {"valid": float(np.mean(valid))} if valid else {}
            if "ebmc" in scores and name != "ebmc":
                entry["difference"] = list(interval(sign * (scores["ebmc"][part] - values)))
            found[name][part] = entry
    return found


class Difference(NamedTuple):
    """EBMC against the other model that is best on validation; positive where EBMC is better."""

    part: str
    rival: str
    ours: float
    theirs: float
    interval: Interval

    @property
    def outcome(self) -> str:
        """`better`, `worse`, or `level`: the interval holds 0."""
        return "better" if self.interval.low > 0 else "worse" if self.interval.high < 0 else "level"


def metric_of(results: Mapping[str, Any]) -> Metric:
    return METRICS[compared_by(results["kind"])]


def differences(results: Mapping[str, Any]) -> dict[str, Difference]:
    """By part; empty without EBMC or without another model, or where no scores of single utterances were kept."""
    models = {name: found["parts"] for name, found in results.get("models", {}).items() if found.get("parts")}
    rivals = {name: by_part for name, by_part in models.items() if name != "ebmc" and not name.endswith(CONTROL)}
    if "ebmc" not in models or not rivals:
        return {}
    metric, found = metric_of(results), {}
    for part in PARTS:
        best = max(rivals, key=lambda name: metric.sign * rivals[name][part]["valid"])
        theirs = rivals[best][part]
        found[part] = Difference(
            part, best, models["ebmc"][part]["mean"], theirs["mean"], Interval(*theirs["difference"])
        )
    return found


def sentences(results: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Two: all modalities present, and impaired; none where there is nothing to compare. `names` are for people."""
    found = differences(results)
    if not found:
        return []
    metric, ebmc = metric_of(results), names["ebmc"]

    def outcome(part: str, apposition: str = "") -> str:
        difference = found[part]
        rival = names[difference.rival]
        return {
            "better": f"{ebmc} is better than {rival}{apposition}",
            "worse": f"{ebmc} is worse than {rival}{apposition}",
            "level": f"{ebmc} and {rival}{apposition}{',' * bool(apposition)} are level",
        }[difference.outcome] + f" ({figures(difference, metric)})"

    best = ", the best of the others on validation"
    return [
        f"With all modalities present, {outcome('full', best)}.",
        f"With modalities missing, {outcome('missing')}; with one corrupted, {outcome('corrupted')}.",
    ]


def figures(difference: Difference, metric: Metric) -> str:
    """`MAE 0.612 against 0.655, gain +0.043 [+0.020, +0.066]`."""
    unit = " %" if metric.percent else ""
    ours, theirs = (metric.text(value) + unit for value in (difference.ours, difference.theirs))
    return f"{metric.name} {ours} against {theirs}, gain {gain(difference.interval, metric)}"


def gain(found: Interval, metric: Metric) -> str:
    """Mean and 95 % interval."""
    mean, low, high = (signed(value, metric) for value in found)
    return f"{mean} [{low}, {high}]"


def signed(value: float, metric: Metric) -> str:
    """With its sign, none for what rounds to 0."""
    text = f"{value:+.{metric.digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def caution(results: Mapping[str, Any]) -> str:
    """What the intervals are of."""
    if len(results["seeds"]) > 1:
        return "Gains are above zero where EBMC is better; in brackets their 95 % interval over seeds and utterances."
    return (
        "Gains are above zero where EBMC is better; in brackets their 95 % interval over test utterances. One seed: "
        "another may give another verdict, --seeds 1111 1112 1113 trains three."
    )


def control_to_get(results: Mapping[str, Any]) -> str:
    """What --compare trains beside the plain models where utterances are read in context."""
    read = results["context"]["encoder"] != "none"
    return ", and each again on utterances in random order, the control of its context" * read


def unfinished(results: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Which models may have been improving still when their epochs were used up; nothing if none was."""
    models = results.get("models") or {results["model"]: results}
    found = [names[name] for name, entry in models.items() if entry["selection"].get("last_is_best")]
    if not found:
        return ""
    return (
        f"Maybe still improving when training ended, the last epoch being the selected one: {'; '.join(found)}. More "
        "epochs may help: --stage1-epochs, --stage2-epochs."
    )
