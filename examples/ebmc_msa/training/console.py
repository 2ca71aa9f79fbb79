"""The terminal, the device, and files that the user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ebmc_msa.data import DataError, Dataset
from ebmc_msa.data.dataset import SPLITS
from ebmc_msa.training.distributed import count, rank

console = Console(quiet=rank() > 0)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and count() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as problem:
        raise DataError(
            f"--device: {name} cannot be used here, expected cpu, cuda, mps or auto; pass --device cpu."
        ) from problem
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)
    return torch.device(name)


def described(device: torch.device) -> str:
    """`cpu`, or `cuda (NVIDIA H100)`."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def writable(path: Path) -> None:
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise DataError(
            f"--predictions: {path} cannot be written, expected a file in a folder that exists; change it."
        )


class Bars:
    """A bar for each model and seed, in this order; each appears at the first call about it."""

    def __init__(self, models: Sequence[tuple[str, int]]) -> None:
        columns = (
            TextColumn("{task.description:>16}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self.progress = Progress(*columns, console=console)
        self.bars = {
            (name, seed): self.progress.add_task(f"{name} {seed}", start=False, visible=False, state="")
            for name, seed in models
        }

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, name: str, seed: int, **fields: Any) -> None:
        self.progress.start()  # not before: a thread that draws must not be copied into other processes
        self.progress.start_task(self.bars[name, seed])
        self.progress.update(self.bars[name, seed], visible=True, **fields)


def introduce(dataset: Dataset) -> None:
    """Print the sizes, and the decisions about the data."""
    console.print(f"{dataset.name}: {sizes(dataset)}", *filter(None, [dataset.note]), sep="\n", markup=False)


def sizes(dataset: Dataset) -> str:
    rows = " / ".join(f"{len(dataset.splits[split])} {split}" for split in SPLITS if split in dataset.splits)
    return f"{rows}; " + ", ".join(f"{name} {size}" for name, size in dataset.dims.items())
