"""See the imbalance: what each modality knows, what the fused model makes of it, and what is lost on the way."""

from modbalance.diagnostics.calibration import calibration_error, gaussian_coverage
from modbalance.diagnostics.contribution import imbalance, shares
from modbalance.diagnostics.diagnosis import Diagnosis
from modbalance.diagnostics.gradients import gradient_norms
from modbalance.diagnostics.monitor import ModalityMonitor
from modbalance.diagnostics.permutation import PermutationTest, trust_permutation_test
from modbalance.diagnostics.plot import plot
from modbalance.diagnostics.probe import probe_outputs
from modbalance.diagnostics.score import constant_outputs, task_score
from modbalance.diagnostics.unimodal import train_alone
from modbalance.shapley import (
    ShapleyEstimate,
    modality_subsets,
    sample_orders,
    sampled_shapley_values,
    shapley_values,
)

__all__ = [
    "Diagnosis",
    "ModalityMonitor",
    "PermutationTest",
    "ShapleyEstimate",
    "calibration_error",
    "constant_outputs",
    "gaussian_coverage",
    "gradient_norms",
    "imbalance",
    "modality_subsets",
    "plot",
    "probe_outputs",
    "sample_orders",
    "sampled_shapley_values",
    "shapley_values",
    "shares",
    "task_score",
    "train_alone",
    "trust_permutation_test",
]
