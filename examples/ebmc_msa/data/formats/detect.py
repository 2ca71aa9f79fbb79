"""Which container and which layout a file has, by its content; what is neither is named with the nearest layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ebmc_msa.data.dataset import DataError, Dataset, listed
from ebmc_msa.data.formats.clean import Assemble
from ebmc_msa.data.formats.csv_manifest import is_manifest, read_manifest
from ebmc_msa.data.formats.erc import is_erc, read_erc
from ebmc_msa.data.formats.gcnet import is_gcnet, read_gcnet
from ebmc_msa.data.formats.hdf5 import is_hdf5, read_hdf5
from ebmc_msa.data.formats.matlab import is_matlab, read_matlab
from ebmc_msa.data.formats.mmsa import is_mmsa, read_mmsa
from ebmc_msa.data.formats.mult import is_mult, read_mult
from ebmc_msa.data.formats.npz import is_fields, read_fields, read_npz
from ebmc_msa.data.formats.tensors import LEGACY, is_safetensors, is_torch_archive, read_safetensors, read_torch
from ebmc_msa.data.formats.tuples import is_tuples, read_tuples
from ebmc_msa.data.formats.unpickle import unpickle
from ebmc_msa.data.task import LabelOptions

LAYOUTS = (
    "an MMSA or MulT pickle {train, valid, test}, a GCNet pickle (list of 6 or 7) beside features/, a pickle of "
    "conversations as DialogueRNN's (tuple of 7 or more) or of tuples ((words, visual, acoustic), label, id), a .pt, "
    ".safetensors, .h5 or .mat of the same fields, a CSV manifest, a bc-LSTM folder with transcripts.csv, a folder "
    "that convert.py wrote, or an .npz with x_<modality>, y and split"
)
_ZIP = re.compile(rb"PK\x03\x04")
_PICKLE = re.compile(rb"\x80[\x02-\x05]|[\]}]q|\([ld]p\d")  # protocols 2 to 5, 1, 0
_OTHERS = (
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc|Rar!", "a compressed file", "unpack it"),
    (rb"\x93NUMPY", "a single array", "put it into an .npz as x_<modality>, beside y and split"),
    (rb"PAR1|ARROW1", "a table of columns", "write a CSV manifest with one .npy per row and modality"),
    (rb"MATLAB", "a MATLAB file of another version", "write it with save(…, '-v7')"),
    (
        rb"RIFF|\x00\x00\x00.ftyp|ID3|OggS|fLaC|\xff\xd8|\x89PNG",
        "a recording",
        "extract features first, into an .npz",
    ),
    (rb"\s*[\[{]", "a JSON text", "write its arrays into an .npz"),
    (rb"[\t\n\r\x20-\x7e\x80-\xff]{8}", "a text", "name a column split to make it a CSV manifest, or write an .npz"),
)


def container(file: Path) -> str | None:
    """`npz`, `pt`, `pickle`, `h5`, `mat`, `safetensors` or `csv`; None for anything else."""
    with file.open("rb") as opened:
        head = opened.read(16)
    if _ZIP.match(head):
        return "pt" if is_torch_archive(file) else "npz"
    if head.startswith(LEGACY):
        return "pt"
    if _PICKLE.match(head):
        return "pickle"
    for name, belongs in (("h5", is_hdf5), ("mat", is_matlab), ("safetensors", is_safetensors), ("csv", is_manifest)):
        if belongs(file):
            return name
    return None


def read(file: Path, *, labels: bool, options: LabelOptions, assemble: Assemble) -> Dataset:
    """Raises DataError: the file has no known container or layout."""
    kind = container(file)
    if kind is None:
        raise _unknown(file)
    if kind == "npz":
        return read_npz(file, labels=labels, options=options, assemble=assemble)
    if kind == "csv":
        return read_manifest(file, labels=labels, options=options, assemble=assemble)
    decode = {
        "pickle": unpickle,
        "pt": read_torch,
        "h5": read_hdf5,
        "mat": read_matlab,
        "safetensors": read_safetensors,
    }
    content = decode[kind](file)
    name = f"{file.resolve().parent.name}-{file.stem}"
    if is_fields(content):
        return read_fields(content, file, f".{kind}", labels=labels, options=options, assemble=assemble)
    for belongs, reader in ((is_mmsa, read_mmsa), (is_mult, read_mult), (is_tuples, read_tuples)):
        if belongs(content):
            return reader(content, name, labels=labels, options=options, assemble=assemble)
    if is_erc(content):
        return read_erc(content, file, labels=labels, options=options, assemble=assemble)
    if is_gcnet(content):
        return read_gcnet(content, file, labels=labels, options=options, assemble=assemble)
    if isinstance(content, dict):
        entries = f" of {listed(content)}"
    else:
        entries = f" of {len(content)}" if isinstance(content, (list, tuple)) else ""
    raise DataError(
        f"load: {file} is a {kind} with a {type(content).__name__}{entries}, expected {LAYOUTS}; {_nearest(content)}."
    )


def _unknown(file: Path) -> DataError:
    with file.open("rb") as opened:
        head = opened.read(16)
    what, advice = next(
        ((what, advice) for start, what, advice in _OTHERS if re.match(start, head, re.DOTALL)),
        ("of no known kind", "convert it to the .npz"),
    )
    return DataError(f"load: {file} is {what}, expected {LAYOUTS}; {advice}.")


def _nearest(content: Any) -> str:
    """The layout that the content resembles most, and what it lacks."""
    if isinstance(content, dict):
        fields = {"text", "audio", "vision"}
        if fields & content.keys():
            nested = any(isinstance(content[name], dict) for name in fields & content.keys())
            return (
                "the nearest is MulT's: put the splits outside, {train: {text, audio, vision, labels}, valid: …}"
                if nested
                else "the nearest is MulT's: put the fields of each split under train, valid and test"
            )
        if any(isinstance(value, dict) and value.keys() & {"x_text", "x_audio", "y"} for value in content.values()):
            return "the nearest is the .npz: put all rows together, with their split as 0, 1 and 2"
        if any(isinstance(value, dict) and "features" in value for value in content.values()):
            return "the nearest is CMU-MultimodalSDK's: align and pad the sequences, and write an .npz"
        if any(str(name) in ("train", "valid", "dev", "test") for name in content):
            return "the nearest is MulT's: make each split a dict of text, audio, vision and labels"
        return "the nearest is the .npz: name the arrays x_<modality>, y and split"
    if isinstance(content, (list, tuple)):
        if content and isinstance(content[0], (list, tuple)):
            return "the nearest is that of tuples: put the lists of each split into a dict {train, dev, test}"
        return (
            f"the nearest is GCNet's, a list of 6 or 7 that begins with a dict; this one has {len(content)} entries"
        )
    return "write an .npz with x_<modality>, y and split"
