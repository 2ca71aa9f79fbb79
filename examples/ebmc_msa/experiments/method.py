"""What a comparison compares: a method by name, with components left out and settings changed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from ebmc_msa.data import DataError
from ebmc_msa.experiments.baselines import NAMES
from ebmc_msa.model.settings import CLASS_WEIGHTS, COMPONENTS, CONTEXTS, ORDERS, Settings, rates

ALONE = "alone:"  # before a modality's name: the model of that modality alone


@dataclass(frozen=True)
class Method:
    """`str(method)` is what the command line takes: `ebmc -cce eta=0.2`."""

    name: str  # one of NAMES, or alone:MODALITY
    without: tuple[str, ...] = ()  # components of EBMC
    overrides: tuple[tuple[str, Any], ...] = ()  # of `Settings`

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read `NAME [-PART ...] [KEY=VALUE ...]`.

        Raises:
            DataError: a method, part or setting does not exist, or a value has the wrong type.
        """
        name, *changes = text.split() or [""]
        if name not in NAMES:
            raise DataError(f"--methods: {name!r}, expected all or some of {', '.join(NAMES)}; correct the name.")
        types = {f.name: type(f.default) for f in fields(Settings) if f.default is not None and f.name != "without"}
        without, overrides = set(), {}
        for change in changes:
            key, _, value = change.partition("=")
            if change.startswith("-") and change[1:] in COMPONENTS:
                without.add(change[1:])
            elif key in types:
                kind = rates if key == "modality_dropout" else types[key]
                overrides[key] = _convert(change, kind, value)
            else:
                raise DataError(
                    f"--methods: {change!r} after {name}, expected -{', -'.join(COMPONENTS)} or KEY=VALUE with a key "
                    f"of {', '.join(sorted(types))}; correct it."
                )
        for key, known in (("order", ORDERS), ("context", CONTEXTS), ("class_weight", CLASS_WEIGHTS)):
            if overrides.get(key, known[0]) not in known:
                raise DataError(f"--methods: {key}={overrides[key]}, expected one of {', '.join(known)}; correct it.")
        return cls(name, tuple(sorted(without)), tuple(overrides.items()))

    def __str__(self) -> str:
        changes = (f"{key}={_as_text(value)}" for key, value in self.overrides)
        return " ".join([self.name, *(f"-{part}" for part in self.without), *changes])

    @property
    def modality(self) -> str:
        """Of a model of one modality alone; empty otherwise."""
        return self.name.partition(ALONE)[2]

    def alone(self, modality: str) -> Method:
        """The model of one modality, with the same settings."""
        return replace(self, name=f"{ALONE}{modality}", without=())

    def settings(self) -> Settings:
        return Settings(without=self.without, **dict(self.overrides))


def _as_text(value: Any) -> str:
    by_name = isinstance(value, tuple)
    return ",".join(f"{name}={rate}" for name, rate in value) if by_name else str(value)


def _convert(change: str, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except argparse.ArgumentTypeError as problem:
        raise DataError(f"--methods: {change}, {str(problem).partition(', ')[2]}; correct it.") from problem
    except (ValueError, KeyError) as problem:
        name = change.partition("=")[0]
        raise DataError(f"--methods: {change}, expected {kind.__name__} for {name}; correct it.") from problem
