"""What the processes of `ranks` are asked to do."""

import copy
import unittest.mock
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from cases import CLASSES, DIMS, Batch, make_batch, poison
from modbalance import EnergyCoordinator
from modbalance.diagnostics import ModalityMonitor
from modbalance.distributed import reduce
from modbalance.functional.decoupling import alignment_sum
from rig import Rig, assert_close, outcome


def shards(task, sizes, presence, dtype, dims=DIMS):
    """The whole batch and that of each process; in `absent` and `left_out` the last one has no audio and no text."""
    torch.manual_seed(1)
    alone = presence in ("absent", "left_out")
    whole = make_batch(task, sum(sizes), dims, "all" if alone else presence, dtype)
    if alone:
        present = {name: torch.ones(sum(sizes), dtype=torch.bool) for name in ("text", "audio")}
        for here in present.values():
            here[sum(sizes[:-1]) :] = False
        whole = Batch(poison(whole.features, present), whole.target, present)
    pieces, start = [], 0
    for size in sizes:
        rows, start = slice(start, start + size), start + size
        present = whole.present and {name: p[rows] for name, p in whole.present.items()}
        pieces.append(Batch({name: x[rows] for name, x in whole.features.items()}, whole.target[rows], present))
    if presence == "left_out":
        pieces[-1] = Batch({"vision": pieces[-1].features["vision"]}, pieces[-1].target, None)
    return whole, pieces


def make(component, task, dtype, sync, **options):
    torch.manual_seed(2)
    return Rig(component, task, sync=sync, **options).to(dtype)


def exact(group, component, task, options, cases, dtype):
    """Losses, and gradients averaged over the processes, against one process on the concatenated batch."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    for sizes, presence in cases:
        whole, pieces = shards(task, sizes[:size], presence, dtype)
        want = outcome(make(component, task, dtype, False, **options), *whole)
        got = outcome(make(component, task, dtype, group, **options), *pieces[rank])
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for key, x in got.values.items():
            near(x, want.values[key][own] if x.dim() else want.values[key], tolerance, presence, key)
        for key, x in got.features.items():
            near(x, size * want.features[key][own], tolerance, presence, key)
        if got.parameters:
            average = torch.cat([x.flatten() for x in got.parameters.values()])
            dist.all_reduce(average, group=group)
            parts = (average / size).split([x.numel() for x in got.parameters.values()])
            for (key, x), part in zip(want.parameters.items(), parts, strict=True):
                near(part.view_as(x), x, tolerance, presence, key)


def near(got, want, tolerance, *what):
    """Up to `tolerance` of the largest entry, or of 1."""
    atol = tolerance * max(1.0, float(want.double().abs().nan_to_num().max())) if want.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=0, atol=atol, equal_nan=True, msg=lambda m: f"{' '.join(what)}: {m}")


def monitored(group):
    """A diagnosis, held-out samples and steps of uneven number on each process, against one process that saw all."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sizes = (5, 9, 7)[:size]
    whole, pieces = shards("classification", sizes, "some", torch.float64)
    encoders = {name: torch.nn.Linear(1, 1, bias=False) for name in DIMS}
    alone, together = (ModalityMonitor(list(DIMS), CLASSES, sync=sync) for sync in (False, group))
    alone.update(fuse, *whole)
    together.update(fuse, *pieces[rank])
    for process in range(size):
        for step in range(process + 1):
            for i, encoder in enumerate(encoders.values()):
                encoder.weight.grad = torch.tensor([[1.0 + i * process + step]])
            for monitor in (alone, together) if process == rank else (alone,):
                monitor.update_gradients(encoders)
    want, got = alone.compute().scalars(), together.compute().scalars()
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert abs(got[key] - value) < 1e-6 or (got[key] != got[key] and value != value), (key, got[key], value)
    empty = ModalityMonitor(list(DIMS), CLASSES, sync=group)
    if rank:
        empty.update(fuse, *pieces[rank])
    with pytest.raises(ValueError, match="held-out samples by process"):
        empty.compute()


