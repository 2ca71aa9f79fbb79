"""Our own layout, for any field and any number of modalities: one .npz without pickled objects.

`x_<modality>` (N, D), or (N, T, D) with `length_<modality>` (N,); `y` (integers: classes, floats:
regression; integers (N, C): C labels that hold, 1, or not, 0, named by `labels` (C,)); `split` (0 train,
1 valid, 2 test, or their names); optional `present_<modality>`, `id`, `task`, `range`, `group` (never split apart);
`conversation` with `order` (greater is later) and perhaps `speaker`, where rows are utterances of conversations.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.dataset import SPLITS, DataError, Dataset, Split, canonical, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory
from ebmc_msa.data.formats.conversations import numbered
from ebmc_msa.data.formats.npy import read_npy
from ebmc_msa.data.split_names import split_of, unknown_split
from ebmc_msa.data.task import TASKS, LabelOptions, Source, Target, decide

_PLAIN = ("y", "split", "id", "task", "group", "labels", "range", "conversation", "order", "speaker")
_MOST_UNPACKED = 2**28  # bytes, and 200 times the file: zeros compress well


def read_npz(path: Path, *, labels: bool, options: LabelOptions, assemble: Assemble = in_memory) -> Dataset:
    return read_fields(_fields(path), path, ".npz", labels=labels, options=options, assemble=assemble)


def is_fields(content: Any) -> bool:
    """`x_<modality>` beside `y`, `split` and the like, from whatever file."""
    return isinstance(content, dict) and any(isinstance(key, str) and key.startswith("x_") for key in content)


def read_fields(
    fields: dict[str, Any],
    path: Path,
    layout: str,
    *,
    labels: bool,
    options: LabelOptions,
    assemble: Assemble = in_memory,
) -> Dataset:
    """The data set of these arrays by field, which came from the file `path`."""
    names = [
        name for name in fields if name not in ("id", "group", "labels", "task", "split", "conversation", "speaker")
    ]
    fields = fields | {name: _array(path, name, fields[name]) for name in names}
    names = canonical(key[2:] for key in fields if key.startswith("x_"))
    _check_names(path, fields, names)
    rows = {key: np.shape(value)[:1] for key, value in fields.items() if key not in ("task", "labels", "range")}
    if len(set(rows.values())) > 1 or () in rows.values():
        counts = listed(f"{key} {shape[0] if shape else 'a scalar'}" for key, shape in rows.items())
        raise DataError(
            f"{path}: the fields differ in rows ({counts}), expected one row per utterance in each; "
            "write them from the same list of utterances."
        )
    target = _target(str(path), fields, labels, options)
    if "labels" in fields and (target.kind == "multilabel" or (target.kind == "classes" and target.values)):
        names_of_labels = _label_names(path, fields, target)
        target = target._replace(names=names_of_labels, classes=len(names_of_labels))
    split = _split(path, fields, len(fields[f"x_{names[0]}"]), labels)
    for name in names:
        if fields[f"x_{name}"].ndim == 3 and f"length_{name}" not in fields:
            raise DataError(
                f"{path}: x_{name} has shape {fields[f'x_{name}'].shape} and comes without length_{name}, "
                f"expected the valid frames of each row; add length_{name} of shape (N,), T everywhere if "
                "nothing is padded."
            )
    ids = scalars(str(path), "id", fields.get("id", range(len(split))))
    group = scalars(str(path), "group", fields["group"]) if "group" in fields else None
    # whether a split may be missing is decided for all layouts alike
    rows_of = {part: found for i, part in enumerate(SPLITS) if len(found := np.flatnonzero(split == i))}
    conversations = conversations_of(path, fields, rows_of)
    modalities: dict[str, dict[str, Any]] = {part: {} for part in rows_of}
    for name in names:
        x, lengths = fields.pop(f"x_{name}"), fields.get(f"length_{name}")
        present = _present(path, name, fields.get(f"present_{name}"))
        for part, rows in rows_of.items():
            modalities[part][name] = clean(
                f"{path}[{part!r}]: x_{name}",
                x if len(rows) == len(split) else x[rows],
                lengths=None if lengths is None else lengths[rows],
                present=None if present is None else present[rows],
                ids=[ids[i] for i in rows],
                assemble=assemble,
            )
        del x
    splits = {
        part: Split(
            {name: m.features for name, m in modalities[part].items()},
            {name: m.lengths for name, m in modalities[part].items() if m.lengths is not None},
            {name: m.present for name, m in modalities[part].items()},
            target.values[""][rows] if target.values else None,
            [ids[i] for i in rows],
            None if group is None else [group[i] for i in rows],
            conversation=conversations.get(part),
        )
        for part, rows in rows_of.items()
    }
    dataset = target.dataset(path.stem, splits, f"{layout} layout")
    return replace(dataset, conversational="conversation" in fields)


def _array(path: Path, name: str, values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{path}: {name} is no array ({error}), expected one of numbers; pad its rows.") from None


def _fields(path: Path) -> dict[str, Any]:
    """All arrays, of which only those with a known name are read."""
    try:
        with zipfile.ZipFile(path) as file:
            members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
            names = canonical(key[2:] for key in members if key.startswith("x_"))
            _check_names(path, members, names)
            unpacked = sum(info.file_size for info in members.values())
            if unpacked > _MOST_UNPACKED + 200 * path.stat().st_size:
                raise ValueError(f"it would unpack to {unpacked:,} bytes")
            if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members.values()):
                raise ValueError("it is compressed in a way that numpy does not write")
            fields = {}
            for key, info in members.items():
                with file.open(info) as member:
                    fields[key] = read_npy(member, info.file_size)
            return fields
    except DataError:
        raise
    except Exception as error:  # a corrupt zip can fail in any way; all of them mean the same to the user
        if path.suffix not in ("", ".npz"):
            raise DataError(
                f"{path}: cannot be read ({error}), expected a whole {path.suffix}; copy or download it again."
            ) from error
        raise DataError(
            f"{path}: cannot be read ({error}), expected a whole .npz of plain arrays; write it with "
            "numpy.savez and turn lists of unequal length or objects into padded arrays and strings."
        ) from error


def _check_names(path: Path, fields: Iterable[str], names: list[str]) -> None:
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


def _target(where: str, fields: dict[str, Any], labels: bool, options: LabelOptions) -> Target:
    """Kind and values of `y`, of all rows."""
    stated = str(fields["task"])[:40] if "task" in fields else None
    stated = TASKS.get(stated or "", stated)
    if stated is not None and stated not in TASKS.values():
        raise DataError(f"{where}: task is {stated!r}, expected one of {listed(TASKS)}; correct or remove it.")
    if labels and "y" not in fields:
        raise DataError(
            f"{where}: no field y, expected labels (integers: classes, floats: regression); add y, or use "
            "the file for prediction only."
        )
    scale = _range(where, fields["range"]) if "range" in fields else None
    source = Source(where, "y", sentiment=False, integers=True, range=scale, stated=stated)  # type: ignore[arg-type]
    return decide(source, {"": fields["y"]} if "y" in fields else {}, options)


def _range(where: str, values: Any) -> tuple[float, float]:
    try:
        low, high = np.asarray(values, np.float64).ravel().tolist()
        return LabelOptions(range=(low, high)).range  # type: ignore[return-value]
    except (ValueError, TypeError) as problem:
        raise DataError(
            f"{where}: range is {short(values)}, expected two numbers, the lowest and the highest sentiment; correct "
            "it."
        ) from problem


def _label_names(path: Path, fields: dict[str, Any], target: Target) -> tuple[str, ...]:
    """Of columns, as many as there are; of classes at least as many, since some may not occur."""
    names, columns = tuple(scalars(str(path), "labels", fields["labels"])), target.kind == "multilabel"
    if len(set(names)) != len(names) or len(names) < target.classes or (columns and len(names) > target.classes):
        raise DataError(
            f"{path}: labels names {listed(names)}, expected {target.classes} names, one per "
            + ("column of y; correct it." if columns else "class of y, that of 0 first; correct it.")
        )
    return names


def _split(path: Path, fields: dict[str, Any], rows: int, labels: bool) -> np.ndarray[Any, Any]:
    if "split" in fields:
        split = fields["split"]
    elif not labels:  # prediction: every row is to be predicted
        split = np.full(rows, 2)
    else:
        raise DataError(f"{path}: no field split, expected 0 (train), 1 (valid) or 2 (test) for each row; add it.")
    split = np.asarray(split)
    if split.ndim == 1 and split.dtype.kind in "US":
        split = _split_of_names(path, split)
    if split.ndim != 1 or split.dtype.kind not in "iu" or not np.isin(split, (0, 1, 2)).all():
        raise DataError(
            f"{path}: split has shape {split.shape}, dtype {split.dtype} and values "
            f"{listed(np.unique(split))}, expected integers (N,), 0 (train), 1 (valid) or 2 (test); recode "
            "it."
        )
    return split


def conversations_of(path: Path, fields: dict[str, Any], rows_of: dict[str, Any]) -> dict[str, Conversation]:
    given = [key for key in ("conversation", "order", "speaker") if key in fields]
    if given and not {"conversation", "order"} <= set(given):
        lacks = " and ".join(key for key in ("conversation", "order") if key not in given)
        raise DataError(
            f"{path}: has {' and '.join(given)} without {lacks}, expected conversation and order together; "
            f"add {lacks}."
        )
    if not given:
        return {}
    if fields["order"].ndim != 1 or fields["order"].dtype.kind not in "fiu":
        raise DataError(
            f"{path}: order has shape {fields['order'].shape} and dtype {fields['order'].dtype}, expected numbers "
            "(N,), greater for later utterances; recode it."
        )
    texts = {key: np.array(_names(path, key, fields[key])) for key in given if key != "order"}

    def by_split(values: np.ndarray[Any, Any]) -> dict[str, list[Any]]:
        return {split: values[rows].tolist() for split, rows in rows_of.items()}

    speakers = by_split(texts["speaker"]) if "speaker" in texts else None
    return numbered(str(path), by_split(texts["conversation"]), by_split(fields["order"]), speakers)


def _names(path: Path, key: str, values: Any) -> list[str]:
    """As text; "" where a table of numbers has NaN for no name."""
    texts = scalars(str(path), key, values)
    return ["" if text == "nan" else text for text in texts] if np.asarray(values).dtype.kind == "f" else texts


def _split_of_names(path: Path, names: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    texts = scalars(str(path), "split", names)
    for name in dict.fromkeys(texts):
        if split_of(name) is None:
            raise unknown_split(str(path), name, texts.count(name))
    return np.array([SPLITS.index(split_of(name)) for name in texts])  # type: ignore[arg-type]


def _present(path: Path, name: str, values: Any) -> Any:
    if values is not None and not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{path}: present_{name} holds {listed(np.unique(values))}, expected booleans; write True where "
            "the modality was recorded."
        )
    return values
