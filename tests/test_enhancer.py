import re

import pytest
import torch

import oracle
from cases import CLASSES, DIMS, NAN, PRESENCE, TASKS, assert_same, gradients, leaves, make_batch, randomise, width
from modbalance import ComplementaryEnhancer

DIM = 2
PARTS = dict.fromkeys(DIMS, DIM)


def make(task="classification", **options):
    return randomise(ComplementaryEnhancer(DIMS, DIM, CLASSES, task, **options)).eval()


def make_parts(presence):
    """Shared and private parts with NaN where absent, under the presence of a batch."""
    batches = [make_batch("regression", dims=PARTS) for _ in range(2)]
    return [leaves({n: torch.where(presence[n][:, None], x, NAN) for n, x in b.features.items()}) for b in batches]


def present_of(batch):
    return batch.present or {name: torch.ones(6, dtype=torch.bool) for name in DIMS}


class Fusion:
    """A linear head on all modalities that counts its calls; what it is given must be free of NaN."""

    def __init__(self, task):
        self.weights = {n: torch.randn(d, width(task), dtype=torch.float64) for n, d in DIMS.items()}
        self.calls = []

    def __call__(self, features):
        self.calls.append(dict(features))
        return sum(x @ self.weights[name] for name, x in features.items())


def generate(model, shared, private, present, name, i, own_private=True):
    """One rebuilt row: own parts first, then the others' in order, zero where absent."""

    def read(parts, other):
        return parts[other][i] if present[other][i] else torch.zeros(DIM, dtype=torch.float64)

    row = [read(shared, name)] + ([read(private, name)] if own_private else [])
    for other in DIMS:
        if other != name:
            row += [read(shared, other), read(private, other)]
    return model.generators[name](torch.cat(row))


@pytest.mark.parametrize("presence", PRESENCE)
@pytest.mark.parametrize("impute", [False, True], ids=["absent", "impute"])
@pytest.mark.parametrize("task", TASKS)
def test_loss_against_the_oracle(task, impute, presence):
    model, batch, predict = make(task, gamma=0.7, impute=impute), make_batch(task, presence=presence), Fusion(task)
    present, features = present_of(batch), leaves(batch.features)
    shared, private = make_parts(present)
    out = model(features, shared, private, predict, batch.target, batch.present)

    anything = torch.stack(list(present.values())).any(0)
    zero = {n: torch.where(present[n][:, None], x, 0.0) for n, x in features.items()}
    rebuilt, outputs, counted = {}, {}, {}
    for name, dim in DIMS.items():
        rows = [
            generate(model, shared, private, present, name, i) if anything[i] else torch.zeros(dim) for i in range(6)
        ]
        rebuilt[name] = torch.stack([row.double() for row in rows])
        counted[name] = anything if impute else present[name]
        replaced = {**zero, name: torch.where(counted[name][:, None], rebuilt[name], 0.0)}
        outputs[name] = sum(x @ predict.weights[n] for n, x in replaced.items())
        torch.testing.assert_close(out.features[name], rebuilt[name])
        assert torch.equal(out.imputed[name], anything & ~present[name])
    learns = [*features.values(), *shared.values(), *private.values(), *model.parameters()]
    reconstruction = oracle.reconstruction(rebuilt, features, present)
    label = oracle.task_mean(task, outputs, batch.target, counted)
    assert_same(out.reconstruction, reconstruction, learns, 1e-8)
    assert_same(out.task, label, learns, 1e-8)
    assert_same(out.loss, reconstruction + 0.7 * label, learns, 1e-8)


def run(model, batch, predict=None, target=None):
    parts = make_parts(present_of(batch))
    return model(batch.features, *parts, predict, target, batch.present)


def test_class_weight_and_ignored_labels():
    weight = torch.tensor([0.5, 2.0, 1.5])
    model, batch = make(class_weight=weight, ignore_index=1), make_batch("classification")
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    outputs = torch.randn(6, CLASSES, dtype=torch.float64)
    expected = oracle.task_mean("classification", {"any": outputs}, target, None, weight.double(), 1)
    torch.testing.assert_close(run(model, batch, lambda _: outputs, target).task, expected)


def test_predict_is_called_once_a_modality_with_only_that_one_replaced():
    model, batch, predict = make(), make_batch("classification"), Fusion("classification")
    out = run(model, batch, predict, batch.target)
    assert len(predict.calls) == len(DIMS)
    for name, given in zip(DIMS, predict.calls, strict=True):
        for other in DIMS:
            assert torch.equal(given[other], (out.features if other == name else batch.features)[other])


def test_the_own_private_part_is_read_unless_left_out():
    for own_private, moves in ((True, True), (False, False)):
        model, batch = make(own_private=own_private), make_batch("classification")
        shared, private = make_parts(present_of(batch))
        out = model(batch.features, shared, private)
        (gradient,) = gradients(out.features["text"].sum(), [private["text"]])
        assert bool(gradient.any()) is moves
        expected = generate(model, shared, private, present_of(batch), "text", 0, own_private)
        torch.testing.assert_close(out.features["text"][0], expected)


def test_a_modality_missing_from_everything_is_built_and_flagged():
    model, batch = make(), make_batch("classification")
    parts = [{n: x for n, x in p.items() if n != "audio"} for p in make_parts(present_of(batch))]
    out = model({n: x for n, x in batch.features.items() if n != "audio"}, *parts)
    assert out.features["audio"].shape == (6, DIMS["audio"])
    assert out.features["audio"].any()
    assert out.imputed["audio"].all()
    assert not out.imputed["text"].any()


