"""The plot of weights.md: one weight of `EnergyCoordinator` at a time, on the digits of examples/quickstart.py.

python docs/sweep.py [FOLDER]      writes coordinator-sweep.png and .csv, by default into docs/assets; two minutes

Scores are those of the validation images: the test images were not looked at.
"""

import csv
import sys
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from modbalance import EnergyCoordinator
from modbalance.diagnostics import probe_outputs, task_score

VALUES = {
    "weight": (0, 0.1, 0.3, 1, 3, 10),
    "alpha": (0, 0.01, 0.1, 1, 10),
    "delta": (0, 0.01, 0.1, 1, 10),
    "descent": (0, 0.1, 1, 10),
    "gamma": (0, 0.1, 1),
}
SEEDS = range(3)


def views() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels, y = (torch.tensor(x) for x in load_digits(return_X_y=True))
    image = pixels.float().view(-1, 8, 8)
    x = {"image": image.flatten(1), "profile": torch.cat([image.sum(1), image.sum(2)], 1)}
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, valid = order[:1000], order[1000:1400]
    x = {m: (v - v[train].mean(0)) / v[train].std(0).clamp(min=1e-6) for m, v in x.items()}
    return x, y, train, valid


def scores(seed: int, weight: float = 1.0, **options: float) -> tuple[float, float]:
    """Validation accuracy of the fused model, and of a linear probe on the weak view's features."""
    x, y, train, valid = views()
    torch.manual_seed(seed)
    encoders = nn.ModuleDict(
        {m: nn.Sequential(nn.Linear(v.shape[1], 64), nn.ReLU(), nn.Linear(64, 32)) for m, v in x.items()}
    )
    head, balance = nn.Linear(64, 10), EnergyCoordinator(dict.fromkeys(x, 32), 10, gap="pull", **options)
    optimizer = torch.optim.SGD([*nn.ModuleList([encoders, head, balance]).parameters()], lr=0.03, momentum=0.9)
    for rows in (r for _ in range(20) for r in train[torch.randperm(len(train))].split(64)):
        z = {m: encoders[m](v[rows]) for m, v in x.items()}
        loss = cross_entropy(head(torch.cat([*z.values()], 1)), y[rows])
        if weight:
            loss = loss + weight * balance(z, y[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = {m: encoders[m](v[valid]) for m, v in x.items()}
        fused = task_score("classification", head(torch.cat([*z.values()], 1)), y[valid])
        probe = probe_outputs("classification", z["profile"].nan_to_num(), y[valid], 10)
    return fused, task_score("classification", probe, y[valid])


def main(folder: Path) -> None:
    rows = []
    for name, values in VALUES.items():
        for value in values:
            fused, probe = zip(*(scores(seed, **{name: value}) for seed in SEEDS), strict=True)
            rows.append((name, value, fmean(fused), stdev(fused), fmean(probe), stdev(probe)))
            print(*rows[-1], flush=True)
    with (folder / "coordinator-sweep.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "value", "fused", "fused_std", "profile_probe", "profile_probe_std"])
        writer.writerows((name, value, *(round(x, 4) for x in found)) for name, value, *found in rows)
    draw(rows).savefig(folder / "coordinator-sweep.png", dpi=110)


def draw(rows: list[tuple[str, float, float, float, float, float]]) -> Figure:
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    titles = {"weight": "weight of the whole loss"}
    *panels, unused = figure.subplots(2, 3, sharey=True).flat
    unused.axis("off")
    for axes, name in zip(panels, VALUES, strict=True):
        _, values, fused, fused_std, probe, probe_std = zip(*(row for row in rows if row[0] == name), strict=True)
        axes.errorbar(range(len(values)), fused, fused_std, color="#4477aa", marker="o", label="fused model")
        axes.errorbar(range(len(values)), probe, probe_std, color="#ee7733", marker="s", label="probe, weak view")
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set_ylim(0.86, 1)  # chance is 0.1: a run that diverged falls out of the picture
        axes.set_title(titles.get(name, name), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (panels[0], panels[3]):
        axes.set_ylabel("validation accuracy")
    unused.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "assets")
