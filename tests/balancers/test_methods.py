"""Each method against its formula by independent lines in float64, gradients included."""

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from balancer_rig import THREE, TWO, Model, build, extras, gradients, make_inputs, run, same
from cases import CLASSES, TASKS
from modbalance import EnergyCoordinator
from modbalance.balancers import AGM, CGGM, OGMGE, PMR, UMT, UnimodalLosses
from modbalance.tasks import task_loss

NAMES = pytest.mark.parametrize("names", [TWO, THREE], ids=["two", "three"])
PRESENCE = pytest.mark.parametrize("presence", ["all", "some"])
ALL_TASKS = pytest.mark.parametrize("task", TASKS)


def here(present, name, rows):
    return range(rows) if present is None else [i for i in range(rows) if present[name][i]]


def shown(present, name, z):
    return z if present is None else torch.where(present[name][:, None], z, 0.0)


def row_loss(task, s, y):
    if task == "classification":
        return F.cross_entropy(s[None], y[None])
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(s, y, reduction="sum")
    if task == "regression":
        return ((s - y) ** 2).sum()
    mean, log_variance = s.chunk(2)
    return F.gaussian_nll_loss(mean, y, log_variance.exp(), full=True, reduction="sum")


def row_error(task, s, y):
    if task in ("classification", "multilabel"):
        return row_loss(task, s, y)
    return ((s[:CLASSES] - y) ** 2).sum() / 2


def row_score(task, s, y):
    if task == "multilabel":
        return (y * s.sigmoid() + (1 - y) * (1 - s.sigmoid())).sum() / len(y)
    return torch.exp(-row_error(task, s, y))


def mean(values):
    return sum(values) / len(values) if len(values) else 0.0


def own_losses(model, balance, x, y, present):
    z = model.encode(x)
    return {
        n: mean([row_loss(model.task, balance.heads[n](z[n])[i], y[i]) for i in here(present, n, len(y))])
        for n in model.names
    }


def fused_loss(model, z, y, present):
    outputs = model.fuse(z, present)
    return mean([row_loss(model.task, outputs[i], y[i]) for i in range(len(y))])


def alone(model, z, present, keep):
    """The fused outputs with the features of all but `keep` set to zero."""
    return model.fuse({n: shown(present, n, v) if n in keep else torch.zeros_like(v) for n, v in z.items()})


@NAMES
@PRESENCE
@ALL_TASKS
def test_unimodal_losses(names, presence, task):
    x, y, present = make_inputs(names, task, presence=presence)
    model, plain = Model(names, task), Model(names, task)
    balance = build("unimodal", model, weights={n: 0.5 + i for i, n in enumerate(names)})
    out = run("unimodal", model, balance, x, y, present)
    z = plain.encode(x)
    total = fused_loss(plain, z, y, present)
    for i, n in enumerate(names):
        rows = here(present, n, len(y))
        loss = mean([row_loss(task, balance.heads[n](z[n])[k], y[k]) for k in rows])
        torch.testing.assert_close(out.losses[n].detach(), torch.as_tensor(loss).detach())
        total = total + (0.5 + i) * loss
    total.backward()
    same(gradients(model), gradients(plain))


@ALL_TASKS
@PRESENCE
def test_the_coordinator_with_nothing_but_descent_is_unimodal_losses(task, presence):
    x, y, present = make_inputs(task=task, presence=presence)
    model, other = Model(task=task), Model(task=task)
    balance = build("unimodal", model)
    coordinator = EnergyCoordinator(model.dims, CLASSES, task, alpha=0, delta=0, gap=None).double()
    coordinator.heads.load_state_dict(balance.heads.state_dict())
    run("unimodal", model, balance, x, y, present)
    run("coordinator", other, coordinator, x, y, present)
    same(gradients(model), gradients(other), 1e-9)
    same(gradients(balance.heads), gradients(coordinator.heads), 1e-9)


@NAMES
@ALL_TASKS
def test_detached_fusion_keeps_the_two_apart(names, task):
    x, y, present = make_inputs(names, task, presence="some")
    model, fused, own = (Model(names, task) for _ in range(3))
    balance = build("detached", model)
    run("detached", model, balance, x, y, present)
    fused_loss(fused, fused.encode(x), y, present).backward()
    z = own.encode(x)
    losses = build("unimodal", own).losses(z, y, present)
    torch.stack(list(losses.values())).sum().backward()
    same(gradients(model.head), gradients(fused.head))
    same(gradients(model.encoders), gradients(own.encoders))


