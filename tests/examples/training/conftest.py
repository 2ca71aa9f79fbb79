"""A small file, and a comparison of all its models that nothing disturbed."""

import pytest

from runs import COMPARE, quick, start, write


@pytest.fixture
def patch():
    with quick() as patch:
        yield patch


@pytest.fixture(scope="package")
def toy(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "toy.npz")


@pytest.fixture(scope="package")
def uninterrupted(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    with quick():
        assert start(toy, out, *COMPARE) == 0
    return out
