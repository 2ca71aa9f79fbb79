"""When balancing helps and when it harms: the parts of EnergyCoordinator, one by one, on many cases.

python examples/coordinator_map.py --data FOLDER --out map          development folds; goes on where it was stopped
python examples/coordinator_map.py --data FOLDER --out map --test   test folds, once everything is settled

FOLDER holds mfeat/mfeat.npz, ravdess/ravdess.npz, iemocap, mosi and mosi_overfit_vision; what is missing is left out.
All arms and seeds of a case train at once, as one batch of models: tests compare it with EnergyCoordinator.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # steps this small gain nothing from more

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ebmc_msa.data import DataError, load
from ebmc_msa.paired import interval
from modbalance.functional import gate_weights

NOISES = ("0", "1 weak", "3 weak", "1 strong", "3 strong", "1 both", "3 both")  # in standard deviations
FEW = ("0", "3 weak", "3 strong", "1 both")
# Views from weak to strong. The rule was found on the cases of the first group; the second was run once, afterwards.
TUNING = {
    **{"zer+kar": NOISES, "fou+fac": NOISES, "zer+fou+fac": FEW, "ravdess": "0", "mosi_overfit_vision": "0"},
    **{"synthetic 0": "0", "synthetic 0.5": "0", "synthetic 1": "0"},  # 0: balanced, 1: one modality knows everything
}
CONFIRMATION = {
    **{"mor+pix": NOISES, "fou+kar": NOISES, "mor+kar+pix": FEW, "iemocap": "0", "mosi": "0"},
    **{"synthetic 0.25": "0", "synthetic 0.75": "0"},
}
WIDTH, BATCH, OBSERVED, SCORED = 64, 64, 1, 2


class Case(NamedTuple):
    data: str
    noise: str
    optimizer: str  # sgd or adam


class Arm(NamedTuple):
    """Weights of the parts of the coordinator; all 0 is joint training."""

    descent: float = 1.0
    alpha: float = 0.0
    delta: float = 0.0
    pull: float = 0.0
    paper: float = 0.0
    gate: float = 0.0  # 1: with `observe`


class Folds(NamedTuple):
    x: dict[str, Tensor]
    y: Tensor
    split: Tensor  # 0 train, OBSERVED, SCORED, 3 unused


# Every combination of the parts that the default could have been made of, and the default.
ARMS = {
    "joint": Arm(descent=0.0),
    "unimodal losses": Arm(),
    "+ alpha": Arm(alpha=0.1),
    "+ penalty": Arm(delta=0.1),
    "+ pull": Arm(pull=1.0),
    "+ all three": Arm(alpha=0.1, delta=0.1, pull=1.0),
    "paper's gap": Arm(alpha=0.1, delta=0.1, paper=1.0),
}


def cases(names: dict[str, Sequence[str]]) -> list[Case]:
    return [Case(*case) for name, noises in names.items() for case in product([name], noises, ("sgd", "adam"))]


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Features by modality, classes, split (0 train, 1 validation, 2 test) and group of each sample."""
    if "+" in name or name == "ravdess":
        content = np.load(folder / ("mfeat/mfeat.npz" if "+" in name else "ravdess/ravdess.npz"))
        views = name.split("+") if "+" in name else [key[2:] for key in content.files if key.startswith("x_")]
        y, split, group = (torch.tensor(content[key]).long() for key in ("y", "split", "group"))
        return {view: torch.tensor(content[f"x_{view}"]).float() for view in views}, y, split, group
    splits = [load(folder / name).splits[fold] for fold in ("train", "valid", "test")]
    x = {m: torch.cat([_pooled(s.features[m].float(), s.lengths.get(m)) for s in splits]) for m in splits[0].features}
    y = torch.cat([s.target if s.target.dtype == torch.int64 else (s.target >= 0).long() for s in splits])
    groups = [group for s in splits for group in s.group or s.id]
    group = torch.tensor(np.unique(groups, return_inverse=True)[1])
    return x, y, torch.cat([torch.full((len(s),), fold) for fold, s in enumerate(splits)]), group


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


def folds(folder: Path, case: Case, test: bool) -> Folds:
    """Standardised, noisy features. Without `test` the test fold is left alone and the others are cut anew."""
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
    return Folds(x, y, split)


def developed(split: Tensor, group: Tensor, recut: bool) -> Tensor:
    """Three folds without the test fold, by whole groups: all cut anew, or the validation fold in two."""
    old = split < 2 if recut else split == 1
    groups = group[old].unique()
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(12345))]
    shares = (4 / 7, 5 / 7) if recut else (0, 1 / 2)
    new = torch.where(split == 0, 0, 3) if not recut else torch.full_like(split, 3)
    for fold, part in enumerate(groups.tensor_split([int(share * len(groups)) for share in shares])):
        new[torch.isin(group, part) & old] = fold
    return new


