"""What a run found: `report.html` for people, one table for the terminal."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plots


class Metric(NamedTuple):
    name: str
    percent: bool = True
    higher: bool = True

    @property
    def label(self) -> str:
        return f"{self.name} (%)" if self.percent else self.name

    def text(self, value: float | None) -> str:
        if not finite(value):
            return NONE
        return f"{value:.1f}" if self.percent else f"{value:.3f}"


METRICS = {
    "acc2_has0": Metric("Acc-2 has0"),
    "acc2_non0": Metric("Acc-2 non0"),
    "f1_has0": Metric("F1 has0"),
    "f1_non0": Metric("F1 non0"),
    "acc7": Metric("Acc-7"),
    "acc5": Metric("Acc-5"),
    "acc": Metric("Accuracy"),
    "ua": Metric("Unweighted accuracy"),
    "f1": Metric("Weighted F1"),
    "mae": Metric("MAE", percent=False, higher=False),
    "corr": Metric("Corr", percent=False),
    "r2": Metric("R²", percent=False),
}
SHOWN = {"sentiment": ("acc2_non0", "mae"), "classes": ("f1", "ua"), "regression": ("mae", "corr")}
NONE = "n/a"
STAGES = {"enhance": "Stage 1: enhance", "balance": "Stage 2: balance", "train": "Training"}
HAS0 = "has0 counts zero as positive, over all utterances; non0 leaves utterances labelled zero out."


# --- What the results say ---------------------------------------------------------------------------------


def finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def metric_of(key: str) -> Metric:
    return METRICS.get(key, Metric(key.replace("_", " "), percent=False, higher=key not in ("loss", "nll")))


def full_condition(test: Mapping[str, Any]) -> str:
    return max(test, key=lambda condition: condition.count("+"))


def mean_of(scores: Mapping[str, Any], key: str) -> float:
    value = scores.get(key, {}).get("mean")
    return math.nan if value is None else float(value)


def cell(scores: Mapping[str, Any], key: str) -> str:
    """Mean ± standard deviation; the deviation only where there is more than one seed."""
    metric, entry = metric_of(key), scores.get(key, {})
    text = metric.text(entry.get("mean"))
    many = len(entry.get("values", ())) > 1 and text != NONE
    return f"{text} ±{metric.text(entry.get('std'))}" if many else text


def best(column: Iterable[float], metric: Metric) -> float:
    values = [value for value in column if math.isfinite(value)]
    return (max if metric.higher else min)(values) if values else math.nan


def condition_label(condition: str, modalities: Sequence[str]) -> str:
    """Which modalities are there, in words: 'only audio', 'without text'."""
    present = condition.split("+")
    absent = [name for name in modalities if name not in present]
    if not absent:
        return "all modalities"
    if len(present) == 1:
        return f"only {present[0]}"
    return f"without {absent[0]}" if len(absent) == 1 else " + ".join(present)


def sorted_conditions(test: Mapping[str, Any]) -> list[str]:
    """The full condition first, then by how little is missing."""
    return sorted(test, key=lambda condition: -condition.count("+"))


def protocol(results: Mapping[str, Any]) -> str:
    seeds, selection = results.get("seeds", []), results.get("selection", {})
    spread = "mean ± standard deviation over" if len(seeds) > 1 else "one seed,"
    name = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else ", ".join(map(str, seeds))
    metric = metric_of(selection.get("metric", "")).name
    return (
        f"Test split of {results.get('dataset', 'the data')}; {spread} {name}; "
        f"epochs chosen on the {split_name(selection)} split by {metric}."
    )


def split_name(selection: Mapping[str, Any]) -> str:
    return "validation" if selection.get("split", "valid") == "valid" else selection["split"]


def display(model: str) -> str:
    return "EBMC" if model == "ebmc" else model


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def words(value: Any) -> str:
    """A nested setting as one line of text."""
    if isinstance(value, Mapping):
        nested = any(isinstance(item, Mapping) for item in value.values())
        parts = (f"{key} ({words(item)})" if nested else f"{key} {words(item)}" for key, item in value.items())
        return ("; " if nested else ", ").join(parts)
    return ", ".join(map(words, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True)
class Run:
    """The results and records, and the model that the figures are about."""

    results: Mapping[str, Any]
    every: Sequence[Mapping[str, Any]]

    @property
    def models(self) -> dict[str, Any]:
        return dict(self.results.get("models") or {self.model: self.results})

    @property
    def model(self) -> str:
        models = self.results.get("models")
        return (
            self.results.get("model", "ebmc") if not models else ("ebmc" if "ebmc" in models else next(iter(models)))
        )

    @property
    def main(self) -> Mapping[str, Any]:
        return self.models[self.model]

    @property
    def records(self) -> list[Mapping[str, Any]]:
        return [record for record in self.every if record.get("model", self.model) == self.model]

    @property
    def test(self) -> Mapping[str, Any]:
        return self.main.get("test", {})

    @property
    def modalities(self) -> list[str]:
        return list(self.main.get("contribution", {}).get("after") or full_condition(self.test).split("+"))

    @property
    def styles(self) -> dict[str, plots.Style]:
        return plots.palette(self.modalities)

    @property
    def dataset(self) -> str:
        return self.results.get("dataset", "the data")

    @property
    def kind(self) -> str:
        return self.results.get("kind", "regression")

    @property
    def seed_note(self) -> str:
        seeds = [record.get("seed") for record in self.records]
        return f" Bold: seed {seeds[0]}; thin: the other seeds." if len(seeds) > 1 else ""


# --- HTML -------------------------------------------------------------------------------------------------

CSS = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f5f7fa;color:#1f2933;font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.3rem;margin:0 0 .3rem}
h3{font-size:1rem;margin:0 0 .4rem;line-height:1.3}h4{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.3rem 0 .8rem;max-width:50rem}section{background:#fff;border:1px solid #e4e7eb;border-radius:10px;
padding:1.2rem;margin:1.2rem 0}.quiet,figcaption{color:#52606d;font-size:.88rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.92rem}a{color:#0b5cad}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,28rem),1fr));gap:1.4rem}
.grid:not(.small) figure{display:grid;grid-row:span 3;grid-template-rows:subgrid;row-gap:0;align-items:start}
.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,10rem),1fr));gap:1rem .8rem}
.small h3{font-weight:500;font-size:.85rem;margin:0;overflow-wrap:anywhere}
figure{margin:0;min-width:0;max-width:36rem}img{width:100%;height:auto;display:block}figcaption{margin-top:.3rem}
.scroll{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.38rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid #e4e7eb}
thead th{white-space:normal;vertical-align:bottom;font-weight:600;color:#52606d}tbody th{font-weight:500}
th:first-child{text-align:left;position:sticky;left:0;background:#fff}tr.full>*{background:#eef4fb}
.flag{border-left:4px solid #b44d12;background:#fdf3ec;padding:.5rem .8rem}
.good{border-left:4px solid #00664b;background:#edf8f4;padding:.5rem .8rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(7rem,1fr));gap:.6rem;margin:.8rem 0}.cards div{
border:1px solid #e4e7eb;border-radius:8px;padding:.5rem .7rem}
.cards dt{font-size:.82rem;color:#52606d}.cards dd{margin:0;font-size:1.3rem}
.chip{display:inline-flex;align-items:center;gap:.35rem;margin-right:.9rem}
.chip i{width:.8rem;height:.8rem;border-radius:3px;background:var(--c)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f7fa;padding:.7rem;border-radius:6px;font-size:.85rem}
@media(max-width:30rem){section{padding:.9rem .7rem}main{padding:1rem .5rem 3rem}
.small{grid-template-columns:repeat(2,minmax(0,1fr))}th,td{padding:.35rem .5rem}
th:first-child{min-width:8.4rem;max-width:9.5rem;white-space:normal}}
@media print{section{break-inside:avoid;border:0}}
"""


