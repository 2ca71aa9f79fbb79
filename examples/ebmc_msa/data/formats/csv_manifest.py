"""A CSV table with one row per utterance: `split`, `label`, and for each modality the path of a .npy file.

Columns: `split`; `label`, or several `label_<name>` of 0 and 1; optional `id`, `group`, `raw_text`, and
`conversation` with `order` and perhaps `speaker`. Each other column is a modality. Its cells are paths relative to
the table, of arrays `(D,)` or `(frames, D)`; an empty cell means that the modality is absent.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import SPLITS, DataError, Dataset, Split, canonical, counted, listed
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory
from ebmc_msa.data.formats.npy import open_npy
from ebmc_msa.data.formats.npz import conversations_of
from ebmc_msa.data.formats.ragged import stack
from ebmc_msa.data.split_names import split_of, unknown_split
from ebmc_msa.data.task import LabelOptions, Source, decide

_PLAIN = ("id", "split", "label", "group", "raw_text", "conversation", "order", "speaker")
_NUMBERED = dict(zip("012", SPLITS, strict=True))


def is_manifest(file: Path) -> bool:
    """A text file whose first line has commas and a column `split`."""
    with file.open("rb") as opened:
        head = opened.readline(2**16)
    try:
        return "split" in _header(head.decode("utf-8-sig"))
    except (UnicodeDecodeError, csv.Error):
        return False


def read_manifest(file: Path, *, labels: bool, options: LabelOptions, assemble: Assemble = in_memory) -> Dataset:
    """Raises DataError: a column, split, path or label is none of the above, or a path leads out of the folder."""
    columns = _columns(file)
    rows = len(columns["split"])
    ids = columns.get("id") or [str(i) for i in range(rows)]
    parts = [_split(file, i, name) for i, name in enumerate(columns["split"], 2)]
    chosen = {split: [i for i, own in enumerate(parts) if own == split] for split in SPLITS if split in parts}
    modalities = canonical(name for name in columns if name not in _PLAIN and not name.startswith("label_"))
    if not modalities:
        raise DataError(
            f"{file}: has columns {listed(columns)}, expected one per modality with paths of .npy files; add it."
        )
    raw, names = _labels(file, columns, labels)
    target = decide(
        Source(str(file), "label", sentiment=False, stated="multilabel" if names else None),
        {} if raw is None else {split: raw[part] for split, part in chosen.items()},
        options,
    )
    arrays = {}
    for name in modalities:
        frames = [_features(file, i, name, cell) for i, cell in enumerate(columns[name], 2)]
        arrays[name] = stack(f"{file}, {name}", frames, ids)
    fields: dict[str, Any] = {name: columns[name] for name in ("conversation", "speaker") if name in columns}
    if "order" in columns:
        talks = columns.get("conversation", columns["order"])
        cells = [cell if talk else "0" for cell, talk in zip(columns["order"], talks, strict=True)]
        fields["order"] = _floats(file, "order", cells)
    conversations = conversations_of(file, fields, chosen)
    splits = {}
    for split, part in chosen.items():
        own = [ids[i] for i in part]
        found = {
            name: clean(
                f"{file}[{split!r}], {name}",
                x[part],
                lengths=None if lengths is None else lengths[part],
                present=present[part],
                ids=own,
                assemble=assemble,
            )
            for name, (x, lengths, present) in arrays.items()
        }
        splits[split] = Split(
            {name: m.features for name, m in found.items()},
            {name: m.lengths for name, m in found.items() if m.lengths is not None},
            {name: m.present for name, m in found.items()},
            target.values.get(split),
            own,
            [columns["group"][i] for i in part] if "group" in columns else None,
            [columns["raw_text"][i] for i in part] if "raw_text" in columns else None,
            conversation=conversations.get(split),
        )
    target = target._replace(names=names or target.names)
    name = file.stem if file.stem != "manifest" else file.resolve().parent.name
    dataset = target.dataset(name, splits, "CSV manifest")
    return replace(dataset, conversational="conversation" in columns)


def _header(line: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line]), [])]


def _columns(file: Path) -> dict[str, list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            lines = csv.reader(opened, strict=True)
            header, table = [name.strip() for name in next(lines)], [row for row in lines if row]
    except (OSError, csv.Error, UnicodeDecodeError, StopIteration) as error:
        raise DataError(
            f"{file}: cannot be read ({error}), expected a CSV table with a header; save it again."
        ) from error
    if "" in header or len(set(header)) < len(header):
        raise DataError(f"{file}: has columns {listed(header)}, expected each named once; rename them.")
    for number, row in enumerate(table, 2):
        if len(row) != len(header):
            raise DataError(
                f"{file}: line {number} has {counted(len(row), 'cell')}, expected {len(header)}; complete it."
            )
    if not table:
        raise DataError(f"{file}: holds no rows, expected one per utterance; write them.")
    return {name: [row[i].strip() for row in table] for i, name in enumerate(header)}


def _split(file: Path, line: int, name: str) -> str:
    split = _NUMBERED.get(name) or split_of(name)
    if split is None:
        raise unknown_split(f"{file}, line {line}", name, 1)
    return split


def _labels(
    file: Path, columns: dict[str, list[str]], labels: bool
) -> tuple[np.ndarray[Any, Any] | None, tuple[str, ...]]:
    names = tuple(name.removeprefix("label_") for name in columns if name.startswith("label_"))
    if "label" in columns and names:
        raise DataError(
            f"{file}: has label and label_{names[0]}, expected one label, or several label_<name>; drop one."
        )
    cells = [columns[f"label_{name}"] for name in names] or ([columns["label"]] if "label" in columns else [])
    if not cells or (not labels and all(not cell for column in cells for cell in column)):
        if labels:
            raise DataError(f"{file}: has columns {listed(columns)}, expected a column label; add it.")
        return None, names
    found = np.stack([_numbers(file, column) for column in cells], 1)
    return (found if names else found[:, 0]), names


def _numbers(file: Path, column: list[str]) -> np.ndarray[Any, Any]:
    """Integers if all are written so."""
    try:
        values = _floats(file, "label", column)
    except DataError:
        words = sorted(set(column))
        raise DataError(
            f"{file}: labels are words ({listed(words)}), expected numbers; write 0 for {words[0]!r}, 1 for the next "
            "and so on."
        ) from None
    whole = all(cell.lstrip("+-").isdecimal() and len(cell) < 10 for cell in column)
    return values.astype(np.int64) if whole else values


def _floats(file: Path, name: str, column: list[str]) -> np.ndarray[Any, Any]:
    try:
        return np.array([float(cell) for cell in column])
    except ValueError as error:
        raise DataError(f"{file}: {name} holds words ({error}), expected numbers; write them.") from None


def _features(file: Path, line: int, name: str, cell: str) -> np.ndarray[Any, Any] | None:
    if not cell:
        return None
    where = f"{file}, line {line}, {name}"
    if not cell.endswith(".npy") or "\0" in cell:
        raise DataError(
            f"{where}: is {cell[:80]!r}, expected the path of a .npy file, or nothing where it is absent; a column "
            "of words is called raw_text."
        )
    root, path = file.parent.resolve(), (file.parent / cell).resolve()
    if Path(cell).is_absolute() or not path.is_relative_to(root):
        raise DataError(
            f"{where}: {cell[:80]!r} leads out of {root}, expected a path inside it; copy the file there."
        )
    try:
        return open_npy(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{where}: {cell[:80]!r} does not exist, expected a .npy file; correct the path, or leave the cell empty "
            "where the modality is absent."
        ) from error
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise DataError(
            f"{where}: {cell[:80]!r} cannot be read ({error}), expected a plain .npy of numbers; save it with "
            "numpy.save and allow_pickle=False."
        ) from error
