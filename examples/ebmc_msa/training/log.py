"""`--log tensorboard`: scalars of each epoch, and the figures of the report, in RUN/tensorboard/."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebmc_msa.data import DataError
from ebmc_msa.report import plots
from ebmc_msa.report.record import Record
from ebmc_msa.training.distributed import rank

SCALARS = ("train", "energy", "gradient", "valid")  # loss terms; two figures by modality; metrics


def check_installed(logger: str | None) -> None:
    """Import tensorboard where it is asked for.

    Raises:
        DataError: it is not installed.
    """
    if logger is None:
        return
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as problem:
        raise DataError(
            '--log: tensorboard is not installed, expected it here; pip install "modbalance[tensorboard]".'
        ) from problem


class Events:
    """Scalars of one model trained from one seed, by epoch, counted over its stages."""

    def __init__(self, writer: Any, state: Mapping[str, Any] | None) -> None:
        """What `state`, from which training continues, holds of epochs is written first."""
        self.writer, self.epochs = writer, 0
        if state is not None:
            for entry in [*(e for stage in state["stages"] for e in stage["history"]), *state["history"]]:
                self.epoch(entry)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        self.epochs += 1
        for part in SCALARS:
            self._add(part, entry[part])
        self._add("time", {"seconds": entry["seconds"]})

    def end(self, record: Record) -> None:
        """Write what each modality contributes to the validation score, and close."""
        for when, shares in record.contribution.items():
            self._add(f"contribution_{when}", shares)
        if self.writer is not None:
            self.writer.close()  # here: nobody else can, in a process of its own

    def _add(self, part: str, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{part}/{name}", value, self.epochs)


class Log:
    """Writers into the folder of a run; without a `folder` nothing is written."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.writers: list[Any] = []

    def model(self, name: str, seed: int, state: Mapping[str, Any] | None) -> Events:
        return Events(self._writer(f"{name}-{seed}"), state)

    @contextmanager
    def report(self) -> Iterator[None]:
        """Write every figure that is drawn inside the context."""
        writer, count = self._writer("report"), 0

        def add(name: str, figure: Any) -> None:
            nonlocal count
            count += 1
            axis = figure.axes[0]
            label = axis.get_ylabel() or axis.get_xlabel()
            writer.add_figure(f"report/{count:02d} {name}{label and f', {label}'}", figure)

        if writer is None:
            yield
            return
        with plots.each_figure(add):
            yield

    def _writer(self, name: str) -> Any:
        if self.folder is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self.folder / name, ignore_errors=True)  # of a run that was interrupted
        self.writers.append(SummaryWriter(str(self.folder / name)))
        return self.writers[-1]


@contextmanager
def open_log(logger: str | None, run: Path) -> Iterator[Log]:
    """The log of a run, on the first process."""
    log = Log(None if logger is None or rank() > 0 else run / logger)
    try:
        yield log
    finally:
        for writer in log.writers:
            writer.close()
