"""Every example in a docstring of the library runs and prints what it says."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import modbalance

OPTIONAL = {"triton", "lightning", "transformers"}
MODULES = [info.name for info in pkgutil.walk_packages(modbalance.__path__, "modbalance.")]


@pytest.mark.parametrize("name", ["modbalance", *MODULES])
def test_examples(name):
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert doctest.testmod(module).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(bool(test.examples) for test in finder.find(import_module("modbalance.tasks"))) >= 3
