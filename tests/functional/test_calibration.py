import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

from modbalance.functional import fit_temperature, scale_temperature


def test_a_known_temperature_is_found():
    """Labels drawn from softmax(s) are fitted best by s: outputs 3 s need T = 3."""
    logits = torch.randn(20_000, 4)
    target = torch.distributions.Categorical(logits=logits).sample()
    assert fit_temperature("classification", 3 * logits, target) == pytest.approx(3, rel=0.06)
    labels = torch.bernoulli(logits.sigmoid())
    assert fit_temperature("multilabel", 3 * logits, labels) == pytest.approx(3, rel=0.06)


def test_no_temperature_of_the_grid_is_likelier():
    logits, target = 5 * torch.randn(200, 3, dtype=torch.float64), torch.randint(3, (200,))
    best = fit_temperature("classification", logits, target)
    losses = {t: F.cross_entropy(logits / t, target).item() for t in torch.logspace(-1, 2, 121).tolist()}
    assert best == min(losses, key=losses.get)


def test_the_variance_of_a_gaussian_is_scaled_to_its_errors():
    mean, spread = torch.randn(50_000, 2), torch.rand(50_000, 2) + 0.5
    target = Normal(mean, 2 * spread).sample()
    outputs = torch.cat([mean, 2 * spread.log()], 1)
    scale = fit_temperature("gaussian", outputs, target)
    assert scale == pytest.approx(4, rel=0.03)
    scaled = scale_temperature("gaussian", outputs, scale)
    assert torch.equal(scaled[:, :2], mean)
    torch.testing.assert_close(scaled[:, 2:] - outputs[:, 2:], torch.full_like(mean, math.log(scale)))


def test_ignored_rows_do_not_count():
    logits, target = torch.randn(60, 3), torch.randint(3, (60,))
    more = torch.cat([logits, 50 * torch.randn(40, 3)]), torch.cat([target, torch.full((40,), -100)])
    assert fit_temperature("classification", *more) == fit_temperature("classification", logits, target)


def test_no_samples_leave_the_outputs_as_they_are():
    assert fit_temperature("classification", torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == 1


@pytest.mark.parametrize("call", [fit_temperature, scale_temperature])
def test_a_regression_has_no_uncertainty_to_scale(call):
    with pytest.raises(ValueError, match=r"task is 'regression', expected classification.*task=\"gaussian\""):
        call("regression", torch.zeros(2, 1), 1.0)


@pytest.mark.parametrize("ignored", [-100, 1])
def test_the_label_of_ignored_rows_may_be_any(ignored):
    outputs, target = torch.randn(40, 3), torch.randint(3, (40,)) // 2 * 2
    target[::3] = ignored
    keep = target != ignored
    found = fit_temperature("classification", outputs, target, ignore_index=ignored)
    assert found == fit_temperature("classification", outputs[keep], target[keep])
    nothing = torch.full((40,), ignored)
    assert fit_temperature("classification", outputs, nothing, ignore_index=ignored) == 1.0
    with pytest.raises(ValueError, match="fit_temperature: target holds 7, expected classes 0 to 2"):
        fit_temperature("classification", outputs, nothing.fill_(7))
