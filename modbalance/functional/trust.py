"""Trust in teachers: weights, distillation and fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.checks import check_inputs
from modbalance.presence import MaskedSum, masked_softmax, masked_sum, select, upcast
from modbalance.task_formulas import split_gaussian
from modbalance.tasks import Task

Direction = Literal["paper", "forward"]


def trust_weights(
    variances: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
    *,
    min_variance: float = 1e-6,
    chance: Tensor | None = None,
    power: float | Tensor = 1.0,
    bias: Mapping[str, float | Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""How far each modality is to be trusted, per sample.

    $$w_m = \operatorname{softmax}_m (b_m + \kappa (\log c_m + \log \rho_m)), \qquad
      c_m = \exp(-\operatorname{mean}_c \sigma_{m,c}), \qquad
      \rho_m = 1 / \log(1 + \textstyle\sum_c \sigma^2_{m,c})$$

    With `chance`, the variance $\sigma^2_0$ of a prediction that knows nothing, $c_m \rho_m$ becomes
    $\max(c_m\rho_m - c_0\rho_0,\ 10^{-3} c_m\rho_m)$: what a modality knows beyond chance. The paper's form alone
    leaves a modality that knows nothing half the weight of one that explains half the variance. `power` $\kappa$
    and `bias` b, 1 and 0 in the paper, set how far weights follow samples and how far whole modalities; both can
    be fitted on held-out data.

    Args:
        variances: of each modality's prediction, `(B,)` or `(B, C)`; for regression in units of the training
            target's variance.
        present: by modality, bool `(B,)`; all by default.
        min_variance: floor of a variance, > 0: two certain teachers share the trust.
        chance: variance of knowing nothing, `(C,)`: that of the class frequencies, p(1-p), or of the training
            target; None is the paper's form.
        power: kappa, at least 0; with 0 and biases by modality all samples with the same modalities get the same
            weights.
        bias: b by modality, a number or `(B,)`: the logarithm of what is known of it besides; 0 by default.

    Returns:
        by modality `(B,)`: exactly 0 where absent, summing to 1 over the present ones, all 0 where none is.
        No gradient to the variances; one to `power` and `bias` if they are tensors that want it.

    Raises:
        ValueError: `min_variance` is not positive, or shapes or names do not fit.

    Source: EBMC (CVPR 2026), instance-aware modality trust distillation: confidence c, reliability rho.

    Examples:
        >>> trust_weights({"a": torch.tensor([0.1]), "b": torch.tensor([0.1])})["a"]
        tensor([0.5000])
    """
    if not min_variance > 0:
        raise ValueError(
            f"trust_weights: min_variance is {min_variance}, expected a positive number; the default is 1e-6."
        )
    variances = {name: v[:, None] if isinstance(v, Tensor) and v.dim() == 1 else v for name, v in variances.items()}
    masks = check_inputs("trust_weights", variances, present, argument="variances")
    if bias is not None and set(bias) != set(variances):
        raise ValueError(
            f"trust_weights: bias has {sorted(bias)}, expected {sorted(variances)}; pass one for each of variances."
        )
    for name, b in (bias or {}).items():
        if isinstance(b, Tensor) and b.dim() and b.shape != masks[name].shape:
            raise ValueError(
                f"trust_weights: bias[{name!r}] has shape {tuple(b.shape)}, expected {tuple(masks[name].shape)} or a "
                "number; pass one a sample, or one for all."
            )
    logits = []
    for name, v in variances.items():
        logit = _log_trust(select(upcast(v.detach()), masks[name]), min_variance)
        if chance is not None:
            nothing = _log_trust(chance.to(logit), min_variance)
            logit = logit + (-(nothing - logit).clamp(max=0).expm1()).clamp(min=1e-3).log()
        logits.append(power * logit + (0.0 if bias is None else bias[name]))
    weights = masked_softmax(torch.stack(logits), torch.stack([masks[name] for name in variances]), dim=0)
    return dict(zip(variances, weights, strict=True))


def _log_trust(variance: Tensor, floor: float) -> Tensor:
    """log c + log rho."""
    variance = variance.clamp(floor, 1e30)
    return -variance.sqrt().mean(-1) - variance.sum(-1).log1p().log()


