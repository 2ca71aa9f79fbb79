"""The penalty: both backends against the oracle, autograd, each other, and hostile input."""

import re

import pytest
import torch
from torch.nn.functional import linear

import oracle
from cases import CLASSES, NAN, TASKS, assert_same, compiles, gradients, relative
from modbalance import kernels
from modbalance.kernels import energy_penalty
from penalty import CASES, CLASS_WEIGHT, PRESENT, TERMS, Inputs, from_option, make_inputs, random_sum

BACKENDS = ("analytic", "reference")
each_case = pytest.mark.parametrize(("task", "option"), CASES, ids=[f"{t}-{o}" for t, o in CASES])
each_task = pytest.mark.parametrize("task", TASKS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def heads_of(inputs):
    return [lambda z, w=w, b=b: linear(z, w, b) for w, b in zip(inputs.weights, inputs.biases, strict=True)]


@each_backend
@each_case
def test_values_and_gradients_against_the_oracle(task, option, backend):
    inputs, options = from_option(task, option)
    ours = energy_penalty(*inputs, task=task, backend=backend, **options)
    expected = oracle.energy_penalty(task, inputs.features, heads_of(inputs), inputs.target, **options)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    assert_same(random_sum(ours), random_sum(expected), inputs.leaves(), 1e-9)


@each_backend
@each_case
def test_gradcheck(task, option, backend):
    inputs, options = from_option(task, option)
    groups = [len(x) for x in inputs[:3]]

    def run(*tensors):
        z, rest = tensors[: groups[0]], tensors[groups[0] :]
        b = rest[groups[1] :] or [None] * groups[2]
        return energy_penalty(z, rest[: groups[1]], b, inputs.target, task=task, backend=backend, **options)

    assert torch.autograd.gradcheck(run, inputs.leaves())


@each_task
@pytest.mark.parametrize("modalities", [1, 2, 3, 4, 5])
def test_backends_agree_for_any_number_of_modalities_and_shape(task, modalities):
    inputs = make_inputs(task, batch=7, dims=(1, 9, 4, 17, 2)[:modalities])
    results = [energy_penalty(*inputs, task=task, backend=b) for b in BACKENDS]
    assert results[0].energy.shape == results[0].penalty.shape == (modalities, 7)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    assert_same(*map(random_sum, results), inputs.leaves(), 1e-9)


@each_backend
@each_task
@pytest.mark.parametrize(("batch", "classes"), [(0, 3), (1, 3), (1, 1), (4, 1)], ids=["B0", "B1", "B1C1", "C1"])
def test_small_shapes(task, batch, classes, backend):
    inputs = make_inputs(task, batch=batch, classes=classes)
    ours = energy_penalty(*inputs, task=task, backend=backend, **TERMS)
    assert ours.energy.shape == ours.penalty.shape == (2, batch)
    expected = oracle.energy_penalty(task, inputs.features, heads_of(inputs), inputs.target, **TERMS)
    if batch:
        assert_same(random_sum(ours), random_sum(expected), inputs.leaves(), 1e-9)
    else:
        assert all((g == 0).all() for g in gradients(ours.energy.sum() + ours.penalty.sum(), inputs.leaves()))


@each_backend
@each_task
def test_strided_inputs(task, backend):
    dense = make_inputs(task, batch=4, dims=(3, 5))

    def strided(x):
        return torch.stack([x.detach(), x.detach()], -1)[..., 0].requires_grad_()

    loose = Inputs(*([strided(x) for x in group] for group in dense[:3]), dense.target)
    assert not any(x.is_contiguous() for x in loose.leaves())
    got, want = (energy_penalty(*i, task=task, backend=backend) for i in (loose, dense))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        gradients(random_sum(got), loose.leaves()), gradients(random_sum(want), dense.leaves())
    )


