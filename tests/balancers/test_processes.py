"""Two processes on shares of a batch against one on the whole of it, under DDP."""

import pytest
import torch

import balancer_rig
from balancer_rig import KINDS
from ranks import Ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.mark.parametrize("presence", ["all", "some"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(ranks, kind, presence):
    first, second = ranks.run(balancer_rig.data_parallel, kind, presence, size=2)
    # Noise and all: the copies of the model must not part.
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_mmpareto_within_no_sync(ranks):
    ranks.run(balancer_rig.accumulated, size=2)


def test_sharded_gradients_are_refused(ranks):
    ranks.run(balancer_rig.sharded, size=2)