def e(value: Any) -> str:
    return escape(str(value))


def p(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{e(text)}</p>' if kind else f"<p>{e(text)}</p>"


def figure(svg: str, title: str, caption: str = "", alt: str = "") -> str:
    """An `img` rather than inline SVG: one alt text, and no clash of ids between figures."""
    data = base64.b64encode(svg.encode()).decode()
    note = f"<figcaption>{e(caption)}</figcaption>" if caption else ""
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{e(alt or f"{title}. {caption}")}">'
    return f"<figure><h3>{e(title)}</h3>{image}{note}</figure>"


def grid(figures: Iterable[str], kind: str = "") -> str:
    return f'<div class="grid {kind}">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], bold: set[tuple[int, int]] = frozenset()) -> str:
    """The first column holds the row's name; `bold` lists (row, column)."""

    def body(i: int, row: Sequence[str]) -> str:
        cells = (f"<strong>{e(c)}</strong>" if (i, j) in bold else e(c) for j, c in enumerate(row[1:], 1))
        return f'<tr><th scope="row">{e(row[0])}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'

    top = "".join(f'<th scope="col">{e(name)}</th>' for name in head)
    lines = "".join(body(i, row) for i, row in enumerate(rows))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{e(head[0])} table">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def arrowed(key: str) -> str:
    metric = metric_of(key)
    return f"{metric.label}\u00a0{'↑' if metric.higher else '↓'}"


# --- Sections: HTML, or None where the run has nothing to show --------------------------------------------


def verdict(run: Run) -> str:
    """In words, whether the main model beats the best single modality and concatenation."""
    scores = {name: model["test"][full_condition(model["test"])] for name, model in run.models.items()}
    own, rivals = scores.pop(run.model), scores
    groups = {
        "the best single modality": [name for name in rivals if name not in ("concat", "ebmc")],
        "plain concatenation": [name for name in rivals if name == "concat"],
    }
    sentences = []
    for title, names in groups.items():
        worse, compared = [], 0
        for key in own if names else ():
            metric, mine = metric_of(key), mean_of(own, key)
            other = best((mean_of(rivals[name], key) for name in names), metric)
            if not (math.isfinite(mine) and math.isfinite(other)):
                continue
            compared += 1
            if (other > mine) if metric.higher else (other < mine):
                holder = next(name for name in names if mean_of(rivals[name], key) == other)
                by = f", {holder}" if len(names) > 1 else ""
                worse.append(f"{metric.name} ({metric.text(mine)} against {metric.text(other)}{by})")
        if worse:
            text = f"{display(run.model)} is worse than {title} on {len(worse)} of {compared} metrics: "
            sentences.append(p(text + "; ".join(worse) + ".", "flag"))
        elif compared:
            text = f"{display(run.model)} is at least as good as {title} on all {compared} metrics."
            sentences.append(p(text, "good"))
    return "".join(sentences)


def headline(run: Run) -> str | None:
    if not run.test:
        return None
    notes = protocol(run.results) + (
        " Small differences may be chance." if len(run.results.get("seeds", ())) == 1 else ""
    )
    own = run.test[full_condition(run.test)]
    if "models" not in run.results:
        cards = "".join(f"<div><dt>{e(arrowed(key))}</dt><dd>{e(cell(own, key))}</dd></div>" for key in own)
        alone = "Single modalities were not trained in this run; --compare adds them for comparison."
        rest = p(alone, "quiet") if run.model == "ebmc" else ""
        return f'<dl class="cards">{cards}</dl>' + p(notes, "quiet") + rest + glossary(run)
    scores = {name: model["test"][full_condition(model["test"])] for name, model in run.models.items()}
    bold = set()
    for j, key in enumerate(own, 1):
        top = best((mean_of(score, key) for score in scores.values()), metric_of(key))
        bold |= {(i, j) for i, score in enumerate(scores.values()) if mean_of(score, key) == top}
    names = [f"{name} alone" if name in run.modalities else display(name) for name in scores]
    rows = [[name, *(cell(score, key) for key in own)] for name, score in zip(names, scores.values(), strict=True)]
    body = table(["Model", *map(arrowed, own)], rows, bold)
    return verdict(run) + body + p(f"{notes} Bold: best of the column.", "quiet") + glossary(run)


def glossary(run: Run) -> str:
    return p(HAS0, "quiet") if run.kind == "sentiment" else ""


def stage_curves(run: Run, part: str, scale: float = 1.0) -> dict[str, Any]:
    """{stage: {name: [curve of each seed]}} of one part of the history: "train", "energy", ..."""
    stages: dict[str, Any] = {}
    for i, record in enumerate(run.records):
        for epoch in record.get("history", ()):
            for name, value in (epoch.get(part) or {}).items():
                lines = stages.setdefault(STAGES.get(epoch["stage"], epoch["stage"]), {})
                curves = lines.setdefault(name, [[] for _ in run.records])
                if finite(value):
                    curves[i].append((epoch["epoch"], scale * value))
    return stages


def selected_epochs(run: Run) -> dict[str, list[int | None]]:
    chosen: dict[str, list[int | None]] = {}
    for i, record in enumerate(run.records):
        for epoch in record.get("history", ()):
            seeds = chosen.setdefault(STAGES.get(epoch["stage"], epoch["stage"]), [None] * len(run.records))
            if epoch.get("selected"):
                seeds[i] = epoch["epoch"]
    return chosen


def losses(run: Run) -> str | None:
    terms, chosen = stage_curves(run, "train"), selected_epochs(run)
    if not terms:
        return None
    parts = [p(f"The dot and the dotted line mark the epoch selected on validation.{run.seed_note}", "quiet")]
    scores = stage_curves(run, "valid")
    present = list(next(iter(scores.values()), {}))
    key = run.results.get("selection", {}).get("metric")
    key = key if key in present else next(iter(present), None)
    if key:
        metric = metric_of(key)
        lines = {stage: {key: names[key]} for stage, names in scores.items() if key in names}
        svg = plots.over_time(lines, {}, ylabel=metric.label, selected=chosen)
        way = "higher" if metric.higher else "lower"
        title = f"{metric.name} on validation, the measure that selects the epoch"
        parts.append(grid([figure(svg, title, f"One point per epoch; {way} is better.")]))
    for stage, lines in terms.items():
        panels = [
            figure(
                plots.over_time({stage: {name: curves}}, {}, ylabel="", selected=chosen, small=True),
                name.replace("_", " "),
                alt=f"{stage}: training loss term {name} by epoch",
            )
            for name, curves in lines.items()
        ]
        parts.append(f"<h4>{e(stage)}: training loss, term by term</h4>" + grid(panels, "small"))
    return "".join(parts) + p("Each term is on its own scale: compare shapes, not heights.", "quiet")


def balance(run: Run) -> str | None:
    figures, chosen = [], selected_epochs(run)
    energy = stage_curves(run, "energy")
    if energy:
        svg = plots.over_time(energy, run.styles, ylabel="mean energy", selected=chosen)
        title = "Energy of each modality: feature norm, loss and uncertainty"
        figures.append(figure(svg, title, "Lines that come together are modalities that come into balance."))
    gradient = stage_curves(run, "gradient", scale=100)
    if gradient:
        equal = 100 / len(run.modalities)
        svg = plots.over_time(gradient, run.styles, ylabel="share of gradient (%)", selected=chosen, equal=equal)
        title = "Which modality the training moves: share of the encoders' gradient"
        figures.append(figure(svg, title, "The dashed line is an equal share for every modality."))
    return grid(figures) + p(f"Dotted line: selected epoch.{run.seed_note}", "quiet") if figures else None


def contribution(run: Run) -> str | None:
    sources = [r["contribution"] for r in run.records if r.get("contribution")] or [
        run.main.get("contribution") or {}
    ]
    shares = {
        name: tuple(
            [s[when][name] for s in sources if finite(s.get(when, {}).get(name))] for when in ("before", "after")
        )
        for name in run.modalities
    }
    shares = {name: moments for name, moments in shares.items() if moments[1]}
    if not shares:
        return None
    moves = [
        f"{name} from {100 * np.mean(was):.0f}% to {100 * np.mean(now):.0f}%"
        for name, (was, now) in shares.items()
        if was
    ]
    lead = p(f"Share of each modality before and after balancing: {'; '.join(moves)}.") if moves else ""
    caption = (
        "Shapley share on validation: how much of the score each modality brings, "
        "averaged over all orders of adding it; the dashed line is an equal share"
    ) + ("; dots are single seeds." if len(sources) > 1 else ".")
    title = "How much each modality contributes to the prediction"
    return lead + grid([figure(plots.before_after(shares, run.styles), title, caption)])


def trust(run: Run) -> str | None:
    record = next((r for r in run.records if r.get("trust")), None)
    if record is None or not len(next(iter(record["trust"].values()))):
        return None
    weights = {m: np.asarray(v, float) for m, v in record["trust"].items()}
    present = {m: np.asarray((record.get("present") or {}).get(m, np.ones(len(v))), bool) for m, v in weights.items()}
    given = {m: np.where(present[m], np.nan_to_num(v), 0.0) for m, v in weights.items()}
    leader = np.stack(list(given.values())).argmax(0)
    lead = "; ".join(
        f"{m} {100 * v.mean():.0f}% (most trusted in {100 * np.mean(leader == i):.0f}% of utterances)"
        for i, (m, v) in enumerate(given.items())
    )
    figures = [
        figure(
            plots.trust_bands(given, run.styles),
            "How trust is divided in each test utterance",
            "Each thin column is one utterance; columns are grouped by the modality trusted most.",
        )
    ]
    error = np.asarray(record["error"] if record.get("error") is not None else [], float)
    if len(error) == len(leader) >= 5 and np.isfinite(error).all():
        unit = "1 - probability of the true class" if run.kind == "classes" else "absolute error"
        shown = {m: np.where(present[m], v, np.nan) for m, v in given.items()}
        title = "Who is trusted when the prediction is good or bad"
        caption = "Test utterances in five equal groups, from the best predicted (left) to the worst (right)."
        svg = plots.trust_by_error(shown, error, run.styles, xlabel=f"{unit} (median of each fifth)")
        figures.append(figure(svg, title, caption))
    notes = f"Test split, seed {record.get('seed')}; an absent modality gets no trust."
    if record.get("calibration"):
        factors = "; ".join(f"{m} {v:.2f}" for m, v in record["calibration"].items())
        notes += f" Calibration of the teachers: {factors}."
    return p(f"Mean trust: {lead}.") + grid(figures) + p(notes, "quiet")


def missing(run: Run) -> str | None:
    if len(run.test) < 2:
        return None
    order = sorted_conditions(run.test)
    labels = [condition_label(condition, run.modalities) for condition in order]
    keys = list(run.test[order[0]])
    rival = run.models["concat"].get("test", {}) if run.model == "ebmc" and "concat" in run.models else {}
    names = (display(run.model), "concatenation" if set(order) & set(rival) else None)
    figures = []
    for key in [key for key in SHOWN.get(run.kind, ()) if key in keys] or keys[:2]:
        rows = []
        for condition, label in zip(order, labels, strict=True):
            one = label.split(" ", 1)[1] if label.startswith(("only ", "without ")) else ""
            colour = run.styles[one].colour if one in run.styles else plots.INK
            values = [v for v in run.test[condition].get(key, {}).get("values", ()) if finite(v)]
            other = mean_of(rival[condition], key) if condition in rival else None
            if values:
                rows.append(plots.Row(label, colour, not label.startswith("without "), values, other))
        if rows:
            metric = metric_of(key)
            way = "right" if metric.higher else "left"
            caption = (
                f"Further {way} is better; a filled colour: only that modality; a hollow one: all but that; "
                "dashed line: nothing missing."
            )
            svg = plots.conditions(rows, xlabel=metric.label, names=names)
            figures.append(figure(svg, f"{metric.name} when modalities are missing at test time", caption))
    lines = [[label, *(cell(run.test[c], key) for key in keys)] for label, c in zip(labels, order, strict=True)]
    means = {key: np.mean([mean_of(run.test[c], key) for c in order[1:]]) for key in keys}
    lines.append(["mean of incomplete", *(metric_of(key).text(float(means[key])) for key in keys)])
    lead = f"One trained {display(run.model)} model; what is missing is absent from the whole test split."
    return (
        p(lead)
        + better_without(run, order, labels, keys)
        + grid(figures)
        + table(["Present", *map(arrowed, keys)], lines)
    )


def better_without(run: Run, order: Sequence[str], labels: Sequence[str], keys: Sequence[str]) -> str:
    """A warning where leaving modalities out scores better than having them all."""
    found = []
    for key in keys:
        metric, whole = metric_of(key), mean_of(run.test[order[0]], key)
        top = best((mean_of(run.test[condition], key) for condition in order), metric)
        if math.isfinite(whole) and top != whole:
            label = next(n for n, c in zip(labels, order, strict=True) if mean_of(run.test[c], key) == top)
            found.append(f"{metric.name}, {label} ({metric.text(top)} against {metric.text(whole)})")
    text = f"Better with modalities missing than with all of them: {'; '.join(found)}."
    return p(text, "flag") if found else ""


def fused(run: Run) -> str | None:
    record = next((r for r in run.records if r.get("fused") and r.get("target") is not None), None)
    if record is None or len(record["target"]) < 10:
        return None
    target = np.asarray(record["target"]).reshape(len(record["target"]), -1)[:, 0]
    rows = np.sort(np.random.default_rng(0).permutation(len(target))[:700])
    label = {"classes": "class", "sentiment": "sentiment (-3 negative, 3 positive)"}.get(run.kind, "target value")
    figures = []
    for when, features in record["fused"].items():
        points = None if features is None else plots.project(np.asarray(features)[rows])
        if points is not None:
            svg = plots.embedding(points, target[rows], classes=run.kind == "classes", label=label)
            what = "class" if run.kind == "classes" else label.split(" (")[0]
            title = f"Fused features {when} balancing, coloured by {what}"
            figures.append(figure(svg, title, "Each dot is one utterance; near dots are alike to the model."))
    note = f"t-SNE of {len(rows)} utterances, seed {record.get('seed')}; only neighbourhoods carry meaning."
    return grid(figures) + p(note, "quiet") if figures else None


def cost(run: Run) -> str | None:
    rows, sizes = [], []
    for model in run.models:
        records = [r for r in run.every if r.get("model", run.model) == model]
        costs = [r["cost"] for r in records if r.get("cost")]
        for stage in costs[0] if costs else ():
            parts = [c[stage] for c in costs if stage in c]
            seconds, epochs, step = (np.mean([part[k] for part in parts]) for k in ("seconds", "epochs", "step_ms"))
            name = f"{display(model)}, {stage}" if len(run.models) > 1 else STAGES.get(stage, stage)
            each = duration(seconds / epochs) if epochs else NONE
            rows.append([name, duration(seconds), f"{epochs:.4g}", each, f"{step:.2f} ms"])
        parameters = next((r["parameters"] for r in records if r.get("parameters")), {})
        if parameters:
            sizes.append(
                [display(model), *(f"{parameters.get(k, 0):,}" for k in ("student", "teachers", "encoders"))]
            )
    if not rows and not sizes:
        return None
    head = ["Stage", "Time", "Epochs", "Per epoch", "Per step"]
    note = p("Mean over the seeds.", "quiet") if len(run.records) > 1 else ""
    times = table(head, rows) + note if rows else ""
    return times + (table(["Parameters", "Model", "Teachers", "Encoders"], sizes) if sizes else "")


def provenance(run: Run) -> str:
    selection = run.results.get("selection", {})
    facts = {
        "Data": f"{run.dataset} ({run.kind}, {run.results.get('task')})",
        "Models": ", ".join(map(display, run.models)),
        "Seeds": words(run.results.get("seeds", [])),
        "Selection": f"{split_name(selection)} split, {metric_of(selection.get('metric', '')).name}",
        "Selected epochs": words(run.main.get("selection", selection).get("epochs", {})),
        "Versions": words(run.results.get("versions", {})),
        "Note": words(run.results.get("note", "")),
    }
    lines = "".join(f"<p><strong>{e(name)}</strong>: {e(text)}</p>" for name, text in facts.items() if text)
    command = run.results.get("command") or run.main.get("command")
    return (f"<pre>{e(command)}</pre>" if command else "") + lines


SECTIONS: dict[str, tuple[str, Callable[[Run], str | None]]] = {
    "results": ("Test results", headline),
    "contribution": ("Contribution of each modality", contribution),
    "balance": ("Energy and gradient over time", balance),
    "missing": ("Missing modalities", missing),
    "trust": ("Trust by sample", trust),
    "features": ("Fused features", fused),
    "losses": ("Losses by stage", losses),
    "cost": ("Time and cost", cost),
    "run": ("How it was run", provenance),
}


def render(run: Run) -> str:
    bodies = {name: draw(run) for name, (_, draw) in SECTIONS.items()}
    bodies = {name: body for name, body in bodies.items() if body}
    title = f"{display(run.model)} on {run.results.get('dataset', 'data')}"
    links = "".join(f'<a href="#{name}">{e(SECTIONS[name][0])}</a>' for name in bodies)
    chips = "".join(
        f'<span class="chip"><i style="--c:{style.colour}"></i>{e(name)}</span>' for name, style in run.styles.items()
    )
    sections = "".join(
        f'<section id="{name}"><h2>{e(SECTIONS[name][0])}</h2>{body}</section>' for name, body in bodies.items()
    )
    about = f"Figures are about {display(run.model)}. Each modality keeps its colour:"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{e(title)}</title><style>{CSS}</style></head><body><main><header><h1>{e(title)}</h1>"
        f"<p>{e(about)} {chips}</p><nav>{links}</nav></header>{sections}</main></body></html>\n"
    )