@each_backend
@each_task
@pytest.mark.parametrize("bad", [NAN, float("inf"), 1e30], ids=str)
def test_a_masked_row_contributes_nothing_whatever_it_holds(task, bad, backend):
    inputs = make_inputs(task)
    hostile = inputs.to(torch.float64)
    with torch.no_grad():
        for z, here in zip(hostile.features, PRESENT, strict=True):
            z[~here] = bad
    clean, dirty = (energy_penalty(*i, task=task, present=PRESENT, backend=backend) for i in (inputs, hostile))
    for got, want in zip(dirty, clean, strict=True):
        assert torch.equal(got, want)
        assert (got[~PRESENT] == 0).all()
    found = gradients(random_sum(dirty), hostile.leaves())
    for got, want in zip(found, gradients(random_sum(clean), inputs.leaves()), strict=True):
        assert torch.equal(got, want)
    assert all((g[~here] == 0).all() for g, here in zip(found, PRESENT, strict=False))


@each_backend
@each_task
def test_all_rows_masked(task, backend):
    inputs = make_inputs(task)
    with torch.no_grad():
        for z in inputs.features:
            z.fill_(NAN)
    result = energy_penalty(*inputs, task=task, present=torch.zeros(2, 4, dtype=torch.bool), backend=backend)
    assert all((x == 0).all() for x in (*result, *gradients(random_sum(result), inputs.leaves())))


@each_backend
@pytest.mark.parametrize("label", [-100, -1, CLASSES, 2**40])
def test_a_row_with_an_ignored_label_counts_as_absent(label, backend):
    inputs = make_inputs("classification")._replace(target=torch.tensor([0, label, 2, 1]))
    result = energy_penalty(*inputs, class_weight=CLASS_WEIGHT, ignore_index=label, backend=backend)
    present = torch.ones(2, 4, dtype=torch.bool)
    present[:, 1] = False
    masked = inputs._replace(target=torch.tensor([0, 1, 2, 1]))
    expected = energy_penalty(*masked, class_weight=CLASS_WEIGHT, present=present, backend=backend)
    assert torch.equal(result.energy, expected.energy)
    assert torch.equal(result.penalty, expected.penalty)
    assert_same(random_sum(result), random_sum(expected), inputs.leaves())


# Precision


@each_backend
@each_task
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
    ids=["float32", "bfloat16", "float16"],
)
def test_precision_against_float64_of_the_rounded_input(task, dtype, limit, backend):
    inputs = make_inputs(task, batch=32, dims=(65, 33), scale=0.2, dtype=dtype)
    exact = inputs.to(torch.float64)
    ours = energy_penalty(*inputs, task=task, backend=backend, **TERMS)
    expected = energy_penalty(*exact, task=task, backend="reference", **TERMS)
    assert {x.dtype for x in ours} == {torch.float32}
    assert all(relative(got, want) < 1e-5 for got, want in zip(ours, expected, strict=True))
    weight = torch.rand_like(expected.energy)
    sums = [((weight * e).sum() + (weight * p).sum()) / weight.numel() for e, p in (ours, expected)]
    found, wanted = gradients(sums[0], inputs.leaves()), gradients(sums[1], exact.leaves())
    assert {g.dtype for g in found} == {dtype}
    assert all(relative(got, want) < limit for got, want in zip(found, wanted, strict=True))


@each_backend
@each_task
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_logits(task, scale, backend):
    inputs = make_inputs(task, batch=8, scale=scale, dtype=torch.float32)
    result = energy_penalty(*inputs, task=task, backend=backend)
    assert all(
        x.isfinite().all() for x in (*result, *gradients(result.energy.sum() + result.penalty.sum(), inputs[0]))
    )
    if scale == 30:
        exact = energy_penalty(*inputs.to(torch.float64), task=task, backend="reference")
        assert all(relative(got, want) < 1e-4 for got, want in zip(result, exact, strict=True))


