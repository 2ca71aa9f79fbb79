"""What the processes of `ranks` are asked to do."""

import pytest
import torch
import torch.distributed as dist

from cases import CLASSES, DIMS, Batch, make_batch, poison
from modbalance.diagnostics import ModalityMonitor
from rig import Rig, outcome

# Rows of each process, and who has what: a presence of `make_present`, or the last process lacks text and audio.
CASES = (
    ((2, 2, 2), "all"),
    ((3, 1, 2), "some"),
    ((1, 3, 2), "one"),
    ((2, 1, 0), "none"),
    ((0, 4, 1), "some"),
    ((4, 0, 0), "all"),
    ((2, 3, 2), "absent"),
    ((2, 3, 2), "left_out"),
)


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


def exact(group, component, task, options):
    """Losses, and gradients averaged over the processes, against one process on the concatenated batch."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        for sizes, presence in CASES:
            whole, pieces = shards(task, sizes[:size], presence, dtype)
            want = outcome(make(component, task, dtype, False, **options), *whole)
            got = outcome(make(component, task, dtype, group, **options), *pieces[rank])
            own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
            for key, x in got.values.items():
                near(x, want.values[key][own] if x.dim() else want.values[key], tolerance, presence, key)
            for key, x in got.features.items():
                near(x, size * want.features[key][own], tolerance, presence, key)
            for key, x in got.parameters.items():
                dist.all_reduce(x, group=group)
                near(x / size, want.parameters[key], tolerance, presence, key)


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