@NAMES
@ALL_TASKS
def test_gradient_blending_adds_the_weighted_losses(names, task):
    x, y, present = make_inputs(names, task, presence="some")
    model, plain = Model(names, task), Model(names, task)
    balance = build("g-blend", model)
    balance.update(dict.fromkeys((*names, "task"), (2.0, 2.0)))
    balance.update({n: (1.0 - 0.1 * i, 1.1 - 0.1 * i) for i, n in enumerate((*names, "task"))})
    run("g-blend", model, balance, x, y, present)
    own = build("unimodal", plain)
    own.heads.load_state_dict(balance.heads.state_dict())
    losses, z = own_losses(plain, own, x, y, present), plain.encode(x)
    total = balance.blend["task"] * fused_loss(plain, z, y, present)
    sum((balance.blend[n] * loss for n, loss in losses.items()), total).backward()
    assert len(set(balance.blend.values())) > 1
    same(gradients(model), gradients(plain))


def test_gradient_blending_weighs_all_losses_anew():
    x, y, present = make_inputs(presence="some")
    model, plain = Model(), Model()
    balance = build("g-blend", model)
    assert set(balance.blend.values()) == {0.25}
    start = dict.fromkeys([*model.names, "task"], (2.0, 2.0))
    balance.update(start)
    assert set(balance.blend.values()) == {0.25}
    balance.update({"image": (1.0, 1.2), "text": (0.1, 1.0), "audio": (0.1, 3.0), "task": (0.5, 1.0)})
    raw = {"image": 0.8 / 0.2**2, "text": 1.0 / 0.9**2, "audio": 0.0, "task": 1.0 / 0.5**2}
    weights = {n: w / sum(raw.values()) for n, w in raw.items()}
    assert balance.blend == pytest.approx(weights)
    out = run("g-blend", model, balance, x, y, present)
    z = plain.encode(x)
    own = build("unimodal", plain).losses(z, y, present)
    total = weights["task"] * fused_loss(plain, z, y, present) + sum(weights[n] * own[n] for n in own)
    total.backward()
    same(gradients(model), gradients(plain))
    with pytest.raises(TypeError, match=r"no term to add.*balance.backward\(loss, out\) or use balance.total"):
        _ = out.loss
    again = build("g-blend", Model())
    again.load_state_dict(balance.state_dict())
    assert again.blend == pytest.approx(weights)


def coefficients(names, values, rule):
    return {n: rule(values[n], mean([values[k] for k in names if k != n])) for n in names}


@NAMES
@PRESENCE
@ALL_TASKS
def test_ogm_scales_every_parameter_of_who_runs_ahead(names, presence, task):
    x, y, present = make_inputs(names, task, presence=presence)
    model, plain = Model(names, task), Model(names, task)
    balance = build("ogm-ge", model, alpha=0.7, noise=0.0)
    run("ogm-ge", model, balance, x, y, present)
    z = plain.encode(x)
    scores = {}
    for n in names:
        outputs = alone(plain, z, present, (n,))
        scores[n] = mean([row_score(task, outputs[i], y[i]).item() for i in here(present, n, len(y))])
    k = coefficients(names, scores, lambda s, rest: 1 - math.tanh(0.7 * s / rest) if s > rest else 1.0)
    fused_loss(plain, z, y, present).backward()
    want = gradients(plain)
    for n in names:
        assert balance.coefficients[n].item() == pytest.approx(k[n])
        for key in want:
            if key.startswith(f"encoders.{n}."):
                want[key] = k[n] * want[key]
    same(gradients(model), want)
    assert min(k.values()) < 1


