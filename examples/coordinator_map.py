"""When balancing helps and when it harms: the parts of EnergyCoordinator, one by one, on many cases.

python examples/coordinator_map.py --data FOLDER --out map          development splits; goes on where it was stopped
python examples/coordinator_map.py --data FOLDER --out map --test   test splits, once everything is settled

FOLDER holds mfeat/mfeat.npz, ravdess/ravdess.npz, iemocap, mosi and mosi_overfit_vision; what is missing is left out.
All arms and seeds of a case train at once, as one batch of models: tests compare it with EnergyCoordinator.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # steps this small gain nothing from more

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import one_hot

from coordinator_cases import CONFIRMATION, OBSERVED, SCORED, TUNING, Case, SplitData, cases, split_data
from ebmc_msa.data import DataError
from ebmc_msa.evaluation.bootstrap import interval
from modbalance.functional import GateState, gate_weights

WIDTH, BATCH = 64, 64


class Arm(NamedTuple):
    """Weights of the parts of the coordinator; all 0 is joint training."""

    descent: float = 1.0
    alpha: float = 0.0
    delta: float = 0.0
    pull: float = 0.0
    paper: float = 0.0
    gate: float = 0.0  # 1: with `observe`


# The parts, what was the default, the paper's gap; then the default, without and with `observe`.
ARMS = {
    "joint": Arm(descent=0.0),
    "unimodal losses": Arm(),
    "+ alpha": Arm(alpha=0.1),
    "+ penalty": Arm(delta=0.1),
    "+ pull": Arm(pull=1.0),
    "+ all three": Arm(alpha=0.1, delta=0.1, pull=1.0),
    "paper's gap": Arm(alpha=0.1, delta=0.1, paper=1.0),
    "default": Arm(alpha=0.1, delta=0.1),
    "default, observe": Arm(alpha=0.1, delta=0.1, gate=1.0),
}


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
    size = arms["alpha"] * z.square().mean((-1, -2))
    energy = loss + size
    terms = arms["descent"] * loss + arms["delta"] * gradient.square().sum(-1).mean(-1)
    terms = terms + arms["pull"] * (loss - loss.detach().amin(0)).square() / len(z)
    pairs = (energy[:, None] - energy[None]).square().sum((0, 1)) / (len(z) * (len(z) - 1))
    fit = cross_entropy(z.detach() @ weight + bias, target)
    return (gate * terms + gate.amax(0) * arms["descent"] * size + fit).sum() + (arms["paper"] * pairs).sum()


def train(data: SplitData, arms: Sequence[Arm], seeds: Sequence[int], optimizer: str, epochs: int = 20) -> np.ndarray:
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
    rows, observed, scored = ((data.split == split).nonzero()[:, 0] for split in (0, OBSERVED, SCORED))
    unseen = torch.full((len(data.x), len(columns["gate"])), torch.inf)
    state, gated = GateState(torch.ones_like(unseen), unseen, unseen), columns["gate"] > 0
    for _ in range(epochs):
        order = torch.stack([rows[torch.randperm(len(rows), generator=g)] for g in generators])
        for batch in order.split(BATCH, 1):
            z, target = models.encode(batch), hot[batch].repeat(len(arms), 1, 1)
            loss = cross_entropy(models.outputs(z), target).sum() + coordination(
                models, z, target, columns, state.weight
            )
            steps.zero_grad()
            loss.backward()
            steps.step()
        with torch.no_grad():
            weight, bias = models.probe()
            held_out = cross_entropy(models.encode(observed.expand(len(seeds), -1)) @ weight + bias, hot[observed])
            state = gate_weights(held_out, state)
            state = state._replace(weight=torch.where(gated, state.weight, 1.0))
    with torch.no_grad():
        answers = models.outputs(models.encode(scored.expand(len(seeds), -1))).argmax(-1)
    return (answers == data.y[scored]).view(len(arms), len(seeds), -1).numpy()


def scores(args: argparse.Namespace, case: Case) -> dict[str, np.ndarray]:
    """100 where an arm is right and 0 where not, `(seeds, rows)` by arm; trains what the folder has not got yet."""
    split = "test" if args.test else "development"
    files = {a: args.out / "_".join([split, *case, a, *map(str, args.seeds)]).replace(" ", "-") for a in args.arms}
    files = {arm: file.with_name(f"{file.name}.npy") for arm, file in files.items()}
    todo = [arm for arm, file in files.items() if not file.exists()]
    if todo:
        data = split_data(args.data, case, args.test)
        for part in (todo[i : i + args.together] for i in range(0, len(todo), args.together)):
            right = train(data, [ARMS[arm] for arm in part], args.seeds, case.optimizer, args.epochs)
            for arm, x in zip(part, right, strict=True):
                np.save(files[arm], x)
    return {arm: 100.0 * np.load(file) for arm, file in files.items()}


def table(found: dict[Case, dict[str, np.ndarray]]) -> Iterator[dict[str, object]]:
    """A row for each case and arm; intervals of differences hold for all cases of a group at once (Bonferroni)."""
    groups = {case: "tuning" if case.data in TUNING else "confirmation" for case in found}
    size = Counter(groups.values())
    for case, arms in found.items():
        level = 1 - 0.05 / size[groups[case]]
        for arm, x in arms.items():
            row = {**case._asdict(), "group": groups[case], "arm": arm}
            row |= {"mean": x.mean(), "std": x.mean(1).std(ddof=1) if len(x) > 1 else 0.0}
            for control in (c for c in list(ARMS)[:2] if c in arms):
                low_high = interval(x - arms[control], level=level, draws=10000)
                row |= dict(zip([f"minus {control}", f"{control} low", f"{control} high"], low_high, strict=True))
            yield {key: round(x, 2) if isinstance(x, float) else x for key, x in row.items()}


def draw(found: dict[Case, dict[str, np.ndarray]]) -> Figure:
    """Accuracy less that of the better of joint training and unimodal losses: a row a case, a column an arm."""
    rows = list(dict.fromkeys(case[:2] for case in found))
    arms = list(next(iter(found.values())))
    figure = Figure(figsize=(2.6 + 0.84 * len(arms), 1.6 + 0.19 * len(rows)), layout="constrained")
    for axes, optimizer in zip(figure.subplots(1, 2, sharey=True), ("sgd", "adam"), strict=True):
        means = [[found[Case(*row, optimizer)][arm].mean() for arm in arms] for row in rows]
        gains = np.array(means) - np.max([[x[arms.index(c)] for c in list(ARMS)[:2]] for x in means], 1)[:, None]
        picture = axes.imshow(gains, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
        for (i, j), gain in np.ndenumerate(gains):
            axes.text(j, i, f"{gain:+.1f}", ha="center", va="center", fontsize=6, color="w" if abs(gain) > 2 else "k")
        axes.set_xticks(range(len(arms)), arms, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
        axes.set_yticks(range(len(rows)), [f"{data}, noise {noise}" for data, noise in rows], fontsize=7)
        axes.set_title("SGD" if optimizer == "sgd" else "Adam", fontsize=10)
        axes.tick_params(length=0)
        axes.hlines(
            [i - 0.5 for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]], -0.5, len(arms) - 0.5, "k", lw=0.8
        )
    bar = figure.colorbar(picture, ax=figure.axes, shrink=0.4, extend="both")
    bar.set_label("points above the better of joint and unimodal", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of what was trained, map.csv and map.png")
    parser.add_argument(
        "--only", nargs="+", metavar="DATA", help="of the data sets: " + ", ".join(TUNING | CONFIRMATION)
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="all; with --test the first two and the last two")
    parser.add_argument("--seeds", nargs="+", type=int, help="1111 to 1113; with --test to 1115")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--test", action="store_true", help="score the test splits, once everything is settled")
    parser.add_argument("--together", type=int, default=4, help="arms trained at once (4)")
    args = parser.parse_args(argv)
    args.arms = args.arms or [*list(ARMS)[:2], *list(ARMS)[-2 if args.test else 2 :]]
    args.seeds = args.seeds or list(range(1111, 1116 if args.test else 1114))
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for case in cases(TUNING | CONFIRMATION):
        if args.only and case.data not in args.only:
            continue
        try:
            found[case] = scores(args, case)
        except (FileNotFoundError, DataError) as missing:
            print(f"left out: {case.data}, {missing}")
            continue
        print(*case, *(f"{arm} {x.mean():.1f}" for arm, x in found[case].items()), sep="  ", flush=True)
    rows = list(table(found))
    with (args.out / "map.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(found).savefig(args.out / "map.png", dpi=130)


if __name__ == "__main__":
    main()
