"""Writing so that a reader, or a machine that dies, leaves the old file or the whole new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ebmc_msa.data import DataError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` once all of it is on the disk; until then nothing has changed.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException as problem:
        with suppress(OSError):
            partial.unlink()
        # torch.save raises RuntimeError for any error of the file below it.
        cause = problem.__context__ if isinstance(problem, RuntimeError) else problem
        if isinstance(cause, OSError):
            raise DataError(
                f"{path}: cannot be written ({cause.strerror}), expected room on the disk and a folder of yours; "
                "make room, or choose another folder."
            ) from problem
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        raise


def write_text(path: Path, text: str) -> None:
    with replacing(path) as f:
        f.write(text.encode())


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as f:
        torch.save(content, f)


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `write_tensors` wrote: tensors and plain containers, nothing that could run."""
    return torch.load(path, map_location=device, weights_only=True)
