"""Values that no loss can use: named on a CPU, an assertion on a device, and never a number that looks fine."""

import pytest
import torch
import torch.nn.functional as F

from cases import CLASSES, DIMS, NAN, TASKS, compiles, make_batch, make_target
from modbalance import (
    ComplementaryEnhancer,
    EnergyCoordinator,
    SemanticDecoupler,
    TrustDistiller,
    checks,
    task_checks,
    tasks,
)
from modbalance.functional import distillation_loss, preservation_loss
from modbalance.kernels import energy_penalty
from modbalance.task_formulas import HeadOutputs, uncertainty_curvature, uncertainty_slope
from modbalance.tasks import soft_labels, task_loss
from rig import Rig

WITH_FEATURES = ("decoupler", "enhancer", "coordinator")
BAD_LABELS = {
    "classification": (CLASSES, -1, 255),
    "multilabel": (1.5, -0.1, NAN),
    "regression": (NAN, float("inf")),
    "gaussian": (NAN, -float("inf")),
}


@pytest.fixture
def on_a_device(monkeypatch):
    """As on a GPU: values are not free to look at."""
    for module in (checks, task_checks):
        monkeypatch.setattr(module, "readable", lambda x: False)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("component", WITH_FEATURES)
def test_features_that_are_not_finite_are_named(component, bad):
    features, target, present = make_batch("classification", presence="some")
    row = int(present["audio"].nonzero()[0])
    features["audio"][row, 1] = bad
    with pytest.raises(
        ValueError, match=r"features\['audio'\] has NaN or inf in 1 present rows, expected finite.*clean"
    ):
        Rig(component)(features, target, present)


@pytest.mark.parametrize(("task", "bad"), [(task, bad) for task, values in BAD_LABELS.items() for bad in values])
@pytest.mark.parametrize("component", WITH_FEATURES)
def test_targets_out_of_range_are_named(component, task, bad):
    features, target, _ = make_batch(task)
    target[(1,) if task == "classification" else (1, 2)] = bad
    with pytest.raises(ValueError, match=r"target holds .*, expected .*; (correct|clean) the labels"):
        Rig(component, task)(features, target)


@pytest.mark.parametrize("component", WITH_FEATURES)
def test_rows_that_have_nothing_and_ignored_labels_may_hold_anything(component):
    features, target, present = make_batch("classification", presence="some")
    nothing = ~torch.stack(list(present.values())).any(0)
    assert nothing.any()
    target[nothing], target[0] = 255, -100
    assert Rig(component)(features, target, present).loss.isfinite()


def test_the_functions_name_labels_too():
    target = torch.tensor([0, CLASSES])
    for call in (
        lambda: task_loss("classification", torch.zeros(2, CLASSES), target),
        lambda: preservation_loss({"a": torch.zeros(2, CLASSES)}, target),
        lambda: soft_labels(target, CLASSES),
    ):
        with pytest.raises(ValueError, match=rf"target holds {CLASSES}, expected classes 0 to 2.*num_outputs=4"):
            call()


@pytest.mark.parametrize("component", WITH_FEATURES)
def test_a_device_asserts_without_looking(component, on_a_device):
    features, target, _ = make_batch("classification")
    with pytest.raises(RuntimeError, match="target holds a value out of range, expected classes 0 to 2"):
        Rig(component)(features, target + 1)
    assert Rig(component)(features, target).loss.isfinite()


def test_a_device_with_validate_names_the_value(on_a_device):
    features, target, _ = make_batch("classification")
    with pytest.raises(ValueError, match="target holds 7, expected"):
        Rig("coordinator", validate=True)(features, torch.full_like(target, 7))
    features["text"][0, 0] = NAN
    with pytest.raises(ValueError, match=r"features\['text'\] has NaN or inf in 1 present"):
        Rig("coordinator", validate=True)(features, target)


