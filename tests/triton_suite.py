"""What the kernels must do, on a GPU and under the interpreter alike: each importing module says what `device` is.

Whatever the library allocates holds NaN first, so that an element nobody wrote is seen.
"""

import copy

import pytest
import torch

from cases import CLASSES, DIMS, NAN, TASKS, compiles, gradients, make_batch, relative, width
from modbalance import EnergyCoordinator
from modbalance.kernels import energy_penalty, triton_launcher
from penalty import CASES, CLASS_WEIGHT, PRESENT, TERMS, Inputs, from_option, make_inputs, random_sum

each_case = pytest.mark.parametrize(("task", "option"), CASES, ids=[f"{t}-{o}" for t, o in CASES])
each_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(autouse=True)
def nan_filled():
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    yield
    torch.use_deterministic_algorithms(False)


def ours(inputs, **options):
    return energy_penalty(*inputs, backend="triton", **options)


def exact(inputs, **options):
    """Energy, penalty and every gradient in float64 on the CPU, by double backward."""
    inputs = inputs.to(torch.float64, "cpu")
    options = {k: x.cpu() if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    result = energy_penalty(*inputs, backend="reference", **options)
    return *result, *gradients(mean(result), inputs.leaves())


def mean(result):
    return random_sum(result) / result.energy.numel()  # a sum would overflow float16 gradients


def on(device, options):
    return {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in options.items()}


def close(got, want, limit=1e-5):
    got, want = got.detach().double().cpu(), want.detach()
    return got.shape == want.shape and bool((got - want).norm() <= limit * want.norm())


def check(inputs, limit=1e-5, **options):
    result = ours(inputs, **options)
    found = gradients(mean(result), inputs.leaves())
    wanted = exact(inputs, **options)
    assert all(x.dtype == torch.float32 for x in result)
    assert all(close(got, want) for got, want in zip(result, wanted[:2], strict=True))
    for leaf, got, want in zip(inputs.leaves(), found, wanted[2:], strict=True):
        assert got.dtype == leaf.dtype
        assert close(got, want, limit)


@each_case
def test_values_and_gradients(task, option, device):
    inputs, options = from_option(task, option)
    check(inputs.to(torch.float32, device), task=task, **on(device, options))


LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@each_task
@pytest.mark.parametrize("heads", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("features", LIMITS, ids=str)
def test_dtypes(task, features, heads, device):
    inputs = make_inputs(task, batch=17, dims=(40, 20), scale=0.2).to(features, device)
    weights = inputs.to(heads)
    inputs = inputs._replace(weights=weights.weights, biases=weights.biases)
    check(inputs, max(LIMITS[features], LIMITS[heads]), task=task, **TERMS)


def test_modalities_of_different_dtypes(device):
    inputs = make_inputs("classification", dims=(5, 6, 7)).to(torch.float32, device)
    z = [x.detach().to(d).requires_grad_() for x, d in zip(inputs.features, LIMITS, strict=True)]
    check(inputs._replace(features=z), 1e-2, **TERMS)


SHAPES = {
    "one_row": (1, (3, 2), 3),
    "one_output": (4, (3, 2), 1),
    "one_feature": (4, (1, 2), 3),
    "all_ones": (1, (1,), 1),
    "tile": (32, (64, 16), 4),
    "tile_and_one": (33, (65, 17), 5),
    "five_modalities": (7, (1, 9, 4, 17, 2), 3),
    "eight_modalities": (3, (2,) * 8, 2),
    "wide": (5, (70, 3), 23),
    "wider": (5, (70, 3), 32),
}


MANY = ("five_modalities", "eight_modalities")  # whose number meets the task's formulas nowhere: for two tasks


@pytest.mark.parametrize(
    ("task", "shape"),
    [(t, s) for t in TASKS for s in SHAPES if s not in MANY or t in ("classification", "gaussian")],
    ids=lambda part: part,
)
def test_shapes(task, shape, device):
    batch, dims, classes = SHAPES[shape]
    inputs = make_inputs(task, batch=batch, dims=dims, classes=classes, scale=0.4)
    check(inputs.to(torch.float32, device), task=task, **TERMS)


def test_as_many_outputs_as_there_may_be(device):
    check(make_inputs("classification", dims=(40, 5), classes=64, scale=0.3).to(torch.float32, device), **TERMS)


@pytest.mark.slow
def test_many_rows(device):
    """Larger tiles, and several blocks of rows to each partial sum of the heads' gradients."""
    inputs = make_inputs("classification", batch=2100, dims=(20,), scale=0.4).to(torch.float32, device)
    check(inputs, 2e-5, **TERMS)


@pytest.mark.parametrize("programs", [1, 4, 1000])
def test_partial_sums(programs, device, monkeypatch):
    monkeypatch.setattr(triton_launcher, "PROGRAMS", programs)
    check(make_inputs("multilabel", batch=150, dims=(70, 3), scale=0.4).to(torch.float32, device), task="multilabel")


@each_task
def test_no_rows(task, device):
    inputs = make_inputs(task, batch=0).to(torch.float32, device)
    result = ours(inputs, task=task)
    assert result.energy.shape == result.penalty.shape == (2, 0)
    assert all((g == 0).all() for g in gradients(result.energy.sum() + result.penalty.sum(), inputs.leaves()))


STRIDES = {
    "rows": lambda x: x.new_zeros(*x.shape[:-1], x.shape[-1] + 5)[..., 2:-3].copy_(x),
    "columns": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed": lambda x: x.t().contiguous().t(),
}


@each_task
@pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES)
def test_strides(task, stride, device):
    inputs = make_inputs(task, batch=19, dims=(20, 37)).to(torch.float32, device)
    target = inputs.target if task == "classification" else stride(inputs.target)
    loose = Inputs(*([stride(x.detach()).requires_grad_() for x in group] for group in inputs[:3]), target)
    present = (torch.rand(19, 2) < 0.7).to(device).T
    check(loose, task=task, present=present)


def test_an_expanded_feature(device):
    inputs = make_inputs("classification", batch=6).to(torch.float32, device)
    row = inputs.features[0].detach()[:1].requires_grad_()
    check(inputs._replace(features=[row.detach().expand(6, -1).requires_grad_(), inputs.features[1]]))


@each_task
@pytest.mark.parametrize("bad", [NAN, float("inf"), 1e30], ids=str)
def test_a_masked_row_contributes_nothing_whatever_it_holds(task, bad, device):
    inputs = make_inputs(task).to(torch.float32, device)
    hostile = inputs.to(torch.float32)
    present = PRESENT.to(device)
    with torch.no_grad():
        for z, here in zip(hostile.features, present, strict=True):
            z[~here] = bad
    if task != "classification":
        hostile = hostile._replace(target=torch.where(present.any(0)[:, None], hostile.target, bad))
    clean, dirty = (ours(i, task=task, present=present) for i in (inputs, hostile))
    for got, want in zip(dirty, clean, strict=True):
        assert torch.equal(got, want)
        assert (got[~present] == 0).all()
    found = gradients(random_sum(dirty), hostile.leaves())
    for got, want in zip(found, gradients(random_sum(clean), inputs.leaves()), strict=True):
        assert torch.equal(got, want)
    assert all((g[~here] == 0).all() for g, here in zip(found, present, strict=False))


@each_task
def test_all_rows_masked(task, device):
    inputs = make_inputs(task).to(torch.float32, device)
    with torch.no_grad():
        for z in inputs.features:
            z.fill_(NAN)
    result = ours(inputs, task=task, present=torch.zeros(2, 4, dtype=torch.bool, device=device))
    assert all((x == 0).all() for x in (*result, *gradients(random_sum(result), inputs.leaves())))


@pytest.mark.parametrize("label", [-100, -1, CLASSES, 2**40])
def test_a_row_with_an_ignored_label_counts_as_absent(label, device):
    inputs = make_inputs("classification")._replace(target=torch.tensor([0, label, 2, 1]))
    check(inputs.to(torch.float32, device), class_weight=CLASS_WEIGHT.to(device), ignore_index=label)
    assert (ours(inputs.to(torch.float32, device), ignore_index=label).penalty[:, 1] == 0).all()


@each_task
def test_large_logits(task, device):
    inputs = make_inputs(task, batch=8, scale=30.0).to(torch.float32, device)
    result, expected = ours(inputs, task=task), exact(inputs, task=task)
    assert all(close(got, want, 1e-4) for got, want in zip(result, expected, strict=False))
    assert all(
        close(got, want, 1e-3)
        for got, want in zip(gradients(mean(result), inputs.leaves()), expected[2:], strict=True)
    )
    huge = make_inputs(task, batch=8, scale=1e4).to(torch.float32, device)
    result = ours(huge, task=task)
    assert all(x.isfinite().all() for x in (*result, *gradients(random_sum(result), huge.features)))


@each_task
def test_penalty_keeps_its_digits_near_a_stationary_point(task, device):
    """Where the two halves of g cancel: TF32, or the form through the Gram matrix, loses everything here."""
    inputs = make_inputs(task, batch=16, dims=(32,), scale=0.1, dtype=torch.float32)
    (z,), (w,), (b,), y = inputs.to(torch.float64)
    alpha = 2.0
    for _ in range(40):
        potential = energy_penalty([z], [w], [b], y, task=task, alpha=0.0).energy
        z = (-gradients(potential.sum(), [z])[0] / (2 * alpha)).requires_grad_()
    inputs = inputs._replace(features=[(z.detach() * 1.001).float().requires_grad_()]).to(torch.float32, device)
    got, want = ours(inputs, task=task, alpha=alpha).penalty, exact(inputs, task=task, alpha=alpha)[1]
    assert (want < 1e-5 * (2 * alpha * inputs.features[0].cpu().double()).square().sum(-1)).all()
    assert relative(got.cpu(), want) < 1e-3


def test_features_of_size_1e15_have_a_finite_penalty(device):
    inputs = make_inputs("classification").to(torch.float32, device)
    with torch.no_grad():
        for z in inputs.features:
            z.mul_(1e15)
    assert all(x.isfinite().all() for x in ours(inputs))


@each_task
@pytest.mark.parametrize("learns", ["features", "weights", "biases"])
def test_only_one_side_may_need_a_gradient(task, learns, device):
    inputs = make_inputs(task).to(torch.float32, device)
    expected = gradients(random_sum(ours(inputs, task=task)), getattr(inputs, learns))
    for x in inputs.leaves():
        x.requires_grad_(any(x is y for y in getattr(inputs, learns)))
    found = gradients(random_sum(ours(inputs, task=task)), getattr(inputs, learns))
    assert all(close(got, want.double().cpu(), 1e-6) for got, want in zip(found, expected, strict=True))


@each_task
@pytest.mark.parametrize("field", ["energy", "penalty"])
def test_one_result_alone(task, field, device):
    inputs = make_inputs(task).to(torch.float32, device)
    high = inputs.to(torch.float64, "cpu")
    found = gradients(getattr(ours(inputs, task=task), field).sum(), inputs.leaves())
    wanted = gradients(getattr(energy_penalty(*high, task=task), field).sum(), high.leaves())
    assert all(close(got, want) for got, want in zip(found, wanted, strict=True))


def test_autocast_changes_nothing(device):
    inputs = make_inputs("classification").to(torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        check(inputs, **TERMS)


@each_task
def test_it_repeats_itself_bit_for_bit(task, device):
    inputs = make_inputs(task, batch=40, dims=(33, 7)).to(torch.float32, device)
    runs = []
    for _ in range(2):
        result = ours(inputs, task=task)
        runs.append((*result, *gradients(random_sum(result), inputs.leaves())))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# In the company of the rest of PyTorch

ONCE = r"triton backend was differentiated twice, expected once; pass backend=\"reference\""


@pytest.mark.parametrize("field", ["energy", "penalty"])
def test_differentiating_twice_raises(field, device):
    inputs = make_inputs("classification").to(torch.float32, device)
    (gradient,) = torch.autograd.grad(getattr(ours(inputs), field).sum(), inputs.features[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=ONCE):
        torch.autograd.grad(gradient.square().sum(), inputs.features[:1])


def test_func_grad(device):
    inputs = make_inputs("classification").to(torch.float32, device)

    def once(z):
        return random_sum(ours(inputs._replace(features=[z, inputs.features[1]])))

    expected = gradients(random_sum(ours(inputs)), inputs.features[:1])[0]
    torch.testing.assert_close(torch.func.grad(once)(inputs.features[0]), expected)
    with pytest.raises(RuntimeError, match=ONCE):
        torch.func.grad(lambda z: torch.func.grad(once)(z).square().sum())(inputs.features[0])


def test_vmap_is_left_to_the_analytic_backend(device):
    inputs = make_inputs("classification", dims=(3,)).to(torch.float32, device)

    def penalty(z, backend):
        return energy_penalty([z[None]], inputs.weights, inputs.biases, None, backend=backend).penalty.sum()

    per_sample = torch.func.vmap(torch.func.grad(penalty), (0, None))
    assert per_sample(inputs.features[0], "auto").isfinite().all()
    with pytest.raises(ValueError, match=r"cannot run, since torch\.func\.vmap has no rule for a kernel"):
        per_sample(inputs.features[0], "triton")


@pytest.mark.slow
@each_task
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_compile(task, device):
    torch._dynamo.reset()
    inputs = make_inputs(task).to(torch.float32, device)
    options = {"task": task, "present": PRESENT.to(device), "normalize": True}
    compiled = torch.compile(lambda *i: ours(Inputs(*i), **options), fullgraph=True, backend="aot_eager")
    results = [f(*inputs) for f in (compiled, lambda *i: ours(i, **options))]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    found = [gradients(random_sum(result), inputs.leaves()) for result in results]
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", pytest.param("analytic", marks=compiles)])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile_a_head_that_two_modalities_share(backend, device):
    torch._dynamo.reset()
    inputs = make_inputs("classification", dims=(3, 3)).to(torch.float32, device)

    def both(z, w, b):
        return energy_penalty([z, z], [w, w], [b, b], inputs.target, backend=backend)

    arguments = inputs.features[0], inputs.weights[0], inputs.biases[0]
    results = [f(*arguments) for f in (torch.compile(both, fullgraph=True, backend="aot_eager"), both)]
    torch.testing.assert_close(*(gradients(random_sum(r), arguments) for r in results))


@pytest.mark.slow
@each_task
def test_opcheck(task, device):
    inputs = make_inputs(task, classes=2).to(torch.float32, device)
    z, w, b = ([x.detach() for x in group] for group in inputs[:3])
    z[0], w[1] = z[0].T.contiguous().T, w[1].T.contiguous().T
    class_weight = torch.rand(2, device=device) if task == "classification" else None
    present, nothing = PRESENT.to(device), (False, 0.0, 0.0, False, False)
    terms = (task, 0.1, 1.0, 0.5, 2.0, True, inputs.target, class_weight, -100, present, z, w, b, *nothing)
    torch.library.opcheck(torch.ops.modbalance.energy.default, terms)
    torch.library.opcheck(torch.ops.modbalance.energy.default, (*terms[:-6], [], *nothing))
    energy, _, *saved, _ = torch.ops.modbalance.energy(*terms)
    for a, p, needs in ((energy, None, (True, True)), (None, energy, (True, False)), (energy, energy, (False, True))):
        arguments = (0.1, True, z, w, *saved, None, [a, p, None, None, None, None], 0.0, 0.0, *needs, False)
        torch.library.opcheck(torch.ops.modbalance.energy_backward.default, arguments)
    assert saved[1].shape == (width(task, 2), 2, 4)


def test_the_coordinator_and_its_copy(device):
    batch = make_batch("classification", presence="some", dtype=torch.float32)
    features = {name: x.to(device).requires_grad_() for name, x in batch.features.items()}
    present = {name: x.to(device) for name, x in batch.present.items()}
    module = EnergyCoordinator(DIMS, CLASSES, backend="triton", gamma=0.5, gap="pull").to(device)
    twin, other = copy.deepcopy(module), copy.deepcopy(module)
    other.backend = "analytic"
    losses = [m(features, batch.target.to(device), present).loss for m in (module, twin, other)]
    found = [gradients(loss, features.values()) for loss in losses]
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])
    torch.testing.assert_close(found[0], found[2])
