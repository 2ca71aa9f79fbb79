"""Every public name says what it takes, gives an example that runs, and a function what it returns."""

import inspect

import pytest

import modbalance
from modbalance import balancers, diagnostics, distributed, dropout, functional, kernels, presence, tasks, tokens
from modbalance.balancers import formulas

MODULES = (
    modbalance,
    balancers,
    formulas,
    functional,
    kernels,
    diagnostics,
    tasks,
    presence,
    dropout,
    tokens,
    distributed,
)
PUBLIC = {
    f"{value.__module__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if name in module.__all__ and (inspect.isclass(value) or inspect.isfunction(value))
}


def arguments(value):
    return "Attributes:" if hasattr(value, "_fields") else "Args:"


@pytest.mark.parametrize("value", PUBLIC.values(), ids=PUBLIC)
def test_it_says_what_it_takes_and_shows_it(value):
    text = inspect.getdoc(value)
    sections = ["Examples:\n    >>> ", *([arguments(value)] if inspect.signature(value).parameters else [])]
    if inspect.isfunction(value):
        sections += ["Returns:"]
    assert [section for section in sections if section not in text] == []


@pytest.mark.parametrize("value", PUBLIC.values(), ids=PUBLIC)
def test_every_parameter_is_told(value):
    section = inspect.getdoc(value).partition(arguments(value))[2].partition("\n\n")[0]
    told = {line.strip().partition(":")[0] for line in section.splitlines() if ":" in line}
    told = {name.strip() for names in told for name in names.split(",")}
    assert set(inspect.signature(value).parameters) - told == set()
