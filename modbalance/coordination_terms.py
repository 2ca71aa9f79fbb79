"""gap, penalty, descent and fit by plain operations: for heads of any kind, any gap, and several processes."""

from __future__ import annotations

import torch
from torch import Tensor

from modbalance.distributed import Sync, reduce
from modbalance.functional.energy import Gap, gap_of_sum, gap_sum
from modbalance.head_reader import HeadReader
from modbalance.kernels.energy_terms import EnergyTerms
from modbalance.presence import masked_sum, select, zero_of


def coordination_terms(
    problem: EnergyTerms,
    heads: HeadReader,
    z: dict[str, Tensor],
    mask: Tensor,
    stated: Tensor | None,
    *,
    gap: Gap | None,
    fits: bool,
    sync: Sync,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Energies `(M, B)`, gap, penalty, descent and fit; the means over all processes by one all-reduce.

    Args:
        mask: the rows that count, `(M, B)`.
        stated: gamma u of an uncertainty that was given, `(M, B)`.
        fits: whether the heads are fitted here.
    """
    energy, gradient_norm = heads.energy(problem, z, mask)
    if stated is not None:
        energy = energy + select(stated, mask)
    gap_term = fit = zero_of(z)
    if problem.target is None:
        return energy, gap_term, gap_term, gap_term, fit
    sums = [masked_sum(gradient_norm, mask, dim=1), masked_sum(energy, mask, dim=1)]
    if fits:
        sums.append(masked_sum(heads.fit(problem, z), mask, dim=1))
    if gap is not None:
        compared = energy
        if gap == "pull":
            potential = torch.stack([*heads.potentials(problem, z).values()])
            compared = potential if stated is None else potential + stated
        sums.append(gap_sum(compared, mask, gap))
    penalty, descent, *rest = reduce(sums, sync)
    if fits:
        fit = rest[0].mean().sum()
    if gap is not None:
        gap_term = gap_of_sum(rest[-1], gap)
    return energy, gap_term, penalty.mean().sum(), descent.mean().sum(), fit
