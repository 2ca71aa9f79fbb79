r"""What a task is: head width, loss, uncertainty and their derivatives with respect to the head's outputs.

| task | target | width | loss per sample | uncertainty per sample, nats |
|---|---|---|---|---|
| `classification` | `(B,)` int64, or probabilities `(B, C)` | C | cross-entropy | entropy of softmax(s/T) |
| `multilabel` | `(B, C)` in [0, 1] | C | binary cross-entropy, summed over labels | binary entropies, summed |
| `regression` | `(B,)` or `(B, C)` | C | squared error, summed over targets | 0: the variance is constant |
| `gaussian` | as regression | 2C: means, log-variances | negative log-likelihood, summed | Gaussian entropy, summed |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.presence import select, upcast
from modbalance.task_checks import IGNORE_INDEX, check_labels, check_target
from modbalance.task_formulas import HeadOutputs, Task, loss_value, split_gaussian, uncertainty_value

__all__ = ["Task", "output_width", "prediction_variance", "soft_labels", "task_loss", "task_uncertainty"]


def output_width(task: Task, num_outputs: int) -> int:
    """Width of a head's output: C, or 2C (means, then log-variances) for `gaussian`.

    Args:
        task: one of the four tasks.
        num_outputs: C, the number of classes, labels or targets.

    Returns:
        the number of columns of an output.

    Examples:
        >>> output_width("classification", 3), output_width("gaussian", 3)
        (3, 6)
    """
    return 2 * num_outputs if task == "gaussian" else num_outputs


def task_loss(
    task: Task,
    outputs: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    r"""Loss of each sample, summed over labels or targets.

    classification $-w_y \log p_y$, or $-\sum_c w_c y_c \log p_c$ of probabilities; multilabel
    $-\sum_c y_c \log p_c + (1-y_c)\log(1-p_c)$; regression $\lVert s - y \rVert^2$; gaussian
    $\tfrac12\sum_c e^{-r_c}(\mu_c-y_c)^2 + r_c + \log 2\pi$
    with the log-variance $r$ clamped to [-10, 10], its derivative zero outside.

    Args:
        task: one of the four tasks.
        outputs: logits, predictions, or means and log-variances: `(B, width)`.
        target: `(B,)` int64 or probabilities `(B, C)` for classification, `(B, C)` in [0, 1] for multilabel, `(B,)`
            or `(B, C)` else.
        class_weight: weight of each class, `(C,)`; classification only.
        ignore_index: label of the rows that count as absent; classification only, where a row of probabilities that
            are all 0 counts as absent, too.

    Returns:
        `(B,)`, 0 for ignored rows.

    Raises:
        ValueError: the target does not fit the task and the outputs, or holds a label out of range (on a GPU an
            assertion on the device).

    Examples:
        >>> task_loss("regression", torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
        tensor([0., 4.])
    """
    outputs = upcast(outputs)
    num_outputs = outputs.shape[-1] // output_width(task, 1)
    check_target("task_loss", task, target, outputs.shape[0], num_outputs)
    check_labels("task_loss", task, target, num_outputs, ignore_index)
    return masked_loss(task, outputs, target, class_weight, ignore_index)


def masked_loss(
    task: Task, outputs: Tensor, target: Tensor, class_weight: Tensor | None, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """`task_loss` of a target that was checked."""
    loss = loss_value(task, HeadOutputs(outputs.T), target, class_weight)
    valid = labelled(task, target, outputs.shape[-1], ignore_index)
    return loss if valid is None else select(loss, valid)


def task_uncertainty(task: Task, outputs: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Uncertainty of each prediction: the entropy in nats, summed over labels or targets.

    Args:
        task: one of the four tasks.
        outputs: `(B, width)`.
        temperature: T of softmax(s/T) and sigmoid(s/T), > 0; classification and multilabel only.

    Returns:
        `(B,)`; all 0 for `regression`, whose variance is constant.

    Examples:
        >>> task_uncertainty("classification", torch.zeros(1, 4))
        tensor([1.3863])
    """
    outputs = upcast(outputs)
    return uncertainty_value(task, HeadOutputs(outputs.T), temperature)


def prediction_variance(task: Task, outputs: Tensor) -> Tensor:
    """Variance that a prediction states of itself: p(1-p), or exp(log-variance) for gaussian.

    Args:
        task: `classification`, `multilabel` or `gaussian`.
        outputs: logits, or means and log-variances: `(B, width)`.

    Returns:
        `(B, C)`; for gaussian in the target's units, squared.

    Raises:
        ValueError: the task is `regression`, whose outputs hold no variance.

    Examples:
        >>> prediction_variance("gaussian", torch.tensor([[1.0, 0.0]]))
        tensor([[1.]])
    """
    if task == "regression":
        raise ValueError(
            'prediction_variance: task is "regression", expected a task whose outputs tell a variance; '
            'pass variances of your own or use task="gaussian".'
        )
    outputs = upcast(outputs)
    if task == "gaussian":
        return split_gaussian(outputs)[1].exp()
    p = outputs.softmax(-1) if task == "classification" else outputs.sigmoid()
    return p * (1 - p)


def labelled(task: Task, target: Tensor | None, num_outputs: int, ignore_index: int = IGNORE_INDEX) -> Tensor | None:
    """`(B,)` bool: rows whose label counts. None where every row does."""
    if task != "classification" or target is None:
        return None
    if target.is_floating_point():
        return target.sum(1) > 0
    valid = (target >= 0) & (target < num_outputs)
    return valid & (target != ignore_index) if 0 <= ignore_index < num_outputs else valid


def soft_labels(
    target: Tensor, num_outputs: int, *, smoothing: float = 0.0, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Class indices as probabilities, smoothed: $y_c = (1 - s)\,[c = y] + s / C$.

    Every component takes them as the target of `classification`, and so a mixture of them (mixup). A row of zeros
    counts as absent.

    Args:
        target: class indices, `(B,)` int64.
        num_outputs: C, the number of classes.
        smoothing: s, from 0 to 1, as `label_smoothing` of `torch.nn.functional.cross_entropy`.
        ignore_index: label of the rows that become zero.

    Returns:
        `(B, C)`, of the default floating-point type.

    Raises:
        ValueError: the target is no class index, or `smoothing` is no probability.

    Source: Szegedy et al., Rethinking the inception architecture, CVPR 2016, section 7.

    Examples:
        >>> soft_labels(torch.tensor([1, -100]), 2, smoothing=0.1)
        tensor([[0.0500, 0.9500],
                [0.0000, 0.0000]])
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"soft_labels: smoothing is {smoothing}, expected a number from 0 to 1; 0.1 is usual.")
    check_target("soft_labels", "classification", target, len(target), num_outputs)
    if target.is_floating_point():
        raise ValueError(
            f"soft_labels: target is a {target.dtype} tensor, expected class indices; these are soft labels already."
        )
    check_labels("soft_labels", "classification", target, num_outputs, ignore_index)
    hot = F.one_hot(target.clamp(0, num_outputs - 1), num_outputs).to(torch.get_default_dtype())
    valid = labelled("classification", target, num_outputs, ignore_index)
    assert valid is not None
    return select((1 - smoothing) * hot + smoothing / num_outputs, valid)


def check_outputs(owner: str, what: str, outputs: Tensor, task: Task, num_outputs: int, batch: int) -> None:
    width = output_width(task, num_outputs)
    if outputs.shape != (batch, width):
        raise ValueError(
            f"{owner}: {what} returned shape {tuple(outputs.shape)}, expected ({batch}, {width}) for task={task!r} "
            f"with num_outputs={num_outputs}; return one row of head outputs a sample."
        )
