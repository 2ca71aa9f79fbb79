"""Our own layout, for any field and any number of modalities: one .npz without pickled objects.

`x_<modality>` (N, D), or (N, T, D) with `length_<modality>` (N,); `y` (integers: classes, floats:
regression); `split` (0 train, 1 valid, 2 test); optional `present_<modality>`, `id`, `task`, `group`.
"""

from __future__ import annotations

import zipfile
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .clean import clean
from .dataset import FOLDS, DataError, Dataset, Kind, Split, canonical, listed

_PLAIN = ("y", "split", "id", "task", "group")
_TASKS = ("sentiment", "classes", "regression")


def read_npz(path: Path, *, labels: bool) -> Dataset:
    fields = _fields(path)
    names = canonical(key[2:] for key in fields if key.startswith("x_"))
    _check_names(path, fields, names)
    rows = {key: np.shape(value)[:1] for key, value in fields.items() if key != "task"}
    if len(set(rows.values())) > 1:
        counts = listed(f"{key} {shape[0] if shape else 'a scalar'}" for key, shape in rows.items())
        raise DataError(
            f"{path}: the fields differ in rows ({counts}), expected one row per utterance in each; "
            "write them from the same list of utterances."
        )
    kind, classes, target = _target(path, fields, labels)
    split = _split(path, fields, len(fields[f"x_{names[0]}"]), labels)
    for name in names:
        if fields[f"x_{name}"].ndim == 3 and f"length_{name}" not in fields:
            raise DataError(
                f"{path}: x_{name} has shape {fields[f'x_{name}'].shape} and comes without length_{name}, "
                f"expected the valid frames of each row; add length_{name} of shape (N,), T everywhere if "
                "nothing is padded."
            )
    ids = [str(i) for i in fields.get("id", range(len(split)))]
    modalities = {
        name: clean(
            f"{path}: x_{name}",
            fields.pop(f"x_{name}"),
            lengths=fields.get(f"length_{name}"),
            present=_present(path, name, fields.get(f"present_{name}")),
            ids=ids,
        )
        for name in names
    }
    splits = {}
    for number, fold in enumerate(FOLDS):
        rows_of_fold = torch.from_numpy(np.flatnonzero(split == number))
        if len(rows_of_fold) == 0:
            continue  # whether a fold may be missing is decided for all layouts alike
        splits[fold] = Split(
            {name: m.features[rows_of_fold] for name, m in modalities.items()},
            {name: m.lengths[rows_of_fold] for name, m in modalities.items() if m.lengths is not None},
            {name: m.present[rows_of_fold] for name, m in modalities.items()},
            None if target is None else target[rows_of_fold],
            [ids[i] for i in rows_of_fold],
            [str(fields["group"][i]) for i in rows_of_fold] if "group" in fields else None,
        )
    return Dataset(path.stem, kind, classes, splits, ".npz layout")


def _fields(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), expected a whole .npz of plain arrays; write it with "
            "numpy.savez and turn lists of unequal length or objects into padded arrays and strings."
        ) from error


def _check_names(path: Path, fields: dict[str, Any], names: list[str]) -> None:
    if not names:
        raise DataError(
            f"{path}: holds {listed(fields)}, expected at least one x_<modality>; name the features x_text, "
            "x_audio, …"
        )
    known = [*_PLAIN, *(f"{part}_{name}" for name in names for part in ("x", "length", "present"))]
    for key in fields:
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise DataError(
                f"{path}: unknown field {key!r}, expected {listed(known, 20)}; "
                + (f"rename it to {near[0]!r}, or remove it." if near else "rename or remove it.")
            )


def _target(path: Path, fields: dict[str, Any], labels: bool) -> tuple[Kind | None, int, Tensor | None]:
    task = str(fields["task"]) if "task" in fields else None
    if task is not None and task not in _TASKS:
        raise DataError(f"{path}: task is {task!r}, expected one of {listed(_TASKS)}; correct or remove it.")
    if "y" not in fields:
        if labels:
            raise DataError(
                f"{path}: no field y, expected labels (integers: classes, floats: regression); add y, or use "
                "the file for prediction only."
            )
        return task, 0 if task == "classes" else 1, None  # type: ignore[return-value]
    y = fields["y"]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "fiub":
        raise DataError(
            f"{path}: y has shape {y.shape} and dtype {y.dtype}, expected numbers (N,); write one label per "
            "row, classes as integers."
        )
    integers = y.dtype.kind in "iub"
    if task == "classes" and not integers:
        raise DataError(
            f"{path}: y has dtype {y.dtype} for task 'classes', expected integers; cast y, or set task to "
            "'regression'."
        )
    if integers and task in (None, "classes"):
        return "classes", int(y.max(initial=0)) + 1, torch.from_numpy(y.astype(np.int64))
    return task or "regression", 1, torch.from_numpy(y.astype(np.float32))  # type: ignore[return-value]


def _split(path: Path, fields: dict[str, Any], rows: int, labels: bool) -> np.ndarray[Any, Any]:
    if "split" in fields:
        split = fields["split"]
    elif not labels:  # prediction: every row is to be predicted
        split = np.full(rows, 2)
    else:
        raise DataError(f"{path}: no field split, expected 0 (train), 1 (valid) or 2 (test) for each row; add it.")
    if split.ndim != 1 or split.dtype.kind not in "iu" or not np.isin(split, (0, 1, 2)).all():
        raise DataError(
            f"{path}: split has shape {split.shape}, dtype {split.dtype} and values "
            f"{listed(np.unique(split))}, expected integers (N,), 0 (train), 1 (valid) or 2 (test); recode "
            "it."
        )
    return split


def _present(path: Path, name: str, values: Any) -> Any:
    if values is not None and not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{path}: present_{name} holds {listed(np.unique(values))}, expected booleans; write True where "
            "the modality was recorded."
        )
    return values
