import re

import pytest
import torch

import oracle
from cases import CLASSES, DIMS, NAN, PRESENCE, TASKS, assert_same, leaves, make_batch, randomise, width
from modbalance import SemanticDecoupler

DIM = 2


def make(task="classification", **options):
    return randomise(SemanticDecoupler(DIMS, DIM, CLASSES, task, **options))


def parts_of(model, features):
    """The modules of the component, applied to all rows."""
    shared = {name: model.shared[name](x) for name, x in features.items()}
    private = {name: model.private[name](x) for name, x in features.items()}
    return shared, private, {name: model.heads[name](x) for name, x in private.items()}


@pytest.mark.parametrize("presence", PRESENCE)
@pytest.mark.parametrize("cosine", ["squared", "plain"])
@pytest.mark.parametrize("task", TASKS)
def test_loss_against_the_oracle(task, cosine, presence):
    model = make(task, temperature=0.5, lambda_1=0.3, lambda_2=0.7, cosine=cosine)
    batch = make_batch(task, presence=presence)
    features = leaves(batch.features)
    out = model(features, batch.target, batch.present)
    here = batch.present or dict.fromkeys(DIMS, torch.ones(6, dtype=torch.bool))
    clean = {name: torch.where(here[name][:, None], x, 0.0) for name, x in features.items()}
    shared, private, predictions = parts_of(model, clean)
    alignment = oracle.info_nce(shared, batch.present, 0.5)
    redundancy = oracle.redundancy(private, batch.present, cosine == "squared")
    preservation = oracle.task_mean(task, predictions, batch.target, batch.present)
    learns = [*features.values(), *model.parameters()]
    for ours, expected in zip(out[1:4], (alignment, redundancy, preservation), strict=True):
        assert_same(ours, expected, learns, 1e-8)
    assert_same(out.loss, alignment + 0.3 * redundancy + 0.7 * preservation, learns, 1e-8)


def test_class_weight_and_ignored_labels():
    weight = torch.tensor([0.5, 2.0, 1.5])
    model, batch = make(class_weight=weight, ignore_index=1), make_batch("classification")
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    _, _, predictions = parts_of(model, batch.features)
    expected = oracle.task_mean("classification", predictions, target, None, weight.double(), 1)
    assert_same(model(batch.features, target).preservation, expected, list(model.heads.parameters()))


