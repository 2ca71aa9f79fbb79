"""Does a prediction know how sure it may be?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modbalance.presence import upcast
from modbalance.task_checks import check_target
from modbalance.task_formulas import as_matrix, split_gaussian
from modbalance.tasks import Task, output_width

__all__ = ["calibration_error", "gaussian_coverage"]


def calibration_error(task: Task, outputs: Tensor, target: Tensor, *, bins: int = 15) -> float:
    r"""Expected calibration error: how far confidence is from accuracy.

    $$ECE = \sum_b \frac{n_b}{N}\,\left| \text{accuracy}_b - \text{confidence}_b \right|$$

    over bins of equal width, $((b-1)/B, b/B]$, of the confidence. classification: the confidence is the greatest
    probability, accuracy that of its class. multilabel: every label counts by itself, its probability against how
    often it is there.

    Args:
        task: `classification` or `multilabel`.
        outputs: logits, `(N, C)`.
        target: as for `task_loss`, without ignored rows.
        bins: B; 15 is usual.

    Returns:
        a number in [0, 1], 0 is best; NaN for no samples.

    Raises:
        ValueError: the task has no confidence, or the target does not fit it.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, eq. 3.

    Examples:
        >>> round(calibration_error("classification", torch.tensor([[9.0, -9.0]] * 2), torch.tensor([0, 1])), 3)
        0.5
    """
    if task not in ("classification", "multilabel"):
        raise ValueError(
            f"calibration_error: task is {task!r}, expected classification or multilabel; use gaussian_coverage "
            "for predictions that state a variance."
        )
    check_target("calibration_error", task, target, len(outputs), outputs.shape[-1])
    if not len(outputs):
        return float("nan")
    if task == "classification":
        target = target.argmax(-1) if target.is_floating_point() else target
        confidence, label = upcast(outputs).softmax(-1).max(-1)
        right = (label == target).to(confidence.dtype)
    else:
        confidence, right = upcast(outputs).sigmoid().flatten(), upcast(target).flatten()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = confidence.new_zeros(bins).index_add(0, bin_of, right - confidence)
    return (gap.abs().sum() / len(confidence)).item()


def gaussian_coverage(outputs: Tensor, target: Tensor, *, level: float = 0.9) -> float:
    r"""Share of the targets inside the central interval that a Gaussian prediction gives a chance of `level`.

    $$\operatorname{mean}_{i,c}\,\bigl[\,\lvert y_{ic} - \mu_{ic} \rvert \le \sqrt 2\,\operatorname{erf}^{-1}(q)\,
      \sigma_{ic}\,\bigr]$$

    Args:
        outputs: means and log-variances, `(N, 2C)`.
        target: `(N,)` or `(N, C)`.
        level: q, between 0 and 1.

    Returns:
        `level` for calibrated predictions, less for over-confident ones; NaN for no samples.

    Raises:
        ValueError: the target does not fit the outputs, or `level` is no probability.

    Examples:
        >>> gaussian_coverage(torch.zeros(4, 2), torch.tensor([0.0, 1.0, -1.6, 2.0]))
        0.75
    """
    if not 0 < level < 1:
        raise ValueError(f"gaussian_coverage: level is {level}, expected a probability; pass one between 0 and 1.")
    check_target(
        "gaussian_coverage", "gaussian", target, len(outputs), outputs.shape[-1] // output_width("gaussian", 1)
    )
    mean, log_variance = split_gaussian(upcast(outputs))
    width = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
    inside = (as_matrix(target).to(mean) - mean).abs() <= width * (0.5 * log_variance).exp()
    return inside.double().mean().item()
