"""Files that users have, read unchanged and recognised by content."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

from ebmc_msa.data.check import check, described
from ebmc_msa.data.dataset import DataError, Dataset, listed
from ebmc_msa.data.formats.bclstm import is_bclstm, read_bclstm
from ebmc_msa.data.formats.clean import Assemble, in_memory
from ebmc_msa.data.formats.converted import is_folder, read_folder
from ebmc_msa.data.formats.detect import LAYOUTS, container, read
from ebmc_msa.data.task import LabelOptions, as_stated
from ebmc_msa.data.validation_split import split_off_valid


def load(
    path: str | PathLike[str],
    *,
    split_seed: int = 0,
    labels: bool = True,
    options: LabelOptions | None = None,
    assemble: Assemble = in_memory,
) -> Dataset:
    """Read a file or a folder of data, or the one data file of a folder.

    Args:
        path: a pickle in the layout of MMSA, MulT, GCNet or BERT-based projects, their folder, a `.pt`,
            `.safetensors`, `.h5` or `.mat` of the same fields, a CSV manifest, a bc-LSTM folder, an .npz of our own,
            or the folder that convert.py makes of any of them, whose features stay in their files.
        split_seed: draws the validation split where the data have none.
        options: what is known about the labels; by default all is guessed, and an ambiguous guess is refused.
        labels: False accepts data without labels and without all three splits, for prediction.
        assemble: where cleaned features go, block by block; into memory by default.

    Raises:
        DataError: what came, what was expected and what to do.
    """
    path, options = Path(path), options or LabelOptions()
    if is_folder(path):
        return check(as_stated(read_folder(path), options), labels=labels)
    if is_bclstm(path):
        dataset = read_bclstm(path, labels=labels, options=options, assemble=assemble)
    else:
        dataset = read(_find(path), labels=labels, options=options, assemble=assemble)
    if labels and "valid" not in dataset.splits and len(dataset.splits.get("train", ())):
        dataset = split_off_valid(dataset, split_seed)
    if not labels:  # to predict, one split is enough
        dataset = replace(dataset, splits={name: split for name, split in dataset.splits.items() if len(split)})
    return described(check(dataset, labels=labels))


def _find(path: Path) -> Path:
    """The file itself, or the only one in the folder that could be data: a CSV manifest, if there is no other."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(
            f"--data: {path} does not exist, expected a file or folder; check the path, seen from {Path.cwd()}."
        )
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    kinds = {entry: container(entry) for entry in inside if entry.is_file()}
    found = [entry for entry, kind in kinds.items() if kind not in (None, "csv")] or [
        e for e in kinds if kinds[e] == "csv"
    ]
    if len(found) != 1:
        what = (
            f"{len(found)} candidates ({listed(e.name for e in found)})"
            if found
            else f"no data file (found: {listed(e.name + '/' * e.is_dir() for e in inside)})"
        )
        raise DataError(f"load: {path} has {what}, expected exactly one: {LAYOUTS}; name the file you mean.")
    return found[0]
