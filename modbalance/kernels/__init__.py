"""The energy gradient-norm penalty: one function, `energy_penalty`, over interchangeable backends."""

from modbalance.kernels.dispatch import BACKENDS as BACKENDS
from modbalance.kernels.dispatch import Backend, EnergyPenalty, energy_penalty

__all__ = ["Backend", "EnergyPenalty", "energy_penalty"]