@each_backend
@each_task
def test_penalty_keeps_its_digits_near_a_stationary_point(task, backend):
    """Where the two halves of g cancel: the form through the Gram matrix loses everything here."""
    inputs = make_inputs(task, batch=16, dims=(32,), scale=0.1, dtype=torch.float32)
    exact = inputs.to(torch.float64)
    (z,), (w,), (b,), y = exact
    alpha = 2.0
    for _ in range(40):
        potential = energy_penalty([z], [w], [b], y, task=task, alpha=0.0).energy
        z = (-gradients(potential.sum(), [z])[0] / (2 * alpha)).requires_grad_()
    z = (z.detach() * 1.001).float().requires_grad_()
    ours = energy_penalty([z], inputs.weights, inputs.biases, y, task=task, alpha=alpha, backend=backend)
    near = z.detach().double().requires_grad_()
    expected = energy_penalty([near], [w], [b], y, task=task, alpha=alpha, backend="reference")
    assert (expected.penalty < 1e-5 * (2 * alpha * near).square().sum(-1)).all()
    assert relative(ours.penalty, expected.penalty) < 1e-3


@each_backend
def test_penalty_of_features_of_size_1e15_is_finite(backend):
    inputs = make_inputs("classification", dtype=torch.float32)
    with torch.no_grad():
        for z in inputs.features:
            z.mul_(1e15)
    result = energy_penalty(*inputs, backend=backend)
    assert all(x.isfinite().all() for x in result)


@each_task
def test_the_analytic_backend_repeats_itself_bit_for_bit(task):
    inputs = make_inputs(task, batch=16, dims=(33, 7), dtype=torch.float32)
    runs = []
    for _ in range(2):
        result = energy_penalty(*inputs, task=task, backend="analytic")
        runs.append((*result, *gradients(result.energy.sum() + result.penalty.sum(), inputs.leaves())))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@each_backend
def test_autocast_changes_nothing(backend):
    inputs = make_inputs("classification", dtype=torch.float32)
    expected = energy_penalty(*inputs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = energy_penalty(*inputs, backend=backend)
    assert torch.equal(result.penalty, expected.penalty)
    assert torch.equal(result.energy, expected.energy)


# Differentiating twice


@each_task
def test_the_reference_can_be_differentiated_twice(task):
    inputs = make_inputs(task)

    def second_order(result):
        found = torch.autograd.grad(random_sum(result), inputs.features, create_graph=True)
        return sum(g.square().sum() for g in found)

    ours = second_order(energy_penalty(*inputs, task=task, backend="reference"))
    options = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}
    expected = second_order(oracle.energy_penalty(task, inputs.features, heads_of(inputs), inputs.target, **options))
    assert_same(ours, expected, inputs.leaves(), 1e-8)


ONCE = r"analytic backend was differentiated twice, expected once; pass backend=\"reference\""


@pytest.mark.parametrize("field", ["energy", "penalty"])
def test_differentiating_the_analytic_backend_twice_raises(field):
    inputs = make_inputs("classification")
    value = getattr(energy_penalty(*inputs, backend="analytic"), field).sum()
    (gradient,) = torch.autograd.grad(value, inputs.features[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=ONCE):
        torch.autograd.grad(gradient.square().sum(), inputs.features[:1], retain_graph=True)
    with pytest.raises(RuntimeError, match=ONCE):
        gradient.sum().backward()


def test_differentiating_the_analytic_backend_twice_raises_under_func():
    (z,), (w,), (b,), y = make_inputs("classification", dims=(3,))

    def once(x):
        return energy_penalty([x], [w], [b], y, backend="analytic").penalty.sum()

    expected = gradients(energy_penalty([z], [w], [b], y, backend="reference").penalty.sum(), [z])[0]
    torch.testing.assert_close(torch.func.grad(once)(z), expected)
    with pytest.raises(RuntimeError, match=ONCE):
        torch.func.grad(lambda x: torch.func.grad(once)(x).square().sum())(z)


@each_backend
def test_per_sample_gradients_by_vmap(backend):
    (z,), (w,), (b,), y = make_inputs("classification", dims=(3,))

    def penalty(row, label):
        return energy_penalty([row[None]], [w], [b], label[None], backend=backend).penalty.sum()

    expected = gradients(energy_penalty([z], [w], [b], y, backend=backend).penalty.sum(), [z])[0]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(penalty))(z, y), expected)


