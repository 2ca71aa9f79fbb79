import copy
import re

import pytest
import torch
from torch import nn

import oracle
from cases import (
    CLASSES,
    DIMS,
    NAN,
    PRESENCE,
    TASKS,
    assert_same,
    gradients,
    leaves,
    make_batch,
    make_target,
    parameter_gradients,
    randomise,
    width,
)
from modbalance import EnergyCoordinator, Teacher

GAPS = ("pull", "paper", "paper_per_sample", None)
TERMS = {"alpha": 0.3, "beta": 0.8, "gamma": 0.6, "delta": 0.2, "descent": 0.7, "gap": "pull"}
each_task = pytest.mark.parametrize("task", TASKS)


def make(task="classification", **options):
    return randomise(EnergyCoordinator(DIMS, CLASSES, task, **{**TERMS, **options}))


def make_heads(task):
    """Heads that are not linear."""
    heads = {n: nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, width(task))) for n, d in DIMS.items()}
    return {name: randomise(head) for name, head in heads.items()}


def mask_of(batch, labelled=True):
    size = len(batch.target)
    rows = (
        torch.ones(3, size, dtype=torch.bool) if batch.present is None else torch.stack(list(batch.present.values()))
    )
    return rows & labelled


def expected_terms(model, heads, task, features, target, mask, class_weight=None):
    """gap, penalty, descent and fit by the oracle, from one `(D,) -> (width,)` function a modality."""
    z = list(features.values())
    options = {"normalize": model.normalize, "class_weight": class_weight, "temperature": model.temperature}
    options |= {"present": mask, "beta": model.beta, "gamma": model.gamma}
    energy, penalty = oracle.energy_penalty(task, z, heads, target, alpha=model.alpha, **options)
    compared = energy
    if model.gap == "pull":
        compared, _ = oracle.energy_penalty(task, z, heads, target, alpha=0.0, **options)
    gap = oracle.gap(compared, mask, model.gap) if model.gap else torch.zeros((), dtype=torch.float64)
    penalty, descent = oracle.sum_of_means(penalty, mask), model.descent * oracle.sum_of_means(energy, mask)
    return gap, penalty, descent, energy


def frozen(heads):
    """The same functions with nothing that could learn."""
    return [copy.deepcopy(head).requires_grad_(False) for head in heads]


def check_against_the_oracle(model, heads, task, batch, mask, class_weight=None):
    features = leaves(batch.features)
    out = model(features, batch.target, batch.present)
    fixed = list(heads) if model.joint else frozen(heads)
    gap, penalty, descent, energy = expected_terms(model, fixed, task, features, batch.target, mask, class_weight)
    learns = [*features.values(), *(p for head in heads for p in head.parameters())]
    assert_same(out.gap, gap, learns, 1e-8)
    assert_same(out.penalty, penalty, learns, 1e-8)
    assert_same(out.descent, descent, learns, 1e-8)
    torch.testing.assert_close(torch.stack(list(out.energy.values())), energy)
    fit = torch.zeros((), dtype=torch.float64)
    if model.owns_heads:
        for name, head, here in zip(DIMS, heads, mask, strict=True):
            outputs = head(torch.where(here[:, None], features[name].detach(), 0.0))
            terms = [oracle.loss(task, outputs[i], batch.target[i], class_weight) for i in range(6) if here[i]]
            fit = fit + oracle.mean(terms)
    assert_same(out.fit, fit, learns, 1e-8)
    assert_same(out.loss, gap + model.delta * penalty + descent + fit, learns, 1e-8)


@pytest.mark.parametrize("presence", PRESENCE)
@pytest.mark.parametrize("gap", GAPS)
@each_task
def test_loss_against_the_oracle(task, gap, presence):
    model, batch = make(task, gap=gap), make_batch(task, presence=presence)
    check_against_the_oracle(model, model.heads.values(), task, batch, mask_of(batch))


@pytest.mark.parametrize("options", [{"normalize": False}, {"temperature": 2.0}, {"joint": True}], ids=str)
@each_task
def test_options_against_the_oracle(task, options):
    model, batch = make(task, **options), make_batch(task, presence="some")
    check_against_the_oracle(model, model.heads.values(), task, batch, mask_of(batch))


