"""Balanced multimodal learning: four drop-in components over named modalities."""

import importlib
import types
import typing

from modbalance import functional, kernels
from modbalance.coordinator import EnergyCoordinator
from modbalance.decoupler import SemanticDecoupler
from modbalance.distiller import TrustDistiller
from modbalance.dropout import ModalityDropout
from modbalance.enhancer import ComplementaryEnhancer
from modbalance.presence import masked_mean
from modbalance.teacher import Teacher

if typing.TYPE_CHECKING:
    from modbalance import balancers as balancers
    from modbalance import diagnostics as diagnostics
    from modbalance import integrations as integrations
    from modbalance import tokens as tokens

__all__ = [
    "ComplementaryEnhancer",
    "EnergyCoordinator",
    "ModalityDropout",
    "SemanticDecoupler",
    "Teacher",
    "TrustDistiller",
    "functional",
    "kernels",
    "masked_mean",
]
__version__ = "0.1.0"

_ON_DEMAND = ("balancers", "diagnostics", "integrations", "tokens")


def __getattr__(name: str) -> types.ModuleType:
    """Packages that not every run needs, imported when they are first asked for."""
    if name in _ON_DEMAND:
        return importlib.import_module(f"modbalance.{name}")
    raise AttributeError(f"module 'modbalance' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ON_DEMAND])
