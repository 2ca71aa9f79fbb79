"""The three lines are the same for every method, and hold with scaling, clipping, accumulation and absence."""

import copy
import pickle

import pytest
import torch
from torch import nn

from balancer_rig import (
    ADDED,
    KINDS,
    SCALED,
    SIZES,
    THREE,
    TWO,
    Model,
    Whole,
    build,
    extras,
    gradients,
    half,
    make_inputs,
    run,
    same,
)
from cases import CLASSES, TASKS
from modbalance.balancers import (
    AGM,
    CGGM,
    OGMGE,
    PMR,
    UMT,
    Balancer,
    GradientBlending,
    MMPareto,
    UnimodalLosses,
)
from modbalance.tasks import task_loss

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.15, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}
KIND = pytest.mark.parametrize("kind", KINDS)


def classes_only(kind, task):
    if kind == "pmr" and task != "classification":
        pytest.skip("prototypes need classes")


@pytest.mark.parametrize(("names", "optimizer"), [(TWO, "sgd"), (THREE, "adam")], ids=["two", "three"])
@KIND
def test_it_learns_by_the_same_three_lines(kind, names, optimizer):
    model = Model(names)
    balance = build(kind, model)
    assert isinstance(balance, Balancer)
    x, y, present = make_inputs(names, rows=16, presence="some")
    optimizer = OPTIMIZERS[optimizer]([*model.parameters(), *balance.parameters()])

    def loss():
        with torch.no_grad():
            return task_loss("classification", model.fuse(model.encode(x), present), y).mean().item()

    before, start = loss(), {n: p.clone() for n, p in model.named_parameters()}
    for _ in range(25):
        optimizer.zero_grad()
        run(kind, model, balance, x, y, present)
        optimizer.step()
    assert loss() < 0.8 * before
    # The bias of the keys has no effect in attention, and so no gradient.
    still = [n for n, p in model.named_parameters() if torch.equal(p, start[n])]
    assert still == []


@pytest.mark.parametrize("task", TASKS)
@KIND
def test_scalars_and_no_effect_in_eval(kind, task):
    classes_only(kind, task)
    model = Model(task=task)
    balance = build(kind, model).eval()
    x, y, present = make_inputs(task=task, presence="some")
    z = model.encode(x)
    for out in (
        balance(z, None, present, **extras(kind, model, x)),
        balance(z, y, present, **extras(kind, model, x)),
    ):
        assert all(v.isfinite() and v.dim() == 0 and not v.requires_grad for v in out.scalars().values())
        assert out.features.keys() == z.keys()
    before = {k: v.clone() for k, v in balance.state_dict().items()}
    balance(z, y, present, **extras(kind, model, x))
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in balance.state_dict().items())


@KIND
def test_absent_is_never_there(kind):
    """A modality that no sample has, and holds NaN, against one that is not handed over."""
    x, y, _ = make_inputs()
    results = []
    for given in (True, False):
        model = Model()
        balance = build(kind, model, **({"noise": 0.0} if kind == "ogm-ge" else {}))
        for _ in range(2):
            model.zero_grad()
            z = model.encode(x)
            absent = {"text": torch.zeros(len(y), dtype=torch.bool)}
            if given:
                z = {**z, "text": torch.full_like(z["text"], float("nan")).detach()}
            else:
                z.pop("text")
            extra = extras(kind, model, x)
            out = balance(z, y, absent if given else None, **extra)
            loss = task_loss("classification", model.fuse(out.features, absent), y).mean()
            balance.backward(loss, out)
            balance.step()
        found = {n: g for n, g in gradients(model).items() if not n.startswith("encoders.text")}
        results.append(found)
        assert all(g.isfinite().all() for g in found.values())
    same(*results)


