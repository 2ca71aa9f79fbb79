"""What the results of all components have in common."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class _Result(Protocol):
    def _asdict(self) -> dict[str, Any]: ...


def scalars(result: _Result) -> dict[str, Tensor]:
    """The scalar terms of a component's result by name, detached, for any logger."""
    return {k: v.detach() for k, v in result._asdict().items() if isinstance(v, Tensor) and v.dim() == 0}


def no_tensor(cls: type[T]) -> type[T]:
    """Of a result: adding to it and what only tensors have are errors whose remedy is `.loss`."""

    def arithmetic(self: object, other: object) -> NoReturn:
        raise TypeError(f"{cls.__name__} is no tensor, expected its loss; write .loss, as in task_loss + out.loss.")

    def attribute(self: object, name: str) -> NoReturn:
        message = f"{cls.__name__} has no attribute {name!r}"
        if hasattr(Tensor, name) and not name.startswith("__"):
            message += f", expected a tensor; write .loss.{name}"
        raise AttributeError(message + ".")

    for operator in ("__add__", "__radd__", "__mul__", "__rmul__"):
        setattr(cls, operator, arithmetic)
    setattr(cls, "__getattr__", attribute)  # noqa: B010
    return cls