def fuse(features, present):
    return sum(torch.where(present[name][:, None], x[:, :1], 0.0) for name, x in features.items()).expand(-1, CLASSES)


class Model(nn.Module):
    """An encoder for each modality before a component."""

    def __init__(self, *arguments, **options):
        super().__init__()
        self.rig = make(*arguments, **options)
        self.encoders = nn.ModuleDict({name: nn.Linear(d, d).to(torch.float64) for name, d in DIMS.items()})

    def forward(self, features, target, present):
        z = {name: self.encoders[name](x.nan_to_num()) for name, x in features.items()}
        return self.rig(z, target, present).loss


def data_parallel(group, component, task, presence):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    whole, pieces = shards(task, (2, 3, 2)[:size], presence, torch.float64)
    alone = Model(component, task, torch.float64, False)
    model = Model(component, task, torch.float64, group)
    together = DistributedDataParallel(model, process_group=group, find_unused_parameters=presence == "left_out")
    for _ in range(2):
        for module, batch in ((alone, whole), (together, pieces[rank])):
            module.zero_grad()
            module(*batch).backward()
        for (name, got), want in zip(model.named_parameters(), alone.parameters(), strict=True):
            near(got.grad, want.grad, 1e-10, presence, name)


def sharded(group, component, task):
    """A step of FSDP2 against a step of one process."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    whole, pieces = shards(task, (2, 3, 2)[:size], "left_out", torch.float64)
    alone = make(component, task, torch.float64, False)
    model = make(component, task, torch.float64, group)
    mesh = DeviceMesh.from_group(group, "cpu")
    if list(model.component.parameters()):
        fully_shard(model.component, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if component == "coordinator":
        register_fsdp_forward_method(model.component, "observe")
        for module, batch in ((alone, whole), (model, pieces[rank])):
            module(*batch)  # FSDP2 wants the root first
            module.component.observe(*batch)
            module.component.gate.lowest.zero_()
            module.component.gate.first.zero_()
    for module, batch in ((alone, whole), (model, pieces[rank])):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        module(*batch).loss.backward()
        optimiser.step()
    for (name, got), want in zip(model.named_parameters(), alone.parameters(), strict=True):
        near(got.full_tensor().detach(), want.detach(), 1e-10, name)
    if component == "coordinator":
        assert model.component.gate.weight.tolist() == alone.component.gate.weight.tolist() == [0.25] * 3


def compiled(group, component):
    """One graph, collectives included."""
    warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
    _, pieces = shards("classification", (3, 1, 2)[: dist.get_world_size(group)], "some", torch.float64)
    batch = pieces[dist.get_rank(group)]
    options = {"max_batch": 3} if component == "decoupler" else {}
    rig = make(component, "classification", torch.float64, group, **options)
    want = outcome(rig, *batch)
    rig.compile(fullgraph=True, backend="aot_eager")
    assert_close(outcome(rig, *batch), want)


def spoken(group, component, options):
    """Numbers in each collective of a forward, and of a backward."""
    _, pieces = shards("classification", (4, 3, 0)[: dist.get_world_size(group)], "all", torch.float64)
    rig = make(component, "classification", torch.float64, group, **options)
    gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    said, kept = [], {name: getattr(dist, name) for name in (gather, "all_reduce")}

    def noted(name):
        def call(*tensors, **keywords):
            said.append((name[:10], tensors[-1].numel()))
            return kept[name](*tensors, **keywords)

        return call

    with unittest.mock.patch.multiple(dist, **{name: noted(name) for name in kept}):
        loss = rig(*pieces[dist.get_rank(group)]).loss
        forward, said[:] = list(said), []
        loss.backward()
    return forward, said


def observed(group):
    """Weights from held-out batches of uneven number and size, against one process that saw all; none on the last."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sizes = (3, 4, 0)[:size]
    alone, together = (make("coordinator", "classification", torch.float64, sync) for sync in (False, group))
    weights = []
    for epoch in range(4):
        torch.manual_seed(epoch)
        whole = make_batch("classification", sum(sizes), presence="some")
        own = [slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))]
        own = [slice(i, i + 1) for i in range(own[0].start, own[0].stop)] if rank == 1 else own
        for rig, pieces in ((alone, [slice(None)]), (together, own)):
            for rows in pieces:
                present = {name: x[rows] for name, x in whole.present.items()}
                features = {name: x[rows] for name, x in whole.features.items()}
                rig.component.observe(features, whole.target[rows], present)
            rig(*whole)
        want, got = (outcome(rig, *whole).features for rig in (alone, together))
        for name, x in got.items():
            near(x, want[name], 1e-12, name)
        gates = alone.component.gate, together.component.gate
        assert gates[0].weight.tolist() == gates[1].weight.tolist()
        near(gates[1].lowest, gates[0].lowest, 1e-12, "lowest")
        weights.append(tuple(gates[1].weight.tolist()))
    assert len(set(weights)) > 1


