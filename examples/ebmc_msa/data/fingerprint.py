"""Whether data are still the data that a run began with."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ebmc_msa.data import Dataset

ROWS = 256


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of kind, sizes, ids, labels, presence and lengths, and of the features of 256 rows a split.

    Not of all features: those may be larger than memory, and this is read before every resumed run.
    """
    digest = hashlib.sha256(f"{dataset.kind} {dataset.classes} {dataset.dims}".encode())
    for part, split in dataset.splits.items():
        digest.update(f"{part} {len(split)} {split.id}".encode())
        rows = torch.linspace(0, len(split) - 1, min(ROWS, len(split))).long()
        for tensors in (split.present, split.lengths, {k: v[rows] for k, v in split.features.items()}):
            for name, x in tensors.items():
                _add(digest, name, x)
        if split.target is not None:
            _add(digest, "target", split.target)
        for name, x in zip(("conversation", "order", "speaker"), split.conversation or (), strict=False):
            if x is not None:
                _add(digest, name, x)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, x: Tensor) -> None:
    digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
    digest.update(x.contiguous().numpy().tobytes())
