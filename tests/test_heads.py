"""Heads that nobody here wrote: what a coordinator reads of them, and what it leaves behind."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from cases import CLASSES, DIMS, TASKS, compiles, leaves, make_batch, width
from modbalance import EnergyCoordinator
from modbalance.heads import linear_heads, not_plain, probe

ALPHA, DELTA = 0.3, 0.2
TERMS = {"alpha": ALPHA, "delta": DELTA, "gap": "pull"}


@pytest.mark.parametrize("task", TASKS)
def test_one_linear_head_a_modality(task):
    heads = linear_heads(DIMS, CLASSES, task)
    assert {name: (h.in_features, h.out_features) for name, h in heads.items()} == {
        name: (dim, width(task)) for name, dim in DIMS.items()
    }


@pytest.mark.parametrize(
    "head", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))], ids=["linear", "mlp"]
)
def test_a_probe_moves_features_and_never_the_head(head):
    x = torch.randn(4, 3, requires_grad=True)
    outputs = probe(head, x)
    assert torch.equal(outputs, head(x))
    outputs.square().sum().backward()
    expected = torch.autograd.grad(head(x).square().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)
    assert all(p.grad is None for p in head.parameters())


class LoRALinear(nn.Linear):
    """A subclass with a forward of its own, as adapters are."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(sizes[0], 2, bias=False), nn.Linear(2, sizes[1], bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def hooked(head):
    head.register_forward_hook(lambda module, inputs, output: 5 * output)
    return head


def prehooked(head):
    head.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    return head


def patched(head):
    head.forward = lambda x: 5 * nn.Linear.forward(head, x)
    return head


def parametrised(head):
    parametrize.register_parametrization(head, "weight", Doubled())
    return head


HEADS = {
    "hook": hooked,
    "pre-hook": prehooked,
    "patched": patched,
    "parametrised": parametrised,
    "pruned": lambda head: prune.l1_unstructured(head, "weight", amount=0.5),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "subclass": lambda head: LoRALinear(head.in_features, head.out_features),
}


def make_heads(change):
    return {name: change(nn.Linear(d, CLASSES)).double() for name, d in DIMS.items()}


def by_hand(heads, features, target):
    """The loss, from nothing but calls of the heads."""
    means, descent, penalty = [], 0.0, 0.0
    for name, z in features.items():
        loss = F.cross_entropy(heads[name](z), target, reduction="none")
        energy = ALPHA * z.square().sum(1) / z.shape[1] + loss
        (g,) = torch.autograd.grad(energy.sum(), z, create_graph=True)
        descent, penalty = descent + energy.mean(), penalty + g.square().sum(1).mean()
        means.append(loss.mean())
    means = torch.stack(means)
    return (means - means.min().detach()).square().mean() + descent + DELTA * penalty


def coordinate(heads, features, target, **options):
    return EnergyCoordinator(DIMS, CLASSES, **TERMS, heads=heads, **options)(features, target)


def same_as_by_hand(heads, **options):
    batch = make_batch("classification")
    ours, theirs = leaves(batch.features), leaves(batch.features)
    out, expected = coordinate(heads, ours, batch.target, **options).loss, by_hand(heads, theirs, batch.target)
    torch.testing.assert_close(out, expected)
    out.backward()
    gradients = torch.autograd.grad(expected, list(theirs.values()))
    torch.testing.assert_close([x.grad for x in ours.values()], list(gradients))
    assert all(p.grad is None for head in heads.values() for p in head.parameters())


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_what_changes_the_call_of_a_head_changes_the_loss(change):
    heads = make_heads(change)
    if change is patched:  # a deep copy of a closure would keep the head it was made for
        heads = make_heads(lambda head: head)
        weights = {name: (5 * h.weight.detach(), 5 * h.bias.detach()) for name, h in heads.items()}
        bare = {name: nn.Linear(d, CLASSES).double() for name, d in DIMS.items()}
        for name, (weight, bias) in weights.items():
            bare[name].weight.data, bare[name].bias.data = weight, bias
            patched(heads[name])
        batch = make_batch("classification")
        z = leaves(batch.features)
        with pytest.warns(UserWarning, match="has a forward of its own"):
            out = coordinate(heads, z, batch.target)
        torch.testing.assert_close(out.loss, by_hand(bare, z, batch.target))
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same_as_by_hand(heads)
    ours = [str(w.message) for w in caught if "EnergyCoordinator" in str(w.message)]
    assert len(ours) == 1
    assert "heads['text']" in ours[0]
    assert "called as modules by the reference" in ours[0]


def test_a_plain_linear_is_read_and_a_deeper_head_is_called_without_a_word():
    assert not_plain(nn.Linear(2, 2)) is None
    same_as_by_hand(make_heads(lambda head: head))
    same_as_by_hand(make_heads(lambda head: nn.Sequential(head, nn.Tanh())))


def test_asking_for_the_reference_says_nothing():
    same_as_by_hand(make_heads(hooked), backend="reference")