@pytest.mark.parametrize("task", TASKS)
def test_no_feature_depends_on_the_target(task):
    model, batch, predict = make(task), make_batch(task, presence="some"), Fusion(task)
    parts = make_parts(batch.present)
    other = make_batch(task).target
    runs = [model(batch.features, *parts, predict, y, batch.present) for y in (batch.target, other, None)]
    assert runs[0].task != runs[1].task
    assert all(torch.equal(r.features[name], runs[0].features[name]) for r in runs for name in DIMS)


def test_noise_and_hiding_act_in_training_only():
    batch = make_batch("classification")
    parts = make_parts(present_of(batch))
    for options in ({"noise": 1.0}, {"hide": 0.5}):
        model = make(**options)
        calm = [model(batch.features, *parts).features["text"] for _ in range(2)]
        assert torch.equal(*calm)
        model.train()
        wild = [model(batch.features, *parts).features["text"] for _ in range(2)]
        assert not torch.equal(*wild)


def test_a_hidden_modality_is_hidden_from_its_own_generator_alone():
    model, batch = make(hide=0.5).train(), make_batch("classification", 200)
    shared, private = ({n: torch.randn(200, DIM).double() for n in DIMS} for _ in range(2))
    own = leaves({"text": private["text"]})
    out = model(batch.features, shared, {**private, **own})
    seen = {n: gradients(out.features[n].sum(), own.values())[0].any(1).double().mean() for n in DIMS}
    assert 0.35 < seen["text"] < 0.65
    assert seen["audio"] == seen["vision"] == 1


def test_training_rebuilds_a_modality_from_the_others():
    common = torch.randn(64, 4)
    features = {"a": common @ torch.randn(4, 6), "b": common @ torch.randn(4, 5)}
    model = ComplementaryEnhancer({"a": 6, "b": 5}, 4, CLASSES, hide=0.9)
    parts = dict.fromkeys(features, common)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        optimiser.zero_grad()
        out = model(features, parts, parts)
        out.loss.backward()
        optimiser.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


F = {name: torch.zeros(4, dim) for name, dim in DIMS.items()}
P = {name: torch.zeros(4, DIM) for name in DIMS}
Y, HERE = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)


def build(**options):
    return ComplementaryEnhancer(DIMS, DIM, CLASSES, **options)


BAD = {
    "hide": (lambda: build(hide=1.0), "hide is 1.0, expected a probability in [0, 1); 0 hides nothing"),
    "hidden": (lambda: build(hidden=-2), "hidden is -2, expected a positive int; pass the width"),
    "dims": (lambda: ComplementaryEnhancer({"a": 1}, 2, 3), "dims is {'a': 1}, expected a mapping of at least two"),
    "features": (
        lambda: build()({**F, "audio": F["text"]}, P, P),
        "features['audio'] has shape (4, 5), expected (4, 3) from dims; pass 3 features",
    ),
    "shared": (
        lambda: build()(F, {**P, "audio": F["audio"]}, P),
        "shared['audio'] has shape (4, 3), expected (4, 2) from dims; pass 2 features",
    ),
    "private": (
        lambda: build()(F, P, {**P, "lidar": P["text"]}),
        "private has the modality 'lidar', expected one of",
    ),
    "present": (
        lambda: build()(F, P, P, present={"text": HERE.int()}),
        "present['text'] is a torch.int32 tensor (4,), expected a bool",
    ),
    "target": (
        lambda: build()(F, P, P, None, Y.float()),
        "target is a torch.float32 tensor (4,), expected class indices",
    ),
    "nan": (
        lambda: build(validate=True)({**F, "text": F["text"] + NAN}, P, P),
        "features['text'] has NaN or inf in 4 present rows",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match="^ComplementaryEnhancer: " + re.escape(message)):
        call()


SHAPES = {
    "parts-rows": (lambda: build()(F, {n: x[:1] for n, x in P.items()}, P), "shared has .*1.*, expected 4 .*pass"),
    "parts-missing": (
        lambda: build()(F, P, {"text": P["text"]}),
        "private has .*'audio': 'missing'.*, expected 4 .*pass",
    ),
    "predict-width": (
        lambda: build()(F, P, P, lambda _: torch.zeros(4, 5), Y),
        r"predict returned shape \(4, 5\), expected \(4, 3\) for task='classification'.*; return one row",
    ),
    "predict-rows": (
        lambda: build()(F, P, P, lambda _: torch.zeros(2, 3), Y),
        r"predict returned shape \(2, 3\), expected \(4, 3\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), SHAPES.values(), ids=SHAPES)
def test_shapes_of_parts_and_of_what_predict_returns_are_checked(call, message):
    with pytest.raises(ValueError, match="^ComplementaryEnhancer: " + message):
        call()


def test_a_closed_gate_hides_a_modality_from_the_others_only():
    model, batch = make(), make_batch("classification", presence="all")
    shared, private = make_parts(present_of(batch))
    first = next(iter(DIMS))
    gates = dict.fromkeys(DIMS, torch.ones(6)) | {first: torch.zeros(6)}
    out = model(batch.features, shared, private, gates=gates).features
    changed = [{**parts, first: parts[first] + 1} for parts in (shared, private)]
    other = model(batch.features, *changed, gates=gates).features
    assert not torch.equal(out[first], other[first])
    assert all(torch.equal(out[name], other[name]) for name in DIMS if name != first)


def test_gates_of_another_shape_raise():
    batch = make_batch("classification", presence="all")
    shared, private = make_parts(present_of(batch))
    with pytest.raises(ValueError, match=r"ComplementaryEnhancer: gates has shapes .* expected \(6,\) for each of"):
        make()(batch.features, shared, private, gates=dict.fromkeys(DIMS, torch.ones(6, 1)))
