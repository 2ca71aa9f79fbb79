"""gap, penalty and descent of the coordinator in two launches and one, under Triton's interpreter, on a CPU."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1; with a GPU tests/gpu runs the same on it", allow_module_level=True)

from coordination_suite import *  # noqa: F403


@pytest.fixture
def device():
    return "cpu"