@pytest.mark.slow
@compiles
def test_compiled_nothing_is_asserted():
    features, target, _ = make_batch("classification", dtype=torch.float32)
    torch._dynamo.reset()
    model = EnergyCoordinator(DIMS, CLASSES)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile(model, backend=keep, fullgraph=True)(features, target)
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not [name for name in called if "assert" in name or "isfinite" in name or "isnan" in name]


# Logits of -inf


LOGITS = torch.tensor([[0.0, -float("inf"), 2.0], [1.0, 3.0, -float("inf")]])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_teachers_that_rule_a_class_out_are_as_in_torch(temperature):
    student = torch.randn(2, 3, requires_grad=True)
    ours = TrustDistiller(3, direction="forward", temperature=temperature)(student, {"a": LOGITS}).loss
    logs = (student / temperature).log_softmax(-1), (LOGITS / temperature).softmax(-1)
    expected = temperature**2 * F.kl_div(*logs, reduction="batchmean")
    torch.testing.assert_close(ours, expected)
    gradients = torch.autograd.grad(ours, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(*gradients)
    assert gradients[0][0].isfinite().all()


def test_a_student_that_rules_out_what_its_teacher_does_is_finite():
    """KL(student || teacher): 0 log 0 is 0, and where only the teacher rules a class out it is infinite."""
    student = LOGITS.clone().requires_grad_()
    same = distillation_loss(student, {"a": LOGITS + 1}, {"a": torch.ones(2)})
    torch.testing.assert_close(same, torch.zeros(()))
    (gradient,) = torch.autograd.grad(same, student)
    assert gradient.isfinite().all()
    assert distillation_loss(torch.zeros(2, 3), {"a": LOGITS}, {"a": torch.ones(2)}) == float("inf")


@pytest.mark.parametrize("direction", ["paper", "forward"])
def test_labels_that_are_certain_are_as_in_torch(direction):
    p, q = torch.tensor([[float("inf"), -float("inf")]]), torch.tensor([[2.0, -1.0]])
    student, teacher = (p, q) if direction == "paper" else (q, p)
    ours = distillation_loss(student, {"a": teacher}, {"a": torch.ones(1)}, task="multilabel", direction=direction)
    chance = q.double().sigmoid()
    torch.testing.assert_close(ours.double(), -(chance[0, 0].log() + (1 - chance[0, 1]).log()))


def test_the_entropy_of_masked_classes_is_that_of_the_others():
    s = torch.tensor([[0.3, -float("inf"), 1.0]], dtype=torch.float64, requires_grad=True)
    ours = tasks.task_uncertainty("classification", s).sum()
    rest = s[:, ::2].detach().requires_grad_()
    expected = torch.distributions.Categorical(logits=rest).entropy().sum()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, s)[0][:, ::2], torch.autograd.grad(expected, rest)[0])
    ours, ones = HeadOutputs(s.detach().T), torch.ones(3, 1, dtype=torch.float64)
    assert uncertainty_slope("classification", ours).isfinite().all()
    assert uncertainty_curvature("classification", ours, ones).isfinite().all()


@pytest.mark.parametrize("what", ["student", "teachers", "variances"])
def test_the_distiller_names_nan(what):
    ok = torch.randn(4, CLASSES)
    bad = ok.clone()
    bad[2, 1] = NAN
    given = {"student": ok, "teachers": {"a": ok, "b": ok}, "variances": {"a": ok.exp(), "b": ok.exp()}}
    given[what] = bad if what == "student" else {"a": ok.exp(), "b": bad}
    name = what if what == "student" else rf"{what}\['b'\]"
    with pytest.raises(
        ValueError, match=f"TrustDistiller: {name} has NaN in 1 present rows, expected numbers; correct"
    ):
        TrustDistiller(CLASSES)(**given)
    here = torch.tensor([True, True, False, True])
    loss = TrustDistiller(CLASSES)(**given, present={"a": here, "b": here}).loss
    assert loss.isfinite()


# Weights


