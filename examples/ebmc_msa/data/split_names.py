"""What files call their splits."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ebmc_msa.data.dataset import DataError, counted, listed

NAMES = {
    "train": "train",
    "valid": "valid",
    "dev": "valid",
    "val": "valid",
    "validation": "valid",
    "eval": "valid",
    "test": "test",
}
_EXPECTED = "train, valid (also dev, val, validation or eval) and test"


def split_of(name: object) -> str | None:
    """`train`, `valid` or `test`; None for any other name."""
    return NAMES.get(str(name).strip().lower())


def unknown_split(where: str, name: object, rows: int) -> DataError:
    near = get_close_matches(str(name).lower(), NAMES, 1)
    return DataError(
        f"{where}: a split is called {str(name)[:40]!r} ({counted(rows, 'row')}), expected {_EXPECTED}; rename it"
        + (f" to {near[0]!r}" if near else "")
        + ", or remove it."
    )


def by_split(
    where: str, content: Mapping[Any, Any], like: type | tuple[type, ...]
) -> tuple[dict[str, Any], list[str]]:
    """The splits of a file by their usual names, and the names of what is none.

    Args:
        like: what a split is an instance of.

    Raises:
        DataError: a split has an unknown name, or two have the same meaning.
    """
    found: dict[str, Any] = {}
    names: dict[str, str] = {}
    rest = []
    for name, value in content.items():
        split = split_of(name)
        if split is None and isinstance(value, like) and len(value):
            rows = max(map(_rows, value.values()), default=0) if isinstance(value, Mapping) else len(value)
            raise unknown_split(where, name, rows)
        if split is None:
            rest.append(str(name))
        elif split in found:
            raise DataError(
                f"{where}: {names[split]!r} and {name!r} both name the {split} split, expected one; remove the other."
            )
        else:
            found[split], names[split] = value, str(name)
    return {split: found[split] for split in ("train", "valid", "test") if split in found}, rest


def ignored(names: list[str]) -> str:
    return f"; ignored {listed(sorted(names))}" if names else ""


def _rows(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") and getattr(value, "shape", (1,)) != () else 0
