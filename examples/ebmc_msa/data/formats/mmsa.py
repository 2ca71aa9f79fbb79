"""MMSA pickles (`aligned_50.pkl`, `unaligned_50.pkl`): `{train, valid, test}` of arrays by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data.dataset import FOLDS, DataError, Dataset, Split, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory, numbers
from ebmc_msa.data.formats.conversations import by_clip
from ebmc_msa.data.formats.labels import sentiment

_MODALITIES = ("text", "audio", "vision")
_OTHER = {
    "raw_text", "id", "text_bert", "annotations", "classification_labels", "regression_labels",
    "audio_lengths", "vision_lengths",
}  # fmt: skip


def is_mmsa(content: Any) -> bool:
    """Fields that MulT's pickles, otherwise alike, do not have."""
    folds = [content.get(fold) for fold in FOLDS] if isinstance(content, dict) else []
    return any(isinstance(fields, dict) and (_OTHER - {"id"}) & fields.keys() for fields in folds)


def read_mmsa(
    content: dict[str, dict[str, Any]], name: str, *, labels: bool, assemble: Assemble = in_memory
) -> Dataset:
    folds = [content[fold] for fold in FOLDS if isinstance(content.get(fold), dict)]
    ignored = {key for fields in folds for key in fields} - _OTHER - set(_MODALITIES)
    ignored |= set(content) - set(FOLDS)
    splits = {fold: _fold(f"{name}[{fold!r}]", content[fold], labels, assemble) for fold in FOLDS if fold in content}
    conversations = by_clip({fold: split.id for fold, split in splits.items()}, "$_$") or {}
    splits = {fold: replace(split, conversation=conversations.get(fold)) for fold, split in splits.items()}
    note = "MMSA layout" + (f"; ignored {listed(sorted(map(str, ignored)))}" if ignored else "")
    return Dataset(name=name, kind="sentiment", classes=1, splits=splits, note=note)


def _fold(who: str, fields: Any, labels: bool, assemble: Assemble) -> Split:
    fields = dict(fields) if isinstance(fields, dict) else {}
    names = [name for name in _MODALITIES if name in fields]
    if not names or (labels and "regression_labels" not in fields):
        raise DataError(
            f"{who}: holds {listed(fields)}, expected at least one of text, audio, vision"
            + (" and regression_labels" if labels else "")
            + "; add what is missing, or convert the file to the .npz layout of this example."
        )
    for name in names:
        fields[name] = numbers(f"{who}[{name!r}]", fields[name])
    ids = scalars(who, "id", fields["id"] if fields.get("id") is not None else range(len(fields[names[0]])))
    features, lengths, present = {}, {}, {}
    text_lengths = _text_lengths(who, fields)
    for name in names:
        given = text_lengths if name == "text" else fields.get(f"{name}_lengths")
        x = fields[name]
        # files whose utterances are single vectors carry lengths of 1 nobody needs
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
        sentiment(who, "regression_labels", fields["regression_labels"]) if "regression_labels" in fields else None,
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
