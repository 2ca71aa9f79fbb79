"""Shared and private parts: alignment, redundancy, preservation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from modbalance.checks import check_choice, check_inputs
from modbalance.distributed import Sync, gather, most_rows, processes
from modbalance.placement import without_autocast
from modbalance.presence import MaskedSum, masked_sum, select, stack
from modbalance.task_checks import IGNORE_INDEX, check_labels, check_target
from modbalance.tasks import Task, labelled, masked_loss, output_width


def alignment_loss(
    shared: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
    *,
    temperature: float = 0.1,
    ids: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE between each modality's shared part and the aggregate of the others.

    $$L_{inv} = -\operatorname{mean}_{m,i} \log
      \frac{\exp(\cos(z_i^m, a_i^{-m})/\tau)}{\sum_j \exp(\cos(z_i^m, a_j^{-m})/\tau)}, \qquad
      a_i^{-m} = \operatorname{mean}_{n \ne m,\ n\text{ present in } i} z_i^n$$

    Args:
        shared: by modality, `(B, dim)` with one dim for all.
        present: by modality, bool `(B,)`; all by default.
        temperature: tau, > 0.
        ids: `(B,)` integers: samples with the same id, copies of one item, are no negatives of each other; all
            differ by default.

    Returns:
        A scalar, the mean over the anchors: present modalities of samples that have at least two. 0 where
        there are none. It depends on the batch, whose other samples are the negatives.

    Raises:
        ValueError: sizes differ between modalities, or a mask is not bool `(B,)`.

    Source: EBMC (CVPR 2026), semantic decoupling, L_inv. The paper aggregates all modalities; we leave the
    anchor's own out, since with itself in the aggregate the task is nearly free. tau = 0.1 is ours.

    Examples:
        >>> x = torch.eye(4)
        >>> alignment_loss({"a": x, "b": x}) < alignment_loss({"a": x, "b": x.roll(1, 0)})
        tensor(True)
    """
    masks = check_inputs("alignment_loss", shared, present, argument="shared")
    check_ids("alignment_loss", ids, next(iter(masks.values())))
    return alignment_sum(*stack("alignment_loss", shared, masks), temperature, ids=ids).mean()


def alignment_sum(
    x: Tensor,
    mask: Tensor,
    temperature: float,
    sync: Sync = False,
    max_batch: int | None = None,
    ids: Tensor | None = None,
) -> MaskedSum:
    """The loss of this process's anchors `(M, B)`, the samples of all processes being their negatives."""
    with without_autocast(x):
        anchors, candidates, known = _pairs(x, mask)
        valid = mask & known
        here = torch.arange(x.shape[1], device=x.device)
        group = processes(sync)
        if group is None:
            similarity = _similarity(anchors, candidates, known, temperature)
            if ids is not None:
                similarity = similarity.masked_fill(_copies(ids, here, ids, here), -1e30)
            return masked_sum(similarity.logsumexp(-1) - similarity.diagonal(dim1=1, dim2=2), valid)
        rows = most_rows(x[0], sync=sync) if max_batch is None else max_batch
        everyone = gather(torch.cat([x, mask[..., None].to(x)], -1).transpose(0, 1), rows, sync=sync).transpose(0, 1)
        all_mask = everyone[..., -1] > 0
        all_anchors, all_candidates, all_known = _pairs(everyone[..., :-1], all_mask)
        similarity = _similarity(anchors, all_candidates, all_known, temperature)
        if ids is not None:
            here = here + dist.get_rank(group) * rows
            all_ids, everywhere = gather(ids, rows, sync=sync), torch.arange(everyone.shape[1], device=x.device)
            similarity = similarity.masked_fill(_copies(ids, here, all_ids, everywhere), -1e30)
        partition = similarity.logsumexp(-1)
        total, count = masked_sum(partition - (anchors * candidates).sum(-1) / temperature, valid)
        # The anchors of all processes draw on the candidates of this one: a share of the gradient without a value.
        drawn = _similarity(all_anchors, candidates, known, temperature)
        partitions = gather(partition.T, rows, sync=sync).T[..., None]
        weight = select((drawn.detach() - partitions).exp(), (all_mask & all_known)[..., None] & known[:, None])
        if ids is not None:
            weight = weight.masked_fill(_copies(all_ids, everywhere, ids, here), 0.0)
        drawn = (weight * drawn).sum()
        return MaskedSum(total + (drawn - drawn.detach()), count)


def check_ids(owner: str, ids: Tensor | None, mask: Tensor) -> None:
    if ids is not None and (ids.shape != mask.shape or ids.dtype not in (torch.int64, torch.int32)):
        raise ValueError(
            f"{owner}: ids is a {ids.dtype} tensor {tuple(ids.shape)}, expected integers {tuple(mask.shape)}; "
            "pass one number a sample, the same for copies of one item."
        )


