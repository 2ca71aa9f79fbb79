"""One version everywhere, and files for people that parse."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import modbalance

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert modbalance.__version__ == citation["version"] == latest


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_forms_and_workflows_parse(path):
    assert yaml.safe_load(path.read_text())["name"]


def test_python_versions_are_those_of_the_checks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    checks = (ROOT / ".github/workflows/checks.yml").read_text()
    assert stated == set(re.findall(r'python: "(3\.\d+)"', checks))
    assert f">={min(stated, key=lambda v: int(v[2:]))}" == project["requires-python"]


def test_the_package_page_needs_no_repository():
    """Relative links and pictures lead nowhere there."""
    readme = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    page = (ROOT / "README.md").read_text()
    for fragment in (f for f in readme["fancy-pypi-readme"]["fragments"] if "path" in f):
        page, end, rest = page.partition(fragment["end-before"])
        assert end
        assert "## Where to go next" in rest
    assert re.search(r"\]\((?!https?:)", page)
    for change in readme["fancy-pypi-readme"]["substitutions"]:
        page = re.sub(change["pattern"], change["replacement"], page)
    assert not re.search(r"\]\((?!https?:)", page)
    assert "Diagnose your\nmodel first" in page
