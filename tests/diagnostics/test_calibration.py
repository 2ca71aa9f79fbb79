"""Calibration against loops over bins and samples, and against predictions that are calibrated by construction."""

import pytest
import torch
from torch.distributions import Normal

from modbalance.diagnostics import calibration_error, gaussian_coverage


def by_bins(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        rows = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if rows:
            gap = sum(right[i] for i in rows) / len(rows) - sum(confidence[i] for i in rows) / len(rows)
            total += len(rows) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_error_against_a_loop_over_bins(task, bins):
    outputs = 2 * torch.randn(60, 4, dtype=torch.float64)
    if task == "classification":
        y = torch.randint(4, (60,))
        confidence, label = outputs.softmax(1).max(1)
        right = (label == y).double()
    else:
        y = (torch.rand(60, 4) > 0.5).double()
        confidence, right = outputs.sigmoid().flatten(), y.flatten()
    expected = by_bins(confidence.tolist(), right.tolist(), bins)
    assert calibration_error(task, outputs, y, bins=bins) == pytest.approx(expected, abs=1e-12)


def test_labels_drawn_from_the_stated_probabilities_have_almost_no_error():
    outputs = torch.randn(40_000, 3)
    y = torch.distributions.Categorical(logits=outputs).sample()
    assert calibration_error("classification", outputs, y) < 0.02
    assert calibration_error("classification", 3 * outputs, y) > 0.1


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_against_the_normal_distribution(level):
    mean, log_variance = torch.randn(500, 2).double(), torch.randn(500, 2).double()
    y = mean + 1.3 * (0.5 * log_variance).exp() * torch.randn(500, 2)
    tail = Normal(mean, (0.5 * log_variance).exp()).cdf(y)
    expected = ((tail - 0.5).abs() <= level / 2).double().mean().item()
    assert gaussian_coverage(torch.cat([mean, log_variance], 1), y, level=level) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: calibration_error("regression", torch.zeros(2, 1), torch.zeros(2)),
            "task is 'regression', expected",
        ),
        (lambda: gaussian_coverage(torch.zeros(2, 2), torch.zeros(2), level=90), "level is 90, expected a probab"),
    ],
)
def test_errors_name_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    outputs, y = torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64), torch.tensor([[1.0], [0.0], [1.0]])
    expected = by_bins(outputs.sigmoid().flatten().tolist(), y.flatten().tolist(), 2)
    assert calibration_error("multilabel", outputs, y, bins=2) == pytest.approx(expected)
