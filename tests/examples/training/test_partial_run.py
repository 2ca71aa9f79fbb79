"""The folder of a run that is not complete: what an earlier version left is refused with what to do."""

import json

import pytest

from ebmc_msa.data import DataError
from ebmc_msa.training.resume import VERSION, reopen


@pytest.mark.parametrize("version", [None, VERSION - 1, VERSION + 1])
def test_a_run_of_another_version_is_refused(tmp_path, version):
    state = tmp_path / "a.partial/state"
    state.mkdir(parents=True)
    metadata = dict.fromkeys(("config", "cwd", "command", "repeat"), "")
    metadata |= {} if version is None else {"version": version}
    (state / "run.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=rf"version {version}, expected {VERSION}.*; remove .*a\.partial and start"):
        reopen(tmp_path / "a")
    (state / "run.json").write_text(json.dumps(metadata | {"version": VERSION}))
    assert reopen(tmp_path / "a").metadata["config"] == ""