def test_a_backend_that_reads_weights_is_refused():
    with pytest.raises(ValueError, match=r"backend is 'analytic' and heads\['text'\] has hooks.*pass backend="):
        EnergyCoordinator(DIMS, CLASSES, heads=make_heads(hooked), backend="analytic")


def test_hooks_that_only_watch_see_every_call_and_change_nothing():
    batch, seen = make_batch("classification"), []
    heads = make_heads(lambda head: head)
    expected = coordinate(heads, leaves(batch.features), batch.target).loss
    for name, head in heads.items():
        head.register_forward_hook(lambda *_, name=name: seen.append(name))
    with pytest.warns(UserWarning, match=r"heads\['text'\] has hooks"):
        out = coordinate(heads, leaves(batch.features), batch.target).loss
    torch.testing.assert_close(out, expected)
    assert set(seen) == set(DIMS)


def test_global_hooks_count_for_every_head():
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: 5 * output if type(module) is nn.Linear else None
    )
    try:
        with pytest.warns(UserWarning, match="global module hooks"):
            same_as_by_hand(make_heads(lambda head: head))
    finally:
        handle.remove()


def test_hooks_on_the_coordinators_own_heads_count():
    batch = make_batch("classification", dtype=torch.float32)
    model = EnergyCoordinator(DIMS, CLASSES, **TERMS)
    for head in model.heads.values():
        hooked(head)
    z = leaves(batch.features)
    with pytest.warns(UserWarning, match="has hooks"):
        out = model(z, batch.target)
    torch.testing.assert_close(out.loss - out.fit, by_hand(model.heads, z, batch.target))


class Noisy(nn.Module):
    """Everything that a call can leave behind: running statistics, dropout, an attribute, a count."""

    def __init__(self, d):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(d, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, CLASSES)
        )
        self.calls = 0
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.rows += len(x)
        return self.net(x)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_probing_leaves_no_trace(step, training, joint):
    batch = make_batch("classification", dtype=torch.float32)
    heads = {name: Noisy(d) for name, d in DIMS.items()}
    for name, head in heads.items():
        head(torch.randn(20, DIMS[name]))  # some statistics
        head.net[1].eval()  # a mode of its own
    before = {name: copy.deepcopy(head.state_dict()) for name, head in heads.items()}
    modes = {name: [m.training for m in head.modules()] for name, head in heads.items()}
    model = EnergyCoordinator(DIMS, CLASSES, **TERMS, heads=heads, step=step, joint=joint)
    model.train(training)
    drawn, z = torch.get_rng_state(), leaves(batch.features)
    out = model(z, batch.target)
    out.loss.backward()
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, head in heads.items():
        assert head.state_dict().keys() == before[name].keys()
        assert all(torch.equal(x, before[name][key]) for key, x in head.state_dict().items())
        assert [m.training for m in head.modules()] == modes[name]
        assert head.calls == 1
    if not joint:
        heads = {name: copy.deepcopy(head).eval() for name, head in heads.items()}
        torch.testing.assert_close(out.loss, by_hand(heads, leaves(batch.features), batch.target))


def test_joint_trains_heads_of_your_own():
    batch = make_batch("classification", dtype=torch.float32)
    heads = {name: Noisy(d) for name, d in DIMS.items()}
    coordinate(heads, leaves(batch.features), batch.target, joint=True).loss.backward()
    assert all(head.net[0].weight.grad is not None for head in heads.values())


def test_a_head_that_has_no_shape_yet_is_refused():
    heads = {name: nn.Sequential(nn.LazyLinear(CLASSES)) for name in DIMS}
    with pytest.raises(ValueError, match=r"heads\['text'\] has parameters without a shape yet.*call it once"):
        EnergyCoordinator(DIMS, CLASSES, heads=heads)
    with pytest.raises(TypeError, match=r"heads\['text'\] is a function, expected a torch.nn.Module; pass"):
        EnergyCoordinator(DIMS, CLASSES, heads=dict.fromkeys(DIMS, leaves))


@compiles
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of Dynamo, where a graph begins with a non-leaf
def test_compiling_around_heads_that_are_not_linear():
    batch = make_batch("classification", dtype=torch.float32)
    heads = {name: nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, CLASSES)) for name, d in DIMS.items()}
    model = EnergyCoordinator(DIMS, CLASSES, **TERMS, heads=heads)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"not plain nn.Linear are differentiated twice.*; pass nn.Linear heads"):
        whole(leaves(batch.features), batch.target)
    torch._dynamo.reset()
    ours, theirs = leaves(batch.features), leaves(batch.features)
    torch.compile(model, backend="aot_eager")(ours, batch.target).loss.backward()
    gradients = torch.autograd.grad(by_hand(heads, theirs, batch.target), list(theirs.values()))
    torch.testing.assert_close([x.grad for x in ours.values()], list(gradients))


def test_heads_with_attention_have_a_second_derivative():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    head = nn.Sequential(nn.Unflatten(1, (2, 8)), layer, nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(3, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(probe(head, x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_head_that_works_in_place_leaves_the_features():
    x = torch.randn(3, 4, requires_grad=True)
    before = x.detach().clone()
    probe(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), x).sum().backward()
    assert torch.equal(x, before)
