"""Notes on the numbers of a run: metrics that never change, settings that are set."""

import pytest

from ebmc_msa.evaluation.metrics import METRICS
from ebmc_msa.model.settings import Settings
from ebmc_msa.report.run_view import Run
from ebmc_msa.report.sections import in_words, settings_table


def results(**scores):
    """Of two modalities; `scores`: by metric, values of the three conditions, each of two seeds."""
    conditions = ("text", "audio", "text+audio")
    test = {
        condition: {key: {"mean": sum(v[i]) / 2, "std": 0.0, "values": v[i]} for key, v in scores.items()}
        for i, condition in enumerate(conditions)
    }
    return Run.of({"model": "ebmc", "dataset": "d", "kind": "sentiment", "test": test})


def test_a_metric_that_never_changes_is_noted():
    run = results(acc2=[[100.0, 100.0]] * 3, acc3=[[50.0, 50.0], [50.0, 50.0], [50.0, 51.0]], mae=[[0.1, 0.1]] * 3)
    (sentence,) = run.constant()
    assert sentence.startswith("Acc-2 is 100.0 everywhere, whichever modalities are present")
    assert "--task, --range or --labels" in sentence


@pytest.mark.parametrize("value", [float("nan")])
def test_what_cannot_be_computed_is_not_constant(value):
    assert results(acc2_non0=[[value, value]] * 3).constant() == []


def test_metrics_of_other_scales_have_names():
    assert [METRICS[key].arrowed for key in ("acc2", "acc3", "acc5")] == [f"Acc-{n} (%)\u00a0↑" for n in (2, 3, 5)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (100, "100"),
        (None, "none"),
        ([], "none"),
        (("msd", "cce"), "msd, cce"),
        ([["text", 0.1], ["audio", 0.5]], "text=0.1, audio=0.5"),
        (True, "yes"),
        ("transformer", "transformer"),
    ],
)
def test_settings_in_words(value, text):
    assert in_words(value) == text


def test_settings_are_explained_and_what_is_not_the_default_is_bold():
    """Every setting has a meaning; two are set here."""
    html = settings_table({**Settings().as_dict(), "gamma": 0.1, "without": ["imtd"]})
    assert html.count("<strong>") == 2
    assert "<strong>0.1</strong>" in html
    assert "<td></td>" not in html
