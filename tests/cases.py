"""Inputs and comparisons that the tests share."""

from typing import NamedTuple

import pytest
import torch

TASKS = ("classification", "multilabel", "regression", "gaussian")
PRESENCE = ("all", "some", "disjoint", "one", "none")
DIMS = {"text": 5, "audio": 3, "vision": 4}
CLASSES = 3
NAN = float("nan")


class Batch(NamedTuple):
    features: dict
    target: torch.Tensor
    present: dict | None


def width(task, outputs=CLASSES):
    return 2 * outputs if task == "gaussian" else outputs


def make_target(task, batch, outputs=CLASSES, dtype=torch.float64):
    if task == "classification":
        return torch.randint(outputs, (batch,))
    return torch.rand(batch, outputs, dtype=dtype)


def make_present(kind, batch, names):
    """None, or by modality; `some` has rows with nothing and with one, `disjoint` two modalities never together."""
    if kind == "all":
        return None
    if kind == "some":
        masks = torch.rand(len(names), batch) < 0.6
        masks[:, 0], masks[:, 1:2] = True, False
        masks[:, 2:3], masks[0, 2:3] = False, True
    elif kind == "disjoint":
        masks = torch.ones(len(names), batch, dtype=torch.bool)
        masks[0, ::2] = masks[1:2, 1::2] = False
    else:
        masks = torch.zeros(len(names), batch, dtype=torch.bool)
        masks[0] = kind == "one"
    return dict(zip(names, masks, strict=True))


def make_batch(task, batch=6, dims=DIMS, presence="all", dtype=torch.float64, outputs=CLASSES):
    """Random features with NaN in every absent row, a target, and presence."""
    features = {name: torch.randn(batch, dim, dtype=dtype) for name, dim in dims.items()}
    present = make_present(presence, batch, list(dims))
    return Batch(poison(features, present), make_target(task, batch, outputs, dtype), present)


def poison(features, present, value=NAN):
    if present is None:
        return dict(features)
    return {
        name: torch.where(present[name][:, None], x, value) if name in present else x for name, x in features.items()
    }


def leaves(tensors):
    return {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}


def gradients(value, tensors):
    """Gradients with zeros for whatever `value` does not reach."""
    return torch.autograd.grad(value, list(tensors), allow_unused=True, materialize_grads=True, retain_graph=True)


def assert_same(ours, expected, inputs, tolerance=1e-10):
    """Two scalars agree, and so do their gradients on `inputs`."""
    torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=tolerance, atol=tolerance)
    theirs = gradients(expected, inputs) if expected.requires_grad else [torch.zeros_like(x) for x in inputs]
    for got, want in zip(gradients(ours, inputs), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def relative(got, want):
    """Relative L2 distance."""
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


def parameter_gradients(module):
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def flat(result):
    """Every tensor of a component's result by dotted name."""
    tensors = {}
    for field, value in result._asdict().items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        tensors.update({f"{field}.{name}".rstrip("."): x for name, x in items})
    return tensors


def randomise(module):
    """Parameters of order one, so that no test passes by a tiny initialisation; float64."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.7)
    return module


compiles = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13),
    reason="compiling a closed form in one graph needs torch 2.13",
)
