"""Several processes against one on the concatenated batch."""

import pytest

import jobs
from cases import TASKS
from ranks import Ranks
from rig import COMPONENTS

both_sizes = pytest.mark.parametrize("size", [2, 3])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@both_sizes
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_several_processes_are_one(ranks, component, task, size):
    ranks.run(jobs.exact, component, task, {}, size=size)


@both_sizes
def test_the_monitor_sees_what_all_processes_saw(ranks, size):
    ranks.run(jobs.monitored, size=size)
