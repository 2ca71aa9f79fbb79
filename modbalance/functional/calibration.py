"""Temperature scaling: one number per predictor, fitted on held-out outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from modbalance.task_checks import IGNORE_INDEX, check_labels, check_target
from modbalance.task_formulas import Task, as_matrix, split_gaussian
from modbalance.tasks import labelled, output_width, task_loss

GRID = 121  # temperatures from 0.1 to 100, evenly spaced in their logarithm: steps of 6 %


def fit_temperature(task: Task, outputs: Tensor, target: Tensor, *, ignore_index: int = IGNORE_INDEX) -> float:
    r"""The temperature that makes held-out outputs most likely.

    classification and multilabel: $T = \operatorname{argmin}_T \operatorname{mean}_i \ell(s_i / T, y_i)$ over
    121 values from 0.1 to 100, evenly spaced in their logarithm. gaussian: the factor of the variance in closed form,
    $T = \operatorname{mean}_{i,c}\,(y_{ic} - \mu_{ic})^2 / \sigma_{ic}^2$, kept within 0.01 and 1000.

    Args:
        task: `classification`, `multilabel` or `gaussian`.
        outputs: held-out head outputs, `(N, width)`.
        target: as for `task_loss`.
        ignore_index: label of the rows that do not count; classification only.

    Returns:
        T: above 1 where the outputs are over-confident; 1 without any sample that counts.

    Raises:
        ValueError: the task is `regression`, whose outputs hold no uncertainty, or the target does not fit.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, section 4.2.

    Examples:
        >>> outputs = torch.tensor([[4.0, 0.0]] * 4)  # 98 % sure, right three times in four
        >>> round(fit_temperature("classification", outputs, torch.tensor([0, 0, 0, 1])), 1)
        3.5
    """
    _check_task("fit_temperature", task)
    if not len(outputs):
        return 1.0
    num_outputs = outputs.shape[-1] // output_width(task, 1)
    check_target("fit_temperature", task, target, len(outputs), num_outputs)
    check_labels("fit_temperature", task, target, num_outputs, ignore_index)
    valid = labelled(task, target, num_outputs, ignore_index)
    if valid is not None:
        outputs, target = outputs[valid], target[valid]
        if not len(outputs):
            return 1.0
    if task != "gaussian":
        temperatures: list[float] = torch.logspace(-1, 2, GRID).tolist()
        losses = [task_loss(task, outputs / t, target).mean().item() for t in temperatures]
        return temperatures[losses.index(min(losses))]
    mean, log_variance = split_gaussian(outputs)
    return ((mean - as_matrix(target)).square() * (-log_variance).exp()).mean().clamp(1e-2, 1e3).item()


def scale_temperature(task: Task, outputs: Tensor, temperature: float) -> Tensor:
    r"""Outputs with their uncertainty scaled: $s / T$; for gaussian $(\mu,\ \log\sigma^2 + \log T)$.

    Args:
        task: `classification`, `multilabel` or `gaussian`.
        outputs: head outputs, `(B, width)`.
        temperature: T, > 0, as `fit_temperature` gives it.

    Returns:
        as `outputs`: the most likely class, or the mean, is the same.

    Raises:
        ValueError: the task is `regression`, whose outputs hold no uncertainty.

    Examples:
        >>> scale_temperature("classification", torch.tensor([[4.0, 0.0]]), 2.0)
        tensor([[2., 0.]])
    """
    _check_task("scale_temperature", task)
    if task != "gaussian":
        return outputs / temperature
    mean, log_variance = outputs.chunk(2, -1)
    return torch.cat([mean, log_variance + torch.tensor(temperature).log()], -1)


def _check_task(owner: str, task: str) -> None:
    if task not in ("classification", "multilabel", "gaussian"):
        raise ValueError(
            f"{owner}: task is {task!r}, expected classification, multilabel or gaussian, whose outputs hold an "
            'uncertainty; train the head with task="gaussian" to have one for a regression.'
        )
