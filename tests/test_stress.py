"""No NaN and no infinity from finite input, and no memory lost in a long run."""

import gc
import math
import random
import resource
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from cases import DIMS, TASKS, Batch, make_target, poison
from rig import COMPONENTS, Rig, outcome

pytestmark = pytest.mark.slow

# The largest power of ten of a feature in float32: docs/distributed.md.
LARGEST = {"classification": 15, "multilabel": 15, "regression": 15, "gaussian": 12}
WITH_GAP = {
    "pull": LARGEST | {"regression": 8, "gaussian": 6},
    "paper": {"classification": 9, "multilabel": 9, "regression": 8, "gaussian": 6},
}
WITH_GAP["paper_per_sample"] = WITH_GAP["paper"]


@st.composite
def cases(draw, component):
    """A component, its options and a batch: sizes, absence, magnitudes by modality, constant and duplicate rows."""
    torch.manual_seed(draw(st.integers(0, 999)))
    task, rows = draw(st.sampled_from(TASKS)), draw(st.integers(0, 6))
    dims = {f"m{i}": draw(st.integers(1, 9)) for i in range(draw(st.integers(2, 4)))}
    gap = draw(st.sampled_from(["pull", "paper", "paper_per_sample", None])) if component == "coordinator" else None
    most = WITH_GAP.get(gap, LARGEST)[task]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    features, present = {}, {}
    for name, dim in dims.items():
        kind = draw(st.sampled_from(["random", "constant", "duplicate", "zero"]))
        x = {
            "random": lambda d=dim: torch.randn(rows, d).clamp(-3, 3) / 3,
            "constant": lambda d=dim: torch.ones(rows, d),
            "duplicate": lambda d=dim: torch.ones(rows, 1) * torch.randn(d).clamp(-3, 3) / 3,
            "zero": lambda d=dim: torch.zeros(rows, d),
        }[kind]()
        features[name] = (x * 10.0 ** draw(st.integers(-20, most))).to(dtype)
        present[name] = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
    options = {"gap": gap} if component == "coordinator" else {}
    target = make_target(task, rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return Rig(component, task, dims, **options), Batch(poison(features, present), target, present), dtype


@pytest.mark.parametrize("component", COMPONENTS)
@given(data=st.data())
def test_finite_input_gives_finite_losses_and_gradients(component, data):
    rig, batch, dtype = data.draw(cases(component))
    rig = rig.double() if dtype == torch.float64 else rig.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        result = outcome(rig, *batch)
    scalars = [x for x in result.values.values() if x.dim() == 0]
    assert all(x.isfinite().all() for x in (*scalars, *result.features.values(), *result.parameters.values()))


def test_two_thousand_steps_of_mixed_patterns_keep_nothing():
    """Batch sizes, absent modalities and targets change from step to step."""
    chance = random.Random(0)
    rigs = [Rig(component, task).float() for component in COMPONENTS for task in TASKS]
    optimisers = [torch.optim.SGD(rig.parameters(), lr=1e-9) for rig in rigs]
    held = []
    for step in range(2000):
        rig, optimiser = rigs[step % len(rigs)], optimisers[step % len(rigs)]
        assert math.isfinite(mixed_step(rig, optimiser, chance))
        optimiser.zero_grad()
        if step in (499, 1999):
            gc.collect()
            tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
            held.append((tensors, resident()))
    assert held[1][0] <= held[0][0]
    assert held[1][1] < held[0][1] + 16e6  # a graph kept at every step would be ten times as much


def mixed_step(rig, optimiser, chance):
    rows, names = chance.randint(0, 3), chance.sample(list(DIMS), chance.randint(1, 3))
    features = {name: torch.randn(rows, DIMS[name], requires_grad=True) for name in names}
    present = {name: torch.rand(rows) < 0.7 for name in chance.sample(names, chance.randint(0, len(names)))}
    loss = rig(features, make_target(rig.task, rows, dtype=torch.float32), present).loss
    loss.backward()
    optimiser.step()
    return loss.item()


def resident():
    """Bytes in memory; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else 0
