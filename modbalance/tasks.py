r"""What a task is: head width, loss, uncertainty and their derivatives with respect to the head's outputs.

| task | target | width | loss per sample | uncertainty per sample, nats |
|---|---|---|---|---|
| `classification` | `(B,)` int64 | C | cross-entropy | entropy of softmax(s/T) |
| `multilabel` | `(B, C)` in [0, 1] | C | binary cross-entropy, summed over labels | binary entropies, summed |
| `regression` | `(B,)` or `(B, C)` | C | squared error, summed over targets | 0: the variance is constant |
| `gaussian` | as regression | 2C: means, log-variances | negative log-likelihood, summed | Gaussian entropy, summed |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from modbalance.checks import check_finite
from modbalance.presence import select, upcast
from modbalance.task_formulas import HeadOutputs, Task, loss_value, split_gaussian, uncertainty_value

__all__ = ["Task", "output_width", "prediction_variance", "task_loss", "task_uncertainty"]

IGNORE_INDEX = -100


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

    classification $-w_y \log p_y$; multilabel $-\sum_c y_c \log p_c + (1-y_c)\log(1-p_c)$;
    regression $\lVert s - y \rVert^2$; gaussian $\tfrac12\sum_c e^{-r_c}(\mu_c-y_c)^2 + r_c + \log 2\pi$
    with the log-variance $r$ clamped to [-10, 10], its derivative zero outside.

    Args:
        task: one of the four tasks.
        outputs: logits, predictions, or means and log-variances: `(B, width)`.
        target: `(B,)` int64 for classification, `(B, C)` in [0, 1] for multilabel, `(B,)` or `(B, C)` else.
        class_weight: weight of each class, `(C,)`; classification only.
        ignore_index: label of the rows that count as absent; classification only. So does any other label
            outside 0 … C-1, which is never read out of bounds.

    Returns:
        `(B,)`, 0 for ignored rows.

    Raises:
        ValueError: the target does not fit the task and the outputs.

    Examples:
        >>> task_loss("regression", torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
        tensor([0., 4.])
    """
    outputs = upcast(outputs)
    check_target("task_loss", task, target, outputs.shape[0], outputs.shape[-1] // output_width(task, 1))
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
    valid = (target >= 0) & (target < num_outputs)
    return valid & (target != ignore_index) if 0 <= ignore_index < num_outputs else valid


def check_task(owner: str, task: str, num_outputs: int, class_weight: Tensor | None = None) -> None:
    if task not in get_args(Task):
        raise ValueError(
            f"{owner}: task is {task!r}, expected one of {', '.join(get_args(Task))}; pick the one that fits "
            "your target."
        )
    if not isinstance(num_outputs, int) or isinstance(num_outputs, bool) or num_outputs < 1:
        raise ValueError(
            f"{owner}: num_outputs is {num_outputs!r}, expected a positive int; "
            "pass the number of classes, labels or targets."
        )
    if class_weight is not None and (task != "classification" or class_weight.shape != (num_outputs,)):
        raise ValueError(
            f"{owner}: class_weight has shape {tuple(class_weight.shape)} with task={task!r}, "
            f'expected ({num_outputs},) with task="classification"; pass one weight a class or leave it out.'
        )


def check_target(owner: str, task: Task, target: Tensor, batch: int, num_outputs: int) -> None:
    if task == "classification":
        if target.dtype != torch.int64 or target.shape != (batch,):
            raise ValueError(
                f"{owner}: target is a {target.dtype} tensor {tuple(target.shape)}, expected class indices "
                f'torch.int64 ({batch},) for task="classification"; pass target.long() or choose the task '
                "that fits."
            )
        return
    shapes: list[tuple[int, ...]] = [(batch, num_outputs)]
    if task != "multilabel" and num_outputs == 1:
        shapes.append((batch,))
    if tuple(target.shape) not in shapes or not target.is_floating_point():
        raise ValueError(
            f"{owner}: target is a {target.dtype} tensor {tuple(target.shape)}, expected floating point "
            f"{' or '.join(map(str, shapes))} for task={task!r} with num_outputs={num_outputs}; "
            "reshape or convert it, or choose the task that fits."
        )


def check_outputs(owner: str, what: str, outputs: Tensor, task: Task, num_outputs: int, batch: int) -> None:
    width = output_width(task, num_outputs)
    if outputs.shape != (batch, width):
        raise ValueError(
            f"{owner}: {what} returned shape {tuple(outputs.shape)}, expected ({batch}, {width}) for task={task!r} "
            f"with num_outputs={num_outputs}; return one row of head outputs a sample."
        )


def check_values(
    owner: str,
    task: Task,
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    target: Tensor | None,
    num_outputs: int,
    ignore_index: int,
) -> None:
    """For `validate=True`: finite features where present, labels in range. Synchronises the device."""
    check_finite(owner, features, masks)
    if target is None:
        return
    if task == "classification":
        bad = (target != ignore_index) & ((target < 0) | (target >= num_outputs))
        want = f"classes 0 to {num_outputs - 1} or ignore_index={ignore_index}"
    elif task == "multilabel":
        bad = ~((target >= 0) & (target <= 1))
        want = "values in [0, 1]"
    else:
        bad = ~torch.isfinite(target)
        want = "finite numbers"
    if bool(bad.any()):
        raise ValueError(
            f"{owner}: target holds {target[bad].flatten()[0].item()}, expected {want}; clean the labels."
        )