NEGATIVE = {
    "alpha": lambda: EnergyCoordinator(DIMS, CLASSES, alpha=-0.1),
    "beta": lambda: EnergyCoordinator(DIMS, CLASSES, beta=-1),
    "delta": lambda: EnergyCoordinator(DIMS, CLASSES, delta=-1),
    "descent": lambda: EnergyCoordinator(DIMS, CLASSES, descent=-1),
    "step": lambda: EnergyCoordinator(DIMS, CLASSES, step=NAN),
    "lambda_1": lambda: SemanticDecoupler(DIMS, 2, CLASSES, lambda_1=-1),
    "lambda_2": lambda: SemanticDecoupler(DIMS, 2, CLASSES, lambda_2=-1),
    "gamma": lambda: ComplementaryEnhancer(DIMS, 2, CLASSES, gamma=-1),
    "noise": lambda: ComplementaryEnhancer(DIMS, 2, CLASSES, noise=-1),
}


@pytest.mark.parametrize(("name", "build"), NEGATIVE.items(), ids=NEGATIVE)
def test_negative_weights_raise(name, build):
    with pytest.raises(
        ValueError, match=f"{name} is (-|nan).*, expected a number of at least 0; 0 leaves the term out"
    ):
        build()


def test_negative_class_weights_raise():
    weight = torch.tensor([1.0, -2.0, 1.0])
    with pytest.raises(ValueError, match=r"class_weight holds -2.0, expected numbers of at least 0; correct them"):
        EnergyCoordinator(DIMS, CLASSES, class_weight=weight)


# Soft labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothed_labels_are_as_in_torch(smoothing, weighted):
    outputs, target = torch.randn(6, CLASSES, dtype=torch.float64), make_target("classification", 6)
    target[2] = -100
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64) if weighted else None
    soft = soft_labels(target, CLASSES, smoothing=smoothing)
    expected = F.cross_entropy(outputs, target, weight, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(task_loss("classification", outputs, soft, class_weight=weight), expected)


@pytest.mark.parametrize("component", WITH_FEATURES)
def test_one_hot_labels_are_the_labels(component):
    features, target, present = make_batch("classification", presence="some")
    target[1] = -100
    rig = Rig(component)
    hard, soft = rig(features, target, present), rig(features, soft_labels(target, CLASSES).double(), present)
    for name, value in hard.scalars().items():
        torch.testing.assert_close(soft.scalars()[name], value)


@pytest.mark.parametrize("backend", ["analytic", "reference"])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_labels_in_every_backend_against_autograd(backend, weighted):
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64) if weighted else None
    features, _, _ = make_batch("classification")
    target = torch.rand(6, CLASSES, dtype=torch.float64).softmax(1)
    model = EnergyCoordinator(DIMS, CLASSES, alpha=0.3, delta=0.2, gap=None, class_weight=weight, backend=backend)
    model.double()
    ours, theirs = ({n: x.clone().requires_grad_() for n, x in features.items()} for _ in range(2))
    loss = model(ours, target)
    expected = 0.0
    for name, z in theirs.items():
        outputs = F.linear(z, model.heads[name].weight.detach(), model.heads[name].bias.detach())
        error = F.cross_entropy(outputs, target, weight, reduction="none")
        energy = 0.3 * z.square().sum(1) / z.shape[1] + error
        (g,) = torch.autograd.grad(energy.sum(), z, create_graph=True)
        expected = expected + energy.mean() + 0.2 * g.square().sum(1).mean()
    torch.testing.assert_close(loss.loss - loss.fit, expected)
    (loss.loss - loss.fit).backward()
    expected.backward()
    for name in DIMS:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)


def test_soft_labels_and_the_triton_backend():
    z, w = [torch.randn(4, 3)] * 2, [torch.randn(CLASSES, 3)] * 2
    soft = torch.rand(4, CLASSES).softmax(1)
    with pytest.raises(
        ValueError, match='"triton" and cannot run, since the labels are probabilities; pass class ind'
    ):
        energy_penalty(z, w, [None] * 2, soft, backend="triton")


