"""The page *Your data*: every command of its table is one that train.py understands."""

import re
import shlex
from pathlib import Path

import pytest

from ebmc_msa.training.command import parse

PAGE = Path(__file__).parents[3] / "docs/your-data.md"
COMMANDS = re.findall(r"^\|.*\| `(--[^`]+)` \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_table(command):
    args = parse(shlex.split(command))
    assert args.data is not None


def test_every_row_has_a_command():
    rows = re.findall(r"^\| (?!you have|---)", PAGE.read_text().split("## Tasks")[0], re.MULTILINE)
    assert len(COMMANDS) == len(rows) > 25
