"""Training on several processes: the numbers of one with the same batches, and one end for all."""

import os
import socket
import time
import traceback
import warnings

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, Dataset, Split
from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.split import SplitView
from ebmc_msa.model.prediction import spec_of
from ebmc_msa.model.settings import Settings
from ebmc_msa.training import console, distributed, resume, run
from ebmc_msa.training.checkpoint import build
from ebmc_msa.training.command import main
from ebmc_msa.training.stages import train

pytestmark = pytest.mark.slow

SIZE = 2


def launch(work, size=SIZE, timeout=120):
    """Exit status of `work(rank)` on each of `size` processes, started as torchrun does."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1]), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; PyTorch's are idle here
            children.append(os.fork())
        if not children[-1]:
            os.environ |= {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            status = 1
            try:
                status = work(rank) or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
    end, found = time.monotonic() + timeout, {}
    while len(found) < size:
        for child in children:
            if child not in found and (done := os.waitpid(child, os.WNOHANG))[0]:
                found[child] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() > end:
            for child in set(children) - set(found):
                os.kill(child, 9)
                found[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.01)
    return [found[child] for child in children]


def dataset():
    """23 rows to train on, so that of batches of 11 the last is one row, which only the first process has."""
    torch.manual_seed(0)

    def split(rows):
        y = torch.randint(3, (rows,))
        features = {"text": torch.randn(rows, 4, 5), "audio": torch.randn(rows, 3)}
        present = {"text": torch.rand(rows) < 0.7, "audio": torch.ones(rows, dtype=torch.bool)}
        lengths = {"text": torch.randint(1, 5, (rows,)) * present["text"]}
        features["text"] *= (torch.arange(4) < lengths["text"][:, None])[..., None]
        talk = Conversation(torch.arange(rows) // 5, torch.arange(rows), torch.arange(rows) % 2)
        return Split(features, lengths, present, y, [str(i) for i in range(rows)], conversation=talk)

    return Dataset("toy", "classes", 3, {"train": split(23), "valid": split(12), "test": split(12)})


def trained(name, changes):
    """In float64: the optimizer turns the rounding of a gradient near 0 into a whole step."""
    dropout = 0.3 if name == "concat" else 0.0  # of EBMC it also hides own parts, on each process in its own way
    settings = Settings(
        **{"stage1_epochs": 2, "stage2_epochs": 2, "warmup_steps": 0, **changes},
        batch_size=11,
        lr=1e-2,
        dim=8,
        dropout=0.0,
        modality_dropout=dropout,
        corruption=0.0,
    )
    data = dataset()
    spec = spec_of(data, settings)
    torch.manual_seed(0)
    model = build(name, spec, settings).double()
    splits = (SplitView.of(data.splits[split], spec, torch.device("cpu")) for split in ("train", "valid"))
    stages = train(model, *splits, settings, 0, lambda *_: None).stages
    return {"history": [entry for stage in stages for entry in stage.history], "state": model.state_dict()}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ebmc", {}),
        ("ebmc", {"without": ("cce", "msd")}),
        ("ebmc", {"gamma": 0.5, "observe": True}),
        ("ebmc", {"stage1_epochs": 12, "warmup_steps": 6, "joint_patience": 1}),
        ("concat", {}),
        ("ebmc", {"context": "gru"}),
        ("concat", {"context": "transformer"}),
    ],
)
def test_two_processes_are_one(name, changes, tmp_path):
    def work(rank):
        with distributed.process_group():
            torch.save(trained(name, changes), tmp_path / f"{rank}.pt")

    assert launch(work) == [0] * SIZE
    want = trained(name, changes)
    assert bool(want["history"][-1]["weight"]) == ("observe" in changes)
    for rank in range(SIZE):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["state"], want["state"], rtol=1e-6, atol=1e-8)
        for entry, expected in zip(got["history"], want["history"], strict=True):
            for part in ("train", "energy", "gradient", "weight", "valid"):
                assert entry[part] == pytest.approx(expected[part], rel=1e-6, abs=1e-8, nan_ok=True)


@pytest.fixture
def call(tmp_path):
    x, y = np.eye(24), np.arange(24)
    np.savez(tmp_path / "toy.npz", x_sound=x[:, :5], x_lidar=x, y=y % 2, split=y % 3)
    short = ["--stage1-epochs", 2, "--stage2-epochs", 1, "--batch-size", 5, "--device", "cpu"]
    return lambda out: ["--data", tmp_path / "toy.npz", "--out", tmp_path / out, "--name", "a", *short]


def on_all(options, fail=lambda rank, epoch: None):
    def work(rank):
        update, epochs = console.Progress.update, 0

        def watched(*arguments, **changes):
            nonlocal epochs
            epochs += "total" not in changes  # neither the beginning nor the end
            if epochs:
                fail(rank, epochs)
            update(*arguments, **changes)

        console.Progress.update, run.write_report, resume.SHARE = watched, lambda *_: None, float("inf")
        return main([str(option) for option in options])

    return launch(work)


def test_one_folder_and_resumed_to_the_same_bits(call, tmp_path):
    def die(rank, epoch):
        if epoch == 2:
            os._exit(9)

    assert on_all(call("whole")) == [0, 0]
    assert on_all(call("killed"), die) == [9, 9]
    assert on_all(["--resume", tmp_path / "killed/a"]) == [0, 0]
    for out in ("whole", "killed"):
        assert [path.name for path in (tmp_path / out).iterdir()] == ["a"]
        assert {path.name for path in (tmp_path / out / "a").iterdir()} == {
            "ebmc-1111.pt",
            "metrics.json",
            "config.toml",
        }
    one, other = (torch.load(tmp_path / out / "a/ebmc-1111.pt", weights_only=True) for out in ("whole", "killed"))
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)


@pytest.mark.parametrize("failing", range(SIZE))
def test_an_error_of_one_ends_all(call, capfd, failing):
    def fail(rank, epoch):
        if rank == failing:
            raise DataError("sector 7 is gone")

    codes = on_all(call("runs"), fail)
    error = capfd.readouterr().err
    assert codes[failing] == 2
    assert codes[1 - failing] == 130
    assert error.count("sector 7 is gone") == 1
    assert error.count("continue with: torchrun --nproc-per-node 2") == 1
    assert "Traceback" not in error
