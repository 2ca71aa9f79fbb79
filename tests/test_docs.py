"""Every Python block of the README and the docs runs, page by page, and the pages name what is public."""

import contextlib
import csv
import importlib.util
import inspect
import io
import itertools
import re
import runpy
import shlex
import signal
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"trainers.md": ("lightning", "transformers", "accelerate")}
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


PIPELINE = ROOT / "examples/ebmc_msa/README.md"


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


def test_a_run_from_python_as_the_pipeline_shows_it(tmp_path, monkeypatch):
    """On a small file, and for two epochs."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=60)
    x = {f"x_{m}": rng.normal(size=(60, 3)).astype("float32") + y[:, None] for m in ("sound", "lidar")}
    np.savez(tmp_path / "PATH.npz", y=y, split=np.arange(60) % 3, **x)
    (code,) = BLOCK.findall(PIPELINE.read_text())
    monkeypatch.chdir(tmp_path)
    namespace = {}
    monkeypatch.setattr("ebmc_msa.training.run.write_report", lambda *_: None)  # takes seconds
    exec(code.replace('"PATH"', '"PATH.npz", stage1_epochs=1, stage2_epochs=1'), namespace)
    assert {path.suffix for path in namespace["folder"].iterdir()} == {".json", ".pt", ".toml"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [*PAGES, PIPELINE, *ROOT.glob(".github/*.md")],
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


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", PIPELINE, *ROOT.glob(".github/*.md")],
    ids=lambda page: page.parent.name + "/" + page.name,
)
def test_paths_resolve(page):
    """Links, and names in backquotes that have a folder; those of the docs are mkdocs' to check."""
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]*)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:docs|examples|tests|modbalance|\.ci)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@cache
def options_of(*command):
    """Those of its --help, and those that the script names itself, should it need what is not here."""
    found = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(found):
        patch.setattr(sys, "argv", [str(ROOT / command[0]), *command[1:], "--help"])
        patch.setattr(sys, "path", [str(ROOT / command[0] / ".."), *sys.path])
        patch.setattr(signal, "signal", lambda *_: None)
        with contextlib.suppress(SystemExit, ImportError):
            runpy.run_path(sys.argv[0], run_name="__main__")
    return set(re.findall(r"--[a-z][a-z0-9-]*", found.getvalue() + (ROOT / command[0]).read_text()))


@pytest.mark.parametrize("page", [*PAGES, PIPELINE], ids=lambda page: page.name)
def test_code_fits_a_narrow_page(page):
    code = "".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    assert [line for line in code.splitlines() if len(line) > 72] == []


def test_readme_runs_code_within_twenty_lines():
    assert "```python" in "".join((ROOT / "README.md").read_text().splitlines()[:20])


PUBLIC = "balancers balancers.formulas diagnostics distributed dropout functional kernels presence tasks tokens"


@pytest.mark.parametrize("name", ["", *PUBLIC.split(), "integrations.lightning", "integrations.transformers"])
def test_api_page_names_everything_public(name):
    if name.startswith("integrations."):
        pytest.importorskip(name.partition(".")[2])
    module = importlib.import_module(f"modbalance.{name}".rstrip("."))
    names = [x for x in module.__all__ if not inspect.ismodule(getattr(module, x))]
    results = {inspect.signature(f).return_annotation for f in public_calls(module)}
    names += [x for x in results if isinstance(x, str) and re.fullmatch(r"[A-Z]\w*(Output|Penalty|Test|Estimate)", x)]
    assert [x for x in names if not on_the_api_page(x, name)] == []


def public_calls(module):
    """Its functions, and the forward of its classes."""
    values = [getattr(module, name) for name in module.__all__]
    for value in values:
        if inspect.isfunction(value):
            yield value
        elif inspect.isclass(value) and "forward" in vars(value):
            yield value.forward


def on_the_api_page(name, module):
    """With an entry of its own, or as a member of its module's."""
    page = (ROOT / "docs/api.md").read_text()
    own = rf"^::: modbalance\.\S*\b{name}$"
    if module.startswith("integrations"):
        own = rf"^::: modbalance\.{module}\.{name}$"
    return re.search(rf"{own}|members:.*\b{name}\b", page, re.MULTILINE)


@pytest.mark.parametrize("name", ["CoordinatorOutput", "Task", "Backend", "most_rows", "EnergyPenalty"])
def test_the_api_page_is_searched_for(name):
    assert on_the_api_page(name, "")
    assert not on_the_api_page(name[:-1], "")


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
