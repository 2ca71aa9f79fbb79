"""The cases of coordinator_map.py: data sets with noise, cut into splits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmc_msa.data import load

NOISES = ("0", "1 weak", "3 weak", "1 strong", "3 strong", "1 both", "3 both")  # in standard deviations
FEW = ("0", "3 weak", "3 strong", "1 both")
# Views from weak to strong. The rule was found on the cases of the first group; the second was run once, afterwards.
# Synthetic sets go from 0, both modalities know as much, to 1, one knows nothing.
TUNING = dict.fromkeys(["zer+kar", "fou+fac"], NOISES) | {"zer+fou+fac": FEW}
TUNING |= dict.fromkeys(["ravdess", "mosi_overfit_vision", "synthetic 0", "synthetic 0.5", "synthetic 1"], NOISES[:1])
CONFIRMATION = dict.fromkeys(["mor+pix", "fou+kar"], NOISES) | {"mor+kar+pix": FEW}
CONFIRMATION |= dict.fromkeys(["iemocap", "mosi", "synthetic 0.25", "synthetic 0.75"], NOISES[:1])
OBSERVED, SCORED = 1, 2  # splits, after 0 of training


class Case(NamedTuple):
    data: str
    noise: str
    optimizer: str  # sgd or adam


class SplitData(NamedTuple):
    x: dict[str, Tensor]
    y: Tensor
    split: Tensor  # 0 train, OBSERVED, SCORED, 3 unused


def cases(names: dict[str, Sequence[str]]) -> list[Case]:
    return [Case(*case) for name, noises in names.items() for case in product([name], noises, ("sgd", "adam"))]


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Features by modality, classes, split (0 train, 1 validation, 2 test) and group of each sample."""
    if "+" in name or name == "ravdess":
        content = np.load(folder / ("mfeat/mfeat.npz" if "+" in name else "ravdess/ravdess.npz"))
        views = name.split("+") if "+" in name else [key[2:] for key in content.files if key.startswith("x_")]
        y, split, group = (torch.tensor(content[key]).long() for key in ("y", "split", "group"))
        return {view: torch.tensor(content[f"x_{view}"]).float() for view in views}, y, split, group
    splits = [load(folder / name).splits[part] for part in ("train", "valid", "test")]
    x = {m: torch.cat([_pooled(s.features[m].float(), s.lengths.get(m)) for s in splits]) for m in splits[0].features}
    y = torch.cat([s.target if s.target.dtype == torch.int64 else (s.target >= 0).long() for s in splits])
    groups = [group for s in splits for group in s.group or s.id]
    group = torch.tensor(np.unique(groups, return_inverse=True)[1])
    return x, y, torch.cat([torch.full((len(s),), part) for part, s in enumerate(splits)]), group


def _pooled(x: Tensor, lengths: Tensor | None) -> Tensor:
    if x.dim() == 2:
        return x
    frames = torch.arange(x.shape[1]) < lengths[:, None]
    return (x * frames[..., None]).sum(1) / lengths.clamp(min=1)[:, None]


def synthetic(imbalance: float, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Six classes in two modalities of 30 Gaussian features; the weak one has `1 - imbalance` of the signal."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(6, (2000,), generator=generator)
    split = torch.tensor([0] * 800 + [OBSERVED] * 200 + [SCORED] * 1000)
    signal = {"weak": 0.5 * (1 - imbalance), "strong": 0.5}
    x = {}
    for name, size in signal.items():
        x[name] = size * torch.randn(6, 30, generator=generator)[y] + torch.randn(2000, 30, generator=generator)
    return x, y, split


def split_data(folder: Path, case: Case, test: bool) -> SplitData:
    """Standardised, noisy features. Without `test` the test split is left alone and the others are cut anew."""
    if case.data.startswith("synthetic"):
        x, y, split = synthetic(float(case.data.split()[1]), seed=8 if test else 7)
    else:
        x, y, split, group = read(folder, case.data)
        if not test:
            recut = "+" in case.data or case.data == "ravdess"
            split = developed(split, torch.arange(len(y)) if "+" in case.data else group, recut)
    train, (size, _, where) = split == 0, case.noise.partition(" ")
    for place, (name, z) in enumerate(x.items()):
        z = ((z - z[train].mean(0)) / z[train].std(0).clamp(min=1e-6)).clamp(-20, 20)
        if where == "both" or (where, place) in (("weak", 0), ("strong", len(x) - 1)):
            z = z + float(size) * torch.randn(z.shape, generator=torch.Generator().manual_seed(place))
        x[name] = z
    return SplitData(x, y, split)


def developed(split: Tensor, group: Tensor, recut: bool) -> Tensor:
    """Three splits without the test split, by whole groups: all cut anew, or the validation split in two."""
    old = split < 2 if recut else split == 1
    groups = group[old].unique()
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(12345))]
    shares = (4 / 7, 5 / 7) if recut else (0, 1 / 2)
    new = torch.where(split == 0, 0, 3) if not recut else torch.full_like(split, 3)
    for index, part in enumerate(groups.tensor_split([int(share * len(groups)) for share in shares])):
        new[torch.isin(group, part) & old] = index
    return new
