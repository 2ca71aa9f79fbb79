"""MMSA pickles (`aligned_50.pkl`, `unaligned_50.pkl`): `{train, valid, test}` of arrays by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.dataset import DataError, Dataset, Split, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory, numbers
from ebmc_msa.data.formats.conversations import by_clip
from ebmc_msa.data.split_names import by_split, ignored
from ebmc_msa.data.task import SIMS, LabelOptions, Source, Target, decide, whole

_MODALITIES = ("text", "audio", "vision")
_OWN = {"text": "regression_labels_T", "audio": "regression_labels_A", "vision": "regression_labels_V"}
_OWN_CLASSES = {key.replace("regression", "classification") for key in _OWN.values()}
_OTHER = {
    "raw_text", "id", "text_bert", "annotations", "classification_labels", "regression_labels",
    "audio_lengths", "vision_lengths", *_OWN.values(), *_OWN_CLASSES,
}  # fmt: skip


def is_mmsa(content: Any) -> bool:
    """Fields that MulT's pickles, otherwise alike, do not have."""
    splits = content.values() if isinstance(content, dict) else []
    return any(isinstance(fields, dict) and (_OTHER - {"id"}) & fields.keys() for fields in splits)


def read_mmsa(
    content: dict[str, dict[str, Any]],
    name: str,
    *,
    labels: bool,
    options: LabelOptions,
    assemble: Assemble = in_memory,
) -> Dataset:
    parts, rest = by_split(name, content, dict)
    for part, fields in parts.items():
        _check_fields(f"{name}[{part!r}]", fields, labels)
    rest += sorted({str(key) for fields in parts.values() for key in fields if key not in (*_OTHER, *_MODALITIES)})
    target, own, note = _labels(name, parts, options)
    splits = {part: _split(f"{name}[{part!r}]", fields, assemble) for part, fields in parts.items()}
    conversations = by_clip({part: split.id for part, split in splits.items()}, "$_$") or {}
    splits = {
        part: replace(
            split,
            target=target.values.get(part),
            own=own.get(part, {}),
            conversation=conversations.get(part),
        )
        for part, split in splits.items()
    }
    return target.dataset(name, splits, f"MMSA layout{note}{ignored(rest)}")


def _labels(
    name: str, splits: dict[str, dict[str, Any]], options: LabelOptions
) -> tuple[Target, dict[str, dict[str, Tensor]], str]:
    """The labels of all splits, those of single modalities as CH-SIMS has them, and a note on both."""

    def held(key: str) -> dict[str, Any]:
        return {split: fields[key] for split, fields in splits.items() if key in fields}

    own = {modality: held(key) for modality, key in _OWN.items() if len(held(key)) == len(splits)}
    plain, source = replace(options, labels=None), Source(name, "regression_labels")
    if own:
        source = source._replace(range=SIMS, why="labels of each modality, as in CH-SIMS")
    chosen = options.choose(name, ("sentiment", *own)) if own else None
    values, classes = held("regression_labels"), held("classification_labels")
    expected = options.expected[0] if options.expected and options.task == "auto" else None
    classification = options.task == "classification" or expected == "classes"
    if classes and not (whole(values) if classification else options.task != "auto" or values):
        target = decide(Source(name, "classification_labels", stated="classes"), classes, options)
        return target, {}, ", classes from classification_labels"
    joint = decide(source, values, plain if own else options)
    if not own or joint.kind != "sentiment":
        return joint, {}, ""
    apart = {m: decide(source._replace(what=_OWN[m]), labels, plain) for m, labels in own.items()}
    correlations = {m: _correlation(found.values, joint.values) for m, found in apart.items()}
    note = "; labels of " + ", ".join(f"{m} (correlation with the label {r:.2f})" for m, r in correlations.items())
    note += f"; trained on the labels of {chosen}" if chosen in own else ""
    target = apart.get(chosen or "", joint)
    return target, {split: {m: found.values[split] for m, found in apart.items()} for split in splits}, note


def _correlation(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    x, y = (torch.cat([values[split] for split in a]).double() for values in (a, b))
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item() if len(x) == len(y) else float("nan")


def _check_fields(who: str, fields: dict[str, Any], labels: bool) -> None:
    labelled = "regression_labels" in fields or "classification_labels" in fields
    if not any(name in fields for name in _MODALITIES) or (labels and not labelled):
        raise DataError(
            f"{who}: holds {listed(fields)}, expected at least one of text, audio, vision"
            + (" and regression_labels" if labels else "")
            + "; add what is missing, or convert the file to the .npz layout of this example."
        )


def _split(who: str, fields: dict[str, Any], assemble: Assemble) -> Split:
    fields = dict(fields)
    names = [name for name in _MODALITIES if name in fields]
    for name in names:
        fields[name] = numbers(f"{who}[{name!r}]", fields[name])
    ids = scalars(who, "id", fields["id"] if fields.get("id") is not None else range(len(fields[names[0]])))
    features, lengths, present = {}, {}, {}
    text_lengths = _text_lengths(who, fields)
    for name in names:
        given = text_lengths if name == "text" else fields.get(f"{name}_lengths")
        x = fields[name]
        # files whose utterances are single vectors carry lengths of 1 that are not needed
        given = None if x.ndim == 2 else given
        features[name], length, present[name] = clean(
            f"{who}[{name!r}]", x, lengths=given, ids=ids, assemble=assemble
        )
        if length is not None:
            lengths[name] = length
    apart = [i.rsplit("$_$", 1) for i in ids]
    return Split(
        features,
        lengths,
        present,
        None,
        ids,
        [video for video, _ in apart] if all(len(parts) == 2 for parts in apart) else None,
        _words(who, fields, len(ids)),
    )


def _words(who: str, fields: dict[str, Any], rows: int) -> list[str] | Tensor | None:
    """What a text model can be fine-tuned on."""
    raw, bert = fields.get("raw_text"), fields.get("text_bert")
    if raw is not None and len(words := scalars(who, "raw_text", raw)) == rows:
        return words
    if bert is None:
        return None
    with np.errstate(invalid="ignore"):  # NaN is no token
        tokens = torch.from_numpy(numbers(f"{who}['text_bert']", bert).astype(np.int64))
    return tokens if tokens.ndim == 3 and tokens.shape[:2] == (rows, 3) else None


def _text_lengths(who: str, fields: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """Tokens of each row by BERT's mask: the states of [PAD] are not zero."""
    text, bert = fields.get("text"), fields.get("text_bert")
    if text is None or bert is None or text.ndim != 3 or text.shape[1] == 1:
        return None
    bert = numbers(f"{who}['text_bert']", bert)
    if bert.ndim != 3 or bert.shape[1] != 3 or bert.shape[::2] != text.shape[:2]:
        raise DataError(
            f"{who}: text_bert has shape {bert.shape} beside text {text.shape}, expected (N, 3, T) with "
            "the N and T of text; remove text_bert if text does not come from these tokens."
        )
    mask = bert[:, 1] != 0
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise DataError(
            f"{who}: the mask in text_bert[:, 1] has ones after zeros, expected the tokens first and padding "
            "after them; move the padding to the end."
        )
    return mask.sum(1)