def _copies(ids: Tensor, here: Tensor, others: Tensor, there: Tensor) -> Tensor:
    """Pairs `(I, J)` of different rows with the same id."""
    return (ids[:, None] == others) & (here[:, None] != there)


def _pairs(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directions of the anchors and of the means of the others, `(M, B, D)`; whether there are others, `(M, B)`."""
    others = (~torch.eye(len(x), dtype=torch.bool, device=x.device)).to(x.dtype)
    count = einsum(others, mask.to(x.dtype), "m n, n b -> m b")
    aggregate = einsum(others, x, "m n, n b d -> m b d") / count.clamp(min=1)[..., None]
    return _unit(x), _unit(aggregate), count > 0


def _similarity(anchors: Tensor, candidates: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Of each anchor and each candidate, `(M, I, J)`."""
    similarity = einsum(anchors, candidates, "m i d, m j d -> m i j") / temperature
    # A finite floor: a row without any candidate is masked later and must not turn NaN before.
    return similarity.masked_fill(~known[:, None], -1e30)


def redundancy_loss(
    private: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
    *,
    cosine: Literal["squared", "plain"] = "squared",
) -> Tensor:
    r"""Similarity of the private parts of different modalities of the same sample.

    $$L_{dis} = \operatorname{mean}_{i,\ m<n} \cos(z_i^m, z_i^n)^2$$

    Args:
        private: by modality, `(B, dim)` with one dim for all.
        present: by modality, bool `(B,)`; all by default.
        cosine: `squared` is least at orthogonal parts, as the paper's text asks; `plain`, the paper's
            formula, is least at opposed ones.

    Returns:
        A scalar, the mean over samples and pairs of present modalities; 0 where there are none.

    Raises:
        ValueError: sizes differ between modalities, or `cosine` is neither of the two.

    Source: EBMC (CVPR 2026), semantic decoupling, L_dis.

    Examples:
        >>> redundancy_loss({"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 2.0]])})
        tensor(0.)
    """
    check_choice("redundancy_loss", ("squared", "plain"), cosine=cosine)
    masks = check_inputs("redundancy_loss", private, present, argument="private")
    return redundancy_sum(*stack("redundancy_loss", private, masks), cosine).mean()


def redundancy_sum(x: Tensor, mask: Tensor, cosine: str) -> MaskedSum:
    first, second = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    unit = _unit(x)
    similarity = (unit[first] * unit[second]).sum(-1)
    similarity = similarity.square() if cosine == "squared" else similarity
    return masked_sum(similarity, mask[first] & mask[second])


def preservation_loss(
    predictions: Mapping[str, Tensor],
    target: Tensor,
    present: Mapping[str, Tensor] | None = None,
    *,
    task: Task = "classification",
    class_weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    r"""Task loss of each modality's own predictor: what a private part must still tell by itself.

    $$L_{uni} = \operatorname{mean}_{m,i}\ \ell(T_m(z_i^m), y_i)$$

    Args:
        predictions: by modality, head outputs `(B, width)`.
        target: see `modbalance.tasks`.
        present: by modality, bool `(B,)`; all by default.
        task: see `modbalance.tasks`.
        class_weight: weight of each class, `(C,)`; classification only.
        ignore_index: label of the rows that are left out; classification only.

    Returns:
        A scalar, the mean over present modalities of labelled samples; 0 where there are none.

    Raises:
        ValueError: the target does not fit the task.

    Source: EBMC (CVPR 2026), semantic decoupling, L_uni.

    Examples:
        >>> preservation_loss({"a": torch.zeros(2, 4)}, torch.tensor([0, 1]))
        tensor(1.3863)
    """
    masks = check_inputs("preservation_loss", predictions, present, argument="predictions")
    outputs, mask = stack("preservation_loss", predictions, masks)
    width = outputs.shape[-1]
    num_outputs = width // 2 if task == "gaussian" else width
    check_target("preservation_loss", task, target, outputs.shape[1], num_outputs)
    check_labels("preservation_loss", task, target, num_outputs, ignore_index)
    return preservation_sum(outputs, mask, target, task, class_weight, ignore_index).mean()


def preservation_sum(
    outputs: Tensor, mask: Tensor, target: Tensor, task: Task, class_weight: Tensor | None, ignore_index: int
) -> MaskedSum:
    valid = labelled(task, target, outputs.shape[-1] // output_width(task, 1), ignore_index)
    mask = mask if valid is None else mask & valid
    losses = [masked_loss(task, s, target, class_weight, ignore_index) for s in outputs]
    return masked_sum(torch.stack(losses), mask)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=1e-8)
