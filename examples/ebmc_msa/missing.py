"""Missing modalities: which conditions to test, and how to switch modalities off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

import torch
from torch import Tensor

from data.dataset import canonical


def conditions(modalities: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What to keep, by name, the full set last: `{"text": ("text",), ..., "text+audio": ("text", "audio")}`.

    Up to three modalities: every subset. More: each alone, each left out, all.
    """
    names = list(modalities)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"conditions: modalities {names}, expected distinct names, at least one; correct them.")
    names = canonical(names)
    sizes = range(1, len(names) + 1) if len(names) <= 3 else (1, len(names) - 1, len(names))
    return {"+".join(kept): kept for size in sizes for kept in combinations(names, size)}


def restrict(present: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
    """Presence with only `keep` left on; rows that had none of these are left with nothing."""
    unknown = set(keep) - set(present)
    if unknown:
        raise ValueError(
            f"restrict: keep names {sorted(unknown)}, expected some of {list(present)}; correct the names."
        )
    return {name: here if name in keep else torch.zeros_like(here) for name, here in present.items()}


def random_drop(present: Mapping[str, Tensor], rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Presence with each modality dropped with probability `rate`; every row keeps one of those it had.

    Draws on the generator's device. Where all would go, one is drawn, each as likely as the other.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"random_drop: rate {rate}, expected a probability from 0 to 1; correct it.")
    had = torch.stack(list(present.values()), -1)
    draw = torch.rand(had.shape, generator=generator, device=generator.device).to(had.device)
    # the largest draw of a row is uniform among its modalities, and is the last to fall under the rate
    last = torch.where(had, draw, -1.0).argmax(-1, keepdim=True)
    kept = had & (draw >= rate) | had & torch.zeros_like(had).scatter(-1, last, True)
    return dict(zip(present, kept.unbind(-1), strict=True))
