"""Each component behind one call, `(features, target, present)`, for properties that all of them share."""

import zlib
from typing import NamedTuple

import torch
from torch import nn

from cases import CLASSES, DIMS, flat, leaves, parameter_gradients, randomise, width
from modbalance import ComplementaryEnhancer, EnergyCoordinator, SemanticDecoupler, TrustDistiller

COMPONENTS = ("decoupler", "enhancer", "coordinator", "distiller")
DIM = 2


class Outcome(NamedTuple):
    values: dict
    features: dict
    parameters: dict


class Rig(nn.Module):
    """A component with fixed random maps for whatever else it wants: parts, a fusion head, teachers."""

    def __init__(self, component, task="classification", dims=DIMS, **options):
        super().__init__()
        self.task = task
        self.component = {
            "decoupler": lambda: SemanticDecoupler(dims, DIM, CLASSES, task, **{"temperature": 0.5, **options}),
            "enhancer": lambda: ComplementaryEnhancer(dims, DIM, CLASSES, task, **{"gamma": 0.7, **options}),
            "coordinator": lambda: EnergyCoordinator(dims, CLASSES, task, **{"gamma": 0.6, "step": 0.3, **options}),
            "distiller": lambda: TrustDistiller(CLASSES, task, **options),
        }[component]()
        self.student = nn.Parameter(torch.empty(CLASSES, width(task))) if component == "distiller" else None
        randomise(self)

    def forward(self, features, target=None, present=None):
        return getattr(self, f"_{type(self.component).__name__}")(features, target, present)

    def _SemanticDecoupler(self, features, target, present):
        return self.component(features, target, present)

    _EnergyCoordinator = _SemanticDecoupler

    def _ComplementaryEnhancer(self, features, target, present):
        shared = {name: x @ fixed(f"shared {name}", x.shape[1], DIM, x) for name, x in features.items()}
        private = {name: x @ fixed(f"private {name}", x.shape[1], DIM, x) for name, x in features.items()}

        def predict(tensors):
            total = 0.0
            for name, x in tensors.items():
                here = torch.ones(len(x), dtype=torch.bool) if present is None else present.get(name)
                s = x @ fixed(f"fusion {name}", x.shape[1], width(self.task), x)
                total = total + (s if here is None else torch.where(here[:, None], s, 0.0))
            return total

        return self.component(features, shared, private, predict, target, present)

    def _TrustDistiller(self, features, target, present):
        teachers = {
            name: x @ fixed(f"teacher {name}", x.shape[1], width(self.task), x) for name, x in features.items()
        }
        student = self.student[target] if target.dtype == torch.int64 else target.to(self.student) @ self.student
        variances = {name: x.mean(-1).exp() for name, x in features.items()} if self.task == "regression" else None
        return self.component(student, teachers, variances, present)


def fixed(name, rows, columns, like):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(like)


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
