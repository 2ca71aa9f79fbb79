"""Modality dropout: hide whole modalities in training, per sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modbalance.checks import is_number

__all__ = ["ModalityDropout", "modality_dropout"]


def modality_dropout(
    present: Mapping[str, Tensor],
    rate: float | Mapping[str, float],
    *,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Drop each modality of each sample with probability `rate`; a sample keeps at least one that it had.

    $$k_{i,m} = h_{i,m} \wedge
      \bigl(u_{i,m} \ge r_m \;\vee\; m = \operatorname{argmax}_{n:\,h_{i,n}} u_{i,n} / r_n\bigr)$$

    with presence h and independent uniform u. Where all modalities of a sample would go, one is drawn, each as
    likely as the others. A sample that has none keeps none.

    Args:
        present: by modality, bool `(B,)`: what the samples have. Name every modality, those that all samples have
            too: one name alone is never dropped.
        rate: r, from 0 to 1; one number, or one by modality.
        generator: draws u, on its own device; torch's default generator on the masks' device without it.
        uniform: u itself, `(B, M)` in [0, 1), columns in the order of `present`, for draws of your own.

    Returns:
        by modality, bool `(B,)`: what is left.

    Raises:
        ValueError: a rate is no probability, a mask is not bool `(B,)`, or `uniform` is not `(B, M)`.

    Source: Neverova et al., ModDrop, TPAMI 2016, where all modalities of a sample may go; keeping one is ours.

    Examples:
        >>> present = {"text": torch.tensor([True, True]), "audio": torch.tensor([True, False])}
        >>> modality_dropout(present, 0.5, uniform=torch.tensor([[0.9, 0.1], [0.2, 0.7]]))
        {'text': tensor([True, True]), 'audio': tensor([False, False])}
    """
    if not isinstance(present, Mapping) or not present:
        raise ValueError(
            f"modality_dropout: present is {present!r}, expected a mapping of modality names to bool masks; "
            'pass for example {"text": torch.ones(len(x), dtype=torch.bool)}.'
        )
    _check_rate("modality_dropout", rate, present)
    first = next(iter(present.values()))
    rows = first.shape[0] if first.dim() else "B"
    for name, mask in present.items():
        if mask.dtype != torch.bool or mask.dim() != 1 or mask.shape != first.shape:
            raise ValueError(
                f"modality_dropout: present[{name!r}] is a {mask.dtype} tensor {tuple(mask.shape)}, expected a bool "
                f"tensor ({rows},); pass one flag a sample, for example mask.bool()."
            )
    shape = len(first), len(present)
    if uniform is None:
        device = first.device if generator is None else generator.device
        uniform = torch.rand(shape, generator=generator, device=device)
    elif uniform.shape != shape:
        raise ValueError(
            f"modality_dropout: uniform has shape {tuple(uniform.shape)}, expected {shape}; "
            "draw one number a sample and modality."
        )
    had = torch.stack(list(present.values()), -1)
    draw = uniform.to(had.device)
    if isinstance(rate, Mapping):
        rates = torch.tensor([rate[name] for name in present], dtype=draw.dtype, device=draw.device)
        survives, order = draw >= rates, draw / rates.clamp(min=torch.finfo(draw.dtype).tiny)
    else:
        survives, order = draw >= rate, draw
    # Among the modalities of a sample the largest draw is uniform, and the last to fall under the rate.
    last = torch.where(had, order, -1.0).argmax(-1, keepdim=True)
    kept = had & survives | had & torch.zeros_like(had).scatter(-1, last, True)
    return dict(zip(present, kept.unbind(-1), strict=True))


class ModalityDropout(nn.Module):
    """`modality_dropout` in training, the identity in eval mode.

    Args:
        rate: probability of dropping a modality, from 0 to 1; one number, or one by modality.

    Shape:
        present bool `(B,)` by modality → the same, with modalities dropped while `self.training`. Pass the result
        on as `present` to the components and to your fusion.

    Raises:
        ValueError: a rate is no probability.

    Source: Neverova et al., ModDrop, TPAMI 2016; see `modality_dropout`.

    Examples:
        >>> drop = ModalityDropout(0.3)
        >>> present = {"text": torch.ones(4, dtype=torch.bool), "audio": torch.ones(4, dtype=torch.bool)}
        >>> left = drop(present)
        >>> bool((left["text"] | left["audio"]).all()), drop.eval()(present)["audio"]
        (True, tensor([True, True, True, True]))
    """

    def __init__(self, rate: float | Mapping[str, float]) -> None:
        super().__init__()
        _check_rate("ModalityDropout", rate, rate if isinstance(rate, Mapping) else {})
        self.rate = dict(rate) if isinstance(rate, Mapping) else rate

    def forward(
        self, present: Mapping[str, Tensor], *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """What is left of `present`.

        Args:
            present: by modality, bool `(B,)`.
            generator: as in `modality_dropout`.
        """
        return modality_dropout(present, self.rate, generator=generator) if self.training else dict(present)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def _check_rate(owner: str, rate: float | Mapping[str, float], names: Mapping[str, object]) -> None:
    if isinstance(rate, Mapping) and not set(names) <= set(rate):
        raise ValueError(
            f"{owner}: rate has {sorted(rate)}, expected one for each of {sorted(names)}; name every modality."
        )
    for r in rate.values() if isinstance(rate, Mapping) else (rate,):
        if not (is_number(r) and 0 <= r <= 1):
            raise ValueError(f"{owner}: rate is {r!r}, expected a probability from 0 to 1; correct it.")
