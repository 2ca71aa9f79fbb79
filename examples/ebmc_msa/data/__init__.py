"""From a file to a batch. The names below are imported when they are first used, so that `--help` needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "DataError": "dataset",
    "Dataset": "dataset",
    "LabelOptions": "task",
    "Split": "dataset",
    "canonical": "dataset",
    "load": "reader",
    "synthetic": "synthetic",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return globals()[name]
