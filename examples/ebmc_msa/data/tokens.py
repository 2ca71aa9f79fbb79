"""Token ids of a text model in a local folder, from utterances as written or from MMSA's `text_bert`.

Needs `transformers` (pip install modbalance[bert]), imported only when it is used. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ebmc_msa.data import DataError, Dataset, Split, canonical

TEXT = "text"
EXPECTED = "a folder with config.json, weights and a tokenizer as save_pretrained writes them"


def describe(folder: Path) -> dict[str, str]:
    """What a checkpoint keeps of the folder: configuration and tokenizer, both as JSON.

    Raises:
        DataError: `transformers` is not installed, or the folder holds no text model.
    """
    from_local = {"local_files_only": True, "trust_remote_code": False}
    hf = import_transformers()
    if not (folder / "config.json").is_file():
        raise DataError(f"--finetune-text: {folder} has no config.json, expected {EXPECTED}; name one on this disk.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise DataError(f"--finetune-text: {folder} has no tokenizer, expected {EXPECTED}; save it there too.")
    try:
        config = hf.AutoConfig.from_pretrained(folder, **from_local)
        length, states = config.max_position_embeddings, config.hidden_size
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, **from_local)
        cut = min(tokenizer.model_max_length, length)
        tokenizer = tokenizer.backend_tokenizer
        tokenizer.enable_truncation(cut)
        tokenizer.no_padding()
    except Exception as problem:  # whatever stands in a folder that is none
        raise unreadable(folder, problem) from problem
    if not states or tokenizer.get_vocab_size() < 2 or tokenizer.get_vocab_size() > config.vocab_size:
        raise DataError(
            f"--finetune-text: {folder} has a tokenizer of {tokenizer.get_vocab_size()} words for a model of "
            f"{config.vocab_size}, expected one made for the other; put both from one source into the folder."
        )
    return {"config": config.to_json_string(use_diff=False), "tokenizer": tokenizer.to_str()}


def tokenised(dataset: Dataset, model: dict[str, str]) -> Dataset:
    """The data set with token ids `(N, T, 1)` for text: of the utterances as written, or MMSA's `text_bert`.

    Raises:
        DataError: the data have neither, or ids that the model does not know.
    """
    splits = {name: _tokens(f"--finetune-text: {dataset.name}[{name!r}]", split, model) for name, split in
              dataset.splits.items()}  # fmt: skip
    return replace(dataset, splits=splits, text=model)


def _tokens(who: str, split: Split, model: dict[str, str]) -> Split:
    if isinstance(split.words, Tensor):
        ids, length = _of_text_bert(who, split.words, json.loads(model["config"])["vocab_size"])
    elif split.words is not None:
        ids, length = _of_words(split.words, model["tokenizer"])
    else:
        raise DataError(
            f"{who} has neither raw_text nor text_bert, expected the utterances as written, or their tokens; pass "
            "a file that holds them, such as MMSA's."
        )
    present = (length > 0) & split.present.get(TEXT, torch.tensor(True))
    length = torch.where(present, length, 0)
    names = canonical({**split.features, TEXT: None})
    return replace(
        split,
        features={name: ids[..., None] if name == TEXT else split.features[name] for name in names},
        lengths=split.lengths | {TEXT: length},
        present={name: present if name == TEXT else split.present[name] for name in names},
    )


def _of_words(words: list[str], tokenizer: str) -> tuple[Tensor, Tensor]:
    """Padded ids and lengths; 0 for an utterance without a word."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(tokenizer).encode_batch(words)
    rows = [torch.tensor(one.ids if text.strip() else []) for one, text in zip(found, words, strict=True)]
    return pad_sequence([row.long() for row in rows], batch_first=True), torch.tensor([len(row) for row in rows])


def _of_text_bert(who: str, x: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Of ids, mask and segments `(N, 3, T)`; one utterance is one segment."""
    ids, mask, segments = x.long().unbind(1)
    valid = mask != 0
    if (valid[:, 1:] & ~valid[:, :-1]).any() or segments[valid].any():
        raise DataError(
            f"{who}: text_bert has padding before tokens or more than one segment, expected tokens first and "
            "segments of 0; write it as MMSA does."
        )
    if len(ids) and (ids[valid].amin() < 0 or ids[valid].amax() >= vocabulary):
        raise DataError(
            f"{who}: text_bert has ids from {ids[valid].amin()} to {ids[valid].amax()}, expected 0 to "
            f"{vocabulary - 1}; pass the model whose tokenizer made them."
        )
    return ids, valid.sum(1)


def import_transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported: nothing asks the hub
    try:
        import transformers
    except ImportError as problem:
        raise DataError(
            "--finetune-text: transformers is not installed, expected it for a BERT; pip install 'modbalance[bert]'."
        ) from problem
    return transformers


def unreadable(folder: Path, problem: Exception) -> DataError:
    first = str(problem).strip().splitlines() or [""]
    return DataError(
        f"--finetune-text: {folder} cannot be read ({type(problem).__name__}: {first[0][:200]}), expected "
        f"{EXPECTED}; save it again."
    )
