"""One seed a test, one hypothesis profile, and Triton's interpreter where there is no GPU."""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "modbalance", deadline=None, max_examples=25, derandomize=True, database=None, print_blob=False
)
hypothesis.settings.load_profile("modbalance")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

torch.set_num_threads(1)  # the tensors are small; more threads only wait for each other


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
