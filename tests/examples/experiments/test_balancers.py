"""The pipeline trains with the library's balancers; their formulas are tested in `tests/balancers`."""

import pytest
import torch

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.experiments.balancers import UMT, Balanced, agm, blending, mmpareto, ogm, unimodal
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.encoders import encode
from ebmc_msa.model.settings import Settings
from modbalance import balancers
from modbalance.tasks import task_loss

CLASSES = Spec("classes", {"a": 5, "b": 3, "c": 4}, (), 4)
VALUES = Spec("regression", {"a": 5, "b": 3, "c": 4}, (), 1)
STILL = Settings(dim=6, dropout=0.0)
SPECS = pytest.mark.parametrize("spec", [CLASSES, VALUES], ids=["classes", "values"])
KINDS = {
    "unimodal": (unimodal, balancers.UnimodalLosses),
    "blending": (blending, balancers.GradientBlending),
    "ogm": (ogm, balancers.OGMGE),
    "agm": (agm, balancers.AGM),
    "mmpareto": (mmpareto, balancers.MMPareto),
}


def batch(spec, rows=12):
    generator = torch.Generator().manual_seed(1)
    features = {name: torch.randn(rows, size, generator=generator) for name, size in spec.dims.items()}
    present = {name: torch.ones(rows, dtype=torch.bool) for name in spec.dims}
    present["b"][:3] = False
    target = (
        torch.randint(4, (rows,), generator=generator)
        if spec.kind == "classes"
        else torch.randn(rows, generator=generator)
    )
    return Batch(features, {}, present, target)


def build(kind, spec, *args):
    torch.manual_seed(0)
    return kind(spec, STILL, *args)


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@SPECS
def test_joint_training_is_concat(spec):
    data = batch(spec)
    plain, model = build(Concat, spec), build(Balanced, spec)
    torch.testing.assert_close(model(data).loss, plain(data).loss)
    plain(data).loss.backward()
    model.backward(model(data))
    torch.testing.assert_close(gradients(model), gradients(plain))


@SPECS
@pytest.mark.parametrize(("make", "kind"), KINDS.values(), ids=KINDS)
def test_gradients_are_those_of_the_library(spec, make, kind):
    """The three lines, written out on a model of the same start."""
    data = batch(spec)
    model, other = build(Balanced, spec, make), build(Balanced, spec, make)
    assert type(model.balance) is kind
    for m in (model, other):
        if m.balance._get_name() == "GradientBlending":
            m.balance.update(dict.fromkeys([*spec.dims, "task"], (2.0, 2.0)))
            m.balance.update({"a": (1.0, 1.2), "b": (0.1, 1.0), "c": (0.5, 1.0), "task": (0.5, 1.0)})
    out = model(data)
    model.backward(out)
    z = encode(other.encoders, data)
    result = other.balance(z, data.target, data.present)
    loss = task_loss(spec.task, other.head(other.mix(torch.cat(list(z.values()), -1))), data.target).mean()
    other.balance.backward(loss, result)
    other.balance.step()
    torch.testing.assert_close(gradients(model), gradients(other))
    assert out.terms["task"] == loss
    assert out.loss.isfinite()


def test_umt_keeps_to_frozen_encoders():
    data, teachers = batch(CLASSES), build(Concat, CLASSES).encoders
    torch.manual_seed(5)
    model = UMT(CLASSES, STILL, teachers)
    out = model(data)
    expected = out.terms["task"]
    for m in CLASSES.dims:
        here = data.present[m]
        distance = (model.encoders[m](data.features[m]) - teachers[m](data.features[m])) ** 2
        expected = expected + distance[here].mean()
    torch.testing.assert_close(out.loss, expected)
    before = [p.clone() for p in teachers.parameters()]
    model.backward(out)
    assert not any(key.startswith("teachers") for key in model.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(before, teachers.parameters(), strict=True))


@pytest.mark.parametrize("make", [make for make, _ in KINDS.values()], ids=KINDS)
def test_without_a_target_it_predicts(make):
    data = batch(CLASSES)
    out = build(Balanced, CLASSES, make)(Batch(data.features, {}, data.present, None))
    assert out.loss == 0
    assert out.outputs.shape == (12, 4)
