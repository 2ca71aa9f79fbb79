"""Each component under mixed precision, compilation, export, checkpointing, accumulation and torch.func."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from cases import CLASSES, DIMS, TASKS, compiles, flat, make_batch, parameter_gradients
from modbalance import ComplementaryEnhancer, EnergyCoordinator, SemanticDecoupler, TrustDistiller
from rig import COMPONENTS, Rig, assert_close, outcome

pytestmark = pytest.mark.slow

each_component = pytest.mark.parametrize("component", COMPONENTS)
each_task = pytest.mark.parametrize("task", TASKS)
own_warnings = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@each_component
@each_task
def test_float16_under_autocast_with_a_scaler(component, task):
    """Losses are computed in float32 from what float16 layers gave; scaled gradients train."""
    batch = make_batch(task, 8, presence="some", dtype=torch.float32)
    rig = Rig(component, task).float()
    exact, before = copy.deepcopy(rig), copy.deepcopy(rig.state_dict())
    optimiser, scaler = torch.optim.SGD(rig.parameters(), lr=1e-4), torch.amp.GradScaler("cpu", init_scale=16.0)
    for _ in range(12):  # time for the scaler to come down where a gradient overflows
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = rig(*batch).loss
        torch.testing.assert_close(loss, exact(*batch).loss, rtol=2e-2, atol=2e-2)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        if any(not torch.equal(p, before[name]) for name, p in rig.state_dict().items()):
            break
    else:
        pytest.fail("every step was skipped")
    assert all(p.isfinite().all() for p in rig.parameters())


@compiles
@own_warnings
@each_component
def test_one_graph_and_one_recompilation_for_all_batch_sizes(component):
    torch._dynamo.reset()
    rig = Rig(component)
    backend = CompileCounterWithBackend("eager")
    compiled = torch.compile(rig, fullgraph=True, backend=backend)
    for size in (6, 9, 4, 7):
        batch = make_batch("classification", size, presence="some")
        assert_close([flat(compiled(*batch))], [flat(rig(*batch))])
    assert backend.frame_count <= 2


@compiles
@own_warnings
@each_component
def test_a_compiled_backward(component):
    torch._dynamo.reset()
    rig, batch = Rig(component), make_batch("classification", presence="some")
    expected = outcome(rig, *batch)
    rig.compile(fullgraph=True, backend="aot_eager")
    assert_close(outcome(rig, *batch), expected)


@compiles
@own_warnings
def test_coordinators_with_other_weights_compile_in_one_process():
    torch._dynamo.reset()
    batch = make_batch("classification", presence="some")
    for alpha, beta, gamma, step in (
        (0.1, 1.0, 0.0, 0.0),
        (0.2, 1.0, 0.0, 0.0),
        (0.3, 0.5, 0.1, 0.3),
        (0.4, 0.6, 0.2, 0.1),
    ):
        torch.manual_seed(0)
        coordinate = EnergyCoordinator(DIMS, CLASSES, alpha=alpha, beta=beta, gamma=gamma, step=step).double()
        expected = coordinate(*batch).loss
        coordinate.compile(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(coordinate(*batch).loss, expected)


class Fused(nn.Module):
    """What a distiller does at inference."""

    def __init__(self):
        super().__init__()
        self.distill = TrustDistiller(CLASSES)

    def forward(self, teachers, present):
        weights = self.distill.trust(teachers, present=present)
        return self.distill.fuse(teachers, weights)


class Enhanced(nn.Module):
    def __init__(self):
        super().__init__()
        self.split = SemanticDecoupler(DIMS, 4, CLASSES)
        self.enhance = ComplementaryEnhancer(DIMS, 4, CLASSES)

    def forward(self, features, present):
        parts = self.split(features, present=present)
        return self.enhance(features, parts.shared, parts.private, present=present).features


INFERENCE = {
    "decoupler": (lambda: SemanticDecoupler(DIMS, 4, CLASSES), lambda out: out.predictions),
    "enhancer": (Enhanced, lambda out: out),
    "coordinator": (lambda: EnergyCoordinator(DIMS, CLASSES, gamma=0.5, step=0.3), lambda out: out.features),
    "distiller": (Fused, lambda out: {"fused": out}),
}


@own_warnings
@each_component
def test_inference_is_exported_for_any_batch_size(component):
    build, read = INFERENCE[component]
    dims = dict.fromkeys(DIMS, CLASSES) if component == "distiller" else DIMS

    def arguments(size):
        batch = make_batch("classification", size, dims, presence="some", dtype=torch.float32)
        return {"features" if component != "distiller" else "teachers": batch.features, "present": batch.present}

    model, rows = build().eval(), {0: torch.export.Dim("rows", min=2)}
    shapes = {name: dict.fromkeys(DIMS, rows) for name in arguments(2)}
    with torch.no_grad():
        program = torch.export.export(model, (), arguments(6), dynamic_shapes=shapes)
        for size in (6, 3):
            given = arguments(size)
            assert_close([read(program.module()(**given))], [read(model(**given))], rtol=1e-5, atol=1e-5)


@each_component
@each_task
def test_checkpointing_changes_nothing(component, task):
    batch = make_batch(task, presence="some")
    rig = Rig(component, task)
    expected = outcome(rig, *batch)
    rig.zero_grad()
    inputs = {name: x.clone().requires_grad_() for name, x in batch.features.items()}
    checkpoint(rig, inputs, batch.target, batch.present, use_reentrant=False).loss.backward()
    assert_close([parameter_gradients(rig)], [expected.parameters], rtol=0, atol=0)
    for name, gradient in expected.features.items():
        got = torch.zeros_like(gradient) if inputs[name].grad is None else inputs[name].grad
        torch.testing.assert_close(got, gradient, rtol=0, atol=0)


# The terms that are means over samples; InfoNCE and the gap of means see a batch as a whole.
ACCUMULATED = {
    "decoupler": ("redundancy", "preservation"),
    "enhancer": ("reconstruction", "task"),
    "coordinator": ("gap", "penalty", "descent", "fit"),
    "distiller": ("loss",),
}


@each_component
@each_task
def test_micro_batches_add_up_to_the_batch(component, task):
    options = {"gap": "paper_per_sample"} if component == "coordinator" else {}
    rig, batch = Rig(component, task, **options), make_batch(task, 6)

    def accumulate(pieces):
        rig.zero_grad()
        for rows in pieces:
            out = rig({name: x[rows] for name, x in batch.features.items()}, batch.target[rows])
            (sum(getattr(out, name) for name in ACCUMULATED[component]) / len(pieces)).backward()
        return parameter_gradients(rig)

    assert_close([accumulate([slice(0, 2), slice(2, 4), slice(4, 6)])], [accumulate([slice(0, 6)])])


@each_component
def test_an_ensemble_under_vmap(component):
    """Losses and gradients of three members in one call, against one after the other."""
    members = [Rig(component) for _ in range(3)]
    batch = make_batch("classification", presence="some")
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")

    def loss(parameters, buffers):
        return functional_call(skeleton, (parameters, buffers), tuple(batch)).loss

    gradients = vmap(grad(loss))(parameters, buffers)
    for i, rig in enumerate(members):
        want = outcome(rig, *batch)
        torch.testing.assert_close(vmap(loss)(parameters, buffers)[i], want.values["loss"])
        assert_close([{name: x[i] for name, x in gradients.items()}], [want.parameters])
