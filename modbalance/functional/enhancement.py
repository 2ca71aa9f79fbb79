"""Rebuilding a modality from itself and the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modbalance.checks import check_inputs
from modbalance.presence import MaskedSum, masked_sum, select, upcast


def reconstruction_loss(
    enhanced: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""How far the rebuilt features are from the ones they stand for.

    $$L_{rec} = \operatorname{mean}_{m,i}\ \tfrac{1}{D_m} \lVert \tilde z_i^m - \operatorname{sg}(z_i^m) \rVert^2$$

    Args:
        enhanced: rebuilt features by modality, `(B, D_m)`.
        features: the originals, of the same shapes. They are detached: a target that moves shrinks.
        present: by modality, bool `(B,)`; all by default.

    Returns:
        A scalar, the mean over present modalities and samples; 0 where there are none.

    Raises:
        ValueError: a modality is missing from one of the two, or shapes differ.

    Source: EBMC (CVPR 2026), cross-modal complementary enhancement. The division by D is ours: it keeps a
    wide modality from ruling the sum.

    Examples:
        >>> reconstruction_loss({"a": torch.ones(2, 4)}, {"a": torch.zeros(2, 4)})
        tensor(1.)
    """
    masks = check_inputs("reconstruction_loss", enhanced, present, argument="enhanced")
    return reconstruction_sum(enhanced, features, masks).mean()


def reconstruction_sum(
    enhanced: Mapping[str, Tensor], features: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> MaskedSum:
    losses = []
    for name, x in enhanced.items():
        if name not in features or features[name].shape != x.shape:
            raise ValueError(
                f"reconstruction_loss: features[{name!r}] is "
                f"{tuple(features[name].shape) if name in features else 'missing'}, expected {tuple(x.shape)} as "
                f"in enhanced[{name!r}]; pass the features that were rebuilt."
            )
        error = select(upcast(x), masks[name]) - select(upcast(features[name].detach()), masks[name])
        losses.append(error.square().mean(-1))
    return masked_sum(torch.stack(losses), torch.stack([masks[name] for name in enhanced]))


def generator_inputs(
    shared: Mapping[str, Tensor],
    private: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    own: Mapping[str, Tensor] | None = None,
    own_private: bool = True,
    gates: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What each generator reads: the modality's own parts first, then those of all others, in `masks`' order.

    Args:
        shared: shared parts by modality, `(B, dim)`.
        private: private parts by modality, `(B, dim)`.
        masks: which sample has which modality, bool `(B,)`; absent parts read as zero.
        own: which sample shows a generator its own modality, bool `(B,)`; `masks` by default.
        own_private: whether the own private part is read at all.
        gates: by modality, `(B,)` in [0, 1]: what its parts are multiplied by where another modality reads them.

    Returns:
        by modality `(B, 2 * M * dim)`, or one dim less without `own_private`.

    Source: EBMC (CVPR 2026), cross-modal complementary enhancement, the arguments of G_m.

    Examples:
        >>> parts = {"text": torch.ones(2, 4), "audio": torch.ones(2, 4)}
        >>> absent = {"text": torch.tensor([True, True]), "audio": torch.tensor([True, False])}
        >>> inputs = generator_inputs(parts, parts, absent)["audio"]
        >>> inputs.shape, inputs.sum(1)
        (torch.Size([2, 16]), tensor([16.,  8.]))
    """
    own = masks if own is None else own
    lent = {name: [select(shared[name], here), select(private[name], here)] for name, here in masks.items()}
    if gates is not None:
        lent = {name: [gates[name][:, None].to(x.dtype) * x for x in parts] for name, parts in lent.items()}
    inputs = {}
    for name in masks:
        parts = [select(shared[name], own[name])]
        if own_private:
            parts.append(select(private[name], own[name]))
        for other in masks:
            if other != name:
                parts += lent[other]
        inputs[name] = torch.cat(parts, -1)
    return inputs
