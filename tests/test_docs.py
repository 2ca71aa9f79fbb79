"""Every Python block of the README and the docs runs, page by page, and the pages name what is public."""

import re
from pathlib import Path

import pytest

import modbalance
from modbalance import diagnostics

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page, capsys):
    namespace = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)


def test_readme_runs_code_within_twenty_lines():
    assert "```python" in "".join((ROOT / "README.md").read_text().splitlines()[:20])


@pytest.mark.parametrize(
    "module", [modbalance, modbalance.functional, modbalance.kernels, diagnostics], ids=lambda m: m.__name__
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
