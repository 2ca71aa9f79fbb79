"""The verdict follows the figures: a run that EBMC wins, one that it loses, one that is a draw."""

import numpy as np
import pytest

from ebmc_msa.evaluation.bootstrap import interval
from ebmc_msa.evaluation.impaired import PARTS
from ebmc_msa.evaluation.metrics import METRICS
from ebmc_msa.report import verdict
from ebmc_msa.report.record import Record

NAMES = {"ebmc": "EBMC", "concat": "concatenation", "text": "text alone", "text-shuffled": "text alone, shuffled"}
ERROR = np.random.default_rng(0).uniform(0.2, 1.0, (2, 200))  # of two seeds


def record(model, seed, samples, valid):
    fields = dict.fromkeys(Record.__dataclass_fields__)
    return Record(**{**fields, "model": model, "seed": seed, "samples": samples, "valid": valid})


def results(kind, scores, valid=None):
    """`scores`: by model and part, `(seeds, samples)`."""
    records = [
        record(model, seed, {part: x[seed].tolist() for part, x in by_part.items()}, (valid or {}).get(model) or
               {part: float(x.mean()) for part, x in by_part.items()})
        for model, by_part in scores.items()
        for seed in range(len(by_part["full"]))
    ]  # fmt: skip
    models = {name: {"parts": found} for name, found in verdict.parts(records, kind).items()}
    return {"kind": kind, "models": models, "seeds": [1, 2]}


def run(kind="sentiment", **advantage):
    """EBMC beside concatenation, which is worse by `advantage` in each part, and a text that is far worse."""
    noise = np.random.default_rng(1).normal(0, 0.05, ERROR.shape)
    sign = METRICS["mae" if kind == "sentiment" else "acc"].sign
    concat = {part: ERROR - sign * (advantage.get(part, 0.0) + noise - noise.mean()) for part in PARTS}
    return results(
        kind,
        {
            "ebmc": dict.fromkeys(PARTS, ERROR),
            "concat": concat,
            "text": dict.fromkeys(PARTS, ERROR - sign * 0.5),
        },
    )


@pytest.mark.parametrize("kind", ["sentiment", "classes"])
@pytest.mark.parametrize(
    ("advantage", "outcome", "words"),
    [
        (0.1, "better", "EBMC is better than concatenation"),
        (-0.1, "worse", "EBMC is worse than concatenation"),
        (0.0, "level", "EBMC and concatenation, the best of the others on validation, are level"),
    ],
    ids=["won", "lost", "drawn"],
)
def test_a_run_that_is_won_lost_or_drawn(kind, advantage, outcome, words):
    found = run(kind, **dict.fromkeys(PARTS, advantage))
    assert {difference.outcome for difference in verdict.differences(found).values()} == {outcome}
    first, second = verdict.sentences(found, NAMES)
    assert first.startswith(f"With all modalities present, {words}")
    assert second.count(words.replace(", the best of the others on validation,", "")) == 2


def test_each_part_has_its_own_outcome_and_figures():
    found = run(full=-0.1, missing=0.0, corrupted=0.1)
    assert [d.outcome for d in verdict.differences(found).values()] == ["worse", "level", "better"]
    first, second = verdict.sentences(found, NAMES)
    ours, theirs = (found["models"][name]["parts"]["full"] for name in ("ebmc", "concat"))
    mean, low, high = theirs["difference"]
    assert (
        f"(MAE {ours['mean']:.3f} against {theirs['mean']:.3f}, gain {mean:+.3f} [{low:+.3f}, {high:+.3f}])." in first
    )
    assert mean == pytest.approx(theirs["mean"] - ours["mean"])
    assert "gain 0.000 [" in second


def test_the_interval_is_that_of_the_paired_differences():
    found = run(full=0.1)
    scores = np.array([found["models"]["concat"]["parts"][part]["values"] for part in PARTS])
    assert scores.shape == (3, 2)
    noise = np.random.default_rng(1).normal(0, 0.05, ERROR.shape)
    assert found["models"]["concat"]["parts"]["full"]["difference"] == pytest.approx(
        list(interval(0.1 + noise - noise.mean())), abs=1e-12
    )
    assert "difference" not in found["models"]["ebmc"]["parts"]["full"]


def test_the_other_model_is_chosen_on_validation():
    """Text is better on the test split, concatenation on validation; a control is no rival."""
    parts = dict.fromkeys(PARTS, ERROR)
    better = {part: x - 0.1 for part, x in parts.items()}
    valid = {"concat": dict.fromkeys(PARTS, 0.1), "text": dict.fromkeys(PARTS, 0.2)}
    valid["text-shuffled"] = dict.fromkeys(PARTS, 0.0)
    found = results("regression", {"ebmc": parts, "concat": parts, "text": better, "text-shuffled": better}, valid)
    assert {difference.rival for difference in verdict.differences(found).values()} == {"concat"}
    assert {difference.outcome for difference in verdict.differences(found).values()} == {"level"}


@pytest.mark.parametrize("models", [["ebmc"], ["concat", "text"], ["ebmc", "text-shuffled"]])
def test_nothing_to_compare_no_verdict(models):
    found = results("sentiment", {name: dict.fromkeys(PARTS, ERROR) for name in models})
    assert verdict.sentences(found, NAMES) == []


def test_one_seed_is_pointed_out():
    assert "One seed: another may give another verdict" in verdict.caution({"seeds": [1]})
    assert "over seeds and utterances" in verdict.caution({"seeds": [1, 2]})


@pytest.mark.parametrize(("last", "text"), [(True, "the last epoch being the selected one: EBMC."), (False, "")])
def test_training_that_ended_too_early_is_pointed_out(last, text):
    models = {"ebmc": {"selection": {"last_is_best": last}}, "concat": {"selection": {"last_is_best": False}}}
    found = verdict.unfinished({"models": models}, NAMES)
    assert text in found
    assert bool(found) == last