@pytest.mark.parametrize("gap", GAPS)
@each_task
def test_heads_that_are_not_linear_against_the_oracle(task, gap):
    heads = make_heads(task)
    model, batch = make(task, gap=gap, heads=heads), make_batch(task, presence="some")
    check_against_the_oracle(model, heads.values(), task, batch, mask_of(batch))


def test_class_weight_and_ignored_labels_against_the_oracle():
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    model = make(class_weight=weight, ignore_index=1)
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    batch = make_batch("classification", presence="some")._replace(target=target)
    mask = mask_of(batch, target != 1)
    check_against_the_oracle(model, model.heads.values(), "classification", batch, mask, weight)


@pytest.mark.parametrize("gap", GAPS)
@each_task
def test_backends_agree(task, gap):
    model, batch = make(task, gap=gap), make_batch(task, presence="some")
    other = make(task, gap=gap, backend="reference")
    other.load_state_dict(model.state_dict())
    features = leaves(batch.features)
    losses = [m(features, batch.target, batch.present).loss for m in (model, other)]
    assert_same(*losses, features.values())


@pytest.mark.parametrize("gap", ["pull", "paper"])
def test_a_stated_uncertainty_takes_the_place_of_the_heads_own(gap):
    model, batch = make(gap=gap), make_batch("classification", presence="some")
    bare = make(gap=gap, gamma=0.0)
    bare.load_state_dict(model.state_dict())
    stated = {n: torch.where(batch.present[n], torch.rand(6).double(), NAN) for n in DIMS}
    ours, plain = model(*batch, uncertainty=stated), bare(*batch)
    for name, here in batch.present.items():
        expected = plain.energy[name] + 0.6 * torch.where(here, stated[name], 0.0)
        torch.testing.assert_close(ours.energy[name], expected)
    torch.testing.assert_close(ours.penalty, plain.penalty)
    assert ours.loss.isfinite()
    assert ours.gap != plain.gap


# Heads are probes


def test_with_descent_alone_it_is_the_plain_unimodal_auxiliary_loss():
    batch = make_batch("classification", presence="some")
    model = make(alpha=0.0, beta=1.0, gamma=0.0, delta=0.0, gap=None, descent=1.0)
    features = leaves(batch.features)
    model(features, batch.target, batch.present).loss.backward()
    plain, auxiliary = leaves(batch.features), 0.0
    heads = copy.deepcopy(model.heads)
    heads.zero_grad()
    for name, here in batch.present.items():
        if here.any():
            loss = nn.functional.cross_entropy(heads[name](plain[name][here]), batch.target[here])
            auxiliary = auxiliary + loss
    auxiliary.backward()
    for name in DIMS:
        torch.testing.assert_close(features[name].grad, plain[name].grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parameter_gradients(model.heads), parameter_gradients(heads), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
@pytest.mark.parametrize("gap", GAPS)
@each_task
def test_heads_learn_from_fit_alone_and_features_from_all_but_fit(task, gap, own):
    given = None if own else make_heads(task)
    model, batch = make(task, gap=gap, heads=given), make_batch(task)
    features = leaves(batch.features)
    out = model(features, batch.target)
    heads = [p for h in (model.heads if own else given).values() for p in h.parameters()]
    moved = out.gap + out.penalty + out.descent
    assert all((g == 0).all() for g in gradients(moved, heads))
    assert all(g.any() for g in gradients(moved, features.values()))
    assert all((g == 0).all() for g in gradients(out.fit, features.values()))
    assert all(bool(g.any()) is own for g in gradients(out.fit, heads))


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
def test_joint_lets_the_heads_learn_from_every_term(own):
    given = None if own else make_heads("classification")
    model, batch = make(joint=True, heads=given), make_batch("classification")
    out = model(batch.features, batch.target)
    heads = [p for h in (model.heads if own else given).values() for p in h.parameters()]
    for term in (out.gap, out.penalty, out.descent):
        assert any(g.any() for g in gradients(term, heads))


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "mlp"])
def test_heads_of_the_users_own_stay_the_users(linear):
    given = {n: nn.Linear(d, CLASSES).double() for n, d in DIMS.items()} if linear else make_heads("classification")
    model, batch = make(heads=given), make_batch("classification")
    assert not list(model.parameters())
    assert all(key.startswith("gate.") for key in model.state_dict())
    out = model(leaves(batch.features), batch.target)
    assert out.fit == 0
    out.loss.backward()
    assert all(p.grad is None and p.requires_grad for h in given.values() for p in h.parameters())


