"""Each published balancer against its formula, on a model small enough to work it out by hand."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.experiments.balancers import (
    AGM,
    OGM,
    UMT,
    Auxiliary,
    Fusion,
    MMPareto,
    agm_coefficients,
    blend_weights,
    pareto_direction,
)
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.settings import Settings

CLASSES = Spec("classes", {"a": 5, "b": 3, "c": 4}, (), 4)
VALUES = Spec("regression", {"a": 5, "b": 3, "c": 4}, (), 1)
STILL = Settings(dim=6, dropout=0.0)


def batch(spec, rows=12, absent=True):
    generator = torch.Generator().manual_seed(1)
    features = {name: torch.randn(rows, size, generator=generator) for name, size in spec.dims.items()}
    present = {name: torch.ones(rows, dtype=torch.bool) for name in spec.dims}
    if absent:
        present["b"][:3] = False
    target = (
        torch.randint(4, (rows,), generator=generator)
        if spec.kind == "classes"
        else torch.randn(rows, generator=generator)
    )
    return Batch(features, {}, present, target)


def build(kind, spec=CLASSES, *args):
    torch.manual_seed(0)
    return kind(spec, STILL, *args)


def gradients(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def encoded(model, data, name):
    return model.encoders[name](data.features[name]) * data.present[name][:, None]


def alone(model, data, names):
    """The fused head with only some features left, written out."""
    kept = [encoded(model, data, m) * float(m in names) for m in model.spec.dims]
    return model.head(model.mix(torch.cat(kept, 1)))


def own_error(spec, outputs, target):
    return (
        cross_entropy(outputs, target, reduction="none")
        if spec.kind == "classes"
        else (outputs[:, 0] - target) ** 2 / 2
    )


@pytest.mark.parametrize("spec", [CLASSES, VALUES], ids=["classes", "values"])
def test_fusion_is_concat(spec):
    data = batch(spec)
    torch.testing.assert_close(build(Fusion, spec)(data).loss, build(Concat, spec)(data).loss)


@pytest.mark.parametrize("spec", [CLASSES, VALUES], ids=["classes", "values"])
def test_ogm_scales_who_runs_ahead(spec):
    data, plain, model = batch(spec), build(Fusion, spec), build(OGM, spec)
    model.noise = 0.0
    plain.backward(plain(data))
    model.backward(model(data))
    score = {}
    for m in spec.dims:
        here = data.present[m]
        score[m] = (-own_error(spec, alone(plain, data, (m,)), data.target))[here].exp().mean().item()
    slowed = 0
    for m in spec.dims:
        others = [score[k] for k in score if k != m]
        ratio = score[m] / (sum(others) / 2)
        k = 1 - math.tanh(0.8 * ratio) if ratio > 1 else 1
        slowed += k < 1
        torch.testing.assert_close(gradients(model.encoders[m]), k * gradients(plain.encoders[m]))
    assert 0 < slowed < 3
    torch.testing.assert_close(gradients(model.mix), gradients(plain.mix))


def test_ogm_adds_noise_of_the_gradients_size():
    data, quiet, model = batch(CLASSES), build(OGM), build(OGM)
    quiet.noise = 0.0
    quiet.backward(quiet(data))
    model.backward(model(data))
    before, after = (m.encoders["a"].body[1].weight.grad for m in (quiet, model))
    k = quiet.coefficients["a"]
    assert (after - before).std().item() == pytest.approx((before / k).std().item(), rel=0.4)


@pytest.mark.parametrize("spec", [CLASSES, VALUES], ids=["classes", "values"])
def test_agm_scales_by_the_shapley_share_against_its_past(spec):
    first, second = batch(spec), batch(spec, rows=7, absent=False)
    plain, model = build(Fusion, spec), build(AGM, spec)

    def errors(data):
        found = {}
        for m, k, j in (("a", "b", "c"), ("b", "a", "c"), ("c", "a", "b")):
            none = torch.zeros(())
            share = (alone(plain, data, (m,)) - none) / 3 + (
                alone(plain, data, (m, k, j)) - alone(plain, data, (k, j))
            ) / 3
            share = share + (alone(plain, data, (m, k)) - alone(plain, data, (k,))) / 6
            share = share + (alone(plain, data, (m, j)) - alone(plain, data, (j,))) / 6
            found[m] = own_error(spec, share, data.target)[data.present[m]].mean().item()
        return found

    def ratio(found, m):
        return math.exp(sum(found[k] for k in found if k != m) / 2 - found[m])

    past, now = errors(first), errors(second)
    model(first)
    assert all(k == 1 for k in model.coefficients.values())  # nothing to compare the first step with
    model.backward(model(second))
    plain.backward(plain(second))
    for m in spec.dims:
        k = math.exp(ratio(past, m) - ratio(now, m))
        assert model.coefficients[m] == pytest.approx(k, rel=1e-4)
        torch.testing.assert_close(
            gradients(model.encoders[m]), k * gradients(plain.encoders[m]), rtol=1e-4, atol=1e-6
        )
        assert model.mean[m] == pytest.approx((past[m] + now[m]) / 2, rel=1e-4)


def test_agm_cuts_the_exponent():
    assert agm_coefficients({"a": 9.0, "b": 0.0}, {"a": 0.0, "b": 9.0}, 0.5)["a"] == pytest.approx(math.exp(5))


@pytest.mark.parametrize("spec", [CLASSES, VALUES], ids=["classes", "values"])
def test_mmpareto_mixes_the_two_gradients_of_each_encoder(spec):
    data, model, plain = batch(spec), build(MMPareto, spec), build(Auxiliary, spec)
    model.backward(model(data))
    terms = plain(data).terms
    for m in spec.dims:
        parameters = list(plain.encoders[m].parameters())
        fused, own = (
            torch.cat([g.flatten() for g in torch.autograd.grad(terms[name], parameters, retain_graph=True)])
            for name in ("task", m)
        )
        torch.testing.assert_close(gradients(model.encoders[m]), pareto_direction(fused, own, 1.5))
    plain.zero_grad()
    plain(data).loss.backward()
    torch.testing.assert_close(gradients(model.mix), gradients(plain.mix))
    torch.testing.assert_close(gradients(model.heads["a"]), gradients(plain.heads["a"]))


def test_pareto_direction_where_both_agree():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(pareto_direction(a, b, 1.5), 1.5 * (a + b))


@pytest.mark.parametrize("seed", range(5))
def test_pareto_direction_where_they_conflict(seed):
    a, b = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    b = b if a @ b < 0 else -b
    steps = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    candidates = 2 * steps * a + 2 * (1 - steps) * b
    shortest = candidates[candidates.norm(dim=1).argmin()]
    expected = 1.5 * shortest * max(1.0, ((a + b).norm() / shortest.norm()).item())
    found = pareto_direction(a, b, 1.5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert found @ a >= -1e-9
    assert found @ b >= -1e-9


def test_blend_weights():
    before = {"a": (2.0, 2.0), "b": (2.0, 2.0), "task": (2.0, 2.1), "bad": (2.0, 2.0)}
    after = {"a": (1.0, 1.2), "b": (0.1, 1.0), "task": (0.5, 1.0), "bad": (0.1, 3.0)}
    raw = {"a": 0.8 / 0.2**2, "b": 1.0 / 0.9**2, "task": 1.1 / 0.4**2, "bad": 0.0}
    expected = {name: w / sum(raw.values()) for name, w in raw.items()}
    assert blend_weights(before, after) == pytest.approx(expected)
    assert blend_weights({"a": (1, 1), "b": (1, 1)}, {"a": (0, 2), "b": (0, 2)}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("spec", [CLASSES, VALUES], ids=["classes", "values"])
def test_auxiliary_losses_weighed(spec):
    data = batch(spec)
    weights = {"a": 0.5, "b": 2.0, "c": 0.0, "task": 0.3}
    terms = build(Auxiliary, spec)(data).terms
    expected = 0.3 * terms["task"] + 0.5 * terms["a"] + 2 * terms["b"]
    torch.testing.assert_close(build(Auxiliary, spec, weights)(data).loss, expected)
    torch.testing.assert_close(build(Auxiliary, spec)(data).loss, sum(terms.values()))


def test_umt_adds_the_distance_to_frozen_features():
    data, teachers = batch(CLASSES), build(Concat).encoders
    torch.manual_seed(5)
    model = UMT(CLASSES, STILL, teachers)
    out = model(data)
    expected = out.terms["task"]
    for m in CLASSES.dims:
        here = data.present[m]
        expected = (
            expected + ((model.encoders[m](data.features[m]) - teachers[m](data.features[m])) ** 2)[here].mean()
        )
    torch.testing.assert_close(out.loss, expected)
    before = [p.clone() for p in teachers.parameters()]
    model.backward(out)
    assert not any(key.startswith("teachers") for key in model.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(before, teachers.parameters(), strict=True))


@pytest.mark.parametrize("kind", [OGM, AGM, Auxiliary, MMPareto])
def test_without_a_target_it_predicts(kind):
    data = batch(CLASSES)
    out = build(kind)(Batch(data.features, {}, data.present, None))
    assert out.loss == 0
    assert out.outputs.shape == (12, 4)
