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
from collections.abc import Callable, Mapping
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
    loss = loss_value(task, Point(outputs.T), target, class_weight)
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
    return uncertainty_value(task, Point(outputs.T), temperature)


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


class Point:
    """Head outputs as columns, `(width, ..., B)`, and their softmax or sigmoid: computed once, used by every formula.

    There are few columns and many rows: a softmax along short rows takes a CPU twenty times as long.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs
        self._known: dict[tuple[str, float], Tensor] = {}

    def scaled(self, temperature: float) -> Tensor:
        return _unscaled(self.outputs, temperature)

    def log_softmax(self, temperature: float = 1.0) -> Tensor:
        return self._once("log", temperature, lambda: self.scaled(temperature).log_softmax(0))

    def softmax(self, temperature: float = 1.0) -> Tensor:
        return self._once("softmax", temperature, lambda: self.log_softmax(temperature).exp())

    def mean_log(self, temperature: float = 1.0) -> Tensor:
        """sum q log q, the negative entropy."""
        return self._once(
            "mean", temperature, lambda: (self.softmax(temperature) * self.log_softmax(temperature)).sum(0)
        )

    def excess(self, temperature: float = 1.0) -> Tensor:
        """k = log q - sum q log q."""
        return self._once("k", temperature, lambda: self.log_softmax(temperature) - self.mean_log(temperature))

    def sigmoid(self, temperature: float = 1.0) -> Tensor:
        return self._once("sigmoid", temperature, lambda: self.scaled(temperature).sigmoid())

    def columns(self, target: Tensor) -> Tensor:
        """A target `(B,)` or `(B, C)` as columns, ready to broadcast against the outputs."""

        def compute() -> Tensor:
            y = as_matrix(target).to(self.outputs.dtype).T.contiguous()
            return y if self.outputs.dim() == 2 else y.unsqueeze(1)

        return self._once("target", 1.0, compute)

    def one_hot(self, target: Tensor) -> Tensor:
        """As bool."""
        classes = torch.arange(self.outputs.shape[0], device=target.device)
        return target == classes.view((-1,) + (1,) * (self.outputs.dim() - 1))

    def label_weight(self, target: Tensor, class_weight: Tensor) -> Tensor:
        return class_weight.to(self.outputs.dtype)[target.clamp(0, self.outputs.shape[0] - 1)]

    def _once(self, name: str, temperature: float, compute: Callable[[], Tensor]) -> Tensor:
        key = name, temperature
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def loss_value(task: Task, at: Point, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """The loss, `(..., B)`. Rows with an ignored label are the caller's to mask, here and in the derivatives."""
    if task == "classification":
        log_p = at.log_softmax()
        label = target.clamp(0, log_p.shape[0] - 1).expand(log_p.shape[1:])
        loss = -log_p.gather(0, label[None])[0]
        return loss if class_weight is None else loss * at.label_weight(target, class_weight)
    y = at.columns(target)
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(at.outputs, y.expand_as(at.outputs), reduction="none").sum(0)
    if task == "regression":
        return (at.outputs - y).square().sum(0)
    mean, log_variance = split_gaussian(at.outputs, 0)
    return 0.5 * ((mean - y).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)).sum(0)


def loss_slope(task: Task, at: Point, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """d loss / d outputs."""
    if task == "classification":
        slope = torch.add(at.softmax(), at.one_hot(target), alpha=-1)
        return slope if class_weight is None else slope * at.label_weight(target, class_weight)
    y = at.columns(target)
    if task == "multilabel":
        return at.sigmoid() - y
    if task == "regression":
        return 2 * (at.outputs - y)
    mean, log_variance = split_gaussian(at.outputs, 0)
    error, precision = mean - y, (-log_variance).exp()
    return torch.cat([error * precision, 0.5 * (1 - error.square() * precision) * _inside(at.outputs)])


def loss_curvature(task: Task, at: Point, target: Tensor, t: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """(d^2 loss / d outputs^2) t."""
    if task == "classification":
        pt = at.softmax() * t
        curvature = torch.addcmul(pt, at.softmax(), pt.sum(0), value=-1)
        return curvature if class_weight is None else curvature * at.label_weight(target, class_weight)
    if task == "multilabel":
        p = at.sigmoid()
        return p * (1 - p) * t
    if task == "regression":
        return 2 * t
    mean, log_variance = split_gaussian(at.outputs, 0)
    error, precision = mean - at.columns(target), (-log_variance).exp()
    inside = _inside(at.outputs)
    t_mean, t_log = t.chunk(2)
    t_log = t_log * inside
    h_mean = precision * (t_mean - error * t_log)
    h_log = precision * error * (0.5 * error * t_log - t_mean)
    return torch.cat([h_mean, h_log * inside])


def uncertainty_value(task: Task, at: Point, temperature: float = 1.0) -> Tensor:
    """The uncertainty, `(..., B)`."""
    if task == "classification":
        return -at.mean_log(temperature)
    if task == "multilabel":
        x = at.scaled(temperature)
        return (F.softplus(x) - x * at.sigmoid(temperature)).sum(0)
    if task == "regression":
        return at.outputs.sum(0) * 0.0
    _, log_variance = split_gaussian(at.outputs, 0)
    return 0.5 * (log_variance + math.log(2 * math.pi * math.e)).sum(0)


def uncertainty_slope(task: Task, at: Point, temperature: float = 1.0) -> Tensor:
    """d uncertainty / d outputs."""
    if task == "classification":
        return at.softmax(temperature) * at.excess(temperature) * (-1 / temperature)
    if task == "multilabel":
        x, q = at.scaled(temperature), at.sigmoid(temperature)
        return x * q * (-x).sigmoid() * (-1 / temperature)
    if task == "regression":
        return torch.zeros_like(at.outputs)
    inside = _inside(at.outputs)
    return torch.cat([torch.zeros_like(inside), 0.5 * inside])


def uncertainty_curvature(task: Task, at: Point, t: Tensor, temperature: float = 1.0) -> Tensor:
    """(d^2 uncertainty / d outputs^2) t; zero for both regressions."""
    if task == "classification":
        q, k = at.softmax(temperature), at.excess(temperature)
        qt = q * t
        inner = torch.addcmul((qt * k).sum(0), t - qt.sum(0), 1 + k, value=-1)
        return _unscaled(q * inner, temperature**2)
    if task == "multilabel":
        x, q = at.scaled(temperature), at.sigmoid(temperature)
        return _unscaled(q * (q - 1) * (1 + x * (1 - 2 * q)) * t, temperature**2)
    return torch.zeros_like(t)


def labelled(task: Task, target: Tensor | None, num_outputs: int, ignore_index: int = IGNORE_INDEX) -> Tensor | None:
    """`(B,)` bool: rows whose label counts. None where every row does."""
    if task != "classification" or target is None:
        return None
    valid = (target >= 0) & (target < num_outputs)
    return valid & (target != ignore_index) if 0 <= ignore_index < num_outputs else valid


def as_matrix(target: Tensor) -> Tensor:
    return target[:, None] if target.dim() == 1 else target


def split_gaussian(outputs: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Means and clamped log-variances, halves of `dim`."""
    mean, log_variance = outputs.chunk(2, dim)
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


def _unscaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x / scale


def _inside(outputs: Tensor) -> Tensor:
    log_variance = outputs.chunk(2)[1]
    return (log_variance.abs() <= LOG_VARIANCE_LIMIT).to(outputs.dtype)