@KIND
def test_none_for_a_modality_and_presence_as_one_tensor(kind):
    x, y, present = make_inputs(presence="some")
    results = []
    for plain in (True, False):
        model = Model()
        balance = build(kind, model)
        z, extra = model.encode(x), extras(kind, model, x)
        z.pop("text")
        masks = {n: present[n] for n in z}
        if plain:
            out = balance(z, y, masks, **extra)
        elif kind == "umt":  # it is built without names, so that the columns are those of the features
            out = balance({**z, "text": None}, y, torch.stack(list(masks.values()), 1), **extra)
        else:
            out = balance({**z, "text": None}, y, torch.stack([present[n] for n in THREE], 1), **extra)
        assert set(out.features) == {"image", "audio"}
        balance.backward(task_loss("classification", model.fuse(out.features, masks), y).mean(), out)
        balance.step()
        results.append(gradients(model))
    same(*results)


@KIND
def test_the_order_of_the_modalities_does_not_matter(kind):
    x, y, present = make_inputs(presence="some")
    results = []
    for order in (THREE, THREE[::-1]):
        model = Model()
        model.encoders = nn.ModuleDict({n: model.encoders[n] for n in order})
        ordered = Model()
        ordered.names, ordered.encoders, ordered.head = THREE, model.encoders, model.head
        balance = build(kind, ordered, **({"noise": 0.0} if kind == "ogm-ge" else {}))
        if hasattr(balance, "heads") or hasattr(balance, "classifiers"):
            heads = balance.heads if hasattr(balance, "heads") else balance.classifiers
            for n, head in heads.items():
                torch.manual_seed(len(n))
                head.reset_parameters()
        for _ in range(2):
            ordered.zero_grad()
            run(kind, ordered, balance, {n: x[n] for n in order}, y, {n: present[n] for n in order})
        results.append(gradients(ordered))
    same({n: results[1][n] for n in results[0]}, results[0])


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("pmr", "mmpareto")])
def test_two_micro_batches_are_one_batch(kind):
    x, y, _ = make_inputs(rows=8)
    options = {"ogm-ge": {"noise": 0.0}, "cggm": {"direction": 0.0}, "coordinator": {"gap": None}}.get(kind, {})
    results = []
    for pieces in (1, 2):
        model = Model()
        balance = build(kind, model, **options)
        for _ in range(2):
            model.zero_grad()
            for rows in torch.arange(8).chunk(pieces):
                part = {n: v[rows] for n, v in x.items()}
                run(kind, model, balance, part, y[rows], scale=half if pieces == 2 else None, step=False)
            balance.step()
        results.append(gradients(model))
    same(*results, 1e-9)


@pytest.mark.parametrize("kind", ["mmpareto", "pmr"])
def test_what_is_no_mean_over_rows_takes_every_micro_batch_by_itself(kind):
    """A direction combined of two gradients, and prototypes that move with each batch."""
    batches = [make_inputs(seed=seed) for seed in (1, 2)]
    model, alone, total = Model(), Model(), None
    balance, other = build(kind, model), build(kind, alone)
    for batch in batches:
        alone.zero_grad()
        run(kind, alone, other, *batch, scale=half)
        found = gradients(alone)
        total = found if total is None else {n: g + found[n] for n, g in total.items()}
        run(kind, model, balance, *batch, scale=half)
    same(gradients(model), total)


@KIND
def test_under_a_gradient_scaler(kind):
    x, y, present = make_inputs(presence="some")
    plain, model = Model(), Model()
    run(kind, plain, build(kind, plain), x, y, present)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    balance = build(kind, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(kind, model, balance, x, y, present, scale=scaler.scale, step=False)
    scaler.unscale_(optimizer)
    balance.step()
    same(gradients(model), gradients(plain), 1e-9)

    start = {n: p.clone() for n, p in model.named_parameters()}
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model.head[0].weight, start["head.0.weight"])


@pytest.mark.parametrize("kind", ["mmpareto", *SCALED])
def test_an_overflow_is_still_seen_by_the_scaler(kind):
    x, y, _ = make_inputs()
    model = Model()
    balance = build(kind, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = {n: p.clone() for n, p in model.named_parameters()}
    run(kind, model, balance, x, y, scale=lambda loss: scaler.scale(loss) * float("inf"))
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1024
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())