@each_backend
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_the_values_are_the_same_and_have_no_graph(context, backend):
    inputs = make_inputs("classification")
    expected = energy_penalty(*inputs, backend=backend)
    with context():
        result = energy_penalty(*inputs, backend=backend)
    assert not result.penalty.requires_grad
    assert torch.equal(result.penalty, expected.penalty)


@each_backend
@each_task
@pytest.mark.parametrize("learns", ["features", "weights"])
def test_only_one_side_may_need_a_gradient(task, learns, backend):
    inputs = make_inputs(task)
    held = inputs.weights + inputs.biases if learns == "features" else inputs.features
    expected = gradients(random_sum(energy_penalty(*inputs, task=task)), getattr(inputs, learns))
    for x in held:
        x.requires_grad_(False)
    result = energy_penalty(*inputs, task=task, backend=backend)
    torch.testing.assert_close(gradients(random_sum(result), getattr(inputs, learns)), expected)


@each_task
@pytest.mark.parametrize("options", [{"target": None}, {"beta": 0.0}], ids=["no_target", "no_beta"])
def test_the_reference_takes_an_energy_whose_slope_is_constant(task, options):
    """A fixed linear head under a linear entropy: the gradient has no graph, and needs none."""
    inputs = make_inputs(task)
    for x in inputs.weights + inputs.biases:
        x.requires_grad_(False)
    if "target" in options:
        inputs, options = inputs._replace(target=None), {}
    results = [energy_penalty(*inputs, task=task, backend=b, **options) for b in BACKENDS]
    assert_same(*map(random_sum, results), inputs.features)


# Which backend, and what it refuses


def test_auto_follows_the_environment(monkeypatch):
    inputs = make_inputs("classification")
    calls = []
    for name in BACKENDS:

        def spy(*arguments, name=name, kernel=kernels.BACKENDS[name]):
            calls.append(name)
            return kernel(*arguments)

        monkeypatch.setitem(kernels.BACKENDS, name, spy)
    monkeypatch.delenv("MODBALANCE_BACKEND", raising=False)
    energy_penalty(*inputs)
    for name in (*BACKENDS, "auto"):
        monkeypatch.setenv("MODBALANCE_BACKEND", name)
        energy_penalty(*inputs)
    energy_penalty(*inputs, backend="reference")
    assert calls == ["analytic", "analytic", "reference", "analytic", "reference"]


UNSUPPORTED = {
    "float64": (torch.float64, {}, "a feature, weight or bias is torch.float64; convert it to float32"),
    "wide": (torch.float32, {"classes": 65}, "the heads have 65 outputs; pass at most 64"),
    "many": (torch.float32, {"dims": (2,) * 9}, "there are 9 modalities; pass at most 8"),
}


