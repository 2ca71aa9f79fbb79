"""Tensors on different devices, meta tensors, and half-precision features: right, or one clear error."""

import copy
import re

import pytest
import torch

from cases import CLASSES, DIMS, TASKS, make_batch, randomise, width
from modbalance import ComplementaryEnhancer, EnergyCoordinator, SemanticDecoupler, TrustDistiller
from modbalance.kernels import energy_penalty
from penalty import make_inputs

DIM = 4


def decoupler(task="classification", **options):
    return SemanticDecoupler(DIMS, DIM, CLASSES, task, **options)


def enhancer(task="classification"):
    return ComplementaryEnhancer(DIMS, DIM, CLASSES, task)


def coordinator(task="classification", **options):
    return EnergyCoordinator(DIMS, CLASSES, task, **options)


def arguments(kind, task="classification", presence="all"):
    """What a component is called with, by name; float32."""
    features, target, present = make_batch(task, presence=presence, dtype=torch.float32)
    if kind is enhancer:
        parts = [{n: torch.randn(6, DIM) for n in DIMS} for _ in range(2)]
        wide = torch.randn(max(DIMS.values()), width(task))
        return {
            "features": features,
            "shared": parts[0],
            "private": parts[1],
            "predict": lambda z: sum(x.float() @ wide[: x.shape[1]] for x in z.values()),
            "target": target,
            "present": present,
        }
    return {"features": features, "target": target, "present": present}


def moved(value, device):
    return {n: x.to(device) for n, x in value.items()} if isinstance(value, dict) else value.to(device)


PARTS = [
    (kind, name)
    for kind in (decoupler, enhancer, coordinator)
    for name in ("target", "present", *(("shared", "private") if kind is enhancer else ()))
]


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{k.__name__}-{n}" for k, n in PARTS])
def test_an_argument_on_another_device_is_named(kind, name):
    given = arguments(kind, presence="some")
    given[name] = moved(given[name], "meta")
    with pytest.raises(
        ValueError, match=rf"{name}.* is on meta, expected cpu as .*features.*; pass {name}.*\.to\('cpu'\)"
    ):
        kind()(**given)


@pytest.mark.parametrize("kind", [decoupler, enhancer, coordinator])
def test_one_modality_on_another_device_is_named(kind):
    given = arguments(kind)
    given["features"]["vision"] = given["features"]["vision"].to("meta")
    message = r"features\['vision'\] is on meta, expected cpu as features\['text'\]; pass features.*\.to\('cpu'\)"
    with pytest.raises(ValueError, match=message):
        kind()(**given)


@pytest.mark.parametrize("kind", [decoupler, enhancer, coordinator])
def test_a_component_on_another_device_is_named(kind):
    message = r"its parameters or buffers are on meta, expected cpu as .*; move the component there with .to\('cpu'\)"
    with pytest.raises(ValueError, match=message):
        kind().to("meta")(**arguments(kind))


def test_the_distiller_names_what_is_elsewhere():
    teachers = {n: torch.randn(6, CLASSES) for n in DIMS}
    distill = TrustDistiller(CLASSES)
    with pytest.raises(ValueError, match=r"teachers\['text'\] is on cpu, expected meta as student"):
        distill(torch.randn(6, CLASSES, device="meta"), teachers)
    with pytest.raises(ValueError, match=r"variances\['text'\] is on meta, expected cpu as teachers\['text'\]"):
        distill.trust(teachers, {n: torch.rand(6, device="meta") for n in DIMS})


@pytest.mark.parametrize("group", ["features", "weights", "biases", "target"])
def test_the_penalty_names_what_is_elsewhere(group):
    inputs = make_inputs("classification")
    value = getattr(inputs, group)
    elsewhere = value.to("meta") if group == "target" else [value[0], value[1].to("meta")]
    name = "target" if group == "target" else f"{group}[1]"
    message = re.escape(f"energy_penalty: {name} is on meta, expected cpu as features[0]; pass {name}.to('cpu')")
    with pytest.raises(ValueError, match=message):
        energy_penalty(*inputs._replace(**{group: elsewhere}))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", [decoupler, coordinator])
def test_all_on_meta_gives_shapes(kind, task):
    component = kind(task)
    given = arguments(kind, task, "some")
    expected = component(**given)
    found = component.to("meta")(**{name: moved(x, "meta") for name, x in given.items()})
    assert found.loss.is_meta
    assert {n: x.shape for n, x in found[-1].items()} == {n: x.shape for n, x in expected[-1].items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (decoupler, {}),
        (coordinator, {}),
        (coordinator, {"step": 0.1}),
        (coordinator, {"gap": "paper"}),
        (coordinator, {"joint": True, "backend": "reference"}),
    ],
    ids=["decoupler", "coordinator", "step", "paper", "joint"],
)
def test_half_features_and_float32_parameters_without_autocast(kind, options, dtype):
    """As the same features, rounded and held in float32."""
    component = randomise(kind(**options)).float()
    given = arguments(kind, presence="some")
    half = {n: x.to(dtype).requires_grad_() for n, x in given["features"].items()}
    single = {n: x.detach().float().requires_grad_() for n, x in half.items()}
    twin = copy.deepcopy(component)
    found, expected = component(**given | {"features": half}), twin(**given | {"features": single})
    torch.testing.assert_close(found.scalars(), expected.scalars())
    found.loss.backward()
    expected.loss.backward()
    for name in DIMS:
        assert half[name].grad.dtype == dtype
        torch.testing.assert_close(half[name].grad.float(), single[name].grad, rtol=1e-2, atol=1e-2)
    for got, want in zip(component.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_parts_in_the_enhancer(dtype):
    given = arguments(enhancer, presence="some")
    half = {name: {n: x.to(dtype) for n, x in given[name].items()} for name in ("features", "shared", "private")}
    single = {name: {n: x.float() for n, x in parts.items()} for name, parts in half.items()}
    component = randomise(enhancer()).float().eval()
    torch.testing.assert_close(component(**given | half).scalars(), component(**given | single).scalars())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_outputs_in_the_distiller(dtype):
    student, teachers = torch.randn(6, CLASSES).to(dtype), {n: torch.randn(6, CLASSES).to(dtype) for n in DIMS}
    distill = TrustDistiller(CLASSES)
    found, expected = (
        distill(student, teachers),
        distill(student.float(), {n: x.float() for n, x in teachers.items()}),
    )
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.weights, expected.weights)
