"""The quickstart runs in a folder of anyone's, and shows what it says it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "examples/quickstart.py"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    run = subprocess.run([sys.executable, "-W", "error", SCRIPT], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [path.name for path in folder.iterdir()] == ["quickstart.png"]
    return run.stdout


def test_it_reports_every_seed_of_both_models(said):
    names = ("task loss alone", "with EnergyCoordinator")
    before, after = ([float(x) for x in re.findall(rf"{name}: test accuracy (0\.\d+)", said)] for name in names)
    assert len(before) == len(after) == 3
    assert sum(after) > sum(before)


def test_the_profile_no_longer_lags(said):
    before, after = (float(line.split()[-1]) for line in said.splitlines() if line.startswith("lag"))
    assert after < before
