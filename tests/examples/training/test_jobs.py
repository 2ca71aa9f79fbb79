"""Models trained side by side: the bits of one after the other, and one end for all."""

import errno
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch

from ebmc_msa.data import DataError
from ebmc_msa.training import jobs, run
from ebmc_msa.training.stages import train
from runs import COMPARE, assert_same, go_on, in_a_child, start, status

linux = pytest.mark.skipif(sys.platform != "linux", reason="models share their data by fork, which needs Linux")
TWO = [*COMPARE, "--jobs", "2"]


@linux
@pytest.mark.slow
def test_two_at_a_time_leave_what_one_leaves(toy, uninterrupted, tmp_path, patch, capsys):
    assert start(toy, tmp_path, *TWO) == 0
    assert_same(tmp_path, uninterrupted)
    assert capsys.readouterr().out.count("epochs ") >= 4  # a bar for each model
    assert not multiprocessing.active_children()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_and_resumed_one_at_a_time(toy, uninterrupted, tmp_path, patch, number, capfd):
    def work():
        for known in (signal.SIGINT, signal.SIGTERM):  # as Python and train.py do
            signal.signal(known, signal.default_int_handler)
        return start(toy, tmp_path, *TWO)

    child = in_a_child(work)
    while len(list(tmp_path.glob("a.partial/state/*.pt"))) < 2:
        time.sleep(0.01)
    os.kill(child, number)
    assert status(child) == 130
    err = capfd.readouterr().err
    assert "Interrupted. What is done is kept; continue with" in err
    assert "Traceback" not in err
    assert go_on(tmp_path, "--jobs", 1) == 0
    assert_same(tmp_path, uninterrupted)


@linux
@pytest.mark.slow
def test_one_that_is_killed_is_one_error_and_loses_nothing(toy, uninterrupted, tmp_path, patch, capsys):
    def die(model, *arguments, **keywords):
        trained = train(model, *arguments, **keywords)
        if model.spec.dims.keys() == {"sound"}:
            os.kill(os.getpid(), signal.SIGKILL)
        return trained

    with patch.context() as while_training:
        while_training.setattr(run, "train_model", die)
        assert start(toy, tmp_path, *TWO) == 2
    error = capsys.readouterr().err
    assert "--jobs: one of 2 processes was ended from outside or crashed, expected all to finish" in error
    assert f"--resume {tmp_path / 'a'}" in error
    assert go_on(tmp_path) == 0
    assert_same(tmp_path, uninterrupted)


def shown(models, work, count=2):
    seen = []
    jobs.train_all(models, work, lambda *what, **how: seen.append((what, how)), count)
    return seen


@linux
def test_what_a_model_shows_arrives_in_its_order():
    def work(name, seed, show):
        for epoch in range(3):
            show(name, seed, completed=epoch)

    seen = shown([("ebmc", 1), ("concat", 1), ("ebmc", 2)], work)
    assert len(seen) == 9
    for pair in {what for what, _ in seen}:
        assert [how["completed"] for what, how in seen if what == pair] == [0, 1, 2]


@linux
def test_the_first_error_ends_the_others():
    def work(name, seed, show):
        if name == "concat":
            raise DataError("diverged")
        time.sleep(60)

    begun = time.monotonic()
    with pytest.raises(DataError, match=r"^concat 1: diverged"):
        shown([("ebmc", 1), ("concat", 1), ("text", 1)], work)
    assert time.monotonic() - begun < 20
    assert not multiprocessing.active_children()


@linux
def test_no_process_outlives_the_one_that_began_it(tmp_path):
    def work(name, seed, show):  # one is busy, the other waits for more to do
        (tmp_path / name).write_text(str(os.getpid()))
        while name == "ebmc":
            time.sleep(0.01)

    child = in_a_child(lambda: shown([("ebmc", 1), ("concat", 1)], work))
    names = {"ebmc", "concat"}
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in names):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert status(child) == -signal.SIGKILL
    left, end = {int((tmp_path / name).read_text()) for name in names}, time.monotonic() + 20
    while left and time.monotonic() < end:
        left = {pid for pid in left if running(pid)}
        time.sleep(0.05)
    assert not left


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # nobody waits for it here
    except FileNotFoundError:
        return False


@linux
def test_an_error_that_cannot_be_sent_arrives_as_its_text():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def work(name, seed, show):
        raise Odd("salt", "pepper")

    with pytest.raises(RuntimeError, match=r"(?s)raise Odd.*salt and pepper"):
        shown([("ebmc", 1), ("concat", 1)], work)


@linux
@pytest.mark.parametrize("first", [True, False])
def test_where_no_process_can_be_started_it_says_so(monkeypatch, first):
    fork, calls = os.fork, []

    def full():
        calls.append(1)
        if first or len(calls) > 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(DataError, match=r"--jobs: 2 processes cannot be started \(Resource temporarily"):
        shown([("ebmc", 1), ("concat", 1)], lambda *_: time.sleep(60))
    monkeypatch.undo()
    end = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_how_many_at_once(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(jobs.sys, "platform", "linux")
    assert jobs.processes(None, cpu) == jobs.MOST
    assert jobs.processes(16, cpu) == 16
    assert jobs.processes(None, gpu) == jobs.processes(1, gpu) == 1
    with pytest.raises(DataError, match="--jobs: 2, expected 1 here; several models"):
        jobs.processes(2, gpu)
    for owner, name, value in (
        (jobs.sys, "platform", "darwin"),
        (jobs, "count", lambda: 2),
        (jobs.multiprocessing.current_process(), "_config", {"daemon": True}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert jobs.processes(None, cpu) == 1
            with pytest.raises(DataError, match="Pass --jobs 1"):
                jobs.processes(2, cpu)