def copies(group):
    """InfoNCE with ids over all processes against one process, gradients included."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sizes = (3, 1, 4)[:size]
    torch.manual_seed(4)
    x = torch.randn(3, sum(sizes), 2, dtype=torch.float64)
    mask, ids = torch.rand(3, sum(sizes)) < 0.8, torch.randint(3, (sum(sizes),))
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    whole, mine = x.clone().requires_grad_(), x[:, own].clone().requires_grad_()
    want = alignment_sum(whole, mask, 0.5, ids=ids).mean()
    (terms,) = reduce([alignment_sum(mine, mask[:, own], 0.5, group, ids=ids[own])], group)
    near(terms.mean().detach(), want.detach(), 1e-10)
    want.backward()
    terms.mean().backward()
    near(mine.grad, size * whole.grad[:, own], 1e-10)


def wrapped_heads(group, wrapper):
    """Heads of the user's that DDP or FSDP2 wraps, against the bare ones; then a step of their own, twice."""
    torch.manual_seed(3)
    bare = {name: nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, CLASSES)) for name, d in DIMS.items()}
    if wrapper.endswith("linear"):
        bare = {name: nn.Linear(d, CLASSES) for name, d in DIMS.items()}
    heads = copy.deepcopy(bare)
    if wrapper.startswith("ddp"):
        heads = {name: DistributedDataParallel(head, process_group=group) for name, head in heads.items()}
    else:
        mesh = DeviceMesh.from_group(group, "cpu")
        for head in heads.values():
            fully_shard(head, mesh=mesh)
    batch = make_batch("classification", dtype=torch.float32)
    for _ in range(2):
        for backend in ("auto", "reference"):
            want, got = (run_heads(given, batch, group, backend) for given in (bare, heads))
            for x, y in zip(got, want, strict=True):
                near(x, y, 1e-6, wrapper, backend)
        x = {name: torch.randn(5, d) for name, d in DIMS.items()}
        for given in (bare, heads):
            optimiser = torch.optim.SGD([p for head in given.values() for p in head.parameters()], lr=0.1)
            sum(head(x[name]).square().mean() for name, head in given.items()).backward()
            optimiser.step()
            optimiser.zero_grad()
    for name, head in heads.items():
        for got, want in zip(head.parameters(), bare[name].parameters(), strict=True):
            near(getattr(got, "full_tensor", lambda got=got: got)().detach(), want.detach(), 1e-6, name)
    with pytest.raises(ValueError, match=r"heads\['text'\] is wrapped by DDP or FSDP2 with joint=True.*pass it and"):
        EnergyCoordinator(DIMS, CLASSES, heads=heads, joint=True)


def run_heads(heads, batch, group, backend):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EnergyCoordinator: heads")
        features = {name: x.clone().requires_grad_() for name, x in batch.features.items()}
        model = EnergyCoordinator(DIMS, CLASSES, heads=heads, sync=group, gamma=0.3, backend=backend)
        loss = model(features, batch.target).loss
    loss.backward()
    assert all(p.grad is None for head in heads.values() for p in head.parameters())
    return [loss.detach(), *(x.grad for x in features.values())]