def test_a_linear_head_of_the_users_own_is_what_an_own_head_is():
    model, batch = make(), make_batch("classification", presence="some")
    other = make(heads=dict(model.heads))
    torch.testing.assert_close(other(*batch)[1:4], model(*batch)[1:4])


class Once(torch.autograd.Function):
    """A tanh whose gradient cannot be differentiated, like many a fused kernel."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.detach().tanh()
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, g):
        return g.detach() * (1 - ctx.y**2)


class FusedHead(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(dim, CLASSES).double()

    def forward(self, x):
        return Once.apply(self.linear(x))


@pytest.mark.parametrize("joint", [False, True], ids=["probe", "joint"])
def test_a_head_whose_gradient_has_no_graph_raises(joint):
    model, batch = make(heads={n: FusedHead(d) for n, d in DIMS.items()}, joint=joint), make_batch("classification")
    with pytest.raises(RuntimeError, match=r"returned a gradient without a graph.*twice differentiable.*Use plain"):
        model(leaves(batch.features), batch.target)


def test_a_head_that_lets_no_gradient_through_raises():
    """A frozen teacher is no head: penalty and descent would be those of alpha ||z||^2 alone, without a word."""
    heads = {n: Teacher(head) for n, head in make_heads("classification").items()}
    model, batch = make(heads=heads), make_batch("classification")
    with pytest.raises(RuntimeError, match=r"EnergyCoordinator|energy_penalty"):
        model(leaves(batch.features), batch.target)


@each_task
def test_a_given_head_may_be_affine_without_being_a_linear_layer(task):
    """Energies without a target are then linear in the features for both regressions: a gradient needs no graph."""
    heads = {n: nn.Sequential(nn.Linear(d, width(task))).double() for n, d in DIMS.items()}
    batch = make_batch(task)
    given, own = make(task, heads=heads), make(task, heads={n: h[0] for n, h in heads.items()})
    for target in (batch.target, None):
        ours, plain = (m(leaves(batch.features), target) for m in (given, own))
        torch.testing.assert_close(ours.energy, plain.energy)


# Features hold no label


@pytest.mark.parametrize("step", [0.0, 0.4])
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "mlp"])
@each_task
def test_no_returned_feature_depends_on_the_target(task, linear, step):
    model = make(task, step=step, heads=None if linear else make_heads(task))
    batch = make_batch(task, presence="some")
    targets = [batch.target, make_target(task, 6), None]
    if task == "classification":
        targets.append(torch.full((6,), -100))
    runs = [model(batch.features, y, batch.present) for y in targets]
    assert runs[0].loss != runs[1].loss
    for name in DIMS:
        first = runs[0].features[name]
        assert all(torch.equal(run.features[name].nan_to_num(7.0), first.nan_to_num(7.0)) for run in runs)
        assert step == 0 or not torch.equal(first.nan_to_num(), batch.features[name].nan_to_num())


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "mlp"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@each_task
def test_features_descend_the_label_free_energy(task, mode, linear):
    heads = None if linear else make_heads(task)
    model, batch = make(task, step=0.4, temperature=2.0, heads=heads), make_batch(task, presence="some")
    options = {"alpha": 0.3, "beta": 0.8, "gamma": 0.6, "temperature": 2.0, "normalize": True}
    with mode():
        out = model.eval()(batch.features, present=batch.present)
    for name, here in batch.present.items():
        head = (model.heads or heads)[name]
        for i in range(6):
            z = batch.features[name][i].clone().requires_grad_()
            if here[i]:
                z = z - 0.4 * gradients(oracle.energy(task, z, head, None, **options), [z])[0]
            torch.testing.assert_close(out.features[name][i], z.detach(), equal_nan=True)


def test_without_a_step_the_features_are_the_input_itself():
    batch = make_batch("classification")
    out = make(step=0.0)(batch.features, batch.target)
    assert all(out.features[name] is x for name, x in batch.features.items())


def fuse_noise(step):
    """Train a fusion head on the coordinator's features of pure noise; accuracy in training and on fresh noise."""
    torch.manual_seed(0)
    model = EnergyCoordinator({"a": 12, "b": 12}, 4, step=step, alpha=0.5, gamma=0.5, gap="paper")
    fusion = nn.Linear(24, 4)
    optimiser = torch.optim.Adam([*model.parameters(), *fusion.parameters()], lr=0.05)
    sets = [({n: torch.randn(160, 12, requires_grad=True) for n in "ab"}, torch.randint(4, (160,))) for _ in range(2)]

    def outputs(features, target):
        out = model(features, target)
        return out, fusion(torch.cat(list(out.features.values()), 1))

    for _ in range(60):
        optimiser.zero_grad()
        out, s = outputs(*sets[0])
        (nn.functional.cross_entropy(s, sets[0][1]) + out.loss).backward()
        optimiser.step()
    return [float((outputs(*data)[1].argmax(1) == data[1]).double().mean()) for data in sets]


