"""How good predictions are, in one number where higher is better; and the best constant prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import stdev

import torch
from torch import Tensor

from modbalance.presence import upcast
from modbalance.task_checks import check_target
from modbalance.task_formulas import LOG_VARIANCE_LIMIT, as_matrix
from modbalance.tasks import Task, output_width

__all__ = ["constant_outputs", "task_score"]


def task_score(task: Task, outputs: Tensor, target: Tensor) -> float:
    r"""Accuracy or R², over all samples at once.

    classification: accuracy, of the most likely class for soft labels; multilabel: accuracy over all labels, at
    probability one half; regression and gaussian:
    $R^2 = \operatorname{mean}_c\,1 - \sum_i (y_{ic} - \mu_{ic})^2 / \sum_i (y_{ic} - \bar y_c)^2$.

    Args:
        task: one of the four tasks.
        outputs: logits, predictions, or means and log-variances: `(N, width)`.
        target: as for `task_loss`, without ignored rows.

    Returns:
        1 is perfect; R² is 0 for the mean of the targets and has no lower bound. NaN for no samples, and R² for
        targets that are all the same.

    Raises:
        ValueError: the target does not fit the task and the outputs.

    Examples:
        >>> task_score("classification", torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    check_target("task_score", task, target, len(outputs), outputs.shape[-1] // output_width(task, 1))
    if not len(outputs):
        return float("nan")
    if task == "classification":
        target = target.argmax(-1) if target.is_floating_point() else target
        return (outputs.argmax(-1) == target).double().mean().item()
    if task == "multilabel":
        return ((outputs > 0) == (target > 0.5)).double().mean().item()
    y = upcast(as_matrix(target))
    mean = upcast(outputs)[:, : y.shape[1]]
    residual, total = (y - mean).square().sum(0), (y - y.mean(0)).square().sum(0)
    return torch.where(total > 0, 1 - residual / total, torch.nan).mean().item()


def jackknife(difference: Callable[[Tensor], float], rows: int, groups: int = 20) -> float:
    """Standard error of `difference` of row numbers over samples, leaving out one group of rows after the other."""
    if rows < 2:
        return math.nan
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    pieces = order.tensor_split(min(groups, rows))
    values = [difference(torch.cat([*pieces[:i], *pieces[i + 1 :]])) for i in range(len(pieces))]
    return stdev(values) * (len(values) - 1) / math.sqrt(len(values))


def constant_outputs(task: Task, target: Tensor, num_outputs: int) -> Tensor:
    """The outputs of the best guess that looks at no sample: frequencies of the labels, mean and variance.

    Args:
        task: one of the four tasks.
        target: as for `task_loss`, without ignored rows.
        num_outputs: C, the number of classes, labels or targets.

    Returns:
        `(width,)`, to be expanded to any number of rows: log-frequencies, log-odds, means, or means and
        log-variances. Finite even for a class that never occurs.

    Examples:
        >>> constant_outputs("regression", torch.tensor([1.0, 3.0]), 1)
        tensor([2.])
    """
    if task == "classification" and target.is_floating_point():
        return upcast(target).mean(0).clamp(min=1e-6).log()
    if task == "classification":
        p = torch.bincount(target, minlength=num_outputs).to(torch.get_default_dtype()) / max(len(target), 1)
        return p.clamp(min=1e-6).log()
    y = upcast(as_matrix(target))
    mean = y.mean(0)
    if task == "multilabel":
        return torch.logit(mean, eps=1e-6)
    if task == "regression":
        return mean
    log_variance = y.var(0, unbiased=False).log().clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
    return torch.cat([mean, log_variance])