@KIND
def test_clipping_comes_after(kind):
    model, other = Model(), Model()
    for m in (model, other):
        balance = build(kind, m, **({"noise": 0.0} if kind == "ogm-ge" else {}))
        for seed in (3, 4):
            m.zero_grad()
            run(kind, m, balance, *make_inputs(seed=seed))
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert norm > 0.01
    want = {n: g * 0.01 / norm for n, g in gradients(other).items()}
    same(gradients(model), want, 1e-4)


@pytest.mark.parametrize("kind", ["ogm-ge", "agm", "cggm", "mmpareto"])
def test_a_copy_has_the_encoders_of_the_copy(kind):
    whole = Whole(kind)
    assert not [n for n, _ in whole.named_parameters() if n.startswith("balance.encoders")]
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert other.balance.encoders["audio"] is other.model.encoders["audio"]
        run(kind, other.model, other.balance, *make_inputs())
        assert whole.model.encoders["audio"][0].weight.grad is None
        assert other.model.encoders["audio"][0].weight.grad is not None


def test_frozen_and_unused_parameters_are_passed_by():
    for kind in ("ogm-ge", "agm", "cggm", "mmpareto"):
        model = Model()
        model.encoders["audio"][0].weight.requires_grad_(False)
        model.encoders["audio"].register_parameter("spare", nn.Parameter(torch.zeros(2)))
        run(kind, model, build(kind, model), *make_inputs())
        assert model.encoders["audio"][0].weight.grad is None
        assert model.encoders["audio"][3].weight.grad.isfinite().all()


def test_features_of_any_shape():
    """Token-level features, as a fusion by attention has them."""
    encoders = {"a": nn.Linear(3, 4), "b": nn.Linear(2, 4)}
    head = nn.Linear(4, 3)

    def predict(z, present):
        return head(torch.cat([z["a"], z["b"]], 1).mean(1))

    y = torch.arange(6) % 3
    for balance in (OGMGE(encoders, 3, predict), AGM(encoders, 3, predict)):
        z = {"a": encoders["a"](torch.randn(6, 5, 3)), "b": encoders["b"](torch.randn(6, 7, 2))}
        out = balance(z, y, {"a": torch.arange(6) > 1})
        balance.backward(nn.functional.cross_entropy(predict(out.features, None), y), out)
        balance.step()


def test_state_of_a_run_that_goes_on():
    for kind in ("agm", "cggm", "ogm-ge", "pmr"):
        model = Model()
        balance = build(kind, model)
        for seed in (1, 2):
            run(kind, model, balance, *make_inputs(seed=seed))
        again = build(kind, model)
        again.load_state_dict(balance.state_dict())
        results = []
        for b in (balance, again):
            model.zero_grad()
            run(kind, model, b, *make_inputs(seed=3))
            results.append(gradients(model))
        same(*results)


def test_a_warning_where_step_is_forgotten(monkeypatch):
    monkeypatch.setattr("modbalance.balancers.gradients.MANY", 3)
    model = Model()
    balance = build("ogm-ge", model)
    z, y = model.encode(make_inputs()[0]), make_inputs()[1]
    balance(z, y)
    balance(z, y)
    with pytest.warns(RuntimeWarning, match=r"OGMGE: 3 batches without step\(\)"):
        balance(z, y)


DIMS = {"a": 4, "b": 3}
MODULES = {"a": nn.Linear(2, 4), "b": nn.Linear(2, 3)}
SHARED = nn.Linear(2, 4)
FEATURES = {"a": torch.zeros(2, 4), "b": torch.zeros(2, 3)}
TARGET = torch.zeros(2, dtype=torch.int64)


def never(z, present):
    return torch.zeros(2, 5)


