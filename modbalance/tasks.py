r"""What a task is: head width, loss, uncertainty and their derivatives with respect to the head's outputs.

| task | target | width | loss per sample | uncertainty per sample, nats |
|---|---|---|---|---|
| `classification` | `(B,)` int64 | C | cross-entropy | entropy of softmax(s/T) |
| `multilabel` | `(B, C)` in [0, 1] | C | binary cross-entropy, summed over labels | binary entropies, summed |
| `regression` | `(B,)` or `(B, C)` | C | squared error, summed over targets | 0: the variance is constant |
| `gaussian` | as regression | 2C: means, log-variances | negative log-likelihood, summed | Gaussian entropy, summed |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.presence import check_finite, select, upcast

__all__ = ["Task", "output_width", "prediction_variance", "task_loss", "task_uncertainty"]

Task = Literal["classification", "multilabel", "regression", "gaussian"]

LOG_VARIANCE_LIMIT = 10.0
IGNORE_INDEX = -100


def output_width(task: Task, num_outputs: int) -> int:
    """Width of a head's output: C, or 2C (means, then log-variances) for `gaussian`."""
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
    check_target("task_loss", task, target, len(outputs), outputs.shape[-1] // output_width(task, 1))
    if task == "classification":
        classes = outputs.shape[-1]
        label = target.clamp(0, classes - 1)
        loss = -outputs.log_softmax(-1).gather(-1, label[:, None]).squeeze(-1)
        if class_weight is not None:
            loss = loss * class_weight.to(loss.dtype)[label]
        return select(loss, (target != ignore_index) & (target == label))
    target = as_matrix(target).to(outputs.dtype)
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(outputs, target, reduction="none").sum(-1)
    if task == "regression":
        return (outputs - target).square().sum(-1)
    mean, log_variance = split_gaussian(outputs)
    return 0.5 * ((mean - target).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)).sum(-1)


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
    if task == "classification":
        log_q = (outputs / temperature).log_softmax(-1)
        return -(log_q.exp() * log_q).sum(-1)
    if task == "multilabel":
        x = outputs / temperature
        return (F.softplus(x) - x * x.sigmoid()).sum(-1)
    if task == "regression":
        return outputs.sum(-1) * 0.0
    _, log_variance = split_gaussian(outputs)
    return 0.5 * (log_variance + math.log(2 * math.pi * math.e)).sum(-1)


def prediction_variance(task: Task, outputs: Tensor) -> Tensor:
    """Variance that a prediction states of itself: p(1-p), or exp(log-variance) for gaussian; `(B, C)`.

    Raises:
        ValueError: the task is `regression`, whose outputs hold no variance.
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


def loss_slope(task: Task, outputs: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """d loss / d outputs, `(B, width)`. Rows with an ignored label are the caller's to mask."""
    if task == "classification":
        one_hot = target[:, None] == torch.arange(outputs.shape[-1], device=outputs.device)
        return _label_weight(outputs, target, class_weight) * (outputs.softmax(-1) - one_hot.to(outputs.dtype))
    target = as_matrix(target).to(outputs.dtype)
    if task == "multilabel":
        return outputs.sigmoid() - target
    if task == "regression":
        return 2 * (outputs - target)
    mean, log_variance = split_gaussian(outputs)
    error, precision = mean - target, (-log_variance).exp()
    return torch.cat([error * precision, 0.5 * (1 - error.square() * precision) * _inside(outputs)], -1)


def loss_curvature(
    task: Task, outputs: Tensor, target: Tensor, t: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """(d^2 loss / d outputs^2) t, `(B, width)`."""
    if task == "classification":
        p = outputs.softmax(-1)
        return _label_weight(outputs, target, class_weight) * p * (t - (p * t).sum(-1, keepdim=True))
    if task == "multilabel":
        p = outputs.sigmoid()
        return p * (1 - p) * t
    if task == "regression":
        return 2 * t
    mean, log_variance = split_gaussian(outputs)
    error, precision = mean - as_matrix(target).to(outputs.dtype), (-log_variance).exp()
    inside = _inside(outputs)
    t_mean, t_log = t.chunk(2, -1)
    t_log = t_log * inside
    h_mean = precision * (t_mean - error * t_log)
    h_log = precision * error * (0.5 * error * t_log - t_mean)
    return torch.cat([h_mean, h_log * inside], -1)


def uncertainty_slope(task: Task, outputs: Tensor, temperature: float = 1.0) -> Tensor:
    """d uncertainty / d outputs, `(B, width)`."""
    if task == "classification":
        log_q = (outputs / temperature).log_softmax(-1)
        q = log_q.exp()
        return q * ((q * log_q).sum(-1, keepdim=True) - log_q) / temperature
    if task == "multilabel":
        x = outputs / temperature
        return -x * x.sigmoid() * (-x).sigmoid() / temperature
    if task == "regression":
        return torch.zeros_like(outputs)
    inside = _inside(outputs)
    return torch.cat([torch.zeros_like(inside), 0.5 * inside], -1)


def uncertainty_curvature(task: Task, outputs: Tensor, t: Tensor, temperature: float = 1.0) -> Tensor:
    """(d^2 uncertainty / d outputs^2) t, `(B, width)`; zero for both regressions."""
    if task == "classification":
        log_q = (outputs / temperature).log_softmax(-1)
        q = log_q.exp()
        k = log_q - (q * log_q).sum(-1, keepdim=True)
        qt = (q * t).sum(-1, keepdim=True)
        qkt = (q * k * t).sum(-1, keepdim=True)
        return q * (qkt - (t - qt) * (1 + k)) / temperature**2
    if task == "multilabel":
        x = outputs / temperature
        q = x.sigmoid()
        return q * (q - 1) * (1 + x * (1 - 2 * q)) * t / temperature**2
    return torch.zeros_like(t)


def labelled(task: Task, target: Tensor | None, num_outputs: int, ignore_index: int = IGNORE_INDEX) -> Tensor | None:
    """`(B,)` bool: rows whose label counts. None where every row does."""
    if task != "classification" or target is None:
        return None
    return (target != ignore_index) & (target >= 0) & (target < num_outputs)


def as_matrix(target: Tensor) -> Tensor:
    return target[:, None] if target.dim() == 1 else target


def split_gaussian(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Means and clamped log-variances, `(B, C)` each."""
    mean, log_variance = outputs.chunk(2, -1)
    return mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


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


def _label_weight(outputs: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor | float:
    if class_weight is None:
        return 1.0
    return class_weight.to(outputs.dtype)[target.clamp(0, outputs.shape[-1] - 1)][:, None]


def _inside(outputs: Tensor) -> Tensor:
    log_variance = outputs.chunk(2, -1)[1]
    return (log_variance.abs() <= LOG_VARIANCE_LIMIT).to(outputs.dtype)
