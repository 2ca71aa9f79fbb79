"""Every term of the loss over the epochs, with what it is and what it should do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ebmc_msa.evaluation.metrics import METRICS
from ebmc_msa.report import plots
from ebmc_msa.report.html import figure, grid, p
from ebmc_msa.report.run_view import Run
from ebmc_msa.report.sections import answering, curves, how_to_read, selected

Settings = Mapping[str, Any]


class Term(NamedTuple):
    name: str
    weight: Callable[[Settings], float]
    is_: str
    should: str


GROUPS = {
    "L_MSD": ("what the modalities share, and what each knows alone", ["alignment", "redundancy", "preservation"]),
    "L_CCE": ("each modality rebuilt with help from the others", ["reconstruction", "enhancement"]),
    "L_EMC": ("energies, and how far apart they are", ["fit", "gap", "penalty", "descent"]),
    "L_IMTD": ("the trusted teachers, in the second stage", ["distillation"]),
}
TERMS = {
    "alignment": Term(
        "L_inv, of L_MSD",
        lambda s: s["zeta"],
        "Contrastive: the shared part of a modality is to be more like the other modalities' of the same utterance "
        "than like those of other utterances.",
        "It starts near the logarithm of the batch size and falls; it stays there if the modalities share nothing.",
    ),
    "redundancy": Term(
        "L_dis, of L_MSD",
        lambda s: s["zeta"] * s["lambda_1"],
        "Squared cosine between the private parts of two modalities.",
        "It falls towards 0: private parts hold different things.",
    ),
    "preservation": Term(
        "L_uni, of L_MSD",
        lambda s: s["zeta"] * s["lambda_2"],
        "The task loss of each modality's own head on its private part, mean over modalities.",
        "It falls, and stays above L_task by what the modalities know together only. No fall: no modality is learnt.",
    ),
    "reconstruction": Term(
        "L_rec, of L_CCE",
        lambda s: s["beta"],
        "Squared error between a modality's features and those rebuilt with help from the others.",
        "It falls to what the others cannot know. It may rise at first, as features grow.",
    ),
    "enhancement": Term(
        "rebuilt task loss, of L_CCE",
        lambda s: s["beta"],
        "The task loss of the prediction with rebuilt features in place of a modality.",
        "It follows L_task from above; the distance is what rebuilding loses.",
    ),
    "fit": Term(
        "L_fit, of L_EMC",
        lambda s: 1.0,
        "The task loss of the probes that measure energies, on detached features: it trains nothing else.",
        "It falls. Energies mean little before it has.",
    ),
    "gap": Term(
        "L_gap, of L_EMC",
        lambda s: s["gamma"],
        "How far each modality's energy is above the lowest.",
        "It falls: the modalities come closer.",
    ),
    "penalty": Term(
        "gradient penalty, of L_EMC",
        lambda s: s["gamma"],
        "Squared norm of the energy's gradient at the features.",
        "It falls: the energy becomes flat where the features are.",
    ),
    "descent": Term(
        "energy descent, of L_EMC",
        lambda s: s["gamma"],
        "The mean energy.",
        "It falls with the losses of the probes.",
    ),
    "distillation": Term(
        "L_IMTD",
        lambda s: s["eta"],
        "Divergence of the prediction from those of the frozen teachers, each by its trust.",
        "It falls, and not to 0: a fused prediction knows what no teacher does.",
    ),
}


def losses(run: Run) -> str:
    chosen, terms = selected(run), curves(run, "train")
    names = dict.fromkeys(name for lines in terms.values() for name in lines)
    settings = run.results.get("settings", {})
    alone = len(names) == 1
    parts = [grid([selection(run), prediction(terms, chosen, alone)])]
    for group, (what, members) in GROUPS.items():
        here = [name for name in members if name in names]
        if here:
            parts.append(
                f"<h4>{group}: {what}</h4>" + grid([panel(n, terms, chosen, settings) for n in here], "terms")
            )
    note = "" if alone else "Each term is on its own scale: compare shapes, not heights. "
    if run.model == "ebmc":
        note += (
            "After joint training all terms but L_task and L_uni grow from no weight to the one stated; in a long "
            "stage the model first goes back to the best epoch of joint training. "
        )
    return "".join(parts) + p(note + how_to_read(run), "quiet")


def selection(run: Run) -> str:
    """The metric on validation that selects the epoch."""
    key = run.results["selection"]["metric"]
    metric = METRICS[key]
    scores = {stage: {key: lines[key]} for stage, lines in curves(run, "valid").items()}
    way = "higher" if metric.higher else "lower"
    caption = f"One point per epoch; {way} is better. The best epoch of each stage is kept"
    if run.model == "ebmc":
        caption += ", one before full regularisation only where it is clearly better or the epochs ran out"
    caption += ". "
    if run.models[run.model]["selection"].get("last_is_best"):
        caption += "Here it is the last one: the model may still have been improving, and more epochs may help. "
    else:
        caption += "Training went on after it and did not get better. "
    caption += answering(run).lstrip()
    title = f"{metric.name} on validation, the measure that selects the epoch"
    return figure(plots.over_time(scores, selected(run), {}, ylabel=metric.label), title, caption)


def prediction(terms: Mapping[str, Any], chosen: Mapping[str, Any], alone: bool) -> str:
    lines = {stage: {"task": found["task"]} for stage, found in terms.items()}
    caption = "It falls. Where it still falls and the validation metric gets worse, the model over-fits. "
    if not alone:
        caption += "It rises as modality dropout and corruption set in, after joint training: training gets harder."
    svg = plots.over_time(lines, chosen, {}, ylabel="loss")
    return figure(svg, "L_task on training: the loss of the prediction", caption)


def panel(name: str, terms: Mapping[str, Any], chosen: Mapping[str, Any], settings: Settings) -> str:
    lines = {stage: {name: found[name]} for stage, found in terms.items() if name in found}
    term = TERMS[name]
    weight = f", weight {term.weight(settings):.3g}" if settings else ""
    return figure(plots.over_time(lines, chosen, {}, small=True), f"{term.name}{weight}", f"{term.is_} {term.should}")
