"""Each metric against a formula of its own that shares nothing with the code."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import pearsonr
from sklearn.metrics import f1_score

from ebmc_msa.evaluation import metrics
from ebmc_msa.evaluation.metrics import KINDS, METRICS


def weighted_f1(predicted, true):
    total = 0.0
    for c in set(true.tolist()):
        hit = np.sum((predicted == c) & (true == c))
        total += np.sum(true == c) * 2 * hit / (np.sum(predicted == c) + np.sum(true == c))
    return 100 * total / len(true)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    y = np.round(rng.uniform(-3, 3, 400) * 3) / 3
    return y + rng.normal(0, 1, 400), y


def test_sentiment_against_formulas(pair):
    p, y = pair
    m = metrics.sentiment(p, y)
    non0 = y != 0
    assert m["acc2_has0"] == pytest.approx(100 * np.mean((p >= 0) == (y >= 0)))
    assert m["acc2_non0"] == pytest.approx(100 * np.mean((p > 0)[non0] == (y > 0)[non0]))
    assert m["f1_has0"] == pytest.approx(weighted_f1(p >= 0, y >= 0))
    assert m["f1_non0"] == pytest.approx(weighted_f1((p > 0)[non0], (y > 0)[non0]))
    assert m["acc7"] == pytest.approx(
        100 * np.mean([round(min(max(a, -3), 3)) == round(b) for a, b in zip(p, y, strict=True)])
    )
    five = [round(min(max(a, -2), 2)) == round(min(max(b, -2), 2)) for a, b in zip(p, y, strict=True)]
    assert m["acc5"] == pytest.approx(100 * np.mean(five))
    assert m["mae"] == pytest.approx(np.mean(np.abs(p - y)))
    assert m["corr"] == pytest.approx(pearsonr(p, y).statistic)
    assert set(m) == {"acc2_has0", "acc2_non0", "f1_has0", "f1_non0", "acc7", "acc5", "mae", "corr"}


def test_multilabel_against_formulas():
    rng = np.random.default_rng(0)
    p, y = rng.integers(2, size=(2, 200, 4))
    y[:, 1] = 0  # a label that never holds
    names = ("neutral", "happy", "sad", "angry")
    m = metrics.compute("multilabel", torch.from_numpy(p), torch.from_numpy(y), 4, names)
    for i, name in enumerate(names):
        assert m[f"acc_{name}"] == pytest.approx(100 * np.mean(p[:, i] == y[:, i]))
        assert m[f"f1_{name}"] == pytest.approx(weighted_f1(p[:, i], y[:, i]))
        assert m[f"f1_{name}"] == pytest.approx(100 * f1_score(y[:, i], p[:, i], average="weighted"))
    assert m["acc"] == pytest.approx(np.mean([m[f"acc_{name}"] for name in names]))
    assert m["f1"] == pytest.approx(np.mean([m[f"f1_{name}"] for name in names]))


def test_multilabel_errors():
    with pytest.raises(ValueError, match=r"prediction runs from 0\.5 to 0\.5, expected 0 or 1.*pass decisions"):
        metrics.multilabel(np.full((2, 2), 0.5), np.zeros((2, 2)), ("a", "b"))
    with pytest.raises(ValueError, match=r"expected two of one shape \(N, 3\), N > 0; pass one column per label"):
        metrics.multilabel(np.zeros((2, 2)), np.zeros((2, 2)), ("a", "b", "c"))


def test_zero_counts_as_positive_with_has0_and_is_left_out_with_non0():
    m = metrics.sentiment(np.array([0.0, -0.1, -1.0, 0.0]), np.array([0.0, 0.0, -1.0, 1.0]))
    assert m["acc2_has0"] == 75
    assert m["acc2_non0"] == 50  # a prediction of exactly 0 is not positive here


def test_halves_round_to_even():
    m = metrics.sentiment(np.array([0.5, 1.5, 2.5, -0.5]), np.array([0.0, 2.0, 2.0, 0.0]))
    assert m["acc7"] == 100


def test_f1_weights_by_the_truth_and_not_by_the_prediction():
    p, y = np.array([1.0, 1, 1, 1]), np.array([1.0, -1, -1, -1])
    assert metrics.sentiment(p, y)["f1_has0"] == pytest.approx(weighted_f1(p >= 0, y >= 0))
    assert weighted_f1(p >= 0, y >= 0) != pytest.approx(weighted_f1(y >= 0, p >= 0))


def test_non0_of_neutral_targets_only_is_nan():
    m = metrics.sentiment(np.array([0.1, -0.2]), np.zeros(2))
    assert np.isnan(m["acc2_non0"])
    assert np.isnan(m["f1_non0"])


def test_constant_prediction_has_no_correlation():
    assert metrics.sentiment(np.full(5, 0.3), np.arange(5.0) - 2)["corr"] == 0.0
    assert metrics.regression(np.full(5, 0.3), np.arange(5.0))["corr"] == 0.0


def test_classes_against_formulas():
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    m = metrics.classes(p, y, 4)
    assert m["acc"] == pytest.approx(100 * np.mean(p == y))
    assert m["ua"] == pytest.approx(100 * np.mean([np.mean(p[y == c] == c) for c in range(4)]))
    assert m["f1"] == pytest.approx(weighted_f1(p, y))


def test_unweighted_accuracy_is_over_classes_that_occur():
    assert metrics.classes(np.array([0, 2, 1]), np.array([0, 0, 1]), 3)["ua"] == pytest.approx(75)


def test_regression_against_formulas(pair):
    p, y = pair
    m = metrics.regression(torch.tensor(p, requires_grad=True), torch.tensor(y))
    assert m["mae"] == pytest.approx(np.mean(np.abs(p - y)))
    assert m["corr"] == pytest.approx(pearsonr(p, y).statistic)
    assert m["r2"] == pytest.approx(1 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2))


def test_one_utterance():
    assert metrics.sentiment(np.array([1.0]), np.array([1.0]))["corr"] == 0.0
    assert np.isnan(metrics.regression(np.array([1.0]), np.array([1.0]))["r2"])


def bins(values, points):
    """Class of each value, by counting the cut points below it."""
    return np.array([sum(v > point for point in points) for v in np.clip(values, -1, 1)])


def test_scaled_on_the_scale_of_ch_sims():
    rng = np.random.default_rng(0)
    y = rng.choice(np.linspace(-1, 1, 11).round(1), 200)
    p = rng.normal(0, 0.8, 200)
    m = metrics.compute("sentiment", p, y, scale=(-1, 1))
    assert list(m) == ["acc2", "acc3", "acc5", "f1", "mae", "corr"]
    for key, points in {"acc2": [0], "acc3": [-0.1, 0.1], "acc5": [-0.7, -0.1, 0.1, 0.7]}.items():
        assert m[key] == pytest.approx(100 * np.mean(bins(p, points) == bins(y, points)))
    assert m["f1"] == pytest.approx(weighted_f1(bins(p, [0]), bins(y, [0])))
    assert m["mae"] == pytest.approx(np.abs(np.clip(p, -1, 1) - y).mean())
    assert m["corr"] == pytest.approx(np.corrcoef(np.clip(p, -1, 1), y)[0, 1])


def test_scaled_by_hand():
    y = np.array([-1.0, -0.7, -0.1, 0.0, 0.1, 0.7, 1.0], np.float32)  # each cut point is the upper end of its class
    p = np.array([-0.7, -0.6, 0.0, 0.1, 0.0, 0.2, 0.8], np.float32)
    m = metrics.compute("sentiment", p, y, scale=(-1, 1))
    assert m["acc5"] == pytest.approx(100 * 5 / 7)  # -0.7 against -0.6, and -0.1 against 0.0
    assert m["acc3"] == pytest.approx(100 * 6 / 7)
    assert m["acc2"] == pytest.approx(100 * 5 / 7)  # 0.0 against 0.1, twice


def test_scaled_moves_with_the_scale():
    rng = np.random.default_rng(1)
    y, p = rng.choice(np.linspace(-1, 1, 11).round(1), 100), rng.normal(0, 0.8, 100)
    unit = metrics.compute("sentiment", p, y, scale=(-1, 1))
    stars = metrics.compute("sentiment", 3 + 2 * p, 3 + 2 * y, scale=(1, 5))
    for key in ("acc2", "acc3", "acc5", "f1", "corr"):
        assert stars[key] == pytest.approx(unit[key])
    assert stars["mae"] == pytest.approx(2 * unit["mae"])
    whole = np.arange(1.0, 6)
    assert metrics.compute("sentiment", whole, whole, scale=(1, 5))["acc5"] == 100
    assert metrics.compute("sentiment", np.full(5, 3.0), whole, scale=(1, 5))["acc5"] == pytest.approx(20)
    assert metrics.compute("sentiment", p, y, scale=(-3, 3)) == metrics.sentiment(p, y)


def test_compute_dispatches_by_kind(pair):
    p, y = pair
    assert metrics.compute("sentiment", p, y) == metrics.sentiment(p, y)
    assert metrics.compute("regression", p, y) == metrics.regression(p, y)
    labels = np.array([0, 1, 1])
    assert metrics.compute("classes", labels, labels, 2) == {"acc": 100.0, "ua": 100.0, "f1": 100.0}
    with pytest.raises(
        ValueError, match=r"kind 'other', expected sentiment, classes, multilabel, regression; pass one"
    ):
        metrics.compute("other", p, y)


@pytest.mark.parametrize("shape", [(3, 1), (4,), (0,)])
def test_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"prediction has shape .*expected two of one shape .*squeeze"):
        metrics.sentiment(np.zeros(shape), np.zeros(3 if shape != (0,) else 0))


def test_nan_predictions_are_refused():
    with pytest.raises(ValueError, match=r"1 of 2 values of prediction are NaN.*expected numbers.*learning rate"):
        metrics.sentiment(np.array([np.nan, 1]), np.zeros(2))


@pytest.mark.parametrize("bad", [[0.0, 0.7], [0, 3], [-1, 0]], ids=["scores", "too large", "negative"])
def test_labels_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"prediction runs from .*expected labels 0 to 2; pass predicted labels"):
        metrics.classes(np.array(bad), np.array([0, 1]), 3)


values = hnp.arrays(np.float64, st.shared(st.integers(1, 30), key="n"), elements=st.floats(-3, 3, width=16))


@settings(max_examples=50, deadline=None)
@given(values, values)
def test_sentiment_invariants(p, y):
    m = metrics.sentiment(p, y)
    assert -1 - 1e-9 <= m["corr"] <= 1 + 1e-9
    assert all(0 <= v <= 100 + 1e-9 or np.isnan(v) for k, v in m.items() if k[:2] in ("ac", "f1"))
    perfect = metrics.sentiment(y, y)
    assert perfect["mae"] == 0
    assert perfect["acc2_has0"] == perfect["acc7"] == perfect["acc5"] == perfect["f1_has0"] == pytest.approx(100)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_metrics_is_whole(kind):
    rng = np.random.default_rng(0)
    y = {"classes": rng.integers(3, size=40), "multilabel": rng.integers(2, size=(40, 2))}.get(kind)
    y = rng.uniform(-3, 3, 40) if y is None else y
    p = rng.permutation(y)
    found = metrics.compute(kind, p, y, 3, ("glad", "sad"))
    used = {KINDS[kind].selects, *KINDS[kind].shown, *KINDS[kind].compared}
    assert used <= found.keys()
    assert all(METRICS[key].label for key in found)
    for key in KINDS[kind].compared:  # the mean over samples is the metric
        assert METRICS[key].per_sample(p, y).mean() == pytest.approx(found[key])
    with pytest.raises(KeyError):
        METRICS["no such metric"]
