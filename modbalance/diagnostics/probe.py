"""What features hold of the target: linear probes, each sample judged by one that has not seen it."""

from __future__ import annotations

import torch
from torch import Tensor

from modbalance.presence import select, upcast
from modbalance.task_checks import check_target
from modbalance.task_formulas import LOG_VARIANCE_LIMIT, HeadOutputs, as_matrix, loss_slope, loss_value
from modbalance.tasks import Task

__all__ = ["probe_outputs"]


LIMIT = 5.0  # standard deviations: a normal column meets it once in two million values


def probe_outputs(
    task: Task,
    features: Tensor,
    target: Tensor,
    num_outputs: int,
    *,
    ridge: float = 0.01,
    folds: int = 5,
) -> Tensor:
    r"""Outputs of linear probes on every sample, each from a probe fitted without that sample's fold.

    $$\min_{W, b}\; \operatorname{mean}_i\,\ell(W x_i + b, y_i) + \rho\,\lVert W \rVert^2$$

    with x standardised by the mean and deviation of the fold's own training part, within 5 deviations of its mean, so
    that a unit which is all but dead there cannot explode where it is alive. Regression and gaussian in closed form,
    the latter with the variance of the residuals; classification and multilabel by L-BFGS, 50 steps at most. The
    folds are drawn by a fixed seed: the same input gives the same output.

    Args:
        task: one of the four tasks.
        features: `(N, D)`.
        target: as for `task_loss`, without ignored rows.
        num_outputs: C, the number of classes, labels or targets.
        ridge: rho, > 0. 0.01 is ours.
        folds: into how many parts the samples are split; 5 is ours.

    Returns:
        `(N, width)`.

    Raises:
        ValueError: fewer than two samples, or the target does not fit the task.

    Examples:
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> outputs = probe_outputs("classification", x, (x[:, 0] > 0).long(), 2)
        >>> outputs.shape, (outputs.argmax(1) == (x[:, 0] > 0)).float().mean()
        (torch.Size([20, 2]), tensor(0.9500))
    """
    check_target("probe_outputs", task, target, len(features), num_outputs)
    if len(features) < 2:
        raise ValueError(
            f"probe_outputs: features has {len(features)} rows, expected at least two; pass more held-out samples."
        )
    x = upcast(features)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    pieces = order.tensor_split(min(folds, len(x)))
    outputs = []
    for i, held_out in enumerate(pieces):
        rest = torch.cat([piece for j, piece in enumerate(pieces) if j != i])
        seen, unseen = _standardise(x[rest], x[held_out])
        if task in ("classification", "multilabel"):
            outputs.append(_logits(task, seen, target[rest], unseen, num_outputs, ridge))
        else:
            outputs.append(_least_squares(task, seen, as_matrix(target[rest]).to(seen), unseen, ridge))
    return torch.cat(outputs)[order.argsort()]


def _standardise(seen: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
    """Both by mean and deviation of `seen`, its outliers drawn in, and within `LIMIT`; what is constant becomes 0."""
    inner = seen
    for _ in range(20):
        mean, scale = inner.mean(0), inner.std(0, unbiased=False)
        drawn_in = inner.clamp(mean - LIMIT * scale, mean + LIMIT * scale)
        if torch.equal(drawn_in, inner):
            break
        inner = drawn_in
    alive = scale > 8 * torch.finfo(seen.dtype).eps * inner.abs().amax(0)  # more than rounding
    scale = torch.where(alive, scale, 1.0)
    first, second = (select((x - mean) / scale, alive.expand_as(x)).clamp(-LIMIT, LIMIT) for x in (seen, unseen))
    return first, second


def _least_squares(task: Task, seen: Tensor, y: Tensor, unseen: Tensor, ridge: float) -> Tensor:
    centre = y.mean(0)
    gram = seen.T @ seen / len(seen) + ridge * torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
    weight = torch.linalg.solve(gram, seen.T @ (y - centre) / len(seen))
    mean: Tensor = unseen @ weight + centre
    if task == "regression":
        return mean
    variance = (y - centre - seen @ weight).square().mean(0)
    log_variance = variance.log().clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
    return torch.cat([mean, log_variance.expand_as(mean)], 1)


def _logits(task: Task, seen: Tensor, y: Tensor, unseen: Tensor, num_outputs: int, ridge: float) -> Tensor:
    """The gradient is written out: autograd would not run inside `torch.inference_mode`."""
    seen, unseen = (torch.cat([x, x.new_ones(len(x), 1)], 1) for x in (seen, unseen))
    weight = seen.new_zeros(num_outputs, seen.shape[1])
    decay = torch.cat([seen.new_full((seen.shape[1] - 1,), ridge), seen.new_zeros(1)])  # the bias is free
    solver = torch.optim.LBFGS([weight], max_iter=50, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def objective() -> float:
        at = HeadOutputs(weight @ seen.T)
        weight.grad = loss_slope(task, at, y) @ seen / len(seen) + 2 * decay * weight
        return (loss_value(task, at, y).mean() + (decay * weight.square()).sum()).item()

    with torch.no_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return unseen @ weight.T
