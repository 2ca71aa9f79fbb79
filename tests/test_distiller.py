import re

import pytest
import torch

import oracle
from cases import CLASSES, DIMS, PRESENCE, TASKS, assert_same, leaves, make_batch, width
from modbalance import TrustDistiller

# Whose variances: the teachers' own, which a regression output does not state, or given ones.
VARIANCES = [(task, given) for task in TASKS for given in (False, True) if given or task != "regression"]


def make_lesson(task, presence):
    batch = make_batch(task, dims=dict.fromkeys(DIMS, width(task)), presence=presence)
    student = torch.randn(6, width(task), dtype=torch.float64, requires_grad=True)
    return student, leaves(batch.features), batch.present


def stated_variance(task, outputs):
    """What a row of outputs says of its own variance."""
    if task == "classification":
        p = outputs.exp() / outputs.exp().sum()
        return p * (1 - p)
    return oracle.distribution(task, outputs).variance


@pytest.mark.parametrize("presence", PRESENCE)
@pytest.mark.parametrize("direction", ["paper", "forward"])
@pytest.mark.parametrize(("task", "given"), VARIANCES, ids=[f"{t}-{'given' if g else 'own'}" for t, g in VARIANCES])
def test_loss_and_weights_against_the_oracle(task, given, direction, presence):
    student, teachers, present = make_lesson(task, presence)
    distill = TrustDistiller(CLASSES, task, temperature=2.0, direction=direction, min_variance=1e-3)
    if given:
        variances = {name: torch.rand(6, dtype=torch.float64) for name in DIMS}
    else:
        clean = {name: x.detach().nan_to_num() for name, x in teachers.items()}
        variances = {n: torch.stack([stated_variance(task, s) for s in x]) for n, x in clean.items()}
    out = distill(student, teachers, variances if given else None, present)
    weights = oracle.trust(variances, present, 1e-3)
    torch.testing.assert_close(out.weights, weights)
    expected = oracle.distillation(task, student, teachers, weights, 2.0, direction)
    assert_same(out.loss, expected, [student, *teachers.values()], 1e-8)
    assert distill.trust(teachers, variances if given else None, present).keys() == DIMS.keys()


def test_defaults_are_the_papers_direction():
    student, teachers, _ = make_lesson("classification", "all")
    out = TrustDistiller(CLASSES)(student, teachers)
    paper = oracle.distillation("classification", student, teachers, out.weights)
    forward = oracle.distillation("classification", student, teachers, out.weights, direction="forward")
    torch.testing.assert_close(out.loss, paper)
    assert not torch.isclose(paper, forward)


def test_fuse_weighs_by_trust():
    student, teachers, present = make_lesson("classification", "some")
    distill = TrustDistiller(CLASSES)
    weights = distill(student, teachers, None, present).weights
    torch.testing.assert_close(distill.fuse(teachers, weights), oracle.fusion(teachers, weights))


def test_it_has_no_parameters_and_no_state():
    assert not list(TrustDistiller(CLASSES).parameters())
    assert not TrustDistiller(CLASSES).state_dict()


