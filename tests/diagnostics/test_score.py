"""Scores and constant guesses against scikit-learn and against the loss they ought to minimise."""

import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score

from cases import CLASSES, width
from modbalance.diagnostics import constant_outputs, task_score
from modbalance.tasks import task_loss

TASKS = ("classification", "multilabel", "regression", "gaussian")


def problem(task, rows=40):
    outputs = torch.randn(rows, width(task), dtype=torch.float64)
    if task == "classification":
        return outputs, torch.randint(CLASSES, (rows,))
    y = torch.randn(rows, CLASSES, dtype=torch.float64)
    return outputs, (y > 0.3).double() if task == "multilabel" else y


@pytest.mark.parametrize("task", TASKS)
def test_score_against_scikit_learn(task):
    outputs, y = problem(task)
    expected = {
        "classification": lambda: accuracy_score(y, outputs.argmax(1)),
        "multilabel": lambda: accuracy_score(y.flatten(), (outputs.sigmoid() > 0.5).flatten()),
        "regression": lambda: r2_score(y, outputs),
        "gaussian": lambda: r2_score(y, outputs[:, :CLASSES]),
    }[task]()
    assert task_score(task, outputs, y) == pytest.approx(expected)


def test_score_is_nan_where_nothing_can_be_measured():
    assert torch.tensor(task_score("classification", torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))).isnan()
    assert torch.tensor(task_score("regression", torch.zeros(3, 1), torch.ones(3))).isnan()


@pytest.mark.parametrize("task", TASKS)
def test_no_other_constant_has_a_lower_loss(task):
    _, y = problem(task)
    constant = constant_outputs(task, y, CLASSES).double().requires_grad_()
    (slope,) = torch.autograd.grad(task_loss(task, constant.expand(len(y), -1), y).mean(), constant)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-6)


def test_a_class_that_never_occurs_has_a_finite_guess():
    assert constant_outputs("classification", torch.tensor([0, 0, 1]), 4).isfinite().all()
    assert constant_outputs("gaussian", torch.ones(3), 1).isfinite().all()


def test_score_names_a_target_that_does_not_fit():
    with pytest.raises(ValueError, match=r"task_score: target .* expected class indices"):
        task_score("classification", torch.zeros(2, 3), torch.zeros(2))