class Batched:
    """Encoders of 128-128-64 for each modality, a linear head on them side by side, and a probe on each.

    One copy for every arm and seed, `R` in all; all that was drawn from a seed is the same for every arm.
    """

    def __init__(self, x: dict[str, Tensor], classes: int, arms: int, seeds: Sequence[int]) -> None:
        drawn = []
        for seed in seeds:
            torch.manual_seed(seed)
            sizes = [pair for v in x.values() for pair in ((v.shape[1], 128), (128, 128), (128, WIDTH))]
            sizes += [(WIDTH * len(x), classes)] + [(WIDTH, classes)] * len(x)
            drawn.append([nn.Linear(*pair) for pair in sizes])
        stacked = [
            (torch.stack([x.weight.T for x in same]), torch.stack([x.bias[None] for x in same]))
            for same in zip(*drawn, strict=True)
        ]
        self.layers = [
            tuple(p.detach().repeat(arms, 1, 1).requires_grad_() for p in pair) for pair in stacked
        ]  # [(R, in, out), (R, 1, out)]
        self.x, self.arms = list(x.values()), arms
        self.head, self.probes = self.layers[3 * len(x)], self.layers[3 * len(x) + 1 :]

    def parameters(self) -> list[Tensor]:
        return [p for pair in self.layers for p in pair]

    def encode(self, rows: Tensor) -> Tensor:
        """Features `(M, R, B, WIDTH)` of rows `(seeds, B)`."""
        features = []
        for m, x in enumerate(self.x):
            z = x[rows].repeat(self.arms, 1, 1)
            for weight, bias in self.layers[3 * m : 3 * m + 3]:
                z = torch.baddbmm(bias, z, weight).relu()
            features.append(z)
        return torch.stack(features)

    def outputs(self, z: Tensor) -> Tensor:
        return torch.baddbmm(self.head[1], torch.cat(z.unbind(), 2), self.head[0])

    def probe(self) -> tuple[Tensor, Tensor]:
        weights, biases = zip(*self.probes, strict=True)
        return torch.stack(weights), torch.stack(biases)


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean over rows; target one-hot."""
    return (outputs.logsumexp(-1) - (outputs * target).sum(-1)).mean(-1)


def coordination(models: Batched, z: Tensor, target: Tensor, arms: dict[str, Tensor], gate: Tensor) -> Tensor:
    """The coordinator's loss, summed over models: `z (M, R, B, D)`, one-hot `target (R, B, C)`, `gate (M, R)`."""
    weight, bias = models.probe()
    trains = (arms["paper"] > 0).to(z)[None, :, None, None]  # the paper's text has every term train the heads
    fixed = [p.detach() + trains * (p - p.detach()) for p in (weight, bias)]
    outputs = z @ fixed[0] + fixed[1]
    loss = cross_entropy(outputs, target)
    slope = (outputs.softmax(-1) - target) @ fixed[0].transpose(-1, -2)
    gradient = (2 * arms["alpha"] / WIDTH)[None, :, None, None] * z + slope
    energy = loss + arms["alpha"] * z.square().mean((-1, -2))
    terms = arms["descent"] * energy + arms["delta"] * gradient.square().sum(-1).mean(-1)
    terms = terms + arms["pull"] * (loss - loss.detach().amin(0)).square() / len(z)
    pairs = (energy[:, None] - energy[None]).square().sum((0, 1)) / (len(z) * (len(z) - 1))
    fit = cross_entropy(z.detach() @ weight + bias, target)
    return (gate * terms + fit).sum() + (arms["paper"] * pairs).sum()


def train(data: Folds, arms: Sequence[Arm], seeds: Sequence[int], optimizer: str, epochs: int = 20) -> np.ndarray:
    """Which of the scored rows each arm gets right after the last epoch, `(arms, seeds, rows)`."""
    classes = int(data.y.max()) + 1
    models, hot = Batched(data.x, classes, len(arms), seeds), one_hot(data.y, classes).float()
    columns = {f: torch.tensor([getattr(a, f) for a in arms]).repeat_interleave(len(seeds)) for f in Arm._fields}
    steps = (
        torch.optim.SGD(models.parameters(), lr=0.01, momentum=0.9, fused=True)
        if optimizer == "sgd"
        else torch.optim.Adam(models.parameters(), lr=1e-3, fused=True)
    )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows, observed, scored = ((data.split == fold).nonzero()[:, 0] for fold in (0, OBSERVED, SCORED))
    gate, reference = torch.ones(len(data.x), len(columns["gate"])), torch.full((1,), torch.inf)
    for _ in range(epochs):
        order = torch.stack([rows[torch.randperm(len(rows), generator=g)] for g in generators])
        for batch in order.split(BATCH, 1):
            z, target = models.encode(batch), hot[batch].repeat(len(arms), 1, 1)
            loss = cross_entropy(models.outputs(z), target).sum() + coordination(models, z, target, columns, gate)
            steps.zero_grad()
            loss.backward()
            steps.step()
        with torch.no_grad():
            weight, bias = models.probe()
            held_out = cross_entropy(models.encode(observed.expand(len(seeds), -1)) @ weight + bias, hot[observed])
            moved, reference = gate_weights(held_out, reference.expand_as(held_out), gate)
            gate = torch.where(columns["gate"] > 0, moved, gate)
    with torch.no_grad():
        answers = models.outputs(models.encode(scored.expand(len(seeds), -1))).argmax(-1)
    return (answers == data.y[scored]).view(len(arms), len(seeds), -1).numpy()
