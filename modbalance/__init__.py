"""Balanced multimodal learning: four drop-in components over named modalities."""

from modbalance import functional, kernels
from modbalance.coordinator import EnergyCoordinator
from modbalance.decoupler import SemanticDecoupler
from modbalance.distiller import TrustDistiller
from modbalance.dropout import ModalityDropout
from modbalance.enhancer import ComplementaryEnhancer
from modbalance.presence import masked_mean
from modbalance.teacher import Teacher

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
