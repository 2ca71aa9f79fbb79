"""Short runs of train.py in tests, and what they leave."""

import json
import os
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ebmc_msa.data import files
from ebmc_msa.training import command, console, resume, run

SHORT = [
    "--stage1-epochs",
    "2",
    "--stage2-epochs",
    "2",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--jobs",
    "1",
    "--warmup-steps",
    "0",
]
BRIEF = ["--stage1-epochs", "1", "--stage2-epochs", "1"]
COMPARE = ["--compare"]


@contextmanager
def quick():
    """Save after each epoch; write what the report would show instead of drawing it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "SHARE", float("inf"))
        patch.setattr(
            run, "write_report", lambda path, _, records: files.write_text(path, json.dumps(records, default=vars))
        )
        yield patch


def write(path, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=72)
    x = {f"x_{m}": rng.normal(size=(72, d)).astype("float32") + y[:, None] for m, d in (("sound", 6), ("lidar", 4))}
    np.savez(path, y=y, split=np.arange(72) % 3, **x)
    return path


def start(data, out, *options):
    return command.main([str(a) for a in ("--data", data, "--out", out, "--name", "a", *SHORT, *options)])


def go_on(out, *options):
    return command.main([str(a) for a in ("--resume", out / "a", *options)])


def found(out):
    """What a run left, but for times and its own name: figures, what the report shows, bits of the models."""
    assert [path.name for path in out.iterdir()] == ["a"]
    left = {path.name: path for path in (out / "a").iterdir()}
    assert f'out = "{out}"' in left.pop("config.toml").read_text()
    metrics, records = (json.loads(left.pop(name).read_text()) for name in ("metrics.json", "report.html"))
    for part in (metrics, *metrics.get("models", {}).values()):
        del part["command"]
        part.pop("cost", None)
    for record in records:
        del record["cost"]
        for entry in record["history"]:
            del entry["seconds"]
    return metrics, records, {name: torch.load(path, weights_only=True)["state"] for name, path in left.items()}


def assert_same(out, reference):
    (metrics, records, states), (metrics_, records_, states_) = found(out), found(reference)
    assert metrics == metrics_
    assert records == records_
    torch.testing.assert_close(states, states_, rtol=0, atol=0)


def interrupt_at_an_epoch(*arguments, update=console.Progress.update, **changes):
    if "total" not in changes:  # neither the beginning nor the end
        raise KeyboardInterrupt
    update(*arguments, **changes)


def in_a_child(work):
    """Exit status of `work` in a process of its own, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads; PyTorch's are idle here
        child = os.fork()
    if not child:
        os._exit(work())
    return child


def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
