"""Text read by a BERT from a local folder, fine-tuned with everything else.

Needs `transformers` (pip install modbalance[bert]), imported only when it is asked for. Nothing is ever downloaded.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ebmc_msa.data import DataError, Dataset, Split, canonical
from modbalance import masked_mean

TEXT = "text"
_EXPECTED = "a folder with config.json, weights and a tokenizer as save_pretrained writes them"


def describe(folder: Path) -> dict[str, str]:
    """What a checkpoint keeps of the folder: configuration and tokenizer, both as JSON.

    Raises:
        DataError: `transformers` is not installed, or the folder holds no text model.
    """
    from_local = {"local_files_only": True, "trust_remote_code": False}
    hf = _transformers()
    if not (folder / "config.json").is_file():
        raise DataError(f"--finetune-text: {folder} has no config.json, expected {_EXPECTED}; name one on this disk.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise DataError(f"--finetune-text: {folder} has no tokenizer, expected {_EXPECTED}; save it there too.")
    try:
        config = hf.AutoConfig.from_pretrained(folder, **from_local)
        length, states = config.max_position_embeddings, config.hidden_size
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, **from_local)
        cut = min(tokenizer.model_max_length, length)
        tokenizer = tokenizer.backend_tokenizer
        tokenizer.enable_truncation(cut)
        tokenizer.no_padding()
    except Exception as problem:  # whatever stands in a folder that is none
        raise _unreadable(folder, problem) from problem
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
    splits = {fold: _tokens(f"--finetune-text: {dataset.name}[{fold!r}]", split, model) for fold, split in
              dataset.splits.items()}  # fmt: skip
    return replace(dataset, splits=splits, text=model)


class TextEncoder(nn.Module):
    """Token ids `(B, T, 1)` with lengths `(B,)` to `(B, dim)`.

    The mean of the last hidden states over all tokens of the utterance, [CLS] and [SEP] among them, and a small
    perceptron. Weights are random until `load`.
    """

    def __init__(self, model: dict[str, str], dim: int, *, dropout: float) -> None:
        super().__init__()
        hf, config = _transformers(), json.loads(model["config"])
        config = hf.AutoConfig.for_model(config.pop("model_type"), **config)
        self.bert = _without_pooler(hf.AutoModel.from_config(config))
        self.body = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(config.hidden_size, dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(dim, dim),
        )

    def load(self, folder: Path) -> None:
        """Take the weights of the folder."""
        hf = _transformers()
        level = hf.logging.get_verbosity()
        hf.logging.set_verbosity_error()  # of heads that nobody needs here
        hf.logging.disable_progress_bar()
        try:
            bert, found = hf.AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as problem:
            raise _unreadable(folder, problem) from problem
        finally:
            hf.logging.set_verbosity(level)
        missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise DataError(
                f"--finetune-text: {folder} lacks {len(missing)} weights (first: {missing[0]}), expected "
                f"{_EXPECTED}; complete it."
            )
        self.bert.load_state_dict(_without_pooler(bert).float().state_dict())

    def standardise(self, blocks: object) -> None:
        """Nothing: ids have no scale."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        ids = torch.where(valid, x[..., 0], 0).long()
        # An empty utterance attends to its first token, which nobody reads: a softmax over nothing is NaN.
        keys = valid | (torch.arange(x.shape[1], device=x.device) == 0)
        states = self.bert(input_ids=ids, attention_mask=keys.long()).last_hidden_state
        return self.body(masked_mean(states, valid, dim=1))


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """For an optimizer: all parameters, and apart, with a learning rate of their own, those of a BERT."""
    bert = {p for module in model.modules() if isinstance(module, TextEncoder) for p in module.bert.parameters()}
    rest = [p for p in model.parameters() if p not in bert]
    return [{"params": rest}, *([{"params": [p for p in model.parameters() if p in bert], "lr": lr}] if bert else [])]


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


def _without_pooler(bert: Any) -> Any:
    if hasattr(bert, "pooler"):
        bert.pooler = None
    return bert


def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported: nothing asks the hub
    try:
        import transformers
    except ImportError as problem:
        raise DataError(
            "--finetune-text: transformers is not installed, expected it for a BERT; pip install 'modbalance[bert]'."
        ) from problem
    return transformers


def _unreadable(folder: Path, problem: Exception) -> DataError:
    told = str(problem).strip().splitlines() or [""]
    return DataError(
        f"--finetune-text: {folder} cannot be read ({type(problem).__name__}: {told[0][:200]}), expected "
        f"{_EXPECTED}; save it again."
    )
