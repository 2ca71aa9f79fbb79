"""GCNet folders: a pickle of conversations and labels beside `features/<name>/<utterance>.npy`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError, Dataset, Split, canonical, counted, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory
from ebmc_msa.data.formats.conversations import numbered
from ebmc_msa.data.formats.emotions import iemocap
from ebmc_msa.data.formats.npy import open_npy
from ebmc_msa.data.task import LabelOptions, Source, decide

# What people call their feature folders. The longest word wins, so that hubert is not read as bert.
_WORDS = {
    "text": "text minilm bert roberta deberta albert electra glove word2vec sentence gpt llama mpnet t5",
    "audio": "audio acoustic opensmile egemaps compare mfcc wav2vec hubert wavlm covarep whisper vggish clap "
    "data2vec-audio librosa",
    "vision": "vision visual video c3d i3d manet facet openface clip resnet fabnet densenet senet vggface "
    "videomae effnet efficientnet dinov2",
}


def is_gcnet(content: Any) -> bool:
    return (
        isinstance(content, (list, tuple))
        and len(content) in (6, 7)
        and isinstance(content[0], dict)
        and all(isinstance(utterances, (list, tuple)) for utterances in content[0].values())
        and all(isinstance(part, (list, tuple, set, frozenset)) for part in content[4:])
    )


def read_gcnet(
    content: Any, path: Path, *, labels: bool, options: LabelOptions, assemble: Assemble = in_memory
) -> Dataset:
    """`videoIDs, labels, speakers, sentences, train[, valid], test`; IEMOCAP has no validation split."""
    utterances, values, speakers, _, *parts = content
    utterances = {video: scalars(f"{path}: {video}", "the first entry", names) for video, names in utterances.items()}
    parts = [scalars(str(path), f"entry {i}", members) for i, members in enumerate(parts, 5)]
    utterances = dict(zip(scalars(str(path), "the first entry", utterances), utterances.values(), strict=True))
    videos = dict(zip(("train", "valid", "test") if len(parts) == 3 else ("train", "test"), parts, strict=True))
    for split, members in videos.items():
        unknown = sorted(v for v in members if v not in utterances)
        if unknown:
            raise DataError(
                f"{path}: split {split!r} names {listed(unknown)}, expected videos of the first entry; "
                "add their utterances or take them out of the split."
            )
    numbers = _labels(path, utterances, values, labels)
    folders = _folders(path.parent / "features")

    rows = {
        split: [(video, u) for video in sorted(members) for u in utterances[video]]
        for split, members in videos.items()
    }
    ids = [u for split in rows.values() for _, u in split]
    values = {split: [numbers[pair] for pair in pairs] for split, pairs in rows.items() if numbers}
    target = decide(Source(path.resolve().parent.name, "labels"), values, options)
    modalities = {}
    for name in canonical(folders):
        x, present = _read(folders[name], ids)
        modalities[name] = clean(f"{folders[name]}, {name}", x, present=present, ids=ids, assemble=assemble)

    spoken = _speakers(utterances, speakers)
    conversations = numbered(
        str(path),
        {split: [video for video, _ in pairs] for split, pairs in rows.items()},
        {split: range(len(pairs)) for split, pairs in rows.items()},
        spoken and {split: [spoken[pair] for pair in pairs] for split, pairs in rows.items()},
    )
    splits, start = {}, 0
    for split, pairs in rows.items():
        part = slice(start, start := start + len(pairs))
        splits[split] = Split(
            {name: m.features[part] for name, m in modalities.items()},
            {},
            {name: m.present[part] for name, m in modalities.items()},
            target.values.get(split),
            [u for _, u in pairs],
            [video for video, _ in pairs],
            conversation=conversations[split],
        )
    used = ", ".join(f"{name} from {folders[name].name}" for name in canonical(folders))
    left = sum(map(len, utterances.values())) - len(ids)
    note = f"GCNet layout: {used}" + (f"; {counted(left, 'utterance')} of no split left out" if left > 0 else "")
    if target.kind == "classes":
        target = target._replace(names=iemocap(utterances, target.classes))
    return replace(target.dataset(path.resolve().parent.name, splits, note), conversational=True)


def _labels(path: Path, utterances: Any, values: Any, labels: bool) -> dict[tuple[str, str], Any]:
    """By video and utterance; empty without labels."""
    values = values if isinstance(values, dict) else {}
    if not values and not labels:
        return {}
    found = dict(zip(scalars(str(path), "the second entry", values), map(_flat, values.values()), strict=True))
    for video, names in utterances.items():
        if len(found.get(video, ())) != len(names):
            raise DataError(
                f"{path}: {video} has {len(found.get(video, ()))} labels for {len(names)} utterances, "
                "expected one each; correct the second entry of the pickle."
            )
    flat = {
        (video, name): label
        for video, names in utterances.items()
        for name, label in zip(names, found[video], strict=True)
    }
    if not all(isinstance(label, (int, float)) and not abs(label) >= 2**31 for label in flat.values()):
        raise DataError(
            f"{path}: labels are not all numbers, expected integers for classes, floats for sentiment; "
            "recode the second entry of the pickle."
        )
    return flat


def _speakers(utterances: dict[str, list[str]], speakers: Any) -> dict[tuple[str, str], str] | None:
    """By video and utterance; None where the file lacks them."""
    found = {str(video): names for video, names in speakers.items()} if isinstance(speakers, dict) else {}
    if any(len(found.get(video, ())) != len(names) for video, names in utterances.items()):
        return None
    return {
        (video, name): str(speaker)
        for video, names in utterances.items()
        for name, speaker in zip(names, found[video], strict=True)
    }


def _flat(values: Any) -> list[Any]:
    """Labels of one video, integers and floats apart, however they are nested."""
    try:
        labels = np.asarray(values, None if isinstance(values, np.ndarray) else object).ravel().tolist()
    except ValueError:  # ragged
        return []
    return [
        label.item() if isinstance(label, (np.generic, np.ndarray)) and label.size == 1 else label for label in labels
    ]


def _folders(root: Path) -> dict[str, Path]:
    """Feature folder by modality."""
    found: dict[str, Path] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        name = modality_of(folder.name)
        if name in found:
            raise DataError(
                f"{root}: {found[name].name} and {folder.name} both hold {name}, expected one folder per "
                f"modality; move the one you do not want (for example {folder.name}) out of {root.name}/."
            )
        found[name] = folder
    if not found:
        raise DataError(
            f"{root}: no feature folder, expected {root.name}/<name>/<utterance>.npy beside the pickle; "
            "put the extracted features there."
        )
    return found


def modality_of(folder: str) -> str:
    """`minilm-UTT` is text; a name without a known word stays a modality of its own."""
    hits = [(len(word), name) for name, words in _WORDS.items() for word in words.split() if word in folder.lower()]
    return max(hits)[1] if hits else folder


def _read(folder: Path, utterances: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features (N, D), zero where there is no file, and which rows have one."""
    vectors = [_vector(folder / f"{utterance}.npy") for utterance in utterances]
    present = np.array([vector is not None for vector in vectors], bool)
    sizes = {len(vector): i for i, vector in reversed(list(enumerate(vectors))) if vector is not None}
    if len(sizes) > 1:
        (d, i), (other, j) = sorted(sizes.items())[:2]
        raise DataError(
            f"{folder}: {utterances[i]}.npy has {d} features and {utterances[j]}.npy {other}, expected the "
            "same everywhere; extract them again with one extractor."
        )
    if not sizes:
        raise DataError(
            f"{folder}: holds no file for any of {len(utterances)} utterances, expected names like "
            f"{listed([f'{u}.npy' for u in utterances], 2)}; rename the files, or move the folder away to do "
            "without it."
        )
    x = np.zeros((len(utterances), next(iter(sizes))), np.float32)
    for row, vector in enumerate(vectors):
        if vector is not None:
            x[row] = vector
    return x, present


def _vector(file: Path) -> np.ndarray[Any, Any] | None:
    """One utterance; frames become their mean, no file or no frame means absent."""
    try:
        x = open_npy(file)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}), expected a plain .npy of numbers; save it again with "
            "numpy.save and allow_pickle=False."
        ) from error
    if x.ndim not in (1, 2) or x.shape[-1] == 0 or x.dtype.kind not in "fiub":
        raise DataError(
            f"{file}: has shape {x.shape} and dtype {x.dtype}, expected numbers "
            "(D,) or (frames, D); save one utterance per file."
        )
    if x.ndim == 1:
        return x
    return np.where(np.isinf(x), 0, x).mean(0, dtype=np.float64) if len(x) else None
