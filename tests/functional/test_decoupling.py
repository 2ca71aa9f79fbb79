import re

import pytest
import torch

import oracle
from cases import DIMS, PRESENCE, TASKS, assert_same, gradients, leaves, make_batch, width
from modbalance.functional import alignment_loss, preservation_loss, redundancy_loss

SAME = dict.fromkeys(DIMS, 4)
each_presence = pytest.mark.parametrize("presence", PRESENCE)


def make_parts(presence, batch=6):
    made = make_batch("classification", batch, SAME, presence)
    return leaves(made.features), made.present


@each_presence
@pytest.mark.parametrize("temperature", [0.01, 0.1, 2.0])
def test_alignment_against_the_oracle(presence, temperature):
    parts, present = make_parts(presence)
    ours = alignment_loss(parts, present, temperature=temperature)
    assert_same(ours, oracle.info_nce(parts, present, temperature), parts.values(), 1e-8)


@each_presence
@pytest.mark.parametrize("cosine", ["squared", "plain"])
def test_redundancy_against_the_oracle(presence, cosine):
    parts, present = make_parts(presence)
    expected = oracle.redundancy(parts, present, squared=cosine == "squared")
    assert_same(redundancy_loss(parts, present, cosine=cosine), expected, parts.values())


@each_presence
@pytest.mark.parametrize("task", TASKS)
def test_preservation_against_the_oracle(task, presence):
    batch = make_batch(task, 6, dict.fromkeys(DIMS, width(task)), presence)
    outputs = leaves(batch.features)
    ours = preservation_loss(outputs, batch.target, batch.present, task=task)
    assert_same(ours, oracle.task_mean(task, outputs, batch.target, batch.present), outputs.values())


@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_preservation_with_class_weight_and_ignored_labels(ignore_index):
    batch = make_batch("classification", 6, dict.fromkeys(DIMS, 3), "some")
    options = {"class_weight": torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64), "ignore_index": ignore_index}
    target = torch.tensor([0, ignore_index, 2, 1, ignore_index, 2])
    outputs = leaves(batch.features)
    ours = preservation_loss(outputs, target, batch.present, **options)
    expected = oracle.task_mean("classification", outputs, target, batch.present, **options)
    assert_same(ours, expected, outputs.values())


def test_alignment_falls_as_modalities_agree():
    x = torch.randn(16, 8)
    agree, random = {"a": x, "b": 3 * x, "c": x}, {n: torch.randn(16, 8) for n in "abc"}
    oppose = {"a": x, "b": -x}
    assert alignment_loss(agree) < 0.1 < alignment_loss(random) < alignment_loss(oppose)
    two = {"a": x, "b": torch.randn(16, 8)}
    assert alignment_loss({"a": x, "b": x}) < alignment_loss(two) < alignment_loss(oppose)


def test_an_anchor_is_not_in_its_own_aggregate():
    """With itself among the positives, random modalities would be told apart for almost nothing."""
    losses = [alignment_loss({n: torch.randn(8, 16) for n in "abc"}, temperature=0.1) for _ in range(8)]
    assert torch.stack(losses).mean() > 1.5


def test_redundancy_is_least_at_orthogonal_parts_and_plain_at_opposed_ones():
    x, y = torch.eye(2).repeat(3, 1), torch.eye(2).flip(0).repeat(3, 1)
    assert redundancy_loss({"a": x, "b": y}) == 0
    assert redundancy_loss({"a": x, "b": -x}) == redundancy_loss({"a": x, "b": 2 * x}) == 1
    assert redundancy_loss({"a": x, "b": -x}, cosine="plain") == -1


@pytest.mark.parametrize("loss", [alignment_loss, redundancy_loss])
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(loss, batch):
    parts = {name: torch.randn(batch, 4, requires_grad=True) for name in "ab"}
    value = loss(parts)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in gradients(value, parts.values()))
    if loss is alignment_loss or not batch:
        assert value == 0


@pytest.mark.parametrize("loss", [alignment_loss, redundancy_loss])
def test_zero_vectors_give_no_nan(loss):
    parts = {name: torch.zeros(3, 4, requires_grad=True) for name in "ab"}
    assert all(g.isfinite().all() for g in gradients(loss(parts), parts.values()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", [alignment_loss, redundancy_loss])
def test_half_parts_and_autocast(loss, dtype):
    parts, present = make_parts("some")
    low = {name: x.detach().to(dtype) for name, x in parts.items()}
    expected = loss({name: x.double() for name, x in low.items()}, present)
    assert loss(low, present).dtype == torch.float32
    torch.testing.assert_close(loss(low, present).double(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype):
        value = loss({name: x.float() for name, x in low.items()}, present)
    torch.testing.assert_close(value.double(), expected, rtol=5e-2, atol=5e-2)


X, HERE = torch.zeros(4, 3), torch.ones(4, dtype=torch.bool)
BAD = {
    "alignment-sizes": (
        lambda: alignment_loss({"a": X, "b": X[:, :2]}),
        "alignment_loss: sizes are {'a': 3, 'b': 2}.*project them",
    ),
    "redundancy-sizes": (
        lambda: redundancy_loss({"a": X, "b": X[:, :2]}),
        "redundancy_loss: sizes are {'a': 3, 'b': 2}.*project them",
    ),
    "rows": (
        lambda: alignment_loss({"a": X, "b": X[:2]}),
        "shared['b'] has 2 rows, expected 4 as in shared['a']; pass the same",
    ),
    "mask": (
        lambda: redundancy_loss({"a": X, "b": X}, {"a": HERE.int()}),
        "present['a'] is a torch.int32 tensor (4,), expected a bool.*mask.bool()",
    ),
    "unknown": (
        lambda: redundancy_loss({"a": X, "b": X}, {"c": HERE}),
        "present has the modality 'c', expected one of ['a', 'b']; correct",
    ),
    "cosine": (
        lambda: redundancy_loss({"a": X, "b": X}, cosine="cubed"),
        "cosine is 'cubed', expected 'squared' or 'plain'; pass",
    ),
    "target": (
        lambda: preservation_loss({"a": X}, torch.zeros(4)),
        "preservation_loss: target is a torch.float32 tensor (4,), expected class.*pass target.long()",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        call()