ERRORS = {
    "weights": (lambda: UnimodalLosses(DIMS, 3, weights={"a": 1}), r"weights has \['a'\], expected \['a', 'b'\]"),
    "heads": (lambda: UnimodalLosses(DIMS, 3, heads={"a": nn.Linear(4, 3)}), "one head a modality"),
    "task": (lambda: UnimodalLosses(DIMS, 3, "ranking"), "task is 'ranking'"),
    "size": (
        lambda: UnimodalLosses(DIMS, 3)({"a": torch.zeros(2, 5)}),
        r"UnimodalLosses: .*\(2, 5\), expected \(2, 4\)",
    ),
    "modality": (lambda: MMPareto(MODULES, DIMS, 3)({"c": torch.zeros(2, 5)}), "MMPareto: .*'c', expected one of"),
    "named task": (lambda: GradientBlending({"a": 1, "task": 1}, 3), "modality 'task', expected another name"),
    "floor": (lambda: GradientBlending(DIMS, 3, floor=0), "floor is 0, expected a positive"),
    "update": (lambda: GradientBlending(DIMS, 3).update({"a": (1, 1)}), r"\['a'\], expected \['a', 'b', 'task'\]"),
    "one encoder": (lambda: OGMGE({"a": MODULES["a"]}, 3, never), "mapping of at least two modality names"),
    "a list": (lambda: AGM(list(MODULES.values()), 3, never), "encoders is a list, expected a mapping"),
    "no module": (lambda: AGM({"a": MODULES["a"], "b": torch.tanh}, 3, never), r"encoders\['b'\].*nn.ModuleList"),
    "shared": (
        lambda: OGMGE({"a": SHARED, "b": SHARED}, 3, never),
        r"shares its parameter 'weight' with encoders\['a'\]",
    ),
    "alpha": (lambda: OGMGE(MODULES, 3, never, alpha=0), "alpha is 0, expected a positive"),
    "outputs": (
        lambda: OGMGE(MODULES, 3, never)(FEATURES, TARGET),
        r"predict returned shape \(2, 5\), expected \(2, 3\)",
    ),
    "target": (lambda: OGMGE(MODULES, 3, never)(FEATURES, TARGET.float()), "expected class indices"),
    "unknown": (
        lambda: AGM(MODULES, 3, never)({"c": torch.zeros(2, 1)}, TARGET),
        "AGM: features has the modality 'c'",
    ),
    "nothing": (lambda: AGM(MODULES, 3, never)(None, TARGET), "AGM: features is NoneType"),
    "rows": (lambda: AGM(MODULES, 3, never)({"a": torch.zeros(2, 4), "b": torch.zeros(3, 3)}), "3 rows, expected 2"),
    "names": (lambda: MMPareto(MODULES, {"a": 4, "c": 3}, 3), r"encoders has \['a', 'b'\], expected \['a', 'c'\]"),
    "names too": (lambda: CGGM(MODULES, {"a": 4, "c": 3}, 3, never), r"CGGM: encoders has \['a', 'b'\]"),
    "no fusion": (lambda: CGGM(MODULES, DIMS, 3), "predict is None with direction=0.2.*direction=0"),
    "gamma": (lambda: MMPareto(MODULES, DIMS, 3, gamma=-1), "gamma is -1"),
    "weight": (lambda: UMT(0), "weight is 0, expected a positive"),
    "no teacher": (lambda: UMT()(FEATURES, teacher_features={}), r"lacks \['a', 'b'\]"),
    "teacher size": (
        lambda: UMT()({"a": FEATURES["a"]}, teacher_features={"a": torch.zeros(2, 9)}),
        r"\(2, 9\), expected",
    ),
    "label": (lambda: PMR(DIMS, 3)(FEATURES, TARGET + 5), "PMR: target holds 5, expected classes 0 to 2"),
    "soft": (
        lambda: PMR(DIMS, 3)(FEATURES, torch.full((2, 3), 1 / 3)),
        r"PMR: target is a .*pass target.argmax\(1\)",
    ),
    "nothing at all": (lambda: Balancer()({"a": None}), "Balancer: features is .*at least one modality"),
    "diverged": (
        lambda: GradientBlending(DIMS, 3).update({"a": (1, 1), "b": (float("nan"), 1), "task": (1, 1)}),
        r"losses\['b'\] is \(nan, 1.0\), expected finite numbers",
    ),
    "momentum": (lambda: PMR(DIMS, 3, momentum=2), "momentum is 2, expected a number from 0 to 1"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "joint"])
