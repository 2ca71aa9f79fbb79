"""What the results of all components have in common."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class _Result(Protocol):
    def _asdict(self) -> dict[str, Any]: ...


def scalars(result: _Result) -> dict[str, Tensor]:
    """The scalar terms of a component's result by name, detached, for any logger."""
    return {k: v.detach() for k, v in result._asdict().items() if isinstance(v, Tensor) and v.dim() == 0}
