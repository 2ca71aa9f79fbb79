"""Our own layout as a folder, what `convert.py` writes: one .npy per array, mapped instead of read.

`manifest.json` holds name, kind and labels, and of each array shape, dtype and SHA-256; the folders `train`, `valid`
and `test` hold `x_<modality>.npy`, `length_<modality>.npy`, `present_<modality>.npy`, `y.npy`, `id.npy`, `group.npy`,
`conversation.npy`, `order.npy`, `speaker.npy`.
All is clean already. Names, sizes and headers are checked whenever it is read, and the content of every file up to
64 MB; that of larger ones by `verify`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.dataset import SPLITS, DataError, Dataset, Split, listed
from ebmc_msa.data.formats.clean import row_blocks
from ebmc_msa.data.formats.npy import open_npy, read_header

MANIFEST = "manifest.json"
_VERSION = 1
_ALWAYS_VERIFIED = 2**26  # bytes
_FIELD = re.compile(r"(?:(x|length|present)_([\w-]+)|y|id|group|conversation|order|speaker)")
_CONVERSATION = ("conversation", "order", "speaker")
_KINDS = ("sentiment", "classes", "multilabel", "regression", None)


def is_folder(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def read_folder(path: Path) -> Dataset:
    """The data set, its features mapped.

    Raises:
        DataError: a file is missing, or is not what the manifest states.
    """
    manifest = _manifest(path)
    splits = {name: _split(path / name, manifest["folds"][name]) for name in SPLITS if name in manifest["folds"]}
    kind, labels = manifest["kind"], tuple(manifest["labels"])
    for name, split in splits.items():
        y, width = split.target, (manifest["classes"],) if kind == "multilabel" else ()
        if y is not None and (y.shape[1:] != width or (y.dtype == torch.int64) != (kind == "classes")):
            raise DataError(
                f"{path / name}: y has shape {tuple(y.shape)} and dtype {y.dtype}, expected labels for {kind}; "
                "convert the source again."
            )
        if kind == "classes" and y is not None and len(y) and y.max() >= manifest["classes"]:
            raise DataError(
                f"{path / name}: y has class {int(y.max())}, expected {manifest['classes']} classes; "
                "convert the source again."
            )
    scale = tuple(manifest["range"]) if manifest.get("range") else None
    return Dataset(
        manifest["name"],
        kind,
        manifest["classes"],
        splits,
        manifest["note"],
        labels,
        conversational=manifest.get("conversational") is True,
        range=scale,
    )


def verify(path: Path) -> int:
    """Bytes read while comparing the content of every file with the manifest.

    Raises:
        DataError: a file differs.
    """
    total = 0
    for split, fields in _manifest(path)["folds"].items():
        for field, entry in fields.items():
            file = path / split / f"{field}.npy"
            _open(file, entry)
            _check_content(file, entry)
            total += file.stat().st_size
    return total


def write_folder(dataset: Dataset, path: Path) -> None:
    """Write a clean data set into the folder `path`, which exists, row block by row block."""
    splits = {}
    for part, split in dataset.splits.items():
        (path / part).mkdir()
        arrays: dict[str, np.ndarray[Any, Any] | Tensor] = {}
        for name in split.features:
            if not re.fullmatch(r"[\w-]+", name):
                raise DataError(
                    f"convert: a modality is named {name!r}, expected letters, digits, - and _, since it names a "
                    "file; rename it in the source."
                )
            arrays[f"x_{name}"], arrays[f"present_{name}"] = split.features[name], split.present[name]
            if name in split.lengths:
                arrays[f"length_{name}"] = split.lengths[name]
        if split.target is not None:
            arrays["y"] = split.target
        if split.conversation is not None:
            parts = zip(_CONVERSATION, split.conversation, strict=True)
            arrays |= {field: x for field, x in parts if x is not None}
        for field, names in (("id", split.id), ("group", split.group)):
            if names is not None:
                arrays[field] = _strings(field, names)
        splits[part] = {field: _write(path / part / f"{field}.npy", x) for field, x in arrays.items()}
    manifest = {
        "version": _VERSION,
        "name": dataset.name,
        "kind": dataset.kind,
        "classes": dataset.classes,
        "labels": dataset.labels,
        "conversational": dataset.conversational,
        "range": dataset.range,
        "note": dataset.note,
        "folds": splits,
    }
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def on_disk(folder: Path) -> Any:
    """An `assemble` for `load` that keeps features in an unnamed file in `folder`."""

    def assemble(shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterator[np.ndarray[Any, Any]]) -> Tensor:
        with tempfile.TemporaryFile(dir=folder) as file:
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
            file.flush()
            return torch.from_numpy(
                np.memmap(file, dtype, "c", shape=shape) if 0 not in shape else np.empty(shape, dtype)
            )

    return assemble


def _strings(field: str, names: list[str]) -> np.ndarray[Any, Any]:
    longest = max(map(len, names), default=0)
    if longest > 1000 or any("\0" in name for name in names):
        raise DataError(
            f"convert: {field} holds a name of {longest} characters or with a NUL, expected at most "
            "1000 and none; shorten it."
        )
    return np.array(names, f"U{max(longest, 1)}")


def _write(file: Path, x: np.ndarray[Any, Any] | Tensor) -> dict[str, Any]:
    dtype = x.dtype if isinstance(x, np.ndarray) else x[:0].numpy().dtype
    digest = hashlib.sha256()
    with file.open("xb") as out:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(x.shape)}
        np.lib.format.write_array_header_1_0(out, header)
        for rows in row_blocks(x):
            out.write(np.ascontiguousarray(x[rows]).data)
    with file.open("rb") as written:
        while block := written.read(2**24):
            digest.update(block)
    return {"shape": list(x.shape), "dtype": dtype.str, "sha256": digest.hexdigest()}


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        with file.open("rb") as opened:
            text = opened.read(2**22 + 1)
        if len(text) > 2**22:
            raise ValueError("it is larger than 4 MB")
        manifest = json.loads(text.decode("utf-8"))
        if manifest["version"] != _VERSION:
            raise ValueError(f"version {str(manifest['version'])[:20]}, expected {_VERSION}")
        _check_manifest(manifest)
        return manifest  # type: ignore[no-any-return]
    except Exception as error:  # whatever JSON can be instead of a manifest
        raise DataError(
            f"{file}: cannot be read ({type(error).__name__}: {str(error)[:200]}), expected the manifest that "
            "convert.py wrote; convert the source again."
        ) from error


def _check_manifest(manifest: dict[str, Any]) -> None:
    texts = [manifest["name"], manifest["note"], *manifest["labels"]]
    splits, kind, classes = manifest["folds"], manifest["kind"], manifest["classes"]
    if not all(isinstance(text, str) for text in texts) or kind not in _KINDS or type(classes) is not int:
        raise ValueError("name, note, labels, kind or classes are not what they should be")
    if (scale := manifest.get("range")) is not None:
        low, high = scale
        if not all(type(n) in (int, float) for n in scale) or not -1e9 < low < high < 1e9:
            raise ValueError(f"range {str(scale)[:40]}")
    named = {"multilabel": (classes,), "classes": (0, classes)}.get(kind, (0,))
    if len(manifest["labels"]) not in named or not 0 <= classes < 2**31:
        raise ValueError(f"{len(manifest['labels'])} labels and {classes} classes for {kind}")
    if not splits or not set(splits) <= set(SPLITS):
        raise ValueError(f"splits {listed(splits)}")
    for fields in splits.values():
        matches = {field: _FIELD.fullmatch(field) for field in fields}
        if not all(matches.values()):
            raise ValueError(f"fields {listed(field for field, match in matches.items() if not match)}")
        if "id" not in fields:
            raise ValueError("no field id")
        names = {match[2] for match in matches.values() if match and match[2]}
        if len({"conversation", "order"} & set(fields)) == 1 or ("speaker" in fields and "order" not in fields):
            raise ValueError(f"fields {listed(fields)}: conversation and order stand together")
        if not names or not {f"{part}_{name}" for part in ("x", "present") for name in names} <= set(fields):
            raise ValueError(f"fields {listed(fields)}: each modality needs x and present")
        for field, entry in fields.items():
            shape, dtype, digest = entry["shape"], entry["dtype"], entry["sha256"]
            if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 3):
                raise ValueError(f"{field} has no shape")
            if not isinstance(digest, str) or not _fits(field, dtype, len(shape), f"length_{field[2:]}" in fields):
                raise ValueError(f"{field} has {len(shape)} axes of {dtype!s:.20}")


def _fits(field: str, dtype: Any, axes: int, sequence: bool) -> bool:
    if field.startswith("x_"):
        return dtype in ("<f4", "<f2") and axes == 2 + sequence
    if field == "y":
        return (dtype in ("<f4", "<i8") and axes == 1) or (dtype == "<f4" and axes == 2)
    if field in ("id", "group"):
        return isinstance(dtype, str) and bool(re.fullmatch(r"<U\d{1,4}", dtype)) and axes == 1
    integers = field.startswith("length_") or field in _CONVERSATION
    return dtype == ("<i8" if integers else "|b1") and axes == 1


def _split(folder: Path, fields: dict[str, Any]) -> Split:
    arrays = {field: _open(folder / f"{field}.npy", entry) for field, entry in fields.items()}
    for field, entry in fields.items():
        file = folder / f"{field}.npy"
        if file.stat().st_size <= _ALWAYS_VERIFIED:
            _check_content(file, entry)
    parts: dict[str, dict[str, Tensor]] = {"x": {}, "length": {}, "present": {}}
    for field, x in arrays.items():
        part, _, name = field.partition("_")
        if name:
            parts[part][name] = torch.from_numpy(x)
    if len({len(x) for x in arrays.values()}) > 1:
        raise DataError(f"{folder}: the fields differ in rows, expected one per utterance; convert the source again.")
    for name, lengths in parts["length"].items():
        frames = parts["x"][name].shape[1]
        if ((lengths < 0) | (lengths > frames) | ((lengths > 0) != parts["present"][name])).any():
            raise DataError(
                f"{folder}: lengths of {name} do not fit its {frames} frames and where it is present; "
                "convert the source again."
            )
    return Split(
        parts["x"],
        parts["length"],
        parts["present"],
        torch.from_numpy(arrays["y"]) if "y" in arrays else None,
        arrays["id"].tolist(),
        arrays["group"].tolist() if "group" in arrays else None,
        conversation=Conversation(
            *(torch.from_numpy(arrays[field]) if field in arrays else None for field in _CONVERSATION)
        )
        if "conversation" in arrays
        else None,
    )


def _open(file: Path, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The array: features mapped, copied on write, since torch has no read-only tensors; the others in memory."""
    try:
        with file.open("rb") as opened:
            header = read_header(opened, file.stat().st_size)
        if list(header.shape) != entry["shape"] or header.dtype.str != entry["dtype"] or header.fortran:
            raise ValueError(f"it has shape {header.shape} and dtype {header.dtype.str}")
        if not file.name.startswith("x_") or 0 in header.shape:
            return open_npy(file)
        return np.memmap(file, header.dtype, "c", header.start, header.shape)
    except Exception as error:
        raise DataError(
            f"{file}: cannot be read ({str(error)[:200]}), expected shape {tuple(entry['shape'])} and dtype "
            f"{entry['dtype']} as in {MANIFEST}; convert the source again."
        ) from error


def _check_content(file: Path, entry: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**24):
            digest.update(block)
    if digest.hexdigest() != entry["sha256"]:
        raise DataError(
            f"{file}: its content differs from what was written (SHA-256 {digest.hexdigest()[:12]}…, expected "
            f"{entry['sha256'][:12]}…); convert the source again."
        )