@pytest.mark.parametrize(("dtype", "sizes", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_triton_by_name_says_why_it_cannot_run(dtype, sizes, message, monkeypatch):
    monkeypatch.setattr(kernels.triton_ops, "_INSTALLED", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    inputs = make_inputs("classification", dtype=dtype, **sizes)
    pattern = f'energy_penalty: backend is "triton" and cannot run, since {message}.*or pass backend="auto"'
    with pytest.raises(ValueError, match=pattern):
        energy_penalty(*inputs, backend="triton")
    monkeypatch.setenv("MODBALANCE_BACKEND", "triton")
    with pytest.raises(ValueError, match=pattern):
        energy_penalty(*inputs)


def test_triton_by_name_needs_triton_and_a_gpu(monkeypatch):
    inputs = make_inputs("classification", dtype=torch.float32)
    monkeypatch.setattr(kernels.triton_ops, "_INSTALLED", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="the features are on 'cpu'; move them to a CUDA or ROCm device; or pass"):
        energy_penalty(*inputs, backend="triton")
    monkeypatch.setattr(kernels.triton_ops, "_INSTALLED", False)
    with pytest.raises(ValueError, match=r"Triton is not installed; pip install triton \(Linux\); or pass"):
        energy_penalty(*inputs, backend="triton")
    assert energy_penalty(*inputs).energy.isfinite().all()


@pytest.mark.slow
@compiles
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@each_task
def test_the_analytic_backend_compiles(task):
    torch._dynamo.reset()
    inputs = make_inputs(task, dtype=torch.float32)
    options = {"task": task, "present": PRESENT, "backend": "analytic"}
    compiled = torch.compile(lambda *i: energy_penalty(*i, **options), fullgraph=True, backend="aot_eager")
    results = [f(*inputs) for f in (compiled, lambda *i: energy_penalty(*i, **options))]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(gradients(random_sum(r), inputs.leaves()) for r in results))


def test_an_unknown_backend_raises(monkeypatch):
    inputs = make_inputs("classification")
    message = (
        r"energy_penalty: backend is 'cuda', expected auto, triton, analytic or reference; pass one of these or unset"
    )
    with pytest.raises(ValueError, match=message):
        energy_penalty(*inputs, backend="cuda")
    monkeypatch.setenv("MODBALANCE_BACKEND", "cuda")
    with pytest.raises(ValueError, match=message):
        energy_penalty(*inputs)


def change(**fields):
    return lambda i: i._replace(**{name: edit(getattr(i, name)) for name, edit in fields.items()})


BAD = {
    "no_modality": (lambda i: Inputs([], [], [], i.target), {}, "0 features, 0 weights and 0 biases"),
    "lengths": (change(biases=lambda b: b[:1]), {}, "2 features, 2 weights and 1 biases.*equal length"),
    "rank": (change(features=lambda z: [z[0], z[1][0]]), {}, r"features[1] is a torch.float64 tensor (2,).*(4, D)"),
    "batch": (change(features=lambda z: [z[0], z[1][:3]]), {}, r"features[1] is a .* (3, 2).*pass one row a sample"),
    "dtype": (change(features=lambda z: [z[0].long(), z[1]]), {}, "features[0] is a torch.int64 tensor"),
    "weight": (change(weights=lambda w: w[::-1]), {}, "weights[0] has shape (3, 2).*expected (3, 3) and (3,); pass"),
    "bias": (change(biases=lambda b: [b[0], b[1][:2]]), {}, "biases[1] (2,), expected (3, 2) and (3,)"),
    "present_shape": (lambda i: i, {"present": PRESENT[0]}, "present is a torch.bool tensor (4,).*(2, 4); stack"),
    "present_dtype": (lambda i: i, {"present": PRESENT.float()}, "present is a torch.float32 tensor (2, 4)"),
    "target_dtype": (change(target=torch.Tensor.int), {}, "target is a torch.int32 tensor (4,).*pass target.long()"),
    "target_shape": (change(target=lambda y: y[:3]), {}, "target is a torch.int64 tensor (3,), expected.*(4,)"),
    "task": (lambda i: i, {"task": "ranking"}, "task is 'ranking', expected one of classification, multilabel"),
    "class_weight": (lambda i: i, {"class_weight": CLASS_WEIGHT[:2]}, "class_weight has shape (2,).*expected (3,)"),
}


@pytest.mark.parametrize(("spoil", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(spoil, options, message):
    pattern = "energy_penalty: .*" + re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern):
        energy_penalty(*spoil(make_inputs("classification")), **options)


def test_class_weight_is_for_classification():
    with pytest.raises(ValueError, match=r"class_weight has shape .* with task='regression'.*leave it out"):
        energy_penalty(*make_inputs("regression"), task="regression", class_weight=CLASS_WEIGHT)
