"""Every Python block of the README and the docs runs, page by page, and the pages name what is public."""

import csv
import importlib.util
import itertools
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest

import modbalance
from modbalance import balancers, diagnostics

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"trainers.md": ("lightning", "transformers", "accelerate")}
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.name in NEEDS else ()) for page in PAGES],
    ids=lambda page: page.name,
)
def test_code_runs(page, capsys, tmp_path, monkeypatch):
    missing = [name for name in NEEDS.get(page.name, ()) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{page.name} needs {', '.join(missing)}: pip install -e '.[dev]'")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with warnings.catch_warnings():
        if page.name in NEEDS:
            warnings.simplefilter("ignore")  # theirs, not ours
        for block in BLOCK.findall(page.read_text()):
            exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "examples/ebmc_msa/README.md", *ROOT.glob(".github/*.md")],
    ids=lambda page: page.parent.name + "/" + page.name,
)
def test_commands_exist(page):
    """Scripts, options, extras and paths that a bash block names are there; comments are not read."""
    for block in SHELL.findall(page.read_text()):
        assert subprocess.run(["bash", "-n"], input=block, text=True).returncode == 0
        for command in re.split(r"\n|&&|;", block.replace("\\\n", "")):
            words = shlex.split(command, comments=True)
            if words[:1] == ["python"]:
                assert (ROOT / words[1]).exists()
                options = [word.partition("=")[0] for word in words if word.startswith("--")]
                positional = [*itertools.takewhile(lambda word: not word.startswith("-"), words[1:])]
                assert [option for option in options if option not in options_of(*positional)] == []
            if words[:1] == ["pytest"]:
                assert all((ROOT / word).exists() for word in words[1:] if "/" in word)
            for extras in re.findall(r"\[([\w,]+)\]", command) if words[:2] == ["pip", "install"] else ():
                known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
                assert set(extras.split(",")) <= set(known)


@cache
def options_of(*command):
    """Those of its --help, and those that the script names itself, should it need what is not here."""
    help_text = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]*", help_text + (ROOT / command[0]).read_text()))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples/ebmc_msa/README.md"], ids=lambda page: page.name)
def test_code_fits_a_narrow_page(page):
    code = "".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    assert [line for line in code.splitlines() if len(line) > 72] == []


def test_readme_runs_code_within_twenty_lines():
    assert "```python" in "".join((ROOT / "README.md").read_text().splitlines()[:20])


@pytest.mark.parametrize(
    "module",
    [modbalance, balancers, modbalance.functional, modbalance.kernels, diagnostics],
    ids=lambda m: m.__name__,
)
def test_api_page_names_everything_public(module):
    page = (ROOT / "docs/api.md").read_text()
    public = [getattr(module, name) for name in module.__all__]
    names = [
        x.__name__ for x in public if callable(x) and hasattr(x, "__doc__") and x.__module__.startswith("modbalance")
    ]
    missing = [
        name
        for name in names
        if not re.search(rf"^::: modbalance\S*\.{name}$|members:.*\b{name}\b", page, re.MULTILINE)
    ]
    assert not missing


def test_the_plots_of_the_method_are_drawn_by_their_script(tmp_path):
    runpy.run_path(str(ROOT / "docs/terms.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs/assets").glob("term-*.png")}


def test_the_sweep_has_every_value_and_its_plot_is_drawn_from_it(tmp_path):
    sweep = runpy.run_path(str(ROOT / "docs/sweep.py"))
    with (ROOT / "docs/assets/coordinator-sweep.csv").open() as file:
        _, *rows = csv.reader(file)
    rows = [(name, *map(float, numbers)) for name, *numbers in rows]
    assert [row[:2] for row in rows] == [
        (name, value) for name, values in sweep["VALUES"].items() for value in values
    ]
    sweep["draw"](rows).savefig(tmp_path / "sweep.png")