@pytest.mark.parametrize("task", TASKS)
def test_parts_are_zero_where_absent_and_the_modules_own_elsewhere(task):
    model, batch = make(task), make_batch(task, presence="some")
    out = model(*batch)
    for ours, expected in zip(out[4:], parts_of(model, batch.features), strict=True):
        assert ours.keys() == DIMS.keys()
        for name, here in batch.present.items():
            assert torch.equal(ours[name][here], expected[name][here])
            assert (ours[name][~here] == 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_modality_that_is_missing_gets_parts_of_the_usual_shape(task):
    batch = make_batch(task)
    out = make(task)({"text": batch.features["text"], "vision": batch.features["vision"]}, batch.target)
    assert out.shared["audio"].shape == out.private["audio"].shape == (6, DIM)
    assert out.predictions["audio"].shape == (6, width(task))
    assert not out.shared["audio"].any()


@pytest.mark.parametrize("task", TASKS)
def test_no_part_depends_on_the_target(task):
    model, batch = make(task), make_batch(task)
    other = make_batch(task).target
    runs = [model(batch.features, y) for y in (batch.target, other, None)]
    assert not torch.equal(batch.target, other)
    assert runs[0].loss != runs[1].loss
    for run in runs[1:]:
        for field in ("shared", "private", "predictions"):
            assert all(torch.equal(x, getattr(runs[0], field)[name]) for name, x in getattr(run, field).items())


def test_training_brings_shared_parts_together():
    model = SemanticDecoupler({"a": 8, "b": 6}, 4, CLASSES)
    common = torch.randn(32, 4)
    features = {"a": common @ torch.randn(4, 8), "b": common @ torch.randn(4, 6)}
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        out = model(features)
        out.loss.backward()
        optimiser.step()
        losses.append(float(out.alignment.detach()))
    assert losses[-1] < 0.7 * losses[0]


F = {name: torch.zeros(4, dim) for name, dim in DIMS.items()}
Y, HERE = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)
BUILD = {
    "one": (
        lambda: SemanticDecoupler({"text": 5}, 2, 3),
        "dims is {'text': 5}, expected a mapping of at least two.*pass for example",
    ),
    "size": (
        lambda: SemanticDecoupler({"text": 5, "audio": 0}, 2, 3),
        "dims['audio'] is 0, expected a positive int; pass the feature size",
    ),
    "dim": (lambda: SemanticDecoupler(DIMS, 0, 3), "dim is 0, expected a positive int; pass the size of the parts"),
    "task": (
        lambda: SemanticDecoupler(DIMS, 2, 3, "rank"),
        "task is 'rank', expected one of classification, .*pick the one",
    ),
    "outputs": (lambda: SemanticDecoupler(DIMS, 2, 0), "num_outputs is 0, expected a positive int; pass the number"),
    "temperature": (
        lambda: SemanticDecoupler(DIMS, 2, 3, temperature=0.0),
        "temperature is 0.0, expected a positive number; pass",
    ),
    "class_weight": (
        lambda: SemanticDecoupler(DIMS, 2, 3, class_weight=torch.ones(4)),
        "class_weight has shape (4,) with task='classification', expected (3,).*pass one weight a class",
    ),
}
CALL = {
    "empty": (({},), {}, "features is dict {}, expected a mapping.*pass for example"),
    "width": (
        ({**F, "audio": F["text"]},),
        {},
        "features['audio'] has shape (4, 5), expected (4, 3) from dims; pass 3 features or set dims={\"audio\": 5}",
    ),
    "rank": (
        ({**F, "audio": F["audio"][None]},),
        {},
        "features['audio'] has shape (1, 4, 3), expected (4, 3) from dims; pool it, for example masked_mean",
    ),
    "rows": (
        ({**F, "audio": F["audio"][:2]},),
        {},
        "features['audio'] has 2 rows, expected 4 as in features['text']; pass the same samples",
    ),
    "unknown": (
        ({**F, "lidar": F["audio"]},),
        {},
        "features has the modality 'lidar', expected one of ['audio', 'text', 'vision']; correct the name",
    ),
    "unknown-present": (
        (F, Y, {"lidar": HERE}),
        {},
        "present has the modality 'lidar', expected one of ['audio', 'text', 'vision']; correct the name",
    ),
    "mask": (
        (F, Y, {"audio": HERE.float()}),
        {},
        "present['audio'] is a torch.float32 tensor (4,), expected a bool tensor (4,); pass one flag a sample",
    ),
    "mask-rows": (
        (F, Y, {"audio": HERE[:2]}),
        {},
        "present['audio'] is a torch.bool tensor (2,), expected a bool tensor (4,)",
    ),
    "target": (
        (F, Y[:2]),
        {},
        "target is a torch.int64 tensor (2,), expected class indices torch.int64 (4,).*have 4 rows: pass the target",
    ),
    "nan": (
        ({**F, "audio": F["audio"] + NAN},),
        {"validate": True},
        "features['audio'] has NaN or inf in 4 present rows, expected finite numbers; clean the data or mark",
    ),
    "label": (
        (F, Y + 3),
        {"validate": True},
        "target holds 3, expected classes 0 to 2 or ignore_index=-100; correct the labels, or build it with num",
    ),
}


def raises(message, kind=ValueError):
    pattern = "^SemanticDecoupler: .*" + re.escape(message).replace(r"\.\*", ".*")
    return pytest.raises(kind, match=pattern)


@pytest.mark.parametrize(("build", "message"), BUILD.values(), ids=BUILD)
def test_bad_arguments_raise(build, message):
    with raises(message):
        build()


@pytest.mark.parametrize(("arguments", "options", "message"), CALL.values(), ids=CALL)
def test_bad_input_raises(arguments, options, message):
    with raises(message):
        SemanticDecoupler(DIMS, DIM, CLASSES, **options)(*arguments)


def test_features_that_are_no_floats_raise():
    with raises(
        "features['audio'] is a torch.int64 tensor (4, 3), expected a floating-point tensor (4, 3); "
        "pass features['audio'].float()",
        TypeError,
    ):
        SemanticDecoupler(DIMS, DIM, CLASSES)({**F, "audio": F["audio"].long()})


@pytest.mark.parametrize(("task", "bad"), [("multilabel", 1.5), ("regression", NAN), ("gaussian", NAN)])
def test_validate_checks_targets_of_every_task(task, bad):
    target = make_batch(task, 4, dtype=torch.float32).target
    target[1, 1] = bad
    with raises("target holds .*clean the labels"):
        SemanticDecoupler(DIMS, DIM, CLASSES, task, validate=True)(F, target)


def test_validate_lets_absent_and_ignored_rows_be():
    batch = make_batch("classification", presence="some")
    target = torch.full((6,), -100)
    assert make(validate=True)(batch.features, target, batch.present).preservation == 0
