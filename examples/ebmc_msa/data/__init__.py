"""Files that users have, read unchanged and told apart by content."""

from __future__ import annotations

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path

from ebmc_msa.data.check import check, described
from ebmc_msa.data.dataset import DataError, Dataset, Split, canonical, listed
from ebmc_msa.data.formats.bclstm import is_bclstm, read_bclstm
from ebmc_msa.data.formats.clean import Assemble, in_memory
from ebmc_msa.data.formats.converted import is_folder, read_folder
from ebmc_msa.data.formats.erc import is_erc, read_erc
from ebmc_msa.data.formats.gcnet import is_gcnet, read_gcnet
from ebmc_msa.data.formats.mmsa import is_mmsa, read_mmsa
from ebmc_msa.data.formats.mult import is_mult, read_mult
from ebmc_msa.data.formats.npz import read_npz
from ebmc_msa.data.formats.unpickle import unpickle
from ebmc_msa.data.synthetic import synthetic
from ebmc_msa.data.validation_split import split_off_valid

__all__ = ["DataError", "Dataset", "Split", "canonical", "load", "synthetic"]

_LAYOUTS = (
    "an MMSA or MulT pickle {train, valid, test}, a GCNet pickle (list of 6 or 7) beside features/, a pickle of "
    "conversations as DialogueRNN wrote it (tuple of 7 or more), a bc-LSTM folder with transcripts.csv, a folder "
    "that convert.py wrote, or an .npz with x_<modality>, y and split"
)
_ZIP = re.compile(rb"PK\x03\x04")
_PICKLE = re.compile(rb"\x80[\x02-\x05]|[\]}]q|\([ld]p\d")  # protocols 2 to 5, 1, 0


def load(
    path: str | PathLike[str], *, split_seed: int = 0, labels: bool = True, assemble: Assemble = in_memory
) -> Dataset:
    """Read a file or a folder of data, or the one data file of a folder.

    Args:
        path: an MMSA or MulT pickle, a GCNet pickle or its folder, a bc-LSTM folder, an .npz of our own, or the
            folder that convert.py makes of any of them, whose features stay in their files.
        split_seed: draws the validation fold where the data have none.
        labels: False accepts data without labels and without all three folds, for prediction.
        assemble: where cleaned features go, block by block; into memory by default.

    Raises:
        DataError: what came, what was expected and what to do.
    """
    path = Path(path)
    if is_folder(path):
        return check(read_folder(path), labels=labels)
    if is_bclstm(path):
        dataset = read_bclstm(path, labels=labels, assemble=assemble)
    else:
        dataset = _read_file(_find(path), labels, assemble)
    if labels and "valid" not in dataset.splits and len(dataset.splits.get("train", ())):
        dataset = split_off_valid(dataset, split_seed)
    if not labels:  # to predict, one fold is enough
        dataset = replace(dataset, splits={fold: split for fold, split in dataset.splits.items() if len(split)})
    return described(check(dataset, labels=labels))


def _read_file(file: Path, labels: bool, assemble: Assemble) -> Dataset:
    if _starts(file, _ZIP):
        return read_npz(file, labels=labels, assemble=assemble)
    content = unpickle(file)
    name = f"{file.resolve().parent.name}-{file.stem}"
    if is_mmsa(content):
        return read_mmsa(content, name, labels=labels, assemble=assemble)
    if is_mult(content):
        return read_mult(content, name, labels=labels, assemble=assemble)
    if is_erc(content):
        return read_erc(content, file, labels=labels, assemble=assemble)
    if is_gcnet(content):
        return read_gcnet(content, file, labels=labels, assemble=assemble)
    entries = f" of {listed(content)}" if isinstance(content, dict) else ""
    raise DataError(
        f"load: {file} is a pickle with a {type(content).__name__}{entries}, expected {_LAYOUTS}; "
        "convert it to the .npz."
    )


def _find(path: Path) -> Path:
    """The file itself, or the only one in the folder that could be data."""
    if path.is_file():
        if not (_starts(path, _ZIP) or _starts(path, _PICKLE)):
            raise DataError(
                f"load: {path} is neither a pickle nor an .npz, expected {_LAYOUTS}; convert it to the .npz."
            )
        return path
    if not path.is_dir():
        raise DataError(f"load: {path} does not exist, expected a file or folder with {_LAYOUTS}; check the path.")
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    found = [e for e in inside if e.is_file() and (_starts(e, _ZIP) or _starts(e, _PICKLE))]
    if len(found) != 1:
        what = (
            f"{len(found)} candidates ({listed(e.name for e in found)})"
            if found
            else f"no data file (found: {listed(e.name + '/' * e.is_dir() for e in inside)})"
        )
        raise DataError(f"load: {path} has {what}, expected exactly one: {_LAYOUTS}; name the file you mean.")
    return found[0]


def _starts(file: Path, magic: re.Pattern[bytes]) -> bool:
    with file.open("rb") as f:
        return magic.match(f.read(8)) is not None
