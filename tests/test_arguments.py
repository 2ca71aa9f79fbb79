"""Arguments of the constructors: one error that names the class, what came, what was expected and what to type."""

import re

import pytest
import torch
from torch import nn

from cases import CLASSES, DIMS
from modbalance import (
    ComplementaryEnhancer,
    EnergyCoordinator,
    SemanticDecoupler,
    TrustDistiller,
)
from modbalance.balancers import (
    AGM,
    CGGM,
    OGMGE,
    PMR,
    UMT,
    GradientBlending,
    MMPareto,
    ModalityDropout,
    UnimodalLosses,
)
from modbalance.diagnostics import ModalityMonitor, train_alone

ENCODERS = {name: nn.Linear(2, size) for name, size in DIMS.items()}


def predict(features, present):
    return torch.zeros(len(next(iter(features.values()))), CLASSES)


BUILD = {
    "SemanticDecoupler": lambda dim=2, **o: SemanticDecoupler(o.pop("dims", DIMS), dim, CLASSES, **o),
    "ComplementaryEnhancer": lambda dim=2, **o: ComplementaryEnhancer(o.pop("dims", DIMS), dim, CLASSES, **o),
    "EnergyCoordinator": lambda **o: EnergyCoordinator(o.pop("dims", DIMS), CLASSES, **o),
    "TrustDistiller": lambda **o: TrustDistiller(CLASSES, **o),
    "UnimodalLosses": lambda **o: UnimodalLosses(o.pop("dims", DIMS), CLASSES, **o),
    "GradientBlending": lambda **o: GradientBlending(o.pop("dims", DIMS), CLASSES, **o),
    "MMPareto": lambda **o: MMPareto(ENCODERS, o.pop("dims", DIMS), CLASSES, **o),
    "CGGM": lambda **o: CGGM(ENCODERS, o.pop("dims", DIMS), CLASSES, predict, **o),
    "PMR": lambda **o: PMR(o.pop("dims", DIMS), CLASSES, **o),
    "AGM": lambda **o: AGM(ENCODERS, CLASSES, predict, **o),
    "OGMGE": lambda **o: OGMGE(ENCODERS, CLASSES, predict, **o),
    "UMT": UMT,
    "ModalityDropout": ModalityDropout,
    "ModalityMonitor": lambda **o: ModalityMonitor(list(DIMS), CLASSES, **o),
    "train_alone": lambda **o: train_alone(ENCODERS, [], CLASSES, steps=0, **o),
}
SIZE, NUMBER, WEIGHT, UNIT = (
    "expected a positive int; pass the ",
    "expected a positive number; pass one above zero",
    "expected a number of at least 0; 0 leaves the term out",
    "expected a probability ",
)
WEIGHTED = ("SemanticDecoupler", "ComplementaryEnhancer", "EnergyCoordinator", "UnimodalLosses", "GradientBlending")
WEIGHTED += ("MMPareto",)
LABELLED = (*WEIGHTED, "CGGM", "PMR", "AGM", "OGMGE", "ModalityMonitor", "train_alone")
WRONG = [
    *((owner, "dim", value, SIZE) for owner in WEIGHTED[:2] for value in (0, 4.0, True, "4")),
    *(("ComplementaryEnhancer", "hidden", value, SIZE) for value in (0, 4.0)),
    *(("SemanticDecoupler", "max_batch", value, SIZE) for value in (0, 8.0)),
    *(("SemanticDecoupler", "cosine", value, "expected 'squared' or 'plain'; pass one") for value in ("cubed", None)),
    ("EnergyCoordinator", "gap", "push", "expected 'pull', 'paper', 'paper_per_sample' or None; pass one"),
    *((owner, "ignore_index", value, "expected an int; pass a label") for owner in LABELLED for value in (None, 1.0)),
    ("SemanticDecoupler", "temperature", "0.1", NUMBER),
    ("TrustDistiller", "temperature", None, NUMBER),
    ("EnergyCoordinator", "temperature", True, NUMBER),
    ("EnergyCoordinator", "alpha", "0.1", WEIGHT),
    ("EnergyCoordinator", "beta", [1.0], WEIGHT),
    ("ModalityMonitor", "gamma", None, WEIGHT),
    ("UMT", "weight", "1", NUMBER),
    ("AGM", "limit", None, NUMBER),
    ("OGMGE", "noise", -1.0, WEIGHT),
    ("CGGM", "rho", "1", NUMBER),
    ("CGGM", "direction", -0.1, WEIGHT),
    ("MMPareto", "gamma", None, NUMBER),
    ("GradientBlending", "floor", "0", NUMBER),
    *(("PMR", name, -1, WEIGHT) for name in ("alpha", "mu", "early")),
    ("PMR", "momentum", "0.9", "expected a number from 0 to 1"),
    ("ComplementaryEnhancer", "hide", "0.1", UNIT),
    ("ModalityDropout", "rate", "0.1", UNIT),
    ("train_alone", "learning_rate", 0, NUMBER),
]


@pytest.mark.parametrize(("owner", "name", "value", "message"), WRONG, ids=lambda part: str(part)[:20])
def test_one_error_says_what_to_pass(owner, name, value, message):
    with pytest.raises(ValueError, match=re.escape(f"{owner}: {name} is {value!r}, {message}")):
        BUILD[owner](**{name: value})


@pytest.mark.parametrize("owner", WEIGHTED)
def test_class_weights_are_a_tensor(owner):
    message = rf"{owner}: class_weight is a list, expected a tensor \({CLASSES},\); pass torch.tensor\(class_weight\)"
    with pytest.raises(TypeError, match=message):
        BUILD[owner](class_weight=[1.0] * CLASSES)


@pytest.mark.parametrize("owner", [*WEIGHTED, "CGGM", "PMR"])
@pytest.mark.parametrize("size", [2.0, "2", None])
def test_a_size_is_a_whole_number(owner, size):
    with pytest.raises(ValueError, match=rf"{owner}: dims\['text'\] is {size!r}, expected a positive int"):
        BUILD[owner](dims={**DIMS, "text": size})


def test_each_modality_has_its_own_weight():
    with pytest.raises(
        ValueError, match=r"UnimodalLosses: weights\['audio'\] is '1', expected a number of at least 0"
    ):
        UnimodalLosses(DIMS, CLASSES, weights={**dict.fromkeys(DIMS, 1.0), "audio": "1"})


@pytest.mark.parametrize("owner", BUILD)
def test_what_numbers_may_be(owner):
    """Whole numbers, and tensors that hold one, where a number is expected."""
    numbers = {
        "SemanticDecoupler": "lambda_1",
        "EnergyCoordinator": "alpha",
        "UMT": "weight",
        "ModalityDropout": "rate",
    }
    if owner in numbers:
        for value in (1, torch.tensor(1.0)):
            BUILD[owner](**{numbers[owner]: value})
    else:
        BUILD[owner]()
