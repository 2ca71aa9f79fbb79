"""The data sets of `compare_balancers.py`: two modalities each, one number a feature and utterance."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modbalance.tasks import Task, task_loss

DATA = {  # the weak modality first
    "digits": ("mfeat/mfeat.npz", ("fou", "fac")),
    "ravdess": ("ravdess/ravdess.npz", ("audio", "vision")),
    "mosi": ("mosi", ("audio", "text")),
    "iemocap": ("iemocap", ("audio", "text")),
}
CONDITIONS = ("clean", "weak noisy", "strong noisy")
NOISE = 3.0


class Views(NamedTuple):
    """Standardised features by modality, target, and the rows of train, validation and test."""

    x: dict[str, Tensor]
    y: Tensor
    rows: tuple[Tensor, Tensor, Tensor]
    task: Task
    neutral: float = 0.0  # the standardised target of a neutral sentiment

    @property
    def num_outputs(self) -> int:
        return int(self.y.max()) + 1 if self.task == "classification" else 1

    def correct(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """By sample: the class, or the sign of a sentiment; NaN where that is neutral."""
        y = self.y[rows]
        if self.task == "classification":
            return (outputs.argmax(-1) == y).float()
        hit = ((outputs[:, 0] > self.neutral) == (y > self.neutral)).float()
        return torch.where((y - self.neutral).abs() < 1e-4, torch.nan, hit)

    def quality(self, outputs: Tensor, rows: Tensor) -> float:
        """What rates and states are chosen by: accuracy, ties by the loss, or minus the mean absolute error."""
        if self.task == "classification":
            loss = task_loss(self.task, outputs, self.y[rows]).mean().item()
            return self.correct(outputs, rows).mean().item() - 1e-6 * loss
        return -(outputs[:, 0] - self.y[rows]).abs().mean().item()


@lru_cache(maxsize=12)
def load(folder: Path, data: str, condition: str) -> Views:
    file, names = DATA[data]
    if file.endswith(".npz"):
        content = np.load(folder / file)
        raw = {name: torch.tensor(content[f"x_{name}"]) for name in names}
        y, split = torch.tensor(content["y"]), torch.tensor(content["split"])
    else:
        raw, y, split = utterances(folder / file, names)
    rows = tuple((split == part).nonzero()[:, 0] for part in range(3))
    x = {}
    for place, (name, values) in enumerate(raw.items()):
        scale = values[rows[0]].std(0)
        x[name] = (values - values[rows[0]].mean(0)) / torch.where(scale > 1e-6, scale, 1.0)
        if condition == CONDITIONS[1 + place]:
            x[name] = x[name] + NOISE * torch.randn(x[name].shape, generator=torch.Generator().manual_seed(place))
    if not y.is_floating_point():
        return Views(x, y, rows, "classification")
    mean, scale = y[rows[0]].mean(), y[rows[0]].std()
    return Views(x, (y - mean) / scale, rows, "regression", float(-mean / scale))


def utterances(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The example pipeline's reader; sequences averaged over their valid frames."""
    from ebmc_msa.data import load as read

    splits = read(path).splits
    found, parts = [], ("train", "valid", "test")
    for split in (splits[part] for part in parts):
        pooled = {}
        for name in names:
            values, lengths = split.features[name].float(), split.lengths.get(name)
            if lengths is not None:
                valid = torch.arange(values.shape[1]) < lengths[:, None]
                values = (values * valid[..., None]).sum(1) / lengths.clamp(min=1)[:, None]
            pooled[name] = values
        found.append((pooled, split.target))
    x = {name: torch.cat([pooled[name] for pooled, _ in found]) for name in names}
    sizes = torch.tensor([len(target) for _, target in found])
    return x, torch.cat([target for _, target in found]), torch.arange(3).repeat_interleave(sizes)