def test_noise_teaches_no_more_with_descended_features_than_without():
    """With the label in the step: 80 % in training, and 54 % on fresh noise with the target passed in."""
    plain, descended = fuse_noise(0.0), fuse_noise(1.0)
    assert abs((descended[0] - descended[1]) - (plain[0] - plain[1])) < 0.05
    assert descended[0] < 0.6
    assert max(plain[1], descended[1]) < 0.4


# The rest of the contract


@each_task
def test_without_a_target_losses_are_zero_and_energies_label_free(task):
    model, batch = make(task), make_batch(task, presence="some")
    out = model(batch.features, None, batch.present)
    assert all(x == 0 for name, x in out.scalars().items() if not name.startswith("weight/"))
    for name, here in batch.present.items():
        for i in range(6):
            z, options = batch.features[name][i], {"alpha": 0.3, "beta": 0.8, "gamma": 0.6, "normalize": True}
            expected = oracle.energy(task, z, model.heads[name], None, **options) if here[i] else torch.zeros(())
            torch.testing.assert_close(out.energy[name][i], expected.to(torch.float64))


def test_training_lowers_the_energy_of_both_modalities():
    y = torch.randint(CLASSES, (64,))
    strong = nn.functional.one_hot(y, CLASSES).float() * 3 + 0.1 * torch.randn(64, CLASSES)
    weak = 0.3 * strong + 0.1 * torch.randn(64, CLASSES)
    encoders = nn.ModuleDict({n: nn.Linear(CLASSES, 4) for n in ("strong", "weak")})
    model = EnergyCoordinator({"strong": 4, "weak": 4}, CLASSES)
    optimiser = torch.optim.SGD([*model.parameters(), *encoders.parameters()], lr=0.1)
    history = []
    for _ in range(60):
        optimiser.zero_grad()
        out = model({"strong": encoders["strong"](strong), "weak": encoders["weak"](weak)}, y)
        out.loss.backward()
        optimiser.step()
        history.append([float(e.detach().mean()) for e in out.energy.values()])
    assert all(late < early for early, late in zip(history[0], history[-1], strict=True))


def test_an_environment_variable_picks_the_backend(monkeypatch):
    model, batch = make(), make_batch("classification")
    monkeypatch.setenv("MODBALANCE_BACKEND", "nonsense")
    with pytest.raises(ValueError, match=r"backend is 'nonsense', expected auto, .*unset MODBALANCE_BACKEND"):
        model(batch.features, batch.target)
    monkeypatch.setenv("MODBALANCE_BACKEND", "analytic")
    assert make(heads=make_heads("classification"))(batch.features, batch.target).loss.isfinite()


