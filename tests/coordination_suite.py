"""What the fused terms of the coordinator must do, on a GPU and under the interpreter alike; see triton_suite."""

import copy

import pytest
import torch
from torch import nn

from cases import CLASSES, DIMS, NAN, PRESENCE, TASKS, Batch, gradients, make_batch, randomise
from modbalance import EnergyCoordinator
from modbalance.kernels import triton_launcher
from modbalance.kernels.dispatch import coordination
from modbalance.kernels.energy_terms import EnergyTerms
from triton_suite import ONCE, close, each_task, nan_filled  # noqa: F401

TERMS = {"alpha": 0.3, "beta": 0.8, "gamma": 0.6, "delta": 0.2, "descent": 0.7, "gap": "pull"}
FIELDS = ("loss", "gap", "penalty", "descent", "fit")
WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels launched since."""
    names, start = [], triton_launcher._start

    def noted(kernel, *arguments, **options):
        names.append(kernel.__name__)
        start(kernel, *arguments, **options)

    monkeypatch.setattr(triton_launcher, "_start", noted)
    return names


def make(task="classification", dims=DIMS, **options):
    """A coordinator in float32, and its twin on the reference backend in float64."""
    fused = randomise(EnergyCoordinator(dims, CLASSES, task, **{**TERMS, **options}, backend="triton")).float()
    exact = copy.deepcopy(fused).double()
    exact.backend = "reference"
    return fused, exact


def run(model, batch, device, dtype, upstream=None):
    """The terms, the energies, and what reaches the features and the heads."""
    z = {n: x.to(device, dtype).requires_grad_() for n, x in batch.features.items()}
    present = None if batch.present is None else {n: x.to(device) for n, x in batch.present.items()}
    target = batch.target.to(device)
    out = model.to(device)(z, target if target.dtype == torch.int64 else target.to(dtype), present)
    energy = torch.stack(list(out.energy.values()))
    scalar = out.loss if upstream is None else upstream(out, energy)
    return out, energy, gradients(scalar, [*z.values(), *model.parameters()])


def single(batch):
    """Rounded to float32 before either sees it."""
    return batch._replace(features={n: x.float() for n, x in batch.features.items()}, target=_single(batch.target))


def _single(target):
    return target if target.dtype == torch.int64 else target.float()


def check(models, batch, device, upstream=None, limit=1e-5):
    batch = single(batch)
    out, energy, found = run(models[0], batch, device, torch.float32, upstream)
    want, want_energy, wanted = run(models[1], batch, "cpu", torch.float64, upstream)
    assert all(close(getattr(out, f), getattr(want, f)) for f in FIELDS)
    assert close(energy, want_energy)
    assert all(close(a, b, limit) for a, b in zip(found, wanted, strict=True))
    assert all(getattr(out, f).dtype == torch.float32 for f in FIELDS)
    return out, found


@pytest.mark.parametrize(("gap", "presence"), [*(("pull", p) for p in PRESENCE), (None, "some"), (None, "none")])
@each_task
def test_against_the_long_way(task, gap, presence, device, launches):
    _, found = check(make(task, gap=gap), make_batch(task, presence=presence), device)
    assert launches == ["forward_kernel", "pool_kernel", "backward_kernel"]
    if presence == "none":
        assert all((g == 0).all() for g in found)


OPTIONS = {
    "plain_sum": {"normalize": False},
    "temperature": {"temperature": 2.0},
    "alpha_only": {"beta": 0.0, "gamma": 0.0},
    "beta_only": {"alpha": 0.0, "gamma": 0.0},
    "no_terms": {"delta": 0.0, "descent": 0.0},
    "step": {"step": 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
@each_task
def test_options(task, name, device):
    # The gap alone is a difference of two means, of which fewer digits are left; on an H100 1e-5 was too little.
    limit = 1e-4 if name == "no_terms" and device == "cuda" else 1e-5
    check(make(task, **OPTIONS[name]), make_batch(task, presence="some"), device, limit=limit)


SIZES = {"two": (3, 7), "five": (1, 9, 4, 70, 2), "eight": (2,) * 8}


@pytest.mark.parametrize(
    ("task", "sizes"),
    [(t, s) for t in TASKS for s in SIZES if s == "two" or t in ("classification", "gaussian")],
)
def test_modalities(task, sizes, device):
    dims = {f"m{i}": d for i, d in enumerate(SIZES[sizes])}
    check(make(task, dims), make_batch(task, 19, dims, "some"), device)


def test_a_modality_nobody_has(device):
    batch = make_batch("classification")
    present = {"audio": torch.zeros(6, dtype=torch.bool)}
    batch.features["audio"].fill_(NAN)
    out, found = check(make(), batch._replace(present=present), device)
    assert (out.energy["audio"] == 0).all()
    assert (found[1] == 0).all()
    assert out.gap > 0


def test_a_modality_that_is_not_given(device):
    batch = make_batch("classification", dims={"text": 5, "vision": 4})
    check(make(), batch, device)


def test_class_weight_and_ignored_labels(device):
    batch = make_batch("classification", presence="some")._replace(target=torch.tensor([0, 1, 2, 2, 1, 0]))
    check(make(class_weight=WEIGHT, ignore_index=1), batch, device)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_pooling_a_few_blocks_at_a_time(blocks, device, monkeypatch):
    monkeypatch.setattr(triton_launcher, "POOLED", blocks)
    check(make("regression"), make_batch("regression", 45, presence="some"), device)


def test_no_rows(device):
    out, _, found = run(make()[0], single(make_batch("classification", 0)), device, torch.float32)
    assert all(getattr(out, f) == 0 for f in FIELDS)
    assert all((g == 0).all() for g in found)


UPSTREAM = {
    "energy": lambda out, energy: (energy * torch.arange(energy.numel()).to(energy).view_as(energy)).sum(),
    "energy_and_loss": lambda out, energy: energy.square().mean() + 3 * out.loss,
    "gap": lambda out, energy: out.gap,
    "penalty": lambda out, energy: out.penalty,
    "descent": lambda out, energy: -2 * out.descent,
    "fit": lambda out, energy: out.fit,
    "every_term": lambda out, energy: out.gap * out.penalty + out.descent.sin() + out.loss.sqrt(),
}


@pytest.mark.parametrize(
    ("task", "upstream"),
    [(t, u) for t in TASKS for u in UPSTREAM if t in ("classification", "gaussian") or u.startswith("e")],
)
def test_upstream(task, upstream, device):
    check(make(task), make_batch(task, presence="some"), device, UPSTREAM[upstream])


def test_heads_of_the_users_own(device, launches):
    heads = {n: nn.Linear(d, CLASSES, bias=n != "text", device=device) for n, d in DIMS.items()}
    twins = {n: copy.deepcopy(head).cpu().double() for n, head in heads.items()}
    model = EnergyCoordinator(DIMS, CLASSES, **TERMS, heads=heads, backend="triton")
    exact = EnergyCoordinator(DIMS, CLASSES, **TERMS, heads=twins, backend="reference")
    out, _ = check((model, exact), make_batch("classification", presence="some"), device)
    assert launches == ["forward_kernel", "pool_kernel", "backward_kernel"]
    assert out.fit == 0
    (out.loss + out.fit).backward()
    assert all(p.grad is None for head in heads.values() for p in head.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_features_under_autocast(dtype, device):
    fused, exact = make()
    batch = make_batch("classification", presence="some")
    batch = batch._replace(features={n: x.to(dtype) for n, x in batch.features.items()})
    with torch.autocast(device, dtype):
        out, energy, found = run(fused, batch, device, dtype)
    want, want_energy, wanted = run(exact, batch, "cpu", torch.float64)
    assert all(close(getattr(out, f), getattr(want, f)) for f in ("gap", "penalty", "descent"))
    assert close(energy, want_energy)
    assert all(g.dtype == dtype and close(g, w, 1e-2) for g, w in zip(found[:3], wanted[:3], strict=True))


def test_features_that_are_frozen(device):
    fused, _ = make()
    batch = single(make_batch("classification"))
    z = {n: x.to(device).requires_grad_(n == "audio") for n, x in batch.features.items()}
    loss = fused.to(device)(z, batch.target.to(device)).loss
    loss.backward()
    assert [x.grad is None for x in z.values()] == [True, False, True]


LONG_WAY = {
    "joint": {"joint": True},
    "paper": {"gap": "paper"},
    "paper_per_sample": {"gap": "paper_per_sample"},
}


@pytest.mark.parametrize("options", LONG_WAY.values(), ids=LONG_WAY)
def test_what_is_not_covered_goes_the_long_way(options, device, launches):
    check(make(**options), make_batch("classification", presence="some"), device)
    assert "pool_kernel" not in launches


def test_without_a_target_or_with_a_stated_uncertainty_it_goes_the_long_way(device, launches):
    fused, _ = make()
    features = {n: x.float().to(device) for n, x in make_batch("classification").features.items()}
    stated = {n: torch.rand(6, device=device) for n in DIMS}
    fused.to(device)(features)
    fused(features, torch.zeros(6, dtype=torch.int64, device=device), uncertainty=stated)
    assert "forward_kernel" in launches
    assert "pool_kernel" not in launches


def test_float64_and_other_backends_are_left_alone(device):
    w, z = torch.zeros(3, 2, device=device), torch.zeros(4, 2, device=device)
    y = torch.zeros(4, dtype=torch.int64, device=device)
    problem = EnergyTerms("classification", 0.1, 1.0, 0.0, 1.0, True, y, None)
    options = {"present": None, "ignore_index": -100, "delta": 0.1, "descent": 1.0, "pull": True}
    assert coordination(problem, [z], [w], [None], **options, backend="triton") is not None
    assert coordination(problem, [z.double()], [w], [None], **options, backend="triton") is None
    for backend in ("analytic", "reference"):
        assert coordination(problem, [z], [w], [None], **options, backend=backend) is None
    assert (coordination(problem, [z], [w], [None], **options, backend="auto") is None) == (device == "cpu")


@each_task
def test_it_repeats_itself_bit_for_bit(task, device):
    fused, _ = make(task)
    batch = single(make_batch(task, 40, presence="some"))
    runs = [run(fused, batch, device, torch.float32) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][2], runs[1][2], strict=True))
    assert all(torch.equal(getattr(runs[0][0], f), getattr(runs[1][0], f)) for f in FIELDS)


# In the company of the rest of PyTorch


@pytest.mark.parametrize("field", ["gap", "penalty", "descent", "loss"])
def test_differentiating_the_terms_twice_raises(field, device):
    fused, _ = make()
    z = {n: x.float().to(device).requires_grad_() for n, x in make_batch("classification").features.items()}
    out = fused.to(device)(z, torch.zeros(6, dtype=torch.int64, device=device))
    first = torch.autograd.grad(getattr(out, field), list(z.values()), create_graph=True)
    with pytest.raises(RuntimeError, match=ONCE):
        torch.autograd.grad(sum(g.square().sum() for g in first), list(z.values()))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "own"), [("classification", True), ("gaussian", True), ("classification", False)])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_the_whole_coordinator_compiles(task, own, device, launches):
    torch._dynamo.reset()
    fused, _ = make(task)
    if not own:
        heads = fused.to(device).heads
        fused = EnergyCoordinator(DIMS, CLASSES, task, **TERMS, heads=heads, backend="triton")
    batch = single(make_batch(task, presence="some"))
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    runs = [run(m, batch, device, torch.float32) for m in (compiled, fused)]
    assert launches == ["forward_kernel", "pool_kernel", "backward_kernel"] * 2
    for field in FIELDS:
        torch.testing.assert_close(getattr(runs[0][0], field), getattr(runs[1][0], field))
    torch.testing.assert_close(runs[0][2], runs[1][2])


@pytest.mark.slow
@each_task
def test_opcheck_of_the_terms(task, device):
    batch = Batch(*make_batch(task, 4, {"a": 3, "b": 2}, "some"))
    z = [x.float().to(device) for x in batch.features.values()]
    z[0] = z[0].T.contiguous().T
    wide = 2 * CLASSES if task == "gaussian" else CLASSES
    w = [torch.randn(wide, x.shape[1], device=device) for x in z]
    here = torch.stack(list(batch.present.values())).to(device)
    class_weight = WEIGHT.float().to(device) if task == "classification" else None
    b = [torch.randn(wide, device=device) for _ in z]
    terms = (task, 0.1, 1.0, 0.5, 2.0, True, _single(batch.target).to(device), class_weight, -100, here, z, w, b)
    forward = (*terms, True, 0.2, 0.7, True, False)
    torch.library.opcheck(torch.ops.modbalance.energy.default, forward)
    energy, _, *saved, (*results, coefficients) = torch.ops.modbalance.energy(*forward)
    for upstream in ([None, None, None, None, None, results[3]], [energy, None, *results]):
        arguments = (0.1, True, z, w, *saved, coefficients, upstream, 0.2, 0.7, True, False, False)
        torch.library.opcheck(torch.ops.modbalance.energy_backward.default, arguments)
