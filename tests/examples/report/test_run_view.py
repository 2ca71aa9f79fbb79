"""Notes on the numbers of a run: metrics that never change, settings that are set."""

import pytest

from ebmc_msa.evaluation.metrics import METRICS
from ebmc_msa.report.run_view import Run
from ebmc_msa.report.sections import in_line


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


def test_settings_that_are_not_set_are_not_listed():
    assert in_line({"gamma": 0.1, "without": [], "finetune_text": None, "order": "a-b"}) == "gamma 0.1, order a-b"
    assert in_line({"without": ["msd", "cce"], "zero": 0}) == "without msd cce, zero 0"
