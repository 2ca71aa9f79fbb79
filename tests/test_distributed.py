"""Several processes against one on the concatenated batch."""

import pytest
import torch

import jobs
from cases import TASKS, compiles
from ranks import Ranks
from rig import COMPONENTS

pytestmark = pytest.mark.slow

# Rows of each process, and who has what: a presence of `make_present`, or the last process lacks text and audio,
# by a mask (`absent`) or by not giving them (`left_out`).
CASES = (
    ((2, 2, 2), "all"),
    ((3, 1, 2), "some"),
    ((2, 1, 0), "none"),
    ((0, 4, 1), "one"),
    ((4, 0, 0), "some"),
    ((2, 3, 2), "absent"),
    ((2, 3, 2), "left_out"),
)
AMOUNTS = {
    "three": (3, CASES, torch.float64),
    "two": (2, CASES[3:5] + CASES[6:], torch.float64),
    "float32": (3, CASES[1:2] + CASES[6:], torch.float32),
}


@pytest.fixture(scope="module")
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize(("size", "cases", "dtype"), AMOUNTS.values(), ids=AMOUNTS)
def test_several_processes_are_one(ranks, component, task, size, cases, dtype):
    ranks.run(jobs.exact, component, task, {}, cases, dtype, size=size)


@pytest.mark.parametrize("size", [2, 3])
def test_the_monitor_sees_what_all_processes_saw(ranks, size):
    ranks.run(jobs.monitored, size=size)


@pytest.mark.parametrize("size", [2, 3])
def test_held_out_energies_of_all_processes_decide(ranks, size):
    ranks.run(jobs.observed, size=size)


OPTIONS = {
    "paper": ("coordinator", {"gap": "paper"}),
    "paper_per_sample": ("coordinator", {"gap": "paper_per_sample"}),
    "no_gap": ("coordinator", {"gap": None}),
    "joint": ("coordinator", {"joint": True}),
    "reference": ("coordinator", {"backend": "reference"}),
    "max_batch": ("decoupler", {"max_batch": 4}),
    "plain": ("decoupler", {"cosine": "plain"}),
}


@pytest.mark.parametrize(("component", "options"), OPTIONS.values(), ids=OPTIONS)
def test_options(ranks, component, options):
    ranks.run(jobs.exact, component, "classification", options, CASES[1:2] + CASES[6:], torch.float64)


@pytest.mark.parametrize("presence", ["absent", "left_out"])
@pytest.mark.parametrize("component", COMPONENTS[:3])
def test_under_ddp(ranks, component, presence):
    ranks.run(jobs.data_parallel, component, "classification", presence)


@pytest.mark.parametrize("component", COMPONENTS)
def test_under_fsdp(ranks, component):
    ranks.run(jobs.sharded, component, "classification", size=2)


@pytest.mark.parametrize("size", [2, 3])
def test_copies_on_other_processes_are_no_negatives(ranks, size):
    ranks.run(jobs.copies, size=size)


@pytest.mark.parametrize("wrapper", ["ddp", "ddp linear", "fsdp", "fsdp linear"])
def test_wrapped_heads_are_as_bare_ones(ranks, wrapper):
    ranks.run(jobs.wrapped_heads, wrapper, size=2)


@compiles
@pytest.mark.parametrize("component", COMPONENTS)
def test_compiled(ranks, component):
    ranks.run(jobs.compiled, component, size=2)


# Of B = 4 rows at most, M = 3 modalities and parts of size D = 2: the arithmetic of docs/distributed.md.
SPOKEN = {
    "decoupler": (
        "decoupler",
        {"max_batch": 4},
        [("all_gather", 4 * 3 * 3), ("all_gather", 4 * 3), ("all_reduce", 6)],
    ),
    "enhancer": ("enhancer", {}, [("all_reduce", 4)]),
    "coordinator": ("coordinator", {}, [("all_reduce", 8 * 3)]),
    "coordinator_no_gap": ("coordinator", {"gap": None}, [("all_reduce", 6 * 3)]),
    "coordinator_paper": ("coordinator", {"gap": "paper"}, [("all_reduce", 6 * 3 + 2 * 3**2)]),
    "distiller": ("distiller", {}, [("all_reduce", 2)]),
}


@pytest.mark.parametrize(("component", "options", "expected"), SPOKEN.values(), ids=SPOKEN)
def test_what_is_said_and_that_no_backward_says_anything(ranks, component, options, expected):
    assert ranks.run(jobs.spoken, component, options) == [(expected, [])] * 3
