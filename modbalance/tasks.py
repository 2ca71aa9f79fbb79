r"""What a task is: head width, loss, uncertainty and their derivatives with respect to the head's outputs.

| task | target | width | loss per sample | uncertainty per sample, nats |
|---|---|---|---|---|
| `classification` | `(B,)` int64, or probabilities `(B, C)` | C | cross-entropy | entropy of softmax(s/T) |
| `multilabel` | `(B, C)` in [0, 1] | C | binary cross-entropy, summed over labels | binary entropies, summed |
| `regression` | `(B,)` or `(B, C)` | C | squared error, summed over targets | 0: the variance is constant |
| `gaussian` | as regression | 2C: means, log-variances | negative log-likelihood, summed | Gaussian entropy, summed |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.checks import all_finite, assert_on_device, check_finite, readable, traced
from modbalance.presence import select, upcast
from modbalance.task_formulas import HeadOutputs, Task, loss_value, split_gaussian, uncertainty_value

__all__ = ["Task", "output_width", "prediction_variance", "soft_labels", "task_loss", "task_uncertainty"]

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
    if class_weight is not None and not class_weight.is_meta and not bool((class_weight >= 0).all()):
        raise ValueError(
            f"{owner}: class_weight holds {class_weight.min().item()}, expected numbers of at least 0; correct them."
        )


def check_target(owner: str, task: Task, target: Tensor, batch: int, num_outputs: int) -> None:
    """Type and shape of the target, or one error that names what came and what to pass."""
    if not isinstance(target, Tensor):
        raise TypeError(
            f"{owner}: target is a {type(target).__name__}, expected a tensor; pass torch.as_tensor(target)."
        )
    floating, shape = target.is_floating_point(), tuple(target.shape)
    if task == "classification":
        fits = shape == (batch, num_outputs) if floating else target.dtype == torch.int64 and shape == (batch,)
    else:
        column = task != "multilabel" and num_outputs == 1
        fits = floating and (shape == (batch, num_outputs) or (column and shape == (batch,)))
    if fits:
        return
    # Only here: writing a size out would have torch.compile make a graph for each.
    if task == "classification":
        want = f"class indices torch.int64 ({batch},) or probabilities, floating point ({batch}, {num_outputs}),"
    else:
        want = f"floating point ({batch}, {num_outputs})" + (f" or ({batch},)" if column else "")
    raise ValueError(
        f"{owner}: target is a {target.dtype} tensor {shape}, expected {want} for task={task!r} with "
        f"num_outputs={num_outputs}; {_remedy(task, target, batch, num_outputs)}."
    )


def _remedy(task: Task, target: Tensor, batch: int, num_outputs: int) -> str:
    """What to type in place of a target that does not fit."""
    shape, floating = tuple(target.shape), target.is_floating_point()
    if not shape or shape[0] != batch:
        return f"the features have {batch} rows: pass the target of the same samples"
    if task == "classification":
        as_long = "" if target.dtype == torch.int64 else ".long()"
        if shape == (batch,):
            return "pass target.long(), or task='regression' if these are no class indices"
        if shape == (batch, 1):
            return f"pass target.squeeze(1){as_long}"
        if shape == (batch, num_outputs):
            return (
                "pass target.argmax(1) if it is one-hot, or task='multilabel' and target.float() for several labels"
            )
        return f"pass one label a sample, or build the component with num_outputs={shape[-1]}"
    wanted = "" if floating else ".float()"
    if shape == (batch,) and num_outputs > 1 and not floating:
        return f"pass task='classification' if these are class indices, or one row of {num_outputs} targets a sample"
    if shape == (batch,) and num_outputs > 1:
        return f"pass {num_outputs} targets a sample, or build the component with num_outputs=1"
    if shape == (batch, num_outputs) or (shape == (batch,) and num_outputs == 1):
        return "pass target.float()"
    if len(shape) == 2:
        return f"build the component with num_outputs={shape[1]}" + (", and pass target.float()" if wanted else "")
    return f"reshape it with target.reshape({batch}, {num_outputs}){wanted}"


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


def check_values(
    owner: str,
    task: Task,
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    target: Tensor | None,
    num_outputs: int,
    ignore_index: int,
    validate: bool = False,
) -> None:
    """Finite features where present and a target in range: on a CPU always, elsewhere with `validate`, which waits.

    Without it a device checks the labels itself; its features by `check_loss`.
    """
    first = next(iter(features.values()))
    if validate or readable(first):
        check_finite(owner, features, masks)
    if target is not None:
        check_labels(
            owner, task, target, num_outputs, ignore_index, torch.stack(list(masks.values())).any(0), validate
        )


def check_labels(
    owner: str,
    task: Task,
    target: Tensor,
    num_outputs: int,
    ignore_index: int = IGNORE_INDEX,
    counted: Tensor | None = None,
    validate: bool = False,
) -> bool:
    """The target of the rows that are counted is in range, as `check_values` checks.

    Whether every row is known to have a label that counts: on a CPU, where looking at values is free.
    """
    if not target.numel() or (traced(target) and not validate):
        return False
    looks = validate or readable(target)
    if task == "classification" and not target.is_floating_point():
        low, high = (int(x) for x in target.aminmax()) if looks else (0, num_outputs)
        if low >= 0 and high < num_outputs:
            return not low <= ignore_index <= high
        bad = (target != ignore_index) & ((target < 0) | (target >= num_outputs))
        want = f"classes 0 to {num_outputs - 1} or ignore_index={ignore_index}"
        remedy = "correct the labels"
        if looks and high >= num_outputs:
            remedy += f", or build it with num_outputs={high + 1}"
    elif task in ("classification", "multilabel"):
        least, most = (x.item() for x in target.aminmax()) if looks and task == "multilabel" else (0.0, math.inf)
        if least >= 0 and most <= 1:
            return True
        bad = ~((target >= 0) & (target <= 1))
        want, remedy = "values in [0, 1]", "clean the labels"
    elif looks and all_finite(target):
        return True
    else:
        bad = ~torch.isfinite(target)
        want, remedy = "finite numbers", "clean the labels"
    if counted is not None:
        bad = select(bad, counted).bool()
    if not looks:
        assert_on_device(
            ~bad.any(), f"{owner}: target holds a value out of range, expected {want}; clean the labels."
        )
    elif bool(bad.any()):
        raise ValueError(f"{owner}: target holds {target[bad].flatten()[0].item()}, expected {want}; {remedy}.")
    elif task == "classification" and target.is_floating_point():
        _check_sums(owner, target if counted is None else target[counted])
    return False


def _check_sums(owner: str, target: Tensor) -> None:
    sums = upcast(target).sum(1)
    off = ~((sums - 1).abs() < 1e-2) & (sums != 0)
    if bool(off.any()):
        raise ValueError(
            f"{owner}: target has a row of probabilities that sums to {sums[off][0].item():.3g}, expected 1, or 0 to "
            "leave the row out; normalise the rows, or build it with task='multilabel' for several labels a sample."
        )


def check_loss(owner: str, loss: Tensor, features: Mapping[str, Tensor]) -> None:
    """On a device, where `check_values` did not look: a NaN loss is an error there. float16 may overflow."""
    if loss.device.type != "cpu" and not any(x.dtype == torch.float16 for x in features.values()):
        assert_on_device(
            ~loss.detach().isnan(),
            f"{owner}: the loss is NaN, so features or target hold NaN or inf; build it with validate=True, which "
            "names them.",
        )
