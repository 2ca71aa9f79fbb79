"""Norm of the gradient that reaches each modality's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modbalance.presence import upcast

__all__ = ["gradient_norms"]


def gradient_norms(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    r"""Norm of the gradients of each modality's module, after `backward()`: $\sqrt{\sum_p \lVert g_p \rVert^2}$.

    Args:
        modules: the modules whose parameters belong to one modality, by name: its encoder, usually.

    Returns:
        scalars by modality, float32 or float64, on the modules' device; 0 where there is no gradient.

    Examples:
        >>> encoder = nn.Linear(2, 1, bias=False)
        >>> encoder(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> gradient_norms({"audio": encoder})
        {'audio': tensor(5.)}
    """
    norms = {}
    for name, module in modules.items():
        gradients = [upcast(p.grad).norm() for p in module.parameters() if p.grad is not None]
        norms[name] = torch.stack(gradients).norm() if gradients else torch.zeros(())
    return norms