def test_nan_in_present_rows_is_an_error(kind):
    model = Model()
    x, y, _ = make_inputs()
    z = model.encode(x)
    z["audio"] = torch.where(torch.arange(len(y))[:, None] == 1, float("nan"), z["audio"])
    with pytest.raises(ValueError, match=r"features\['audio'\] has NaN or inf in 1 present rows"):
        build(kind, model)(z, y, **extras(kind, model, x))


@pytest.mark.parametrize("kind", ["unimodal", "detached", "mmpareto", "g-blend", "cggm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_with_float32_heads(kind, dtype):
    model = Model().float()
    balance = build(kind, model, **({"direction": 0.0} if kind == "cggm" else {})).float()
    z = {name: torch.randn(8, size).to(dtype).requires_grad_() for name, size in SIZES.items()}
    out = balance(z, make_inputs()[1])
    assert all(loss.dtype == torch.float32 for loss in out.losses.values())
    torch.stack(list(out.losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in balance.parameters())


def test_a_warning_where_no_optimiser_has_the_heads(monkeypatch):
    monkeypatch.setattr("modbalance.training_check.CALLS", 3)
    for kind in ("unimodal", "detached", "mmpareto", "g-blend", "cggm"):
        model = Model()
        balance = build(kind, model)
        z, y = model.encode(make_inputs()[0]), make_inputs()[1]
        for _ in range(3):
            balance(z, y)
        with pytest.warns(UserWarning, match="parameters have not changed in 3 training calls"):
            balance(z, y)


def test_errors_of_use():
    model = Model()
    with pytest.raises(RuntimeError, match=r"OGMGE: step\(\) before anything was measured.*call balance\(features"):
        build("ogm-ge", model).step()
    with pytest.raises(TypeError, match=r"BalancerOutput is no tensor.*write .loss"):
        torch.zeros(()) + Balancer()(FEATURES)
    balance = build("mmpareto", model)
    out = balance(model.encode(make_inputs()[0]), make_inputs()[1])
    with pytest.raises(TypeError, match=r"no term to add.*in place of loss.backward\(\)"):
        _ = out.loss
    with pytest.raises(TypeError, match=r"MMPareto: total\(loss, out\).*call balance.backward\(loss, out\)"):
        balance.total(torch.zeros(()), out)
    encoders = {"a": nn.Embedding(3, 4, sparse=True), "b": nn.Linear(2, 3)}
    sparse = OGMGE(encoders, 3, lambda z, present: z["b"])
    z = {"a": encoders["a"](TARGET), "b": encoders["b"](torch.ones(2, 2))}
    out = sparse(z, TARGET)
    sparse.backward(z["a"].sum() + z["b"].sum(), out)
    with pytest.raises(NotImplementedError, match=r"layout torch.sparse_coo.*sparse=False"):
        sparse.step()


def test_the_rig_covers_every_balancer():
    from modbalance import balancers

    model = Model()
    built = {type(build(kind, model)).__name__ for kind in KINDS}
    classes = {n for n in balancers.__all__ if isinstance(getattr(balancers, n), type) and n != "BalancerOutput"}
    assert classes - built == {"ModalityDropout"}
    assert set(ADDED) | set(SCALED) <= set(KINDS)
    assert set(SIZES) == set(THREE)
    assert CLASSES > 2
