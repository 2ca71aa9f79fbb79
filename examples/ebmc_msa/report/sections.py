"""The sections of the report: a run in, HTML out; nothing where the run has nothing to show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ebmc_msa.evaluation.metrics import METRICS, shown_in_figures
from ebmc_msa.model.settings import Settings
from ebmc_msa.report import plots
from ebmc_msa.report.html import beside, code, details, figure, grid, p, table
from ebmc_msa.report.run_view import Run, Scores
from ebmc_msa.report.verdict import signed
from modbalance.diagnostics import imbalance

STAGES = {"enhance": "Enhance", "balance": "Balance", "joint": "Training", "train": "Training"}


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
    caption += " → ".join(f"{value:.2f}" for value in uneven) + "." + answering(run)
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


def answering(run: Run) -> str:
    """In which seeds the second stage is undone, and in which the epoch that answers is one of joint training."""
    caption, (first, *second) = "", run.records[0].epochs
    seeds = [str(record.seed) for record in run.records if record.undone]
    if seeds:
        caption += (
            f" {STAGES[second[0]]} ended worse on validation than {STAGES[first]} and was undone for seed "
            f"{', '.join(seeds)}."
        )
    last = [(record, first if record.undone or not second else second[0]) for record in run.records]
    seeds = [str(record.seed) for record, stage in last if record.strength.get(stage, 1.0) == 0]
    if seeds and run.model == "ebmc":
        caption += (
            f" The selected epoch is one of joint training, without rebuilt features, for seed {', '.join(seeds)}."
        )
    return caption


def missing(run: Run) -> str:
    if len(run.test) < 2:
        return ""
    names, styles = run.conditions(), plots.palette(run.modalities)
    metrics = {key: METRICS[key] for key in run.test[next(iter(names))]}
    rival = run.models["concat"]["test"] if run.model == "ebmc" and "concat" in run.models else {}
    legend = (run.display(run.model), "concatenation") if rival else None
    shown, figures = shown_in_figures(run.results["kind"], metrics), []
    for key in shown:
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
    every = table(["Present", *(metric.arrowed for metric in metrics.values())], lines)
    return (
        p("Nothing is trained anew: what is missing is absent from the whole test split.")
        + better_without(run, names, shown)
        + grid(figures)
        + changes(run, names, shown, rival)
        + (details("All metrics", every) if len(metrics) > len(shown) else "")
    )


def changes(run: Run, names: Mapping[str, str], shown: Iterable[str], rival: Mapping[str, Scores]) -> str:
    """What is lost under each condition, and what concatenation has there."""
    whole, head, rows = next(iter(names)), ["Present"], [[name] for name in names.values()]
    for metric, key in ((METRICS[key], key) for key in shown):
        head += [metric.arrowed, "lost"] + (["concatenation", "EBMC's gain"] if rival else [])
        for row, condition in zip(rows, names, strict=True):
            own, full = run.test[condition][key], run.test[whole][key]["mean"]
            lost = metric.sign * (full - own["mean"])
            row += [metric.cell(own), "" if condition == whole else metric.text(lost)]
            if rival:
                other = rival[condition][key]
                row += [metric.cell(other), signed(metric.sign * (own["mean"] - other["mean"]), metric)]
    return table(head, rows)


def better_without(run: Run, names: Mapping[str, str], shown: Iterable[str]) -> str:
    """A warning where leaving modalities out scores better than having them all."""
    whole, found = run.test[next(iter(names))], []
    for key in shown:
        entry, metric = whole[key], METRICS[key]
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
    head = ["Modality", "Mean trust", "Most trusted in", "Temperature of its teacher"]
    note = (
        f"Test split, seed {record.seed}; an absent modality gets no trust. Temperature: what the teacher's stated "
        "variance or its logits are scaled by on validation; above 1 it was too sure of itself."
    )
    return grid([bands, by_error]) + beside(table(head, rows), p(note, "quiet"))


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
    mean = "; mean over seeds" if len(run.records) > 1 else ""
    note = f"Times by the clock, with validation after each epoch{mean}."
    note += " Models trained side by side (--jobs) slow each other."
    return beside(
        table(["Stage", "Time", "Epochs", "Per epoch", "Per step"], times) + p(note, "quiet"),
        table(["Parameters", "Trained", "of these, encoders", "Frozen teachers"], sizes),
    )


SETTINGS = {  # those that are no option of train.py
    "zeta": "weight of L_MSD",
    "beta": "weight of L_CCE",
    "gamma": "weight of L_EMC; at 0 its probes alone learn",
    "eta": "weight of L_IMTD",
    "joint_patience": "epochs without progress on validation that end joint training",
    "observe": "L_EMC weighs modalities by their energies on validation",
    "lambda_1": "weight of L_dis in L_MSD",
    "lambda_2": "weight of L_uni in L_MSD",
    "without": "components left out",
    "weight_decay": "of AdamW",
    "context": "encoder of conversations",
    "causal": "context of earlier utterances only",
    "shuffled": "conversations in random order, the control",
    "dim": "size of the features",
    "dropout": "inside the model",
}


def provenance(run: Run) -> str:
    found, main = run.results, run.models[run.model]
    chosen = "; ".join(f"seed {seed}: {in_line(stages)}" for seed, stages in main["selection"]["epochs"].items())
    facts = {
        "data": f"{found['dataset']} ({found['kind']}, {found['task']}). {found['note']}",
        "models": ", ".join(map(run.display, run.models)),
        "seeds": ", ".join(map(str, found["seeds"])),
        "selected epochs": chosen,
        "device": found["device"],
        "versions": in_line(found["versions"]),
    }
    return (
        code(found["command"])
        + table(["What", ""], [[name, text] for name, text in facts.items()], kind="words")
        + details("Settings", settings_table(found["settings"]))
    )


def settings_table(values: Mapping[str, Any]) -> str:
    """Bold: not the default."""
    known, rows, bold = {field.name: field for field in fields(Settings)}, [], set()
    for i, (name, value) in enumerate(values.items()):
        field = known.get(name)
        default = None if field is None else field.default
        meaning = SETTINGS.get(name, "" if field is None else field.metadata.get("help", ""))
        rows.append([name, in_words(value), in_words(default), meaning])
        if in_words(value) != in_words(default):
            bold.add((i, 1))
    return table(["Setting", "Value", "Default", "What it is"], rows, bold, "words") + p(
        "Bold: not the default.", "quiet"
    )


def in_words(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join("=".join(map(str, x)) if isinstance(x, list | tuple) else str(x) for x in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def in_line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())
