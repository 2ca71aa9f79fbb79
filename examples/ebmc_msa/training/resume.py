"""A run's folder until the run is complete: NAME.partial, renamed to NAME at the end, resumable in between.

NAME.partial/MODEL-SEED.pt           checkpoints of what is trained
NAME.partial/state/run.json          the options, the folder they were given in, and the fingerprint of the data
NAME.partial/state/MODEL-SEED.json   the record of a model that is trained and tested
NAME.partial/state/MODEL-SEED.pt     the state of the training of the next one
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmc_msa.data import DataError
from ebmc_msa.data.files import read_tensors, write_tensors, write_text
from ebmc_msa.training.distributed import count, rank, unless_another_ends

VERSION = 8  # of what NAME.partial/state holds
SHARE = 0.03  # of the time, at most, goes into saving


@dataclass(frozen=True)
class PartialRun:
    final: Path
    metadata: dict[str, Any]  # cwd, command, config, repeat, data
    resumed: bool = False

    @property
    def partial(self) -> Path:
        return self.final.with_name(f"{self.final.name}.partial")

    @property
    def state(self) -> Path:
        return self.partial / "state"

    def record(self, name: str, seed: int) -> dict[str, Any] | None:
        """The record of a model, if it is trained and tested."""
        path = self.state / f"{name}-{seed}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, name: str, seed: int, record: dict[str, Any]) -> None:
        write_text(self.state / f"{name}-{seed}.json", json.dumps(record))
        (self.state / f"{name}-{seed}.pt").unlink(missing_ok=True)

    def training(self, name: str, seed: int) -> dict[str, Any] | None:
        """The state of its training, if it has begun."""
        path = self.state / f"{name}-{seed}.pt"
        try:
            return read_tensors(path) if path.exists() else None
        except Exception as problem:
            raise DataError(
                f"--resume: {path} cannot be read ({type(problem).__name__}), expected what train.py wrote; remove "
                "that file, and this model is trained from its beginning."
            ) from problem

    def saver(self, name: str, seed: int) -> Callable[[dict[str, Any]], None]:
        """A function that saves the state of a training, and skips calls so that it takes 3 % of the time at most."""
        due = 0.0

        def save(state: dict[str, Any]) -> None:
            nonlocal due
            if rank() == 0 and (start := time.monotonic()) >= due:
                write_tensors(self.state / f"{name}-{seed}.pt", state)
                due = time.monotonic() + (time.monotonic() - start) / SHARE

        return save

    @property
    def empty(self) -> bool:
        return not any(path.suffix in (".pt", ".json") for path in self.partial.rglob("*") if path.name != "run.json")


def begin(out: Path, name: str | None, default: str, metadata: dict[str, Any]) -> Path:
    """Claim a name for the folder in `out`: the one given, or the default with the first number that is free."""
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        raise DataError(f"--name: {name!r}, expected a plain folder name; put the path in --out.")
    for number in range(1, 10_000):
        final = out / (name or (default if number == 1 else f"{default}-{number}"))
        run = PartialRun(final, metadata)
        try:
            if not final.exists():
                run.partial.mkdir(parents=True)
                break
        except FileExistsError:
            pass
        except OSError as problem:
            raise DataError(
                f"--out: {out} cannot be written ({problem.strerror}), expected a folder of yours; change it."
            ) from problem
        if name is not None and run.partial.exists():
            raise DataError(
                f"--name: {run.partial} is unfinished, expected a new name; continue with --resume {final}, pass "
                "another name or remove the folder."
            )
        if name is not None:
            raise DataError(
                f"--name: {final} exists already, expected a new name; pass another or remove the folder."
            )
    try:
        run.state.mkdir()
        write_text(run.state / "run.json", json.dumps({**metadata, "version": VERSION}, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(run.partial, ignore_errors=True)
        raise
    return final


def reopen(path: Path) -> PartialRun:
    """The unfinished run NAME, or NAME.partial."""
    final = path.with_name(path.name.removesuffix(".partial"))
    if final.exists():
        shutil.rmtree(final / "state", ignore_errors=True)  # it may have died between its last two steps
        raise DataError(f"--resume: {final} is finished, expected one that was interrupted; there is nothing to do.")
    path = final.with_name(f"{final.name}.partial") / "state/run.json"
    if not path.parents[1].is_dir():
        raise DataError(f"--resume: there is no run {final}, expected one that was interrupted; check the name.")
    try:
        metadata = json.loads(path.read_text())
        version = metadata.get("version")
    except (OSError, ValueError, AttributeError) as problem:
        raise DataError(
            f"--resume: {path} cannot be read ({type(problem).__name__}), expected the folder of a run that "
            "train.py began; name one, or remove the folder and start again."
        ) from problem
    if version != VERSION:
        raise DataError(
            f"--resume: {path} has version {version}, expected {VERSION}, which this version of train.py writes; "
            f"remove {path.parents[1]} and start the run again."
        )
    return PartialRun(final, metadata, resumed=True)


@contextmanager
def finalized(run: PartialRun) -> Iterator[None]:
    """Rename the folder when all is written. After an error keep what it holds, and tell how to continue."""
    try:
        with unless_another_ends():
            yield
        if rank() == 0:
            os.replace(run.partial, run.final)
            shutil.rmtree(run.final / "state", ignore_errors=True)
    except BaseException as problem:
        if rank() > 0:
            raise
        if run.empty and not run.resumed:
            shutil.rmtree(run.partial, ignore_errors=True)
            raise
        hint = f"What is done is kept; continue with: {command(['--resume', str(run.final)])}"
        if isinstance(problem, DataError):
            raise DataError(f"{problem}\n{hint}") from problem
        if isinstance(problem, KeyboardInterrupt):
            raise KeyboardInterrupt(hint) from None
        raise


def command(argv: list[str]) -> str:
    """The command line of train.py with these arguments; from Python there is no other."""
    launcher = ["python"] if count() == 1 else ["torchrun", "--nproc-per-node", str(count())]
    return shlex.join([*launcher, os.path.relpath(Path(__file__).parents[1] / "train.py"), *argv])
