"""The sections of the report: a run in, HTML out; nothing where the run has nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ebmc_msa.evaluation.metrics import METRICS, Metric, shown_in_figures
from ebmc_msa.report import plots
from ebmc_msa.report.html import cards, code, fact, figure, grid, p, table
from ebmc_msa.report.run_view import Run, Scores, in_tables, protocol
from modbalance.diagnostics import imbalance

STAGES = {"enhance": "Enhance", "balance": "Balance", "joint": "Training", "train": "Training"}
HAS0 = "has0 counts zero as positive, over all utterances; non0 leaves utterances labelled zero out."


def results(run: Run) -> str:
    scores = run.whole()
    own = scores[run.display(run.model)]
    tables = in_tables(run.results["kind"], own)
    metrics = tables.pop("")
    if len(run.models) == 1:
        body = cards({metric.arrowed: metric.cell(own[key]) for key, metric in metrics.items()})
        note = " Only this model was trained; --compare trains others beside it."
    else:
        body = verdict(run) + by_model(scores, metrics)
        few = len(run.results["seeds"]) == 1
        note = " Bold: best of the column. "
        note += "With one seed, small differences may be chance." if few else "Differences within ± may be chance."
    for title, columns in tables.items():
        body += p(f"{title[0].upper()}{title[1:]}:") + by_model(scores, columns)
    flags = "".join(p(sentence, "flag") for sentence in run.constant())
    has0 = p(HAS0, "quiet") if "acc2_has0" in metrics else ""
    return body + flags + p(protocol(run.results) + note, "quiet") + has0


def by_model(scores: Mapping[str, Scores], metrics: Mapping[str, Metric]) -> str:
    """A table of models, the best of each column in bold."""
    bold = set()
    for j, (key, metric) in enumerate(metrics.items(), 1):
        top = metric.best(score[key]["mean"] for score in scores.values())
        bold |= {(i, j) for i, score in enumerate(scores.values()) if score[key]["mean"] == top}
    rows = [[name, *(metric.cell(s[key]) for key, metric in metrics.items())] for name, s in scores.items()]
    return table(["Model", *(metric.arrowed for metric in metrics.values())], rows, bold)


def verdict(run: Run) -> str:
    """In words, whether the main model beats the best single modality and concatenation."""
    scores = run.whole()
    name = run.display(run.model)
    own = scores.pop(name)
    scores = {n: s for n, s in scores.items() if not n.endswith(", shuffled")}
    groups = {
        "the best single modality": {n: s for n, s in scores.items() if n != "concatenation"},
        "plain concatenation": {n: s for n, s in scores.items() if n == "concatenation"},
    }
    sentences = []
    for title, rivals in groups.items():
        worse, compared = [], 0
        for key, entry in own.items():
            metric, mine = METRICS[key], entry["mean"]
            top = metric.best(score[key]["mean"] for score in rivals.values())
            compared += math.isfinite(mine) and math.isfinite(top)
            if metric.better(top, mine):
                holder = next(n for n, score in rivals.items() if score[key]["mean"] == top)
                by = f", {holder}" if len(rivals) > 1 else ""
                worse.append(f"{metric.name} ({metric.text(mine)} against {metric.text(top)}{by})")
        if worse:
            text = f"{name} is worse than {title} on {len(worse)} of {compared} metrics: {'; '.join(worse)}."
            sentences.append(p(text, "flag"))
        elif compared:
            sentences.append(p(f"{name} is at least as good as {title} on all {compared} metrics.", "good"))
    return "".join(sentences)


def contribution(run: Run) -> str:
    if len(run.modalities) < 2:
        return ""
    moments = ("before", "after") if run.model == "ebmc" else ("after",)  # nothing else is balanced
    shares = {
        when: {m: [100 * r.contribution[when][m] for r in run.records] for m in run.modalities} for when in moments
    }
    caption = (
        "Shapley share on validation: how much of the gain over a constant guess each modality brings, averaged over "
        "all orders of adding it; one that makes it worse counts as nothing. The dashed line is an equal share"
    ) + ("; dots are single seeds." if len(run.records) > 1 else ".")
    uneven = (np.mean([imbalance(r.contribution[when]) for r in run.records]) for when in moments)
    caption += " Imbalance, 0 for equal shares and 1 for a single contributor: "
    caption += " → ".join(f"{value:.2f}" for value in uneven) + "."
    title = "How much each modality contributes to the prediction"
    title += " before and after balancing" if len(moments) > 1 else ""
    return grid([figure(plots.contributions(shares, plots.palette(run.modalities)), title, caption)])


def balance(run: Run) -> str:
    if len(run.modalities) < 2:
        return ""
    chosen, styles, figures = selected(run), plots.palette(run.modalities), []
    if energy := curves(run, "energy"):
        svg = plots.over_time(energy, chosen, styles, ylabel="mean energy")
        caption = "Feature norm, loss and uncertainty, mean over training; the distance of the lines is the gap."
        figures.append(figure(svg, "Energy of each modality", caption))
    gradient = curves(run, "gradient", scale=100)
    svg = plots.over_time(gradient, chosen, styles, ylabel="share of gradient (%)", equal=100 / len(styles))
    caption = "Share of the norm of the encoders' gradients; the dashed line is an equal share."
    figures.append(figure(svg, "Which modality the training moves", caption))
    if weight := curves(run, "weight"):
        svg = plots.over_time(weight, chosen, styles, ylabel="weight of EMC")
        caption = "From energies on validation: a quarter after each epoch with a modality's energy above its lowest."
        figures.append(figure(svg, "How much of EMC each modality gets", caption))
    return grid(figures) + p(how_to_read(run), "quiet")


def losses(run: Run) -> str:
    chosen, terms = selected(run), curves(run, "train")
    key = run.results["selection"]["metric"]
    scores = {stage: {key: lines[key]} for stage, lines in curves(run, "valid").items()}
    metric = METRICS[key]
    selects = figure(
        plots.over_time(scores, chosen, {}, ylabel=metric.label),
        f"{metric.name} on validation, the measure that selects the epoch",
        f"One point per epoch; {'higher' if metric.higher else 'lower'} is better.",
    )
    names = dict.fromkeys(name for lines in terms.values() for name in lines)
    panels = [
        figure(
            plots.over_time(
                {stage: {name: lines[name]} for stage, lines in terms.items() if name in lines},
                chosen,
                {},
                small=True,
            ),
            f"Training loss: {name}",
        )
        for name in names
    ]
    note = "Each term is on its own scale: compare shapes, not heights. "
    return grid([selects]) + grid(panels, "small") + p(note + how_to_read(run), "quiet")


def curves(run: Run, part: str, scale: float = 1.0) -> dict[str, dict[str, list[plots.Curve]]]:
    """{stage: {name: [curve of each seed]}} of one part of the history: "train", "energy", ..."""
    found: dict[str, Any] = {}
    for i, record in enumerate(run.records):
        for epoch in record.history:
            for name, value in epoch.get(part, {}).items():
                lines = found.setdefault(STAGES[epoch["stage"]], {})
                lines.setdefault(name, [[] for _ in run.records])[i].append((epoch["epoch"], scale * value))
    return found


def selected(run: Run) -> dict[str, list[int]]:
    """{stage: [selected epoch of each seed]}"""
    return {STAGES[stage]: [r.epochs[stage] for r in run.records] for stage in run.records[0].epochs}


def how_to_read(run: Run) -> str:
    seeds = [record.seed for record in run.records]
    return "Dot and dotted line: selected epoch." + (
        f" Bold: seed {seeds[0]}; thin: the others." if len(seeds) > 1 else ""
    )


def missing(run: Run) -> str:
    if len(run.test) < 2:
        return ""
    names, styles = run.conditions(), plots.palette(run.modalities)
    metrics = {key: METRICS[key] for key in run.test[next(iter(names))]}
    rival = run.models["concat"]["test"] if run.model == "ebmc" and "concat" in run.models else {}
    legend = (run.display(run.model), "concatenation") if rival else None
    figures = []
    for key in shown_in_figures(run.results["kind"], metrics):
        rows = []
        for condition, name in names.items():
            kind, _, modality = name.partition(" ")
            colour = styles[modality].colour if modality in styles else plots.INK
            other = rival[condition][key]["mean"] if rival else math.nan
            rows.append(plots.Row(name, colour, kind != "without", run.test[condition][key]["values"], other))
        way = "right" if METRICS[key].higher else "left"
        caption = (
            f"Further {way} is better. Filled colour: only that modality; hollow: all but that; "
            "dashed line: nothing missing."
        )
        svg = plots.conditions(rows, xlabel=METRICS[key].label, legend=legend)
        figures.append(figure(svg, f"{METRICS[key].name} with modalities missing", caption))
    lines = [[name, *(m.cell(run.test[c][key]) for key, m in metrics.items())] for c, name in names.items()]
    incomplete = [run.test[condition] for condition in list(names)[1:]]
    means = (m.text(float(np.mean([s[key]["mean"] for s in incomplete]))) for key, m in metrics.items())
    lines.append(["mean of incomplete", *means])
    return (
        p("Nothing is trained anew: what is missing is absent from the whole test split.")
        + better_without(run, names)
        + grid(figures)
        + table(["Present", *(metric.arrowed for metric in metrics.values())], lines)
    )


def better_without(run: Run, names: dict[str, str]) -> str:
    """A warning where leaving modalities out scores better than having them all."""
    whole, found = run.test[next(iter(names))], []
    for key, entry in whole.items():
        metric = METRICS[key]
        top = metric.best(run.test[condition][key]["mean"] for condition in names)
        if metric.better(top, entry["mean"]):
            name = next(n for condition, n in names.items() if run.test[condition][key]["mean"] == top)
            found.append(f"{metric.name}, {name} ({metric.text(top)} against {metric.text(entry['mean'])})")
    return p(f"Better with modalities missing than with all of them: {'; '.join(found)}.", "flag") if found else ""


def trust(run: Run) -> str:
    record = run.records[0]
    if not record.trust or len(run.modalities) < 2:
        return ""
    styles = plots.palette(run.modalities)
    weights = {m: np.asarray(record.trust[m]) for m in run.modalities}
    present = {m: np.asarray(record.present[m]) for m in run.modalities}
    leader = np.stack(list(weights.values())).argmax(0)
    rows = [
        [m, f"{100 * w.mean():.0f}%", f"{100 * np.mean(leader == i):.0f}%", f"{record.temperatures[m]:.2f}"]
        for i, (m, w) in enumerate(weights.items())
    ]
    bands = figure(
        plots.trust_bands(weights, styles),
        "How trust is divided in each test utterance",
        "Each thin column is one utterance; columns are grouped by the modality trusted most.",
    )
    units = {"classes": "1 - probability of the true class", "multilabel": "1 - probability of the true labels"}
    unit = units.get(run.results["kind"], "absolute error")
    by_error = figure(
        plots.trust_by_error(weights, present, np.asarray(record.error), styles, xlabel=f"{unit}, median of each"),
        "Who is trusted when the prediction is good or bad",
        "Test utterances in five equal groups, from the best predicted (left) to the worst (right).",
    )
    head = ["Modality", "Mean trust", "Most trusted in", "Calibration factor of its teacher"]
    note = f"Test split, seed {record.seed}; an absent modality gets no trust."
    return grid([bands, by_error]) + table(head, rows) + p(note, "quiet")


def features(run: Run) -> str:
    record = run.records[0]
    if len(record.target) < 10:  # too few for t-SNE to lay out
        return ""
    kind, target = run.results["kind"], np.asarray(record.target)
    rows = np.sort(np.random.default_rng(0).permutation(len(target))[:300])
    if kind == "multilabel":
        target = target.sum(1)
    label = {
        "classes": "class",
        "multilabel": "labels that hold",
        "sentiment": "sentiment, from negative to positive",
    }.get(kind, "target value")
    figures = []
    for when in ("before", "after"):
        if when in record.fused:
            points = project(np.asarray(record.fused[when])[rows])
            title = f"Fused features {when} balancing" if "before" in record.fused else "Fused features"
            svg = plots.embedding(points, target[rows], classes=kind in ("classes", "multilabel"), label=label)
            figures.append(figure(svg, title, "Each dot is one utterance; near dots are alike to the model."))
    note = f"t-SNE of {len(rows)} test utterances, seed {record.seed}; only neighbourhoods carry meaning."
    return grid(figures) + p(note, "quiet")


def project(features: np.ndarray) -> np.ndarray:
    """Two-dimensional t-SNE of the rows."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    tsne = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), angle=0.8, n_iter_without_progress=50, random_state=0)
    with threadpool_limits(1):  # so few points gain nothing from threads, and lose much on busy cores
        return tsne.fit_transform(features)


