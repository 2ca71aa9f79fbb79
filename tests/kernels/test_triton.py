"""The kernels under Triton's interpreter, on a CPU: the same source as on a GPU."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1; with a GPU tests/gpu runs the same on it", allow_module_level=True)

from triton_suite import *  # noqa: F403


@pytest.fixture
def device():
    return "cpu"
