"""Energy of a modality, and the gap between modalities."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from modbalance.presence import MaskedSum, masked_mean, masked_sum, select, upcast
from modbalance.task_formulas import HeadOutputs, uncertainty_slope
from modbalance.tasks import Task

Gap = Literal["pull", "paper", "paper_per_sample"]


def energy(
    z: Tensor,
    loss: Tensor,
    uncertainty: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    r"""Energy of one modality, per sample.

    $$E_i = \alpha \lVert z_i \rVert^2 + \beta\,\ell_i + \gamma\,u_i$$

    Args:
        z: features, `(B, D)`.
        loss: task loss per sample, `(B,)`.
        uncertainty: entropy in nats, `(B,)`.
        alpha: weight of the features' size.
        beta: weight of the loss.
        gamma: weight of the uncertainty.
        normalize: `||z||^2 / D` in place of `||z||^2`.

    Returns:
        `(B,)`; float64 for float64 input, else float32.

    Raises:
        ValueError: `loss` or `uncertainty` is not `(B,)`.

    Source: EBMC (CVPR 2026), energy-guided modality coordination, E(m). The paper takes batch averages; we
    keep samples apart.

    Examples:
        >>> energy(torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]), torch.tensor([0.1]))
        tensor([25.6000])
    """
    for name, x in (("loss", loss), ("uncertainty", uncertainty)):
        if x.shape != z.shape[:1]:
            raise ValueError(
                f"energy: {name} has shape {tuple(x.shape)}, expected ({z.shape[0]},) as z has that many rows; "
                "pass one value a sample."
            )
    norm = upcast(z).square().sum(-1)
    return alpha * (norm / z.shape[1] if normalize else norm) + beta * upcast(loss) + gamma * upcast(uncertainty)


def energy_gap(energies: Tensor, present: Tensor, kind: Gap = "pull") -> Tensor:
    r"""How far apart the energies of the modalities are.

    - `pull`: $\operatorname{mean}_m (\bar E_m - \operatorname{sg}(\min_n \bar E_n))^2$ over the modalities
      that are there at all, $\bar E_m$ the mean over a modality's present samples. Only modalities above the
      lowest move; the lowest is the reference and is left alone.
    - `paper`: $\operatorname{mean}_{m \ne n} (\bar E_m - \bar E_n)^2$, both means over the samples that have
      both m and n.
    - `paper_per_sample`: $\operatorname{mean}_{m \ne n} \operatorname{mean}_i (E_{m,i} - E_{n,i})^2$.

    Args:
        energies: `(M, B)`.
        present: bool `(M, B)`.
        kind: one of the three.

    Returns:
        A scalar, 0 with fewer than two modalities. Duplicating the batch does not change it.

    Raises:
        ValueError: shapes differ or `kind` is unknown.

    Source: EBMC (CVPR 2026), energy-guided modality coordination, L_gap. `pull` is ours: the paper's form
    raises the strong modality's loss as readily as it lowers the weak one's.

    Examples:
        >>> energy_gap(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1, dtype=torch.bool), "paper")
        tensor(4.)
    """
    if energies.dim() != 2 or present.shape != energies.shape or present.dtype != torch.bool:
        raise ValueError(
            f"energy_gap: energies {tuple(energies.shape)} and {present.dtype} present {tuple(present.shape)}, "
            "expected (M, B) and bool of the same shape; stack the modalities."
        )
    return gap_of_sum(gap_sum(energies, present, kind), kind)


def gap_sum(energies: Tensor, present: Tensor, kind: Gap) -> MaskedSum:
    """What the gap compares, summed over samples: `(M,)` for `pull`, else `(M, M)`."""
    energies = upcast(energies)
    if kind == "pull":
        return masked_sum(energies, present, dim=1)
    both = present[:, None] & present[None]
    if kind == "paper":
        return masked_sum(energies[:, None].expand(both.shape), both, dim=2)
    if kind == "paper_per_sample":
        x = select(energies, present)
        return masked_sum((x[:, None] - x[None]).square(), both, dim=2)
    raise ValueError(
        f"energy_gap: kind is {kind!r}, expected 'pull', 'paper' or 'paper_per_sample'; pass one of them."
    )


def gap_of_sum(sums: MaskedSum, kind: Gap) -> Tensor:
    means, there = sums.mean(), sums.entries > 0
    if kind == "pull":
        reference = torch.where(there, means, torch.inf).amin().detach()
        return masked_mean(select(means - reference, there).square(), there)
    gaps = (means - means.T).square() if kind == "paper" else means
    return masked_mean(gaps, there & ~torch.eye(len(means), dtype=torch.bool, device=means.device))


class GateState(NamedTuple):
    """What is known of each modality from held-out data, `(M,)` each.

    Attributes:
        weight: how much of the coordinator it gets, 0 to 1.
        first: its first finite energy.
        lowest: its lowest energy so far.

    Examples:
        >>> GateState(torch.ones(2), torch.full((2,), torch.inf), torch.full((2,), torch.inf)).weight
        tensor([1., 1.])
    """

    weight: Tensor
    first: Tensor
    lowest: Tensor


ROUNDING = 1e-4  # of the lowest energy: a rise below it is no rise


def gate_weights(
    energies: Tensor, state: GateState, *, margin: float = 0.02, decay: float = 0.25, floor: float = 0.0
) -> GateState:
    r"""Weights of the modalities after one more look at held-out data.

    $$w_m \leftarrow \begin{cases} 1 & E_m < L_m \\
      \max(w_m / 4, f) & E_m > L_m + \mu\,(F_m - L_m) + 10^{-4}\,|L_m| \\ w_m & \text{else} \end{cases}$$

    F is the first energy and L the lowest before this look. A modality whose held-out energy reaches a new low gets
    the full weight. One whose energy lies above its lowest by more than $\mu$ of all that it has fallen gets a
    quarter of what it had. One in between keeps its weight, and so does one whose energy never moves by more
    than rounding. The unit of the energy does not matter.

    Args:
        energies: mean held-out energy E of each modality, `(M,)`. One that is not finite counts as risen.
        state: before this look; weights of 1 and infinite energies before the first.
        margin: mu, >= 0; 0.02 is ours.
        decay: what a weight is multiplied by where the energy has risen; 1/4 is ours.
        floor: f, the least weight.

    Returns:
        the state after this look.

    Source: ours. The values of mu and decay were chosen on the tuning cases of docs/when_it_helps.md.

    Examples:
        >>> before = GateState(torch.full((3,), 0.25), torch.full((3,), 2.0), torch.full((3,), 1.0))
        >>> gate_weights(torch.tensor([0.9, 1.01, 1.1]), before).weight
        tensor([1.0000, 0.2500, 0.0625])
    """
    weight, first, lowest = state
    energies = energies.to(lowest.dtype)
    finite = energies.isfinite()
    fallen = finite & (energies < lowest)
    risen = ~finite | (energies > lowest + margin * (first - lowest) + ROUNDING * lowest.abs())
    kept = torch.where(risen, (decay * weight).clamp(min=floor), weight)
    return GateState(
        torch.where(fallen, torch.ones_like(weight), kept),
        torch.where(finite & first.isinf(), energies, first),
        torch.where(fallen, energies, lowest),
    )


def descend(
    z: Tensor,
    outputs: Tensor,
    weight: Tensor,
    *,
    step: float,
    task: Task = "classification",
    alpha: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    r"""One step down the label-free part of the energy, under a linear head.

    $$z - \lambda\,\partial(\alpha\lVert z\rVert^2 + \gamma u)/\partial z
      = z - \lambda\,(2\alpha z + W^\top \partial u/\partial s)$$

    Args:
        z: features, `(B, D)`.
        outputs: the head's outputs s on them, `(B, width)`.
        weight: the head's weight, `(width, D)`.
        step: lambda, >= 0.
        task: see `modbalance.tasks`.
        alpha: weight of the features' size.
        gamma: weight of the uncertainty.
        temperature: T of the entropy, > 0.
        normalize: `||z||^2 / D` in place of `||z||^2`.

    Returns:
        `(B, D)`, a function of the features alone: no target enters.

    Source: EBMC (CVPR 2026), energy descent. The paper's form has the label in E; fed forward it would hand
    the answer to whatever reads the features.

    Examples:
        >>> descend(torch.ones(1, 2), torch.zeros(1, 3), torch.zeros(3, 2), step=0.25)
        tensor([[0.5000, 0.5000]])
    """
    scale = 2 * alpha / z.shape[1] if normalize else 2 * alpha
    return z - step * (scale * z + gamma * uncertainty_slope(task, HeadOutputs(outputs.T), temperature).T @ weight)
