"""A run that is stopped anywhere and resumed ends at the bits of one that was not; a full disk costs one error."""

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from ebmc_msa.training import console, resume
from runs import BRIEF, COMPARE, assert_same, go_on, in_a_child, interrupt_at_an_epoch, quick, start, status, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("patch")]

TRAIN = Path(__file__).parents[3] / "examples/ebmc_msa/train.py"


def test_interrupted_at_every_epoch(toy, uninterrupted, tmp_path, patch, capsys):
    patch.setattr(console.Progress, "update", interrupt_at_an_epoch)
    code, stops = start(toy, tmp_path, *COMPARE), 0
    while code == 130:
        stops += 1
        assert f"continue with: python {os.path.relpath(TRAIN)} --resume {tmp_path / 'a'}" in (
            capsys.readouterr().err
        )
        code = go_on(tmp_path)
    assert code == 0
    assert stops == 4 * 4
    assert_same(tmp_path, uninterrupted)


@pytest.fixture(scope="module")
def brief(toy, tmp_path_factory):
    """A run of nine writes: run.json, two epochs, checkpoint, record, config.toml, two of results, its own name."""
    out = tmp_path_factory.mktemp("brief")
    with quick():
        assert start(toy, out, *BRIEF) == 0
    return out


@pytest.mark.parametrize("write", range(2, 10))
def test_killed_at_a_write(toy, brief, tmp_path, patch, write):
    """When all of it is on the disk, but has not got its name."""
    replace, calls = os.replace, 0

    def die(*paths):
        nonlocal calls
        calls += 1
        if calls == write:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    with patch.context() as at_write:
        at_write.setattr(os, "replace", die)
        assert status(in_a_child(lambda: start(toy, tmp_path, *BRIEF))) == -signal.SIGKILL
    assert go_on(tmp_path) == 0
    assert_same(tmp_path, brief)


def test_killed_at_random_moments(toy, uninterrupted, tmp_path, patch):
    patch.setattr(resume, "SHARE", 0.5)
    moments = random.Random(0)
    child = in_a_child(lambda: start(toy, tmp_path, *COMPARE))
    while not (tmp_path / "a.partial/state/run.json").exists():
        time.sleep(0.01)
    for _ in range(4):
        time.sleep(moments.uniform(0.1, 0.6))
        os.kill(child, signal.SIGKILL)
        assert status(child) in (-signal.SIGKILL, 0)
        if (tmp_path / "a").exists():
            break
        child = in_a_child(lambda: go_on(tmp_path))
    else:
        assert status(child) == 0
    assert_same(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES], ids=errno.errorcode.get)
def test_a_disk_that_fails_is_one_error_and_keeps_the_last_state(toy, brief, tmp_path, patch, capsys, number):
    fsync, calls = os.fsync, 0

    def fail(file):
        nonlocal calls
        calls += 1
        if calls == 3:  # run.json, the first epoch, the second
            raise OSError(number, os.strerror(number))
        fsync(file)

    with patch.context() as at_write:
        at_write.setattr(os, "fsync", fail)
        assert start(toy, tmp_path, *BRIEF) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"ebmc-1111.pt: cannot be written ({os.strerror(number)}), expected room" in first
    assert second.endswith(f"--resume {tmp_path / 'a'}")
    assert [path.name for path in (tmp_path / "a.partial").rglob("*.p*")] == ["ebmc-1111.pt"]
    assert go_on(tmp_path) == 0
    assert_same(tmp_path, brief)


def test_no_room_for_the_first_state_leaves_nothing(toy, tmp_path, capfd):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return start(toy, tmp_path, *BRIEF)

    assert status(in_a_child(limited)) == 2
    assert "cannot be written (File too large), expected room" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def stopped(toy, out, patch):
    """A run that was interrupted after its first epoch."""
    with patch.context() as at_epoch:
        at_epoch.setattr(console.Progress, "update", interrupt_at_an_epoch)
        assert start(toy, out, *BRIEF) == 130


def test_resume_refuses_what_differs(toy, brief, tmp_path, patch, capsys):
    stopped(toy, tmp_path, patch)
    other = write(tmp_path / "other.npz", seed=1)
    for options, message in (
        (("--batch-size", 9), "--batch-size is 9, expected 8 as the run began with; leave it out"),
        (("--data", other), f"{other} is not what {tmp_path / 'a'} began with, expected the same data"),
        (("--data", tmp_path / "gone.npz"), "gone.npz does not exist"),
    ):
        capsys.readouterr()
        assert go_on(tmp_path, *options) == 2
        assert message in capsys.readouterr().err
    assert start(toy, tmp_path) == 2
    assert f"a.partial is unfinished, expected a new name; continue with --resume {tmp_path / 'a'}" in (
        capsys.readouterr().err
    )
    other.unlink()
    moved = tmp_path.parent / "moved" / toy.name
    moved.parent.mkdir()
    moved.write_bytes(toy.read_bytes())
    assert go_on(tmp_path, "--data", moved, "--batch-size", 8, "--device", "cpu") == 0
    assert_same(tmp_path, brief)
    assert go_on(tmp_path) == 2
    assert "is finished, expected one that was interrupted" in capsys.readouterr().err


def test_resume_of_what_cannot_be_read(toy, tmp_path, patch, capsys):
    assert go_on(tmp_path) == 2
    assert "a, expected one that was interrupted; check the name" in capsys.readouterr().err
    stopped(toy, tmp_path, patch)
    (tmp_path / "a.partial/state/ebmc-1111.pt").write_bytes(b"torn")
    assert go_on(tmp_path) == 2
    error = capsys.readouterr().err
    assert "ebmc-1111.pt cannot be read" in error
    assert "expected what train.py wrote; remove that file" in error


def test_sigterm_is_an_interruption(toy, tmp_path, patch, capfd):
    def work():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return start(toy, tmp_path)

    child = in_a_child(work)
    while not list(tmp_path.glob("a.partial/state/*.pt")):
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert status(child) == 130
    assert f"continue with: python {os.path.relpath(TRAIN)} --resume" in capfd.readouterr().err


def test_saving_takes_its_share_of_the_time_at_most(tmp_path, patch):
    now, saved = 0.0, []

    def slow(path, state):
        nonlocal now
        now += 1
        saved.append(state["epoch"])

    patch.setattr(resume, "SHARE", 0.1)
    patch.setattr(resume.time, "monotonic", lambda: now)
    patch.setattr(resume, "write_tensors", slow)
    save = resume.PartialRun(tmp_path / "a", {}).saver("ebmc", 1)
    for epoch in range(1, 10):
        now += 4
        save({"epoch": epoch})
    assert saved == [1, 4, 7]
