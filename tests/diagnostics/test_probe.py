"""Probes against scikit-learn's logistic and ridge regression, fold by fold."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from modbalance.diagnostics import probe_outputs

ROWS, RIDGE = 90, 0.02


def by_fold(x, fit):
    """Outputs of `fit` for every sample, fitted on the other folds with their mean and deviation."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    outputs = [None] * ROWS
    for held_out in order.tensor_split(5):
        rest = torch.tensor([i for i in range(ROWS) if i not in held_out])
        mean, scale = x[rest].mean(0), x[rest].std(0, unbiased=False)
        say = fit(((x[rest] - mean) / scale).numpy(), rest)
        for i in held_out.tolist():
            outputs[i] = torch.as_tensor(say(((x[i : i + 1] - mean) / scale).numpy()))[0]
    return torch.stack(outputs)


@pytest.fixture
def x():
    return torch.randn(ROWS, 5, dtype=torch.float64) * torch.tensor([1.0, 10, 0.1, 1, 1]) + 3


def test_classification(x):
    y = (x[:, 0] + x[:, 1] / 10 + torch.randn(ROWS)).sub(6).sign().long() + 1
    y[::7] = 1

    def fit(seen, rows):
        model = LogisticRegression(C=1 / (2 * RIDGE * len(rows)), tol=1e-10, max_iter=10_000).fit(seen, y[rows])
        return model.predict_proba

    found = probe_outputs("classification", x, y, 3, ridge=RIDGE).softmax(1)
    torch.testing.assert_close(found, by_fold(x, fit), rtol=0, atol=1e-4)


def test_multilabel(x):
    y = (x[:, :2] + torch.randn(ROWS, 2) > 3).double()

    def fit(seen, rows):
        models = [
            LogisticRegression(C=1 / (2 * RIDGE * len(rows)), tol=1e-10, max_iter=10_000).fit(seen, y[rows, c])
            for c in range(2)
        ]
        return lambda unseen: torch.tensor([[model.predict_proba(unseen)[0, 1] for model in models]])

    found = probe_outputs("multilabel", x, y, 2, ridge=RIDGE).sigmoid()
    # The mean is over samples and the sum over labels, so each label has a problem of its own.
    torch.testing.assert_close(found, by_fold(x, fit), rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["regression", "gaussian"])
def test_regression(x, task):
    y = torch.stack([x[:, 0] + torch.randn(ROWS), x[:, 2] * 4], 1)

    def fit(seen, rows):
        model = Ridge(alpha=RIDGE * len(rows)).fit(seen, y[rows].numpy())
        residual = (y[rows] - torch.as_tensor(model.predict(seen))).square().mean(0).log()
        if task == "regression":
            return model.predict
        return lambda unseen: torch.cat([torch.as_tensor(model.predict(unseen)), residual[None]], 1)

    torch.testing.assert_close(probe_outputs(task, x, y, 2, ridge=RIDGE), by_fold(x, fit))


def test_random_labels_teach_nothing_and_the_same_input_gives_the_same(x):
    y = torch.randint(2, (ROWS,))
    noise = torch.randn(ROWS, 60)
    accuracy = (probe_outputs("classification", noise, y, 2).argmax(1) == y).double().mean()
    assert accuracy < 0.7  # a probe judged on its own samples would be right in all of them
    assert torch.equal(probe_outputs("classification", x, y, 2), probe_outputs("classification", x, y, 2))


def test_constant_features_and_inference_mode_do_no_harm():
    with torch.inference_mode():
        found = probe_outputs("classification", torch.ones(8, 3), torch.arange(8) % 2, 2)
    assert found.isfinite().all()


def test_too_few_samples():
    with pytest.raises(ValueError, match="features has 1 rows, expected at least two"):
        probe_outputs("classification", torch.ones(1, 3), torch.zeros(1, dtype=torch.long), 2)
