"""A BERT from a local folder as the encoder of text, fine-tuned with the rest; `data/tokens.py` makes its input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebmc_msa.data import DataError
from ebmc_msa.data.frames import frame_mask
from ebmc_msa.data.tokens import EXPECTED, import_transformers, unreadable
from modbalance import masked_mean


class TextEncoder(nn.Module):
    """Token ids `(B, T, 1)` with lengths `(B,)` to `(B, dim)`.

    The mean of the last hidden states over all tokens of the utterance, [CLS] and [SEP] among them, and a small
    perceptron. Weights are random until `load`.
    """

    def __init__(self, model: dict[str, str], dim: int, *, dropout: float) -> None:
        super().__init__()
        hf, config = import_transformers(), json.loads(model["config"])
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
        hf = import_transformers()
        level = hf.logging.get_verbosity()
        hf.logging.set_verbosity_error()  # it warns of heads that are not used here
        hf.logging.disable_progress_bar()
        try:
            bert, found = hf.AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as problem:
            raise unreadable(folder, problem) from problem
        finally:
            hf.logging.set_verbosity(level)
        missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise DataError(
                f"--finetune-text: {folder} lacks {len(missing)} weights (first: {missing[0]}), expected "
                f"{EXPECTED}; complete it."
            )
        self.bert.load_state_dict(_without_pooler(bert).float().state_dict())

    def standardise(self, blocks: object) -> None:
        """Nothing: ids have no scale."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = frame_mask(x.shape[1], lengths)
        ids = torch.where(valid, x[..., 0], 0).long()
        # An empty utterance attends to its first token, whose output is masked: a softmax over nothing is NaN.
        keys = valid | (torch.arange(x.shape[1], device=x.device) == 0)
        states = self.bert(input_ids=ids, attention_mask=keys.long()).last_hidden_state
        return self.body(masked_mean(states, valid, dim=1))


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """For an optimizer: all parameters, and apart, with a learning rate of their own, those of a BERT."""
    bert = {p for module in model.modules() if isinstance(module, TextEncoder) for p in module.bert.parameters()}
    rest = [p for p in model.parameters() if p not in bert]
    return [{"params": rest}, *([{"params": [p for p in model.parameters() if p in bert], "lr": lr}] if bert else [])]


def _without_pooler(bert: Any) -> Any:
    if hasattr(bert, "pooler"):
        bert.pooler = None
    return bert