def test_the_penalty_names_labels_too():
    z, w, here = [torch.randn(2, 3)] * 2, [torch.randn(CLASSES, 3)] * 2, torch.tensor([[True, False]] * 2)
    with pytest.raises(ValueError, match="energy_penalty: target holds 3, expected classes 0 to 2"):
        energy_penalty(z, w, [None] * 2, torch.tensor([3, 0]))
    assert energy_penalty(z, w, [None] * 2, torch.tensor([0, 3]), present=here).energy[0, 1] == 0


def test_rows_that_are_no_probabilities_raise():
    for rows, match in (
        ([[1.0, 1.0, 0.0]], r"sums to 2, expected 1, or 0 to leave the row out; .*task='multilabel'"),
        ([[1.5, -0.5, 0.0]], r"target holds 1.5, expected values in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            task_loss("classification", torch.zeros(1, 3), torch.tensor(rows))


# What to type


def component(task, outputs=CLASSES):
    return EnergyCoordinator(DIMS, outputs, task)


REMEDIES = {
    "length": ("classification", 3, torch.zeros(5, dtype=torch.long), "the features have 4 rows: pass the target"),
    "column": ("classification", 3, torch.zeros(4, 1, dtype=torch.long), r"pass target.squeeze\(1\)\.$"),
    "float column": ("classification", 3, torch.zeros(4, 1), r"pass target.squeeze\(1\).long\(\)"),
    "one-hot": ("classification", 3, torch.eye(4, 3, dtype=torch.long), r"pass target.argmax\(1\) if it is one-hot"),
    "int32": ("classification", 3, torch.zeros(4, dtype=torch.int32), r"pass target.long\(\)"),
    "floats": ("classification", 3, torch.zeros(4), r"pass target.long\(\), or task='regression'"),
    "wide": ("classification", 3, torch.zeros(4, 5), "num_outputs=5"),
    "indices": ("multilabel", 3, torch.zeros(4, dtype=torch.long), "pass task='classification' if these are class"),
    "integers": ("multilabel", 3, torch.zeros(4, 3, dtype=torch.long), r"pass target.float\(\)"),
    "regression": ("regression", 1, torch.zeros(4, dtype=torch.long), r"pass target.float\(\)"),
    "targets": (
        "regression",
        3,
        torch.zeros(4),
        "pass 3 targets a sample, or build the component with num_outputs=1",
    ),
    "more": ("gaussian", 1, torch.zeros(4, 2), "build the component with num_outputs=2"),
    "scalar": ("gaussian", 1, torch.zeros(()), "the features have 4 rows"),
    "cube": ("regression", 1, torch.zeros(4, 1, 1), r"target.reshape\(4, 1\)"),
}


@pytest.mark.parametrize(("task", "outputs", "target", "match"), REMEDIES.values(), ids=REMEDIES)
def test_the_remedy_fits_what_came(task, outputs, target, match):
    features = {name: torch.randn(4, d) for name, d in DIMS.items()}
    with pytest.raises(ValueError, match=f"EnergyCoordinator: target is a .*{match}"):
        component(task, outputs)(features, target)


def test_the_remedies_work():
    features = {name: torch.randn(4, d) for name, d in DIMS.items()}
    column, hot = torch.tensor([[0], [1], [2], [0]]), torch.eye(4, 3, dtype=torch.long)
    for target in (column.squeeze(1), column.float().squeeze(1).long(), hot.argmax(1)):
        assert component("classification")(features, target).loss.isfinite()


@pytest.mark.parametrize("task", TASKS)
def test_a_target_that_is_no_tensor(task):
    features = {name: torch.randn(4, d) for name, d in DIMS.items()}
    with pytest.raises(TypeError, match=r"target is a list, expected a tensor; pass torch.as_tensor\(target\)"):
        component(task)(features, [0, 1, 2, 0])