def test_ogm_adds_noise_of_the_size_of_each_gradient():
    x, y, present = make_inputs(rows=32)
    model, quiet, again = Model(), Model(), Model()
    run("ogm-ge", quiet, build("ogm-ge", quiet, noise=0.0), x, y, present)
    balance, other = build("ogm-ge", model, noise=2.0), build("ogm-ge", again, noise=2.0)
    run("ogm-ge", model, balance, x, y, present)
    run("ogm-ge", again, other, x, y, present)
    same(gradients(model), gradients(again))  # the same seed draws the same, as two processes must
    plain = Model()
    fused_loss(plain, plain.encode(x), y, present).backward()
    before, after, start = gradients(quiet), gradients(model), gradients(plain)
    ratios = []
    for key, p in model.named_parameters():
        noise = after[key] - before[key]
        spread = start[key].std(correction=0) if p.numel() > 1 else torch.zeros(())
        if key.startswith("encoders"):
            assert (noise.abs().max() > 0) == (spread > 0)
            ratios += (noise / spread).flatten().tolist() if spread > 1e-12 else []
        else:
            assert noise.abs().max() == 0
    assert torch.tensor(ratios).std().item() == pytest.approx(2.0, rel=0.1)
    assert torch.tensor(ratios).mean().abs() < 0.2
    quiet.zero_grad()
    again.zero_grad()
    run("ogm-ge", quiet, build("ogm-ge", quiet, noise=0.0), x, y, present)
    run("ogm-ge", again, other, x, y, present)
    key = "encoders.audio.0.weight"
    assert (gradients(again)[key] - gradients(quiet)[key] - after[key] + before[key]).abs().max() > 1e-3


@NAMES
@PRESENCE
@ALL_TASKS
def test_agm_scales_by_the_shapley_share_against_its_past(names, presence, task):
    model, plain = Model(names, task), Model(names, task)
    balance = build("agm", model, alpha=0.8)
    errors = []
    for seed in (1, 2, 3):
        x, y, present = make_inputs(names, task, presence=presence, seed=seed)
        z, found = plain.encode(x), {}
        for n in names:
            orders = list(permutations(names))
            share = 0
            for order in orders:
                before = order[: order.index(n)]
                share = share + alone(plain, z, present, (*before, n))
                share = share - (alone(plain, z, present, before) if before else 0)
            outputs = share / len(orders)
            found[n] = mean([row_error(task, outputs[i], y[i]).item() for i in here(present, n, len(y))])
        errors.append(found)
        model.zero_grad()
        run("agm", model, balance, x, y, present)
    past = {n: (errors[0][n] + errors[1][n]) / 2 for n in names}
    tau = coefficients(names, past, lambda s, rest: math.exp(rest - s))
    r = coefficients(names, errors[2], lambda s, rest: math.exp(rest - s))
    fused_loss(plain, plain.encode(x), y, present).backward()
    want = gradients(plain)
    for n in names:
        k = math.exp(-0.8 * max(r[n] - tau[n], -10))
        assert balance.coefficients[n].item() == pytest.approx(k)
        for key in want:
            if key.startswith(f"encoders.{n}."):
                want[key] = k * want[key]
    same(gradients(model), want, 1e-8)


