"""A run's folder while it is made: visible as NAME.partial, NAME once it is whole, and resumed in between.

NAME.partial/MODEL-SEED.pt           checkpoints of what is trained
NAME.partial/state/run.json          the command, its folder, and the fingerprint of the data
NAME.partial/state/MODEL-SEED.json   what was found of a model that is trained and tested
NAME.partial/state/MODEL-SEED.pt     where the training of the next one stands
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmc_msa.data import DataError
from ebmc_msa.data.files import read_tensors, write_tensors, write_text
from ebmc_msa.training.distributed import count, rank, unless_another_ends

SHARE = 0.03  # of the time, at most, goes into saving


@dataclass(frozen=True)
class Unfinished:
    final: Path
    about: dict[str, Any]  # argv, cwd, command, data
    resumed: bool = False

    @property
    def partial(self) -> Path:
        return self.final.with_name(f"{self.final.name}.partial")

    @property
    def state(self) -> Path:
        return self.partial / "state"

    def record(self, name: str, seed: int) -> dict[str, Any] | None:
        """What was found of a model, if it is trained and tested."""
        path = self.state / f"{name}-{seed}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, name: str, seed: int, record: dict[str, Any]) -> None:
        write_text(self.state / f"{name}-{seed}.json", json.dumps(record))
        (self.state / f"{name}-{seed}.pt").unlink(missing_ok=True)

    def training(self, name: str, seed: int) -> dict[str, Any] | None:
        """Where its training stands, if it has begun."""
        path = self.state / f"{name}-{seed}.pt"
        try:
            return read_tensors(path) if path.exists() else None
        except Exception as problem:
            raise DataError(
                f"--resume: {path} cannot be read ({type(problem).__name__}), expected what train.py wrote; remove "
                "that file, and this model is trained from its beginning."
            ) from problem

    def saver(self, name: str, seed: int) -> Callable[[dict[str, Any]], None]:
        """Saves where a training stands; passes over so many calls that it takes 3 % of the time at most."""
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


def begin(out: Path, name: str | None, default: str, about: dict[str, Any]) -> Path:
    """Claim a name for the folder in `out`: the one given, or the default with the first number that is free."""
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        raise DataError(f"--name: {name!r}, expected a plain folder name; put the path in --out.")
    for number in range(1, 10_000):
        final = out / (name or (default if number == 1 else f"{default}-{number}"))
        run = Unfinished(final, about)
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
                f"--name: {run.partial} is unfinished, expected a new name; go on with --resume {final}, pass "
                "another name or remove the folder."
            )
        if name is not None:
            raise DataError(
                f"--name: {final} exists already, expected a new name; pass another or remove the folder."
            )
    try:
        run.state.mkdir()
        write_text(run.state / "run.json", json.dumps(about, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(run.partial, ignore_errors=True)
        raise
    return final


def reopen(path: Path) -> Unfinished:
    """The unfinished run NAME, or NAME.partial."""
    final = path.with_name(path.name.removesuffix(".partial"))
    if final.exists():
        shutil.rmtree(final / "state", ignore_errors=True)  # it may have died between its last two steps
        raise DataError(f"--resume: {final} is finished, expected one that was interrupted; there is nothing to do.")
    about = final.with_name(f"{final.name}.partial") / "state/run.json"
    try:
        return Unfinished(final, json.loads(about.read_text()), resumed=True)
    except (OSError, ValueError) as problem:
        raise DataError(
            f"--resume: {about} cannot be read ({type(problem).__name__}), expected the folder of a run that "
            "train.py began; name one, or remove the folder and start again."
        ) from problem


@contextmanager
def making(run: Unfinished) -> Iterator[None]:
    """Rename the folder when all is written. Otherwise keep it, if there is anything in it, and say how to go on."""
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
        hint = f"What is done is kept; go on with: {command(['--resume', str(run.final)])}"
        if isinstance(problem, DataError):
            raise DataError(f"{problem}\n{hint}") from problem
        if isinstance(problem, KeyboardInterrupt):
            raise KeyboardInterrupt(hint) from None
        raise


def command(argv: list[str]) -> str:
    """How this program is called with other arguments."""
    launcher = ["python"] if count() == 1 else ["torchrun", "--nproc-per-node", str(count())]
    return shlex.join([*launcher, os.path.relpath(sys.argv[0]), *argv])
