"""Each component behind one call, `(features, target, present)`, for properties that all of them share."""

import zlib
from typing import NamedTuple

import torch
from torch import nn

from cases import CLASSES, DIMS, flat, leaves, parameter_gradients, randomise, width
from modbalance import ComplementaryEnhancer, EnergyCoordinator, SemanticDecoupler, TrustDistiller

COMPONENTS = ("decoupler", "enhancer", "coordinator", "distiller")
DIM = 2
TERMS = {"gamma": 0.6, "step": 0.3, "gap": "pull"}


class Outcome(NamedTuple):
    values: dict
    features: dict
    parameters: dict


class Rig(nn.Module):
    """A component with fixed random maps for whatever else it wants: parts, a fusion head, teachers."""

    def __init__(self, component, task="classification", dims=DIMS, **options):
        super().__init__()
        self.kind, self.task = component, task
        self.component = {
            "decoupler": lambda: SemanticDecoupler(dims, DIM, CLASSES, task, **{"temperature": 0.5, **options}),
            "enhancer": lambda: ComplementaryEnhancer(dims, DIM, CLASSES, task, **{"gamma": 0.7, **options}),
            "coordinator": lambda: EnergyCoordinator(dims, CLASSES, task, **{**TERMS, **options}),
            "distiller": lambda: TrustDistiller(CLASSES, task, **options),
        }[component]()
        self.student = nn.Parameter(torch.empty(CLASSES, width(task))) if component == "distiller" else None
        widths = {"shared": DIM, "private": DIM, "fusion": width(task), "teacher": width(task)}
        self.maps = {
            f"{what} {name}": fixed(f"{what} {name}", d, w) for name, d in dims.items() for what, w in widths.items()
        }
        randomise(self)

    def forward(self, features, target=None, present=None):
        return getattr(self, f"_{self.kind}")(features, target, present)

    def _decoupler(self, features, target, present):
        return self.component(features, target, present)

    _coordinator = _decoupler

    def _enhancer(self, features, target, present):
        shared = {name: x @ self.maps[f"shared {name}"].to(x) for name, x in features.items()}
        private = {name: x @ self.maps[f"private {name}"].to(x) for name, x in features.items()}

        def predict(tensors):
            total = 0.0
            for name, x in tensors.items():
                here = torch.ones(len(x), dtype=torch.bool) if present is None else present.get(name)
                s = x @ self.maps[f"fusion {name}"].to(x)
                total = total + (s if here is None else torch.where(here[:, None], s, 0.0))
            return total

        return self.component(features, shared, private, predict, target, present)

    def _distiller(self, features, target, present):
        teachers = {name: x @ self.maps[f"teacher {name}"].to(x) for name, x in features.items()}
        student = self.student[target] if target.dtype == torch.int64 else target.to(self.student) @ self.student
        variances = {name: x.mean(-1).exp() for name, x in features.items()} if self.task == "regression" else None
        return self.component(student, teachers, variances, present)


def fixed(name, rows, columns):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def outcome(rig, features, target=None, present=None):
    """Values, and the gradients of the loss on features and parameters; nothing in the graph is an error."""
    rig.zero_grad()
    inputs = leaves(features)
    result = rig(inputs, target, present)
    result.loss.backward()
    given = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in inputs.items()}
    return Outcome({k: v.detach() for k, v in flat(result).items()}, given, parameter_gradients(rig))


def assert_close(got, want, only_common=False, **tolerance):
    """Two outcomes agree; `only_common` leaves out what belongs to a modality that one of them lacks."""
    tolerance = {"rtol": 1e-9, "atol": 1e-10, "equal_nan": True, **tolerance}
    for ours, theirs in zip(got, want, strict=True):
        assert only_common or ours.keys() == theirs.keys()
        for name in ours.keys() & theirs.keys():
            torch.testing.assert_close(ours[name], theirs[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)
