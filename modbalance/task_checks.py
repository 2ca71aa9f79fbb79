"""Checks of a task and its target: one clear error that names what came, what was expected and what to pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from modbalance.checks import all_finite, assert_on_device, check_finite, check_size, readable, traced
from modbalance.presence import select, upcast
from modbalance.task_formulas import Task

IGNORE_INDEX = -100


def check_task(
    owner: str, task: str, num_outputs: int, class_weight: Tensor | None = None, ignore_index: int = IGNORE_INDEX
) -> None:
    if task not in get_args(Task):
        raise ValueError(
            f"{owner}: task is {task!r}, expected one of {', '.join(get_args(Task))}; pick the one that fits "
            "your target."
        )
    check_size(owner, "pass the number of classes, labels or targets", num_outputs=num_outputs)
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise ValueError(
            f"{owner}: ignore_index is {ignore_index!r}, expected an int; pass a label that no class has, such as "
            f"{IGNORE_INDEX}."
        )
    if class_weight is not None and not isinstance(class_weight, Tensor):
        raise TypeError(
            f"{owner}: class_weight is a {type(class_weight).__name__}, expected a tensor ({num_outputs},); pass "
            "torch.tensor(class_weight)."
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
