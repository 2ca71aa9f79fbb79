"""One version everywhere, and files for people that parse."""

import re
from pathlib import Path

import pytest
import yaml

import modbalance

ROOT = Path(__file__).parents[1]


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert modbalance.__version__ == citation["version"] == latest


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_forms_and_workflows_parse(path):
    assert yaml.safe_load(path.read_text())["name"]