S, T = torch.zeros(4, CLASSES), {"text": torch.zeros(4, CLASSES), "audio": torch.zeros(4, CLASSES)}
BAD = {
    "direction": (lambda: TrustDistiller(3, direction="up"), "direction is 'up', expected 'paper'.*pass one of them"),
    "temperature": (
        lambda: TrustDistiller(3, temperature=0),
        "temperature is 0, expected a positive number; pass one",
    ),
    "min_variance": (
        lambda: TrustDistiller(3, min_variance=-1.0),
        "min_variance is -1.0, expected a positive number",
    ),
    "task": (lambda: TrustDistiller(3, "rank"), "task is 'rank', expected one of classification"),
    "outputs": (lambda: TrustDistiller(-1), "num_outputs is -1, expected a positive int; pass the number"),
    "student": (
        lambda: TrustDistiller(3)(S[:2], T),
        "student has shape (2, 3), expected (4, 3) as the teachers; pass the fused",
    ),
    "teacher": (
        lambda: TrustDistiller(3)(S, {"text": S[:, :2]}),
        "teachers['text'] has shape (4, 2), expected (4, 3) from num_outputs; pass outputs of width 3, or build",
    ),
    "empty": (lambda: TrustDistiller(3)(S, {}), "teachers is dict {}, expected a mapping"),
    "regression": (
        lambda: TrustDistiller(3, "regression")(S, T),
        'variances is None with task="regression", expected one variance.*use task="gaussian"',
    ),
    "variances": (
        lambda: TrustDistiller(3)(S, T, {"text": S}),
        "variances has ['text'], expected ['audio', 'text'] as in teachers; pass a variance for each",
    ),
    "present": (
        lambda: TrustDistiller(3)(S, T, None, {"audio": torch.ones(4)}),
        "present['audio'] is a torch.float32 tensor (4,), expected a bool",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match="^TrustDistiller: " + re.escape(message).replace(r"\.\*", ".*")):
        call()


def test_fusion_of_unequal_sizes_raises():
    tensors = {"text": torch.zeros(4, 2), "audio": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match=r"shapes are .*expected one shape for all.*project the modalities"):
        TrustDistiller(3).fuse(tensors, dict.fromkeys(tensors, torch.ones(4)))


@pytest.mark.parametrize(("task", "p"), [("classification", 1 / CLASSES), ("multilabel", 0.5), ("gaussian", None)])
def test_beyond_chance_against_the_oracle(task, p):
    _, teachers, present = make_lesson(task, "all")
    chance = torch.full((CLASSES,), 1.0 if p is None else p * (1 - p))
    variances = {n: torch.stack([stated_variance(task, s) for s in x.detach()]) for n, x in teachers.items()}
    weights = TrustDistiller(CLASSES, task, beyond_chance=True).trust(teachers, present=present)
    torch.testing.assert_close(weights, oracle.trust(variances, present, chance=chance))


def test_bias_moves_trust_and_what_is_learnt():
    student, teachers, present = make_lesson("classification", "all")
    distill = TrustDistiller(CLASSES)
    bias = {name: torch.linspace(-2, i, 6, dtype=torch.float64) for i, name in enumerate(teachers)}
    out = distill(student, teachers, None, present, bias)
    plain = distill.trust(teachers, None, present)
    raised = {name: plain[name] * bias[name].exp() for name in plain}
    total = sum(raised.values())
    torch.testing.assert_close(out.weights, {name: w / total for name, w in raised.items()})
    torch.testing.assert_close(out.loss, oracle.distillation("classification", student, teachers, out.weights))


def test_a_teacher_that_is_none_weighs_nothing():
    student, teachers, _ = make_lesson("classification", "all")
    first, *rest = teachers
    partly = {**teachers, first: None}
    distill, masks = TrustDistiller(CLASSES), torch.rand(6, len(teachers)) < 0.7
    present, bias = dict(zip(teachers, masks.unbind(1), strict=True)), dict.fromkeys(teachers, 0.5)
    variances = {name: torch.rand(6, dtype=torch.float64) for name in teachers}
    out = distill(student, partly, variances, present, bias)
    assert list(out.weights) == list(teachers)
    assert (out.weights[first] == 0).all()
    some = [{name: x[name] for name in rest} for x in (teachers, variances, present, bias)]
    expected = distill(student, *some)
    torch.testing.assert_close(out.loss, expected.loss)
    for weights in (out.weights, distill.trust(partly, variances, masks, bias)):
        torch.testing.assert_close({name: weights[name] for name in rest}, expected.weights)
    for tensors in (teachers, partly):
        torch.testing.assert_close(distill.fuse(tensors, out.weights), distill.fuse(some[0], expected.weights))
