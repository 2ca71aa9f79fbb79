import pytest
import torch

import oracle
from cases import CLASSES, TASKS, gradients, make_target, width
from modbalance import task_formulas, tasks

OUTPUTS = ["usual", "wide", "clamp"]


def make_outputs(task, kind, batch=5):
    """`clamp` puts log-variances inside and beyond both ends; at an end the derivative is torch's, by its version."""
    s = torch.randn(batch, width(task), dtype=torch.float64) * (30 if kind == "wide" else 1)
    if kind == "clamp" and task == "gaussian":
        s[:, CLASSES] = torch.tensor([-9.999, 9.99, -10.001, 10.001, 9.999])
        s[:, CLASSES + 1] = torch.tensor([1e4, -1e4, 25.0, -25.0, 0.0])
    return s.requires_grad_()


def rows(function, task, s, *columns, **options):
    return torch.stack([function(task, s[i], *(c[i] for c in columns), **options) for i in range(len(s))])


def weights_of(task):
    return [None, torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)] if task == "classification" else [None]


LOSSES = [(t, w, k) for t in TASKS for w in weights_of(t) for k in OUTPUTS]
LOSS_IDS = [f"{t}-{'weighted' if w is not None else 'plain'}-{k}" for t, w, k in LOSSES]


@pytest.mark.parametrize(("task", "class_weight", "kind"), LOSSES, ids=LOSS_IDS)
def test_loss_with_slope_and_curvature(task, class_weight, kind):
    s, y = make_outputs(task, kind), make_target(task, 5)
    ours, expected = (
        tasks.task_loss(task, s, y, class_weight=class_weight),
        rows(oracle.loss, task, s, y, class_weight=class_weight),
    )
    torch.testing.assert_close(ours, expected)
    check_derivatives(
        expected,
        s,
        task_formulas.loss_slope(task, task_formulas.HeadOutputs(s.T), y, class_weight).T,
        lambda t: task_formulas.loss_curvature(task, task_formulas.HeadOutputs(s.T), y, t.T, class_weight).T,
    )
    torch.testing.assert_close(gradients(ours.sum(), [s]), gradients(expected.sum(), [s]))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("task", TASKS)
def test_uncertainty_with_slope_and_curvature(task, kind, temperature):
    s = make_outputs(task, kind)
    ours = tasks.task_uncertainty(task, s, temperature=temperature)
    expected = rows(oracle.uncertainty, task, s, temperature=temperature)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9)
    check_derivatives(
        ours,
        s,
        task_formulas.uncertainty_slope(task, task_formulas.HeadOutputs(s.T), temperature).T,
        lambda t: task_formulas.uncertainty_curvature(task, task_formulas.HeadOutputs(s.T), t.T, temperature).T,
    )


def check_derivatives(value, s, slope, curvature):
    """Slope and curvature times a random t against autograd."""
    t = torch.randn_like(s)
    (gradient,) = torch.autograd.grad(value.sum(), s, create_graph=True)
    torch.testing.assert_close(slope, gradient, rtol=1e-7, atol=1e-8)
    (product,) = gradients((gradient * t).sum(), [s]) if gradient.requires_grad else [torch.zeros_like(s)]
    torch.testing.assert_close(curvature(t), product, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("task", TASKS)
def test_variance_that_a_prediction_states(task):
    s = make_outputs(task, "clamp")
    if task == "regression":
        with pytest.raises(ValueError, match=r'task is "regression".*pass variances of your own'):
            tasks.prediction_variance(task, s)
        return
    if task == "classification":
        expected = s.softmax(-1) - s.softmax(-1) ** 2
    else:
        expected = torch.stack([oracle.distribution(task, row).variance for row in s])
    torch.testing.assert_close(tasks.prediction_variance(task, s), expected)


@pytest.mark.parametrize("label", [-1, CLASSES, 10**9, -(10**9)])
def test_labels_out_of_range_raise_as_in_torch(label):
    s, y = make_outputs("classification", "usual"), torch.tensor([label, 0, 1, 2, 0])
    with pytest.raises(IndexError):
        torch.nn.functional.cross_entropy(s, y)
    with pytest.raises(ValueError, match=f"target holds {label}, expected classes 0 to 2.*correct the labels"):
        tasks.task_loss("classification", s, y)
    loss = tasks.task_loss("classification", s, y, ignore_index=label) if label < 0 else torch.zeros(1)
    assert loss[0] == 0


def test_ignored_rows_give_zero_and_no_gradient():
    s = make_outputs("classification", "usual")
    y = torch.tensor([-100, 0, 1, 2, 0])
    loss = tasks.task_loss("classification", s, y)
    assert loss[0] == 0
    assert (loss[1:] > 0).all()
    assert (gradients(loss.sum(), [s])[0][0] == 0).all()


def test_ignore_index_may_be_a_class():
    s = make_outputs("classification", "usual")
    loss = tasks.task_loss("classification", s, torch.tensor([0, 1, 2, 1, 0]), ignore_index=1)
    assert (loss == 0).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_outputs_stay_finite_in_float32(task, size):
    s = torch.full((2, width(task)), size)
    s[:, 0] = -size
    s.requires_grad_()
    y = make_target(task, 2, dtype=torch.float32)
    at, t = task_formulas.HeadOutputs(s.T), torch.randn_like(s)
    values = [
        tasks.task_loss(task, s, y),
        tasks.task_uncertainty(task, s),
        task_formulas.loss_slope(task, at, y),
        task_formulas.loss_curvature(task, at, y, t.T),
        task_formulas.uncertainty_slope(task, at),
        task_formulas.uncertainty_curvature(task, at, t.T),
    ]
    total = sum(v.sum() for v in values)
    assert all(v.isfinite().all() for v in (*values, *gradients(total, [s])))


@pytest.mark.parametrize("task", ["regression", "gaussian"])
def test_target_may_be_a_vector_when_there_is_one_output(task):
    s, y = torch.randn(4, width(task, 1)), torch.randn(4)
    assert torch.equal(tasks.task_loss(task, s, y), tasks.task_loss(task, s, y[:, None]))


@pytest.mark.parametrize("task", TASKS)
def test_output_width(task):
    assert tasks.output_width(task, 7) == (14 if task == "gaussian" else 7)
