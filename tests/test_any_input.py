"""What loops of any kind hand to a component, and what they do with its result."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import CLASSES, DIMS, make_batch
from modbalance import EnergyCoordinator, SemanticDecoupler, TrustDistiller
from modbalance.functional import alignment_loss
from rig import COMPONENTS, Rig, assert_close, outcome

WITH_FEATURES = COMPONENTS[:3]


@pytest.mark.parametrize("component", COMPONENTS)
def test_presence_as_one_tensor_in_the_order_of_dims(component):
    batch = make_batch("classification", presence="some")
    stacked = torch.stack(list(batch.present.values()), 1)
    rig = Rig(component)
    if component == "enhancer":
        rig.component.gamma = 0.0  # the rig's own fusion reads masks by name
        rig._enhancer = lambda f, t, p: rig.component(f, PARTS, PARTS, None, t, p)
    names = list(batch.features)
    shuffled = {n: batch.features[n] for n in (names if component == "distiller" else names[::-1])}
    assert_close(outcome(rig, shuffled, batch.target, stacked), outcome(rig, *batch))
    with pytest.raises(
        ValueError, match=r"present is a torch.bool tensor \(6, 2\), expected bool \(6, 3\) with the col"
    ):
        rig(batch.features, batch.target, stacked[:, :2])


PARTS = {name: torch.randn(6, 2, dtype=torch.float64) for name in DIMS}


@pytest.mark.parametrize("component", WITH_FEATURES)
def test_none_for_a_modality_leaves_it_out(component):
    features, target, _ = make_batch("classification")
    model, extra = Rig(component).component, (PARTS, PARTS) if component == "enhancer" else ()
    without = {name: x for name, x in features.items() if name != "audio"}
    if component == "enhancer":
        got = model({**features, "audio": None}, {**PARTS, "audio": None}, {**PARTS, "audio": None}, target=target)
        want = model(without, *({n: PARTS[n] for n in without},) * 2, target=target)
    else:
        got, want = model({**features, "audio": None}, target, *extra), model(without, target)
    assert got.loss == want.loss


@pytest.mark.parametrize("component", COMPONENTS)
def test_arrays_and_other_types_say_what_to_type(component):
    features, target, _ = make_batch("classification", dtype=torch.float32)
    call = Rig(component).component
    extra = ({n: x.float() for n, x in PARTS.items()},) * 2 if component == "enhancer" else (target,)
    if component == "distiller":
        features = {name: torch.randn(6, CLASSES) for name in DIMS}
        call, extra = lambda f, *_: TrustDistiller(CLASSES)(torch.randn(6, CLASSES), f), ()
    with pytest.raises(TypeError, match=r"\['audio'\] is a ndarray \(6, .\), expected .*pass torch.as_tensor\("):
        call({**features, "audio": features["audio"].numpy()}, *extra)
    with pytest.raises(TypeError, match=r"\['audio'\] is a torch.int64 tensor .*\['audio'\].float\(\)"):
        call({**features, "audio": features["audio"].long()}, *extra)
    with pytest.raises(ValueError, match=r"\['audio'\] has shape \(6, 4, .\), .*masked_mean.*flatten_tokens"):
        call({**features, "audio": features["audio"][:, None].expand(-1, 4, -1)}, *extra)


@pytest.mark.parametrize("component", WITH_FEATURES)
def test_half_precision_features_are_as_the_same_numbers_in_float32(component):
    features, target, _ = make_batch("classification", dtype=torch.float32)
    rig = Rig(component).float()
    half = {name: x.half() for name, x in features.items()}
    got, want = rig.component, {name: x.float() for name, x in half.items()}
    extra = ({n: x.float() for n, x in PARTS.items()},) * 2 if component == "enhancer" else (target,)
    torch.testing.assert_close(got(half, *extra).loss, got(want, *extra).loss, rtol=1e-3, atol=1e-3)


def test_widths_of_teachers_have_their_own_remedy():
    teachers = {name: torch.randn(4, 5) for name in "ab"}
    with pytest.raises(
        ValueError, match=r"teachers\['a'\] has shape \(4, 5\), expected \(4, 3\) from num_outputs; pass out"
    ):
        TrustDistiller(3)(torch.randn(4, 3), teachers)


# Results are no tensors


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_result_says_to_write_loss(component):
    out = Rig(component)(*make_batch("classification")[:2])
    task_loss = torch.tensor(1.0)
    for add in (
        lambda: out + 1,
        lambda: 1 + out,
        lambda: task_loss + out,
        lambda: out + task_loss,
        lambda: 0.1 * out,
    ):
        with pytest.raises(
            TypeError, match=r"Output is no tensor, expected its loss; write .loss, as in task_loss \+"
        ):
            add()
    with pytest.raises(
        AttributeError, match=r"Output has no attribute 'backward', expected a tensor; write .loss.backw"
    ):
        out.backward()
    with pytest.raises(AttributeError, match=r"has no attribute 'losses'\.$"):
        out.losses  # noqa: B018
    assert not hasattr(out, "losses")


def test_results_are_still_tuples():
    out = EnergyCoordinator(DIMS, CLASSES)({n: torch.randn(4, d) for n, d in DIMS.items()})
    loss, *_ = out
    assert loss is out.loss
    assert copy.copy(out).loss is out.loss
    assert type(pickle.loads(pickle.dumps(type(out)(*range(len(out)))))) is type(out)
    assert torch.utils._pytree.tree_map(lambda x: x, out).gap == out.gap


# Copies of one item in a batch


def info_nce(shared, temperature, ids):
    """Anchor by anchor: the positive is the mean of the others, negatives those of other items."""
    losses = []
    for m, x in shared.items():
        others = torch.stack([y for n, y in shared.items() if n != m]).mean(0)
        for i in range(len(x)):
            kept = [j for j in range(len(x)) if j == i or ids[j] != ids[i]]
            logits = torch.stack([F.cosine_similarity(x[i], others[j], dim=0) / temperature for j in kept])
            losses.append(logits.logsumexp(0) - logits[kept.index(i)])
    return torch.stack(losses).mean()


def test_copies_of_one_item_are_no_negatives_of_each_other():
    ids = torch.tensor([4, 9, 4, 7, 9, 4])
    ours, theirs = ({n: x.clone().requires_grad_() for n, x in SHARED.items()} for _ in range(2))
    got, want = alignment_loss(ours, temperature=0.5, ids=ids), info_nce(theirs, 0.5, ids)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, ours["a"]), torch.autograd.grad(want, theirs["a"]))
    torch.testing.assert_close(alignment_loss(SHARED, ids=torch.arange(6)), alignment_loss(SHARED))
    assert alignment_loss(SHARED, ids=torch.zeros(6, dtype=torch.long)) == 0


SHARED = {n: torch.randn(6, 3, dtype=torch.float64) for n in "abc"}


def test_ids_in_the_decoupler():
    features, target, _ = make_batch("classification")
    twice = {name: torch.cat([x, x]) for name, x in features.items()}
    model = SemanticDecoupler(DIMS, 4, CLASSES).double()
    ids = torch.arange(6).repeat(2)
    once = model(features, target).alignment
    torch.testing.assert_close(model(twice, target.repeat(2), ids=ids).alignment, once, rtol=0.35, atol=0)
    assert model(twice, target.repeat(2), ids=ids).alignment < model(twice, target.repeat(2)).alignment
    for bad in (ids[:3], ids.float()):
        with pytest.raises(
            ValueError, match=r"SemanticDecoupler: ids is a .*, expected integers \(12,\); pass one number"
        ):
            model(twice, ids=bad)


@pytest.mark.parametrize("component", COMPONENTS)
def test_help_tells_every_argument_of_a_call(component):
    import inspect

    kind = type(Rig(component).component)
    text = inspect.getdoc(kind.forward)
    for name in inspect.signature(kind.forward).parameters:
        assert name == "self" or f"{name}: " in text
    assert "(B, " in text
    assert text != inspect.getdoc(nn.Module.forward)
