import warnings

import pytest
import torch
from torch import nn

from modbalance import ComplementaryEnhancer, EnergyCoordinator, SemanticDecoupler
from modbalance.training_check import CALLS, DETACHED

DIMS = {"a": 2, "b": 3}
F = {name: torch.ones(2, d, requires_grad=True) for name, d in DIMS.items()}
P = {name: torch.ones(2, 2) for name in DIMS}
Y = torch.tensor([0, 1])
COMPONENTS = {
    "coordinator": (lambda: EnergyCoordinator(DIMS, 2, delta=0, gap=None), lambda m: m(F, Y)),
    "decoupler": (lambda: SemanticDecoupler(DIMS, 2, 2), lambda m: m(F, Y)),
    "enhancer": (lambda: ComplementaryEnhancer(DIMS, 2, 2), lambda m: m(F, P, P)),
}
each_component = pytest.mark.parametrize(("build", "call"), COMPONENTS.values(), ids=COMPONENTS)


def said(build, call, prepare=lambda _: None, each=lambda _: None, calls=2 * CALLS + 2):
    """The warnings of many training calls."""
    model = build()
    prepare(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            call(model)
            each(model)
    return [str(w.message) for w in caught]


@pytest.mark.slow
@each_component
def test_parameters_that_no_optimiser_has_are_reported_once(build, call):
    (message,) = said(build, call)
    assert f"have not changed in {CALLS} training calls" in message
    assert 'optimizer.add_param_group({"params": balance.parameters()})' in message


def step(model):
    with torch.no_grad():
        next(model.parameters()).add_(0)  # what any optimiser does in place, even at a rate of 0


def replace(model):
    p = next(model.parameters())
    p.data = p.data.clone()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "each"),
    [
        (lambda _: None, step),
        (lambda _: None, replace),
        (lambda m: m.requires_grad_(False), lambda _: None),
        (lambda m: m.eval(), lambda _: None),
    ],
    ids=["stepped", "replaced", "frozen", "eval"],
)
def test_trained_and_frozen_parameters_are_not(prepare, each):
    assert said(*COMPONENTS["coordinator"], prepare, each, calls=CALLS + 2) == []


def test_few_calls_and_calls_without_gradients_are_not():
    assert said(*COMPONENTS["coordinator"], calls=20) == []
    with torch.no_grad():
        assert said(*COMPONENTS["coordinator"], calls=CALLS + 2) == []


def test_detached_features_are_reported_once():
    call = COMPONENTS["coordinator"][0], lambda m: m({name: x.detach() for name, x in F.items()}, Y)
    (message,) = said(*call, calls=3 * DETACHED)
    assert f"no feature has required a gradient in {DETACHED} training calls" in message
    assert "without .detach()" in message
    assert said(*call, prepare=lambda m: m.eval(), calls=3 * DETACHED) == []


def test_one_frozen_encoder_is_not():
    one = {"a": F["a"].detach(), "b": F["b"]}
    assert said(COMPONENTS["coordinator"][0], lambda m: m(one, Y), calls=3 * DETACHED) == []


def test_heads_of_your_own_are_yours_to_train():
    build = lambda: EnergyCoordinator(DIMS, 2, gap=None, heads={n: nn.Linear(d, 2) for n, d in DIMS.items()})  # noqa: E731
    assert said(build, lambda m: m(F, Y), calls=CALLS + 2) == []
