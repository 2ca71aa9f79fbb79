"""A frozen copy of any module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """A frozen copy of `module`: its outputs do not drift while the original goes on learning.

    The copy is always in eval mode, whatever `train()` is called on the model around it; it gets no
    gradient; it is no part of `parameters()` or `state_dict()`. It follows `.to(device)`. Save it with
    `teacher.copy.state_dict()` where a run must be continued or used later: trust needs it at inference.

    Args:
        module: any module; it is copied and not touched.

    Shape:
        as `module`; outputs carry no gradient.

    Source: EBMC (CVPR 2026), the unimodal teachers of instance-aware trust distillation.

    Examples:
        >>> teacher = Teacher(nn.Sequential(nn.Linear(4, 2), nn.Dropout()))
        >>> teacher.train().copy.training, list(teacher.parameters())
        (False, [])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # A tuple keeps the copy out of the module tree: train(), parameters() and state_dict() pass it by.
        self._hidden = (copy.deepcopy(module).eval().requires_grad_(False),)

    @property
    def copy(self) -> nn.Module:
        """The frozen module."""
        return self._hidden[0]

    def train(self, mode: bool = True) -> Self:
        self._hidden[0].eval()
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._hidden[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.copy(*args, **kwargs)
