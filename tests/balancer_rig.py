"""A model with a convolutional, a recurrent-free transformer and a linear encoder, every balancer on it, and jobs."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cases import CLASSES, make_present, make_target, width
from modbalance import EnergyCoordinator, Teacher
from modbalance.balancers import (
    AGM,
    CGGM,
    OGMGE,
    PMR,
    UMT,
    Balancer,
    DetachedFusion,
    GradientBlending,
    MMPareto,
    UnimodalLosses,
)
from modbalance.distributed import mean
from modbalance.tasks import task_loss

TWO, THREE = ("image", "audio"), ("image", "text", "audio")
SIZES = {"image": 4, "text": 3, "audio": 5}
SHAPES = {"image": (1, 6, 6), "text": (4, 6), "audio": (7,)}
KINDS = (
    *("joint", "unimodal", "detached", "ogm-ge", "agm", "cggm", "mmpareto", "g-blend", "umt", "pmr"),
    "coordinator",
)
ADDED = ("unimodal", "detached", "umt", "pmr", "coordinator")  # loss terms
SCALED = ("ogm-ge", "agm", "cggm")  # gradients


class Tokens(nn.Module):
    def __init__(self, size, dim):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(size, 2, 8, dropout=0.0, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, size))
        self.out = nn.Linear(size, dim)

    def forward(self, x):
        return self.out(self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class Model(nn.Module):
    def __init__(self, names=THREE, task="classification", seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.names, self.task = names, task
        encoders = {
            "image": nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)),
            "text": Tokens(6, 3),
            "audio": nn.Sequential(nn.Linear(7, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 5)),
        }
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names})
        self.head = nn.Sequential(nn.Linear(sum(SIZES[n] for n in names), 6), nn.Tanh(), nn.Linear(6, width(task)))
        self.double()

    @property
    def dims(self):
        return {name: SIZES[name] for name in self.names}

    def encode(self, x):
        return {name: self.encoders[name](v.nan_to_num()) for name, v in x.items()}

    def fuse(self, z, present=None):
        rows = len(next(iter(z.values())))
        parts = [z[n] if n in z else torch.zeros(rows, SIZES[n], dtype=torch.float64) for n in self.names]
        if present is not None:
            there = [present.get(n, torch.ones(rows, dtype=torch.bool)) for n in self.names]
            parts = [torch.where(here[:, None], p, 0.0) for here, p in zip(there, parts, strict=True)]
        return self.head(torch.cat(parts, -1))


def make_inputs(names=THREE, task="classification", rows=8, presence="all", seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = {name: torch.randn(rows, *SHAPES[name], generator=generator, dtype=torch.float64) for name in names}
    torch.manual_seed(seed)
    return x, make_target(task, rows), make_present(presence, rows, list(names))


def build(kind, model, **options):
    """A balancer on the encoders and the fusion of `model`, in float64."""
    torch.manual_seed(3)
    encoders, common = dict(model.encoders), (model.dims, CLASSES, model.task)
    balance = {
        "joint": lambda: Balancer(),
        "unimodal": lambda: UnimodalLosses(*common, **options),
        "detached": lambda: DetachedFusion(*common, **options),
        "ogm-ge": lambda: OGMGE(encoders, CLASSES, model.fuse, model.task, **options),
        "agm": lambda: AGM(encoders, CLASSES, model.fuse, model.task, **options),
        "cggm": lambda: CGGM(encoders, model.dims, CLASSES, model.fuse, model.task, **options),
        "mmpareto": lambda: MMPareto(encoders, *common, **options),
        "g-blend": lambda: GradientBlending(*common, **options),
        "umt": lambda: UMT(**options),
        "pmr": lambda: PMR(*common, **options),
        "coordinator": lambda: EnergyCoordinator(*common, **options),
    }[kind]()
    return balance.double()


def extras(kind, model, x):
    if kind != "umt":
        return {}
    teachers = {name: Teacher(encoder) for name, encoder in Model(model.names, model.task, seed=9).encoders.items()}
    return {"teacher_features": {name: teachers[name](v.nan_to_num()) for name, v in x.items()}}


def run(kind, model, balance, x, y, present=None, *, scale=None, sync=False, step=True):
    """The three lines."""
    z = model.encode(x)
    out = balance(z, y, present, **extras(kind, model, x))
    loss = mean(task_loss(model.task, model.fuse(out.features, present), y), sync=sync)
    balance.backward(loss, out, scale=scale)
    if step:
        balance.step()
    return out


def gradients(module):
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def same(got, want, tolerance=1e-10):
    assert got.keys() == want.keys()
    for name, x in got.items():
        torch.testing.assert_close(x, want[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def shard(x, y, present, rank, size):
    """Uneven shares of a batch."""
    cuts = [0, 3, len(y)] if size == 2 else [0, 3, 5, len(y)]
    rows = slice(cuts[rank], cuts[rank + 1])
    share = present and {name: p[rows] for name, p in present.items()}
    return {name: v[rows] for name, v in x.items()}, y[rows], share


class Whole(nn.Module):
    """A model that holds its balancer."""

    def __init__(self, kind):
        super().__init__()
        self.model = Model()
        self.balance = build(kind, self.model)


class Parallel(nn.Module):
    """A model and its balancer under one DDP: forward gives the loss and what the balancer returned."""

    def __init__(self, kind, model, balance, sync):
        super().__init__()
        self.kind, self.model, self.balance, self.sync = kind, model, balance, sync

    def forward(self, x, y, present):
        z = self.model.encode(x)
        out = self.balance(z, y, present, **extras(self.kind, self.model, x))
        outputs = self.model.fuse(out.features, present)
        return mean(task_loss(self.model.task, outputs, y), sync=self.sync), out


def data_parallel(group, kind, presence):
    """Two steps of DDP on shares of a batch, against one process on the whole of it."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    runs = []
    for sync in (False, group):
        model = Model()
        options = {} if kind == "joint" else {"sync": sync}
        runs.append(Parallel(kind, model, build(kind, model, **options), sync))
    alone, parallel = runs
    together = DistributedDataParallel(parallel, process_group=group, find_unused_parameters=True)
    optimizers = [torch.optim.SGD(r.parameters(), lr=0.1) for r in runs]
    for seed in range(3):
        whole = make_inputs(presence=presence, seed=seed)
        for module, owner, batch, optimizer in (
            (alone, alone, whole, optimizers[0]),
            (together, parallel, shard(*whole, rank, size), optimizers[1]),
        ):
            optimizer.zero_grad()
            loss, out = module(*batch)
            owner.balance.backward(loss, out)
            owner.balance.step()
            optimizer.step()
        same(gradients(parallel), gradients(alone), 1e-8)
    return {name: p.detach() for name, p in parallel.named_parameters()}