def distillation_loss(
    student: Tensor,
    teachers: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    task: Task = "classification",
    temperature: float = 1.0,
    direction: Direction = "paper",
) -> Tensor:
    r"""Divergence of the student from its teachers, each weighted by its trust.

    $$L = \operatorname{mean}_i \sum_m w_{m,i}\, T^2\, KL(p^{student}_i \,\Vert\, p^{m}_i)$$

    Categorical for classification, Bernoulli summed over labels for multilabel, Gaussian summed over targets
    else; `regression` outputs are means of variance 1, so that its divergence is half the squared difference.

    Args:
        student: outputs of the fused model, `(B, width)`.
        teachers: outputs by modality, `(B, width)`; detached.
        weights: trust by modality, `(B,)`; 0 leaves a teacher out, whatever it predicts.
        task: see `modbalance.tasks`.
        temperature: T of the softened probabilities, > 0; classification and multilabel only.
        direction: `paper` is KL(student || teacher), `forward` is KL(teacher || student) as in Hinton et al.

    Returns:
        A scalar, the mean over samples that have a teacher; 0 where there are none.

    Raises:
        ValueError: the direction is unknown, or a teacher's shape is not the student's.

    Source: EBMC (CVPR 2026), instance-aware modality trust distillation.

    Examples:
        >>> s = torch.zeros(1, 2)
        >>> distillation_loss(s, {"a": s}, {"a": torch.ones(1)})
        tensor(0.)
    """
    return distillation_sum(student, teachers, weights, task, temperature, direction).mean()


def distillation_sum(
    student: Tensor,
    teachers: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    task: Task,
    temperature: float,
    direction: Direction,
) -> MaskedSum:
    if direction not in ("paper", "forward"):
        raise ValueError(
            f"distillation_loss: direction is {direction!r}, expected 'paper' (student || teacher) or 'forward' "
            "(teacher || student); pass one of them."
        )
    student = upcast(student)
    total = select(student, torch.zeros_like(student, dtype=torch.bool)).sum(
        -1
    )  # a zero in the graph, whatever it holds
    guided = torch.zeros_like(total, dtype=torch.bool)
    for name, outputs in teachers.items():
        if outputs.shape != student.shape:
            raise ValueError(
                f"distillation_loss: teachers[{name!r}] has shape {tuple(outputs.shape)}, expected "
                f"{tuple(student.shape)} as the student; pass outputs of the same head width."
            )
        _check_weight("distillation_loss", name, weights, student.shape[0])
        weight = weights[name].detach()
        here = weight > 0
        teacher = select(outputs.detach().to(student.dtype), here)
        pair = (student, teacher) if direction == "paper" else (teacher, student)
        total = total + select(weight * _divergence(task, *pair, temperature), here)
        guided = guided | here
    return masked_sum(total, guided)


def trust_fusion(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    r"""Fusion by trust: $\sum_m w_m z_m$, per sample.

    Args:
        tensors: features or predictions by modality, `(B, D)` with one D for all.
        weights: by modality, `(B,)`; where it is 0 the tensor is not looked at.

    Returns:
        `(B, D)`.

    Raises:
        ValueError: sizes differ, or a modality has no weight.

    Source: EBMC (CVPR 2026), instance-level weighted fusion.

    Examples:
        >>> x = {"a": torch.ones(1, 2), "b": 3 * torch.ones(1, 2)}
        >>> trust_fusion(x, {"a": torch.tensor([0.5]), "b": torch.tensor([0.5])})
        tensor([[2., 2.]])
    """
    check_inputs("trust_fusion", tensors, None, argument="tensors")
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    first = next(iter(shapes.values()))
    if any(shape != first for shape in shapes.values()):
        raise ValueError(
            f"trust_fusion: shapes are {shapes}, expected one shape for all; "
            "project the modalities to one size first."
        )
    for name, x in tensors.items():
        _check_weight("trust_fusion", name, weights, x.shape[0])
    return torch.stack(
        [weights[name].to(x.dtype)[:, None] * select(x, weights[name] > 0) for name, x in tensors.items()]
    ).sum(0)


def _check_weight(owner: str, name: str, weights: Mapping[str, Tensor], batch: int) -> None:
    if name not in weights or weights[name].shape != (batch,):
        raise ValueError(
            f"{owner}: weights[{name!r}] is {tuple(weights[name].shape) if name in weights else 'missing'}, expected "
            f"({batch},); pass one weight a sample for every modality, as trust_weights gives them."
        )


def _divergence(task: Task, p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """KL(p || q) per sample from head outputs."""
    if task == "regression":
        return 0.5 * (p - q).square().sum(-1)
    if task == "gaussian":
        (mean_p, log_p), (mean_q, log_q) = split_gaussian(p), split_gaussian(q)
        scaled = (log_p - log_q).exp() + (mean_p - mean_q).square() * (-log_q).exp()
        return 0.5 * (scaled - 1 + log_q - log_p).sum(-1)
    p, q = p / temperature, q / temperature
    if task == "classification":
        return temperature**2 * _relative_entropy(p.log_softmax(-1), q.log_softmax(-1)).sum(-1)
    yes = _relative_entropy(F.logsigmoid(p), F.logsigmoid(q))
    no = _relative_entropy(F.logsigmoid(-p), F.logsigmoid(-q))
    return temperature**2 * (yes + no).sum(-1)


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), 0 where p is 0: a logit of -inf rules a class out."""
    p = log_p.exp()
    return p * select(log_p - log_q, p > 0)
