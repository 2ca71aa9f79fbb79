"""Finite values that no feature has, such as 1e30: found before training, with utterance, modality and column."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ebmc_msa.data.dataset import DataError, Dataset, Split, counted
from ebmc_msa.data.formats.clean import row_blocks
from ebmc_msa.data.frames import frame_mask

REFUSED = 1e6  # times the 90th percentile of |x| of the column in the first split
REPORTED = 1e3
LARGEST = 1e15  # of any value: squares and their sums still fit float32
_SAMPLE = 2**20  # numbers that the percentiles are taken from


def outliers(dataset: Dataset) -> Iterator[str]:
    """Findings about columns with a value of more than `REPORTED` times their 90th percentile.

    Raises:
        DataError: a value is beyond `LARGEST` or `REFUSED` times the 90th percentile.
    """
    first = next(iter(dataset.splits.values()))
    for name in first.features:
        usual = _usual(first, name)
        worst = torch.zeros(())
        for part, split in dataset.splits.items():
            peak = _peak(split.features[name])
            if (peak > (REFUSED * usual).clamp(max=LARGEST)).any():
                raise _error(f"{dataset.name}[{part!r}]", split, name, usual)
            worst = torch.maximum(worst, peak / usual)
        if (worst > REPORTED).any():
            column = int(worst.argmax())
            yield (
                f"{name}: {counted(int((worst > REPORTED).sum()), 'column')} with outliers (column {column} reaches "
                f"{worst[column]:.1e} times its 90th percentile)"
            )


def _usual(split: Split, name: str) -> Tensor:
    """90th percentile of |x| by column over valid frames, of the largest column where it is 0."""
    x, here = split.features[name], split.present[name].nonzero()[:, 0]
    frames = x.shape[1] if x.ndim == 3 else 1
    most = max(1, _SAMPLE // (frames * x.shape[-1]))
    rows = here[:: max(1, -(-len(here) // most))]
    seen = x[rows].float()
    if name in split.lengths:
        seen = seen[frame_mask(frames, split.lengths[name][rows])]
    found = seen.abs().quantile(0.9, 0, interpolation="lower") if len(seen) else torch.zeros(x.shape[-1])
    return torch.where(found > 0, found, found.max() if found.max() > 0 else torch.ones(()))


def _peak(x: Tensor) -> Tensor:
    """Largest |x| by column, `(D,)`; padding is zero."""
    peak = torch.zeros(x.shape[-1])
    for rows in row_blocks(x):
        block = x[rows].flatten(0, -2)
        peak = torch.maximum(peak, torch.maximum(block.amax(0), -block.amin(0)).float())
    return peak


def _error(where: str, split: Split, name: str, usual: Tensor) -> DataError:
    limit = (REFUSED * usual).clamp(max=LARGEST)
    for rows in row_blocks(split.features[name]):
        beyond = (split.features[name][rows].float().abs() > limit).nonzero()
        if len(beyond):
            row, column = int(beyond[0, 0]) + rows.start, int(beyond[0, -1])
            value = split.features[name][row, ..., column].float().abs().max().item()
            return DataError(
                f"{where}: {name} of {split.id[row]} reaches {value:.3g} in column {column}, where the 90th "
                f"percentile is {usual[column].item():.3g}, expected at most {limit[column].item():.3g}; correct "
                "the value, or mark the modality as absent there."
            )
    raise AssertionError