@NAMES
@PRESENCE
@ALL_TASKS
def test_mmpareto_mixes_the_two_gradients_of_each_encoder(names, presence, task):
    x, y, present = make_inputs(names, task, presence=presence)
    model, plain = Model(names, task), Model(names, task)
    balance = build("mmpareto", model, gamma=1.2)
    run("mmpareto", model, balance, x, y, present)
    z = plain.encode(x)
    twin = build("unimodal", plain)
    own, fused = twin.losses(z, y, present), fused_loss(plain, z, y, present)
    for n in names:
        parameters = list(plain.encoders[n].parameters())
        g, u = (
            torch.cat([p.flatten() for p in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (fused, own[n])
        )
        if g @ u >= 0:
            want = g + u
        else:  # the point of the segment from g to u that is nearest to zero
            a = min(max(float((u - g) @ u / ((u - g) @ (u - g))), 0), 1)
            want = 2 * (a * g + (1 - a) * u)
            want = want * max(1, float((g + u).norm() / want.norm()))
        got = torch.cat([p.grad.flatten() for p in model.encoders[n].parameters()])
        torch.testing.assert_close(got, 1.2 * want)
    (fused + torch.stack(list(own.values())).sum()).backward()
    same(gradients(model.head), gradients(plain.head))
    same(gradients(balance.heads), gradients(twin.heads))


@NAMES
@PRESENCE
@ALL_TASKS
def test_cggm(names, presence, task):
    """The third of three steps: classifiers, the scale of the gradients, and the direction of the fused outputs."""
    model, plain = Model(names, task), Model(names, task)
    balance = build("cggm", model, rho=1.3, direction=0.4)
    metrics = []
    for seed in (1, 2):
        x, y, present = make_inputs(names, task, presence=presence, seed=seed, rows=12)
        model.zero_grad()
        out = run("cggm", model, balance, x, y, present)
        z, found = plain.encode(x), {}
        for n in names:
            s = balance.classifiers[n](z[n])
            if task == "classification":
                row = (s.argmax(1) == y).double()
            elif task == "multilabel":
                row = ((s > 0) == (y > 0.5)).double().mean(1)
            else:
                row = -(s[:, :CLASSES] - y).abs().mean(1)
            found[n] = mean([row[i].item() for i in here(present, n, len(y))])
        metrics.append(found)
    gains = {n: metrics[1][n] - metrics[0][n] for n in names}
    total = sum(gains.values())
    terms = {n: min(max(1.3 * (total - gains[n]) / total, 0), 1.3) if total else 1.0 for n in names}
    outputs = plain.fuse({n: shown(present, n, v) for n, v in z.items()})

    def slopes(s):
        loss = sum(row_loss(task, s[i], y[i]) for i in range(len(y)))
        return torch.autograd.grad(loss, s, create_graph=True)[0]

    fused, turn, own = slopes(outputs), 0.0, {}
    for n in names:
        detached = shown(present, n, z[n]).detach()
        s = balance.classifiers[n](detached)
        own[n] = mean([row_loss(task, s[i], y[i]) for i in here(present, n, len(y))])
        u = slopes(s).detach()
        cosine = mean([fused[i] @ u[i] / (fused[i].norm() * u[i].norm()) for i in here(present, n, len(y))])
        turn = turn + (abs(terms[n]) - terms[n] * cosine) / len(names)
    want = sum(own.values()) + 0.4 * turn
    torch.testing.assert_close(out.loss.detach(), want.detach())
    (fused_loss(plain, z, y, present) + want).backward()
    scaled = gradients(plain)
    for key in scaled:
        if key.startswith("encoders."):
            scaled[key] = terms[key.split(".")[1]] * scaled[key]
    same(gradients(model), scaled, 1e-8)


@pytest.mark.parametrize("method", [OGMGE, AGM])
def test_a_fusion_is_needed(method):
    x, y, _ = make_inputs()
    encoders = dict(Model().encoders)
    with pytest.raises(TypeError, match="predict is 'head', expected your fusion and head; pass predict=lambda"):
        method(encoders, 3, "head")
    z = {name: encoder(x[name]) for name, encoder in encoders.items()}
    with pytest.raises(TypeError, match=f"{method.__name__}: predict is None, expected your fusion and head"):
        method(encoders, 3, None)(z, y)


def test_cggm_without_direction_needs_no_fusion():
    x, y, present = make_inputs()
    model = Model()
    balance = build("cggm", model, direction=0.0)
    balance.predict = None
    assert run("cggm", model, balance, x, y, present).loss > 0


@NAMES
@PRESENCE
@ALL_TASKS
def test_umt_adds_the_distance_to_the_features_of_teachers(names, presence, task):
    x, y, present = make_inputs(names, task, presence=presence)
    model, plain = Model(names, task), Model(names, task)
    run("umt", model, build("umt", model, weight=2.0), x, y, present)
    z, taught = plain.encode(x), extras("umt", plain, x)["teacher_features"]
    total = fused_loss(plain, z, y, present)
    for n in names:
        total = total + 2 * mean([((z[n][i] - taught[n][i]) ** 2).mean() for i in here(present, n, len(y))])
    total.backward()
    same(gradients(model), gradients(plain))


@NAMES
@PRESENCE
@pytest.mark.parametrize("classes", [CLASSES, CLASSES - 1], ids=["every class", "a class never seen"])
def test_pmr_by_hand(names, presence, classes):
    model, plain = Model(names), Model(names)
    balance = build("pmr", model, alpha=0.7, mu=0.3, momentum=0.6)
    kept = {n: {} for n in names}
    for seed in (1, 2):
        x, y, present = make_inputs(names, presence=presence, seed=seed)
        y = y.clamp(max=classes - 1)
        model.zero_grad()
        out = run("pmr", model, balance, x, y, present)
        z = plain.encode(x)
        for n in names:
            for c in range(CLASSES):
                rows = [z[n][i].detach() for i in here(present, n, len(y)) if y[i] == c]
                if rows:
                    kept[n][c] = 0.6 * kept[n][c] + 0.4 * mean(rows) if c in kept[n] else mean(rows)
    own, entropy, score = {}, {}, {}
    for n in names:
        known = sorted(kept[n])
        p = {}
        for i in here(present, n, len(y)):
            p[i] = torch.softmax(torch.stack([-(z[n][i] - kept[n][c]).norm() for c in known]), 0)
        true = [p[i][known.index(int(y[i]))] for i in p]
        score[n], own[n] = mean([t.item() for t in true]), mean([-t.log() for t in true])
        entropy[n] = mean([-(q * q.log()).sum() for q in p.values()])
        torch.testing.assert_close(balance.prototypes[n][known], torch.stack([kept[n][c] for c in known]))
    beta = coefficients(names, score, lambda s, rest: min(max(rest / s - 1, 0), 1))
    gamma = coefficients(names, score, lambda s, rest: min(max(s / rest - 1, 0), 1))
    want = sum(0.7 * beta[n] * own[n] - 0.3 * gamma[n] * entropy[n] for n in names)
    torch.testing.assert_close(out.loss.detach(), want.detach())
    (fused_loss(plain, z, y, present) + want).backward()
    same(gradients(model), gradients(plain), 1e-8)


def test_pmr_holds_back_in_the_first_batches_alone():
    x, y, _ = make_inputs()
    model = Model()
    balance, other = build("pmr", model, mu=5.0, early=1), build("pmr", model, mu=0.0)
    z = model.encode(x)
    assert balance(z, y).loss != other(z, y).loss
    assert balance(z, y).loss == other(z, y).loss


@pytest.mark.parametrize("kind", ["unimodal", "mmpareto", "ogm-ge", "agm", "cggm", "pmr"])
def test_rows_with_the_label_to_ignore_do_not_count(kind):
    x, y, _ = make_inputs()
    results = []
    for ignore in (-100, 77):
        model = Model()
        balance = build(kind, model, ignore_index=ignore, **({"noise": 0.0} if kind == "ogm-ge" else {}))
        for _ in range(2):
            model.zero_grad()
            z = model.encode(x)
            label = torch.where(torch.arange(len(y)) == 2, ignore, y)
            out = balance(z, label)
            balance.backward(F.cross_entropy(model.fuse(z), label, ignore_index=ignore), out)
            balance.step()
        results.append({n: p.grad for n, p in model.named_parameters()})
    same(*results)


@pytest.mark.parametrize("kind", ["unimodal", "mmpareto", "ogm-ge", "agm", "cggm"])
def test_one_hot_labels_are_class_indices(kind):
    x, y, _ = make_inputs()
    results = []
    for label in (y, F.one_hot(y, CLASSES).double()):
        model = Model()
        balance = build(kind, model, **({"noise": 0.0} if kind == "ogm-ge" else {}))
        for _ in range(2):
            model.zero_grad()
            run(kind, model, balance, x, label)
        results.append({n: p.grad for n, p in model.named_parameters()})
    same(*results)


def test_gradient_blending_goes_on_from_a_checkpoint():
    first, second = ({n: (v, v + 0.1 * i) for i, n in enumerate([*THREE, "task"])} for v in (2.0, 1.0))
    model = Model()
    balance, again = build("g-blend", model), build("g-blend", model)
    balance.update(first)
    again.load_state_dict(balance.state_dict())
    for b in (balance, again):
        b.update({**second, "task": (0.5, 0.7)})
    assert again.blend == balance.blend
    assert len(set(balance.blend.values())) > 1


def test_one_dimensional_targets():
    """Values as users have them, `(B,)`."""
    torch.manual_seed(0)
    z = {"a": torch.randn(6, 4), "b": torch.randn(6, 3)}
    y = torch.randn(6)
    encoders = {"a": torch.nn.Linear(2, 4), "b": torch.nn.Linear(2, 3)}
    head = torch.nn.Linear(7, 1)

    def predict(z, present):
        return head(torch.cat(list(z.values()), 1))

    dims = {"a": 4, "b": 3}
    for balance in (
        OGMGE(encoders, 1, predict, "regression"),
        AGM(encoders, 1, predict, "regression"),
        CGGM(encoders, dims, 1, predict, "regression"),
        UnimodalLosses(dims, 1, "regression"),
    ):
        assert balance(z, y).loss.isfinite()
    assert UMT()(z, y, teacher_features=z).loss == 0
    with pytest.raises(ValueError, match=r"PMR: task is 'regression'.*mean of a class.*UnimodalLosses"):
        PMR(dims, 1, "regression")


def test_task_loss_is_that_of_the_oracle():
    """The rig's fused loss is the library's; the oracle above is not."""
    for task in TASKS:
        x, y, _ = make_inputs(task=task)
        model = Model(task=task)
        z = model.encode(x)
        torch.testing.assert_close(task_loss(task, model.fuse(z), y).mean(), fused_loss(model, z, y, None))