def accumulated(group):
    """MMPareto within `no_sync()`: micro-batches that DDP has not averaged yet."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    results = []
    for sync in (False, group):
        model = Model()
        parallel = Parallel("mmpareto", model, build("mmpareto", model, sync=sync), sync)
        together = DistributedDataParallel(parallel, process_group=group) if sync else parallel
        first, second = (make_inputs(seed=seed) for seed in (4, 5))
        if sync:
            first, second = (shard(*batch, rank, size) for batch in (first, second))
            with together.no_sync():
                loss, out = together(*first)
                parallel.balance.backward(loss, out, scale=half)
        else:
            loss, out = together(*first)
            parallel.balance.backward(loss, out, scale=half)
        loss, out = together(*second)
        parallel.balance.backward(loss, out, scale=half)
        results.append(gradients(parallel))
    same(results[1], results[0], 1e-8)


def half(x):
    return x / 2


def sharded(group):
    """Gradients that FSDP shards are refused by the methods that change them."""
    model = Model(TWO)
    balance = build("ogm-ge", model, sync=group)
    mesh = DeviceMesh.from_group(group, "cpu")
    for encoder in model.encoders.values():
        fully_shard(encoder, mesh=mesh)
    with pytest.raises(NotImplementedError, match=r"sharded over processes.*DistributedDataParallel"):
        run("ogm-ge", model, balance, *make_inputs(TWO))
