"""gap, penalty and descent of the coordinator on a GPU: all that holds under the interpreter."""

import os

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a CUDA device and TRITON_INTERPRET unset", allow_module_level=True)

from coordination_suite import *  # noqa: F403

pytestmark = pytest.mark.gpu


@pytest.fixture
def device():
    return "cuda"