def write_report(path: Path, results: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Write the page to `path` in one step: a reader sees the old report or the whole new one."""
    page = render(Run(results, records))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- Terminal ---------------------------------------------------------------------------------------------


def print_table(results: dict[str, Any], console: Any) -> None:
    """One table of the test metrics; with several models, a second one of EBMC's missing conditions."""
    run = Run(results, [])
    if "models" in results:
        rows = {display(name): model["test"][full_condition(model["test"])] for name, model in run.models.items()}
        _print(console, f"Models on {results['dataset']}", "model", rows, protocol(results), mark=True)
    if "models" not in results or len(run.test) > 1:
        rows = {condition_label(c, run.modalities): run.test[c] for c in sorted_conditions(run.test)}
        title = f"{display(run.model)} on {results['dataset']}: which modalities are present"
        _print(console, title, "present", rows, protocol(results), mark=False)


def _print(console: Any, title: str, corner: str, rows: Mapping[str, Any], caption: str, *, mark: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    keys = list(next(iter(rows.values())))
    columns = [[arrowed(key).replace(" (%)", ""), *(cell(row, key) for row in rows.values())] for key in keys]
    width = max(map(len, [corner, *rows])) + sum(max(map(len, column)) for column in columns) + 2 * (len(keys) + 2)
    if width > console.width:  # two lines to a cell rather than cut figures
        columns = [["\n".join(text.split()) for text in column] for column in columns]
    tops = [best((mean_of(row, key) for row in rows.values()), metric_of(key)) for key in keys]
    grid = Table(
        title=Text(title), caption=Text(caption), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
    )
    grid.add_column(corner, no_wrap=True)
    for column in columns:
        grid.add_column(Text(column[0]), justify="right")
    for i, (name, row) in enumerate(rows.items(), 1):
        bold = [mark and mean_of(row, key) == top for key, top in zip(keys, tops, strict=True)]
        cells = (Text(column[i], "bold" if b else "") for column, b in zip(columns, bold, strict=True))
        grid.add_row(Text(name), *cells)
    console.print(grid)