def cost(run: Run) -> str:
    times, sizes = [], []
    for model in run.models:
        records = [record for record in run.every if record.model == model]
        for stage in records[0].cost:
            parts = [record.cost[stage] for record in records]
            seconds, epochs, step = (np.mean([part[k] for part in parts]) for k in ("seconds", "epochs", "step_ms"))
            row = [f"{seconds:.1f} s", f"{epochs:.4g}", f"{seconds / max(epochs, 1):.2f} s", f"{step:.1f} ms"]
            times.append([f"{run.display(model)}, {STAGES[stage]}", *row])
        counts = records[0].parameters
        sizes.append([run.display(model), *(f"{counts[k]:,}" for k in ("student", "encoders", "teachers"))])
    note = "Times include validation after each epoch" + ("; mean over seeds." if len(run.records) > 1 else ".")
    return (
        table(["Stage", "Time", "Epochs", "Per epoch", "Per step"], times)
        + p(note, "quiet")
        + table(["Parameters", "Trained", "of these, encoders", "Frozen teachers"], sizes)
    )


def provenance(run: Run) -> str:
    found, main = run.results, run.models[run.model]
    epochs = main["selection"]["epochs"].items()
    facts = {
        "Data": f"{found['dataset']} ({found['kind']}, {found['task']}). {found['note']}",
        "Models": ", ".join(map(run.display, run.models)),
        "Seeds": ", ".join(map(str, found["seeds"])),
        "Selected epochs": "; ".join(f"seed {seed}: {in_line(stages)}" for seed, stages in epochs),
        "Settings": in_line(found["settings"]),
        "Versions": in_line(found["versions"]),
    }
    return code(found["command"]) + "".join(fact(name, text) for name, text in facts.items())


def in_line(values: dict[str, Any]) -> str:
    texts = {
        key: " ".join(value) if isinstance(value, list | tuple) else value
        for key, value in values.items()
        if value not in (None, [], ())
    }
    return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in texts.items())
