"""The public folder of MOSI as bc-LSTM read it: CSV files of features, a binary label in the last column.

`transcripts.csv` (column 0: `video_clip`), `text_{train,test}.csv` (column 0: row of transcripts.csv), and for each
modality `<m>/<m>_{train,test}0.csv`, whose rows are those of `text_{train,test}.csv`. There is no validation split.
"""

from __future__ import annotations

import csv
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError, Dataset, Split, canonical, counted, listed
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory
from ebmc_msa.data.formats.conversations import by_clip
from ebmc_msa.data.formats.gcnet import modality_of
from ebmc_msa.data.task import LabelOptions, Source, decide

_SPLITS = ("train", "test")


def is_bclstm(folder: Path) -> bool:
    return (folder / "transcripts.csv").is_file() and any((folder / f"text_{f}.csv").is_file() for f in _SPLITS)


def read_bclstm(folder: Path, *, labels: bool, options: LabelOptions, assemble: Assemble = in_memory) -> Dataset:
    names = _first_column(folder / "transcripts.csv")
    sources = {modality_of(d.name): d for d in sorted(folder.iterdir()) if (d / f"{d.name}_train0.csv").is_file()}
    if not sources:
        raise DataError(
            f"{folder}: no features, expected text/text_train0.csv and the like beside transcripts.csv; add them."
        )
    splits, values = {}, {}
    for part in _SPLITS:
        index = folder / f"text_{part}.csv"
        rows = _first_column(index)
        unknown = [row for row in rows if not (row.isdecimal() and len(row) < 10 and int(row) < len(names))]
        if unknown:
            raise DataError(
                f"{index}: column 0 holds {listed(unknown)}, expected rows of transcripts.csv, 0 to "
                f"{len(names) - 1}; use the two files of one download."
            )
        ids = [names[int(row)] for row in rows]
        modalities, target = {}, None
        for name in canonical(sources):
            file = sources[name] / f"{sources[name].name}_{part}0.csv"
            table = _table(file)
            if len(table) != len(ids) or table.shape[1] < 2:
                raise DataError(
                    f"{file}: has {len(table)} rows of {table.shape[1]} numbers, expected {len(ids)} as in "
                    f"{index.name}, features and a label each; use the files of one download."
                )
            if target is not None and not np.array_equal(target, table[:, -1]):
                raise DataError(
                    f"{file}: its labels, in the last column, differ from those of the other modalities, expected "
                    "the same utterances in the same order; use the files of one download."
                )
            target = table[:, -1]
            modalities[name] = clean(str(file), table[:, :-1], ids=ids, assemble=assemble)
        if labels and not np.isin(target, (0, 1)).all():
            raise DataError(f"{folder}: labels of {part} are not all 0 or 1, expected 0 or 1 last; recode them.")
        if np.isin(target, (0, 1)).all():
            values[part] = target.astype(np.int64)
        splits[part] = Split(
            {name: m.features for name, m in modalities.items()},
            {},
            {name: m.present for name, m in modalities.items()},
            None,
            ids,
            [i.rpartition("_")[0] or i for i in ids],
        )
    name = folder.resolve().name
    found = decide(Source(name, "labels", stated="classes"), values, options)
    conversations = by_clip({part: split.id for part, split in splits.items()}, "_") or {}
    splits = {
        part: replace(split, target=found.values.get(part), conversation=conversations.get(part))
        for part, split in splits.items()
    }
    left = len(names) - len({i for split in splits.values() for i in split.id})
    note = "bc-LSTM layout: 0 negative, 1 positive"
    note += f"; {counted(left, 'utterance')} of no split left out" if left > 0 else ""
    if found.kind == "classes":
        found = found._replace(classes=2, names=("negative", "positive"))
    return replace(found.dataset(name, splits, note), conversational=bool(conversations))


def _first_column(file: Path) -> list[str]:
    try:
        with file.open(newline="", encoding="utf-8", errors="replace") as opened:
            return [row[0].strip() for row in csv.reader(opened) if row]
    except (OSError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}), expected a CSV file; download it again.") from error


def _table(file: Path) -> np.ndarray[Any, Any]:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # an empty file is reported below
            return np.loadtxt(file, np.float32, comments=None, delimiter=",", ndmin=2, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}), expected a CSV file of numbers without a header; download it again."
        ) from error