F = {name: torch.zeros(4, dim) for name, dim in DIMS.items()}
Y, HERE, LINEAR = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool), nn.Linear(1, 3)


def build(task="classification", **options):
    return EnergyCoordinator(DIMS, CLASSES, task, **options)


def heads_but(**changed):
    return {n: changed.get(n, nn.Linear(d, CLASSES)) for n, d in DIMS.items()}


BAD = {
    "dims": (
        lambda: EnergyCoordinator({"a": 1}, 3),
        "dims is {'a': 1}, expected a mapping of at least two.*pass for example",
    ),
    "gap": (
        lambda: build(gap="push"),
        "gap is 'push', expected 'pull', 'paper', 'paper_per_sample' or None; pass one",
    ),
    "temperature": (lambda: build(temperature=0), "temperature is 0, expected a positive number; pass one"),
    "task": (lambda: build("rank"), "task is 'rank', expected one of classification"),
    "class_weight": (
        lambda: build("gaussian", class_weight=torch.ones(3)),
        "class_weight has shape (3,) with task='gaussian'.*leave it out",
    ),
    "heads": (
        lambda: build(heads={"text": LINEAR}),
        "heads has ['text'], expected ['audio', 'text', 'vision'] as in dims; pass one head",
    ),
    "backend": (
        lambda: build(heads=heads_but(text=nn.Sequential(LINEAR)), backend="analytic"),
        "backend is 'analytic' and heads['text'] is a Sequential, expected a plain.*pass backend=\"reference\"",
    ),
    "features": (
        lambda: build()({**F, "audio": F["text"]}, Y),
        "features['audio'] has shape (4, 5), expected (4, 3) from dims; pass 3 features or set dims={\"audio\": 5}",
    ),
    "present": (
        lambda: build()(F, Y, {"audio": HERE[:3]}),
        "present['audio'] is a torch.bool tensor (3,), expected a bool tensor (4,)",
    ),
    "target": (
        lambda: build("regression")(F, Y),
        "target is a torch.int64 tensor (4,), expected floating point (4, 3).*pass task='classification'",
    ),
    "uncertainty": (
        lambda: build(gamma=0.1)(F, Y, uncertainty={"text": torch.zeros(4)}),
        "uncertainty['audio'] is missing, expected (4,); pass one value",
    ),
    "nan": (
        lambda: build(validate=True)({**F, "text": F["text"] + NAN}, Y),
        "features['text'] has NaN or inf in 4 present rows.*clean",
    ),
    "label": (
        lambda: build(validate=True)(F, Y - 1),
        "target holds -1, expected classes 0 to 2 or ignore_index=-100; correct the labels",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match="^EnergyCoordinator: " + re.escape(message).replace(r"\.\*", ".*")):
        call()


GIVEN = {
    "backend": (lambda: build(backend="cuda"), r"backend is 'cuda', expected auto, .*; pass one of these"),
    "linear": (
        lambda: build(heads=heads_but(text=nn.Linear(5, 7)))(F, Y),
        r"EnergyCoordinator: heads\['text'\].*expected .*3.*; ",
    ),
    "linear-all": (
        lambda: build(gap=None, heads={n: nn.Linear(d, 7) for n, d in DIMS.items()})(F, Y),
        r"EnergyCoordinator: heads\['text'\].*expected .*3.*; ",
    ),
    "mlp-width": (
        lambda: build(heads=heads_but(text=nn.Sequential(nn.Linear(5, 7), nn.Tanh())))(F, Y),
        r"heads\['text'\] returned shape \(4, 7\), expected \(4, 3\) .*; return one row of head outputs",
    ),
    "mlp-rank": (
        lambda: build(heads=heads_but(text=nn.Sequential(nn.Linear(5, 3), nn.Flatten(0))))(F, Y),
        r"heads\['text'\] returned shape \(12,\), expected \(4, 3\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), GIVEN.values(), ids=GIVEN)
def test_backend_and_given_heads_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
