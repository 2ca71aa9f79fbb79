r"""Which backend computes the energy gradient-norm penalty, and the checks that all of them share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from modbalance.kernels import analytic, reference, triton_ops
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.placement import autocasts, check_placement, without_autocast
from modbalance.task_checks import IGNORE_INDEX, check_labels, check_target, check_task
from modbalance.tasks import Task, labelled, output_width

Backend = Literal["auto", "triton", "analytic", "reference"]
"""Fused GPU kernel; closed form; automatic differentiation, for any head; `auto` takes the first that can run."""
BACKENDS = {"analytic": analytic.energy_penalty, "reference": reference.linear_energy_penalty}


class EnergyPenalty(NamedTuple):
    """What `energy_penalty` returns, per modality and sample.

    Attributes:
        energy: E, `(M, B)`; 0 where absent.
        penalty: the squared norm of dE/dz, `(M, B)`; 0 where absent.

    Examples:
        >>> EnergyPenalty(energy=torch.zeros(2, 4), penalty=torch.zeros(2, 4)).penalty.shape
        torch.Size([2, 4])
    """

    energy: Tensor
    penalty: Tensor


class Coordination(NamedTuple):
    energy: Tensor  # (M, B)
    gap: Tensor
    penalty: Tensor
    descent: Tensor
    loss: Tensor  # gap + delta penalty + descent


def energy_penalty(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor | None,
    *,
    task: Task = "classification",
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    present: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
    normalize: bool = False,
    backend: str = "auto",
) -> EnergyPenalty:
    r"""Energies of M modalities under linear heads, and the squared norms of their gradients, per sample.

    $$E_i = \alpha\lVert z_i\rVert^2 + \beta\,\ell(W z_i + b, y_i) + \gamma\,u(W z_i + b), \qquad
      P_i = \lVert \partial E_i / \partial z_i \rVert^2$$

    Both are differentiable once with respect to features, weights and biases.

    Args:
        features: M tensors `(B, D_m)`; D may differ. Any floating dtype.
        weights: M head weights `(width, D_m)`; width is C, or 2C for `gaussian`.
        biases: M head biases `(width,)`, or None.
        target: see `modbalance.tasks`; None leaves the loss out of the energy. The triton backend wants class
            indices: for probabilities `auto` takes analytic.
        task: `classification`, `multilabel`, `regression` or `gaussian`.
        alpha: weight of the features' size.
        beta: weight of the loss.
        gamma: weight of the uncertainty.
        temperature: T of the entropy, > 0; classification and multilabel only.
        present: which sample has which modality, bool `(M, B)`; all by default.
        ignore_index: label of the rows that count as absent; classification only.
        class_weight: weight of each class in the loss, `(C,)`; classification only.
        normalize: `||z||^2 / D` in place of `||z||^2`, so that alpha means the same for every D.
        backend: `reference` differentiates twice, `analytic` uses the closed form, `triton` the closed form
            in one kernel; `auto` picks `triton` on a GPU where it can run, else `analytic`. The environment
            variable `MODBALANCE_BACKEND` overrides `auto`.

    Returns:
        energy `(M, B)` and penalty `(M, B)`, float64 if any features are, else float32. Absent rows are 0
        and get no gradient, whatever they hold.

    Raises:
        ValueError: a shape, task or backend does not fit; the message names it and what would.
        RuntimeError: the analytic or triton result is differentiated twice (the reference backend allows it), the
            reference backend meets a loss that is not twice differentiable, or under `triton` a kernel cannot be
            compiled or launched. Under `auto` the analytic path then takes over, for this kernel and device, with
            one warning per process and cause. An error that the device reports later is not caught.

    Source: EBMC (CVPR 2026), energy-guided modality coordination. `normalize` and the per-sample form are
    ours: the mean over present rows is then independent of the batch size.

    Examples:
        >>> z, w, b = torch.tensor([[3.0, 4.0]]), torch.zeros(2, 2), torch.zeros(2)
        >>> energy_penalty([z], [w], [b], torch.tensor([0]), gamma=0.0)
        EnergyPenalty(energy=tensor([[25.6931]]), penalty=tensor([[100.]]))
    """
    num_outputs = _check(features, weights, biases, target, task, present, class_weight)
    every = target is not None and check_labels(
        "energy_penalty", task, target, num_outputs, ignore_index, _somewhere(present)
    )
    name = pick_backend(backend)
    terms = EnergyTerms.of(task, alpha, beta, gamma, temperature, normalize, target, class_weight)
    if torch.compiler.is_compiling():
        # Dynamo refuses a head that two modalities share: one tensor, twice an argument.
        features, weights = [z.view_as(z) for z in features], [w.view_as(w) for w in weights]
        biases = [None if b is None else b.view_as(b) for b in biases]
    if _tries_triton(name, features):
        reason = _unsupported_reason(terms, features, weights, biases)
        if name == "triton" and reason is not None:
            raise ValueError(
                f'energy_penalty: backend is "triton" and cannot run, since {reason}; or pass backend="auto", '
                "which then takes analytic."
            )
        if reason is None:
            return EnergyPenalty(
                *triton_ops.energy(terms, present, ignore_index, features, weights, biases, fall_back=name == "auto")
            )
    kernel = BACKENDS["analytic" if name == "auto" else name]
    mask = None if every else labelled(task, target, num_outputs, ignore_index)
    if present is not None:
        mask = present if mask is None else present & mask
    elif mask is not None:
        mask = mask.expand(len(features), -1)
    dtype = torch.float64 if any(z.dtype == torch.float64 for z in features) else torch.float32
    z, w = [_as(x, dtype) for x in features], [_as(x, dtype) for x in weights]
    b = [x.new_zeros(x.shape[0]) if y is None else _as(y, dtype) for x, y in zip(w, biases, strict=True)]
    if not autocasts(z[0]):
        return EnergyPenalty(*kernel(terms, mask, z, w, b))
    with without_autocast(z[0]):
        return EnergyPenalty(*kernel(terms, mask, z, w, b))


def coordination(
    terms: EnergyTerms,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    present: Tensor | None,
    ignore_index: int,
    delta: float,
    descent: float,
    pull: bool,
    backend: str,
) -> Coordination | None:
    """The terms of `EnergyCoordinator` under fixed linear heads, in two launches and one more for the backward.

    None where the triton backend is not asked for or cannot run: the caller then goes through `energy_penalty`.
    Heads get no gradient. Rows that are absent or have no valid label may hold anything. Without `pull` the gap is 0.
    """
    name = pick_backend(backend)
    if not _tries_triton(name, features):
        return None
    if _unsupported_reason(terms, features, weights, biases) is not None:
        return None
    _check(features, weights, biases, terms.target, terms.task, present, terms.class_weight)
    if torch.compiler.is_compiling():
        features = [z.view_as(z) for z in features]
    weights, biases = [w.detach() for w in weights], [None if b is None else b.detach() for b in biases]
    pooled = (delta + 0.0, descent + 0.0, pull)
    return Coordination(
        *triton_ops.energy(
            terms, present, ignore_index, features, weights, biases, pooled=pooled, fall_back=name == "auto"
        )
    )


def _tries_triton(name: str, features: Sequence[Tensor]) -> bool:
    """On a CPU the kernels are interpreted: for tests, and only when asked for by name."""
    return name == "triton" or (name == "auto" and features[0].device.type != "cpu")


def _unsupported_reason(
    terms: EnergyTerms, features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> str | None:
    if terms.task == "classification" and terms.target is not None and terms.target.is_floating_point():
        return "the labels are probabilities; pass class indices"
    return triton_ops.unsupported_reason(features, weights, biases)


def _somewhere(present: Tensor | None) -> Tensor | None:
    return None if present is None else present.any(0)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def pick_backend(backend: str) -> str:
    """The backend asked for: by name, else by `MODBALANCE_BACKEND`, else `auto`."""
    name = os.environ.get("MODBALANCE_BACKEND", "auto") if backend == "auto" else backend
    if name not in get_args(Backend):
        raise ValueError(
            f"energy_penalty: backend is {name!r}, expected auto, triton, analytic or reference; "
            "pass one of these or unset MODBALANCE_BACKEND."
        )
    return name


def _check(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor | None,
    task: Task,
    present: Tensor | None,
    class_weight: Tensor | None,
) -> int:
    if not 0 < len(features) == len(weights) == len(biases):
        raise ValueError(
            f"energy_penalty: {len(features)} features, {len(weights)} weights and {len(biases)} biases, "
            "expected one of each per modality; pass sequences of equal length."
        )
    width = weights[0].shape[0]
    num_outputs = width // 2 if task == "gaussian" else width
    check_task("energy_penalty", task, num_outputs, class_weight)
    width = output_width(task, num_outputs)
    batch = features[0].shape[0]
    for m, (z, w, b) in enumerate(zip(features, weights, biases, strict=True)):
        if z.dim() != 2 or z.shape[0] != batch or not z.is_floating_point():
            raise ValueError(
                f"energy_penalty: features[{m}] is a {z.dtype} tensor {tuple(z.shape)}, expected floating "
                f"point ({batch}, D); pass one row a sample."
            )
        if w.shape != (width, z.shape[1]) or (b is not None and b.shape != (width,)):
            raise ValueError(
                f"energy_penalty: weights[{m}] has shape {tuple(w.shape)} and biases[{m}] "
                f"{None if b is None else tuple(b.shape)}, expected ({width}, {z.shape[1]}) and ({width},); "
                "pass the weight and bias of a linear head on these features."
            )
    if present is not None and (present.dtype != torch.bool or present.shape != (len(features), batch)):
        raise ValueError(
            f"energy_penalty: present is a {present.dtype} tensor {tuple(present.shape)}, expected bool "
            f"({len(features)}, {batch}); stack one mask a modality."
        )
    if target is not None:
        check_target("energy_penalty", task, target, batch, num_outputs)
    tensors = (*features, *weights, *biases, target, present, class_weight)
    if any(x is not None and x.device != features[0].device for x in tensors):
        groups = {"features": features, "weights": weights, "biases": biases}
        named = {f"{kind}[{m}]": x for kind, group in groups.items() for m, x in enumerate(group)}
        check_placement("energy_penalty", None, **named, target=target, present=present, class_weight=class_weight)
    return num_outputs
