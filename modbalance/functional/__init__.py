"""The formulas of the method as pure functions; the components are thin modules over them."""

from modbalance.functional.calibration import fit_temperature, scale_temperature
from modbalance.functional.decoupling import alignment_loss, preservation_loss, redundancy_loss
from modbalance.functional.energy import GateState, descend, energy, energy_gap, gate_weights
from modbalance.functional.enhancement import generator_inputs, reconstruction_loss
from modbalance.functional.trust import distillation_loss, trust_fusion, trust_weights

__all__ = [
    "GateState",
    "alignment_loss",
    "descend",
    "distillation_loss",
    "energy",
    "energy_gap",
    "fit_temperature",
    "gate_weights",
    "generator_inputs",
    "preservation_loss",
    "reconstruction_loss",
    "redundancy_loss",
    "scale_temperature",
    "trust_fusion",
    "trust_weights",
]
