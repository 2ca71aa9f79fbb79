"""EnergyCoordinator by itself in a plain two-encoder loop, beside joint training and unimodal auxiliary losses.

python examples/coordinator_alone.py --data mfeat.npz                   on the validation split
python examples/coordinator_alone.py --data mfeat.npz --test --jobs 2   on the test split, once everything is settled
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # steps this small gain nothing from more

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ebmc_msa.evaluation.bootstrap import interval
from modbalance import EnergyCoordinator

PAIRS = ("fou+fac", "mor+pix", "zer+kar")  # a weak view, then a strong one
CONDITIONS = ("clean", "noise on the weak", "noise on the strong")
REMEDIES = ("joint", "auxiliary", "coordinator")
SEEDS = (1111, 1112, 1113, 1114, 1115)
GAP = "pull"  # the default when docs/balance.md was written; docs/when_it_helps.md is why it no longer is
COLUMNS = (
    *("views", "condition", "optimizer", *REMEDIES, "coordinator - joint", "coordinator - auxiliary"),
    *(f"probes of the {which} view: alone / {' / '.join(REMEDIES)}" for which in ("weak", "strong")),
)


class Case(NamedTuple):
    pair: str
    condition: str
    optimizer: str  # sgd or adam


class Outcome(NamedTuple):
    correct: dict[str, Tensor]  # (samples,) by remedy
    probes: dict[str, dict[str, float]]  # accuracy in percent by remedy, "alone" too, and view


def load_views(path: Path, case: Case, noise: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Standardised views, labels and splits (0 train, 1 validation, 2 test); noise in standard deviations."""
    content, weak_strong = np.load(path), case.pair.split("+")
    y, split = torch.tensor(content["y"]), torch.tensor(content["split"])
    views = {}
    for place, view in enumerate(weak_strong):
        x = torch.tensor(content[f"x_{view}"])
        x = (x - x[split == 0].mean(0)) / x[split == 0].std(0).clamp(min=1e-6)
        if case.condition == CONDITIONS[1 + place]:
            x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(place))
        views[view] = x
    return views, y, split


def encoder(size: int) -> nn.Sequential:
    layers = [nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
    return nn.Sequential(*layers)


def fit(x: dict[str, Tensor], y: Tensor, rows: Tensor, remedy: str, optimizer: str, epochs: int) -> tuple[Any, Any]:
    """The plain loop: encoders, features side by side, one linear head. Returns encoders and head."""
    encoders = nn.ModuleDict({view: encoder(v.shape[1]) for view, v in x.items()})
    classes = int(y.max()) + 1
    head = nn.Linear(64 * len(x), classes)
    heads = nn.ModuleDict({view: nn.Linear(64, classes) for view in x})
    balance = EnergyCoordinator(dict.fromkeys(x, 64), classes, gap=GAP) if remedy == "coordinator" else None
    parts = [encoders, head, heads] if remedy == "auxiliary" else [encoders, head]
    parameters = [p for part in parts + [balance] * (balance is not None) for p in part.parameters()]
    steps = (
        torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.Adam(parameters, lr=1e-3)
    )
    for batch in (batch for _ in range(epochs) for batch in rows[torch.randperm(len(rows))].split(64)):
        features = {view: encoders[view](v[batch]) for view, v in x.items()}
        loss = cross_entropy(head(torch.cat(list(features.values()), 1)), y[batch])
        if remedy == "auxiliary":
            loss = loss + sum(cross_entropy(heads[view](z), y[batch]) for view, z in features.items())
        if balance is not None:
            loss = loss + balance(features, y[batch]).loss
        steps.zero_grad()
        loss.backward()
        steps.step()
    return encoders, head


def probe(z: Tensor, y: Tensor, train: Tensor, held_out: Tensor, ridge: float = 0.01) -> float:
    """Accuracy in percent of a linear classifier, fitted by least squares on the training features."""
    mean, scale = z[train].mean(0), z[train].std(0).clamp(min=1e-3)
    z = torch.cat([(z - mean) / scale, torch.ones(len(z), 1)], 1)
    gram = z[train].T @ z[train] / len(train) + ridge * torch.eye(z.shape[1])
    weight = torch.linalg.solve(gram, z[train].T @ one_hot(y[train]).to(z) / len(train))
    return 100 * ((z[held_out] @ weight).argmax(1) == y[held_out]).float().mean().item()


def run(case: Case, seed: int, *, path: Path, split: int, noise: float, epochs: int) -> Outcome:
    torch.set_num_threads(1)
    x, y, parts = load_views(path, case, noise)
    train, held_out = ((parts == part).nonzero()[:, 0] for part in (0, split))
    correct, probes = {}, {}
    for remedy in REMEDIES:
        torch.manual_seed(seed)
        encoders, head = fit(x, y, train, remedy, case.optimizer, epochs)
        with torch.no_grad():
            features = {view: encoders[view](v) for view, v in x.items()}
            predicted = head(torch.cat(list(features.values()), 1)).argmax(1)
        correct[remedy] = 100.0 * (predicted == y)[held_out]
        probes[remedy] = {view: probe(z, y, train, held_out) for view, z in features.items()}
    probes["alone"] = {}
    for view, v in x.items():
        torch.manual_seed(seed)
        encoders, _ = fit({view: v}, y, train, "joint", case.optimizer, epochs)
        with torch.no_grad():
            probes["alone"][view] = probe(encoders[view](v), y, train, held_out)
    return Outcome(correct, probes)


def row(case: Case, outcomes: list[Outcome]) -> str:
    """A line of the table: mean ± standard deviation over seeds, paired differences with 95 % intervals, probes."""
    scores = {remedy: np.stack([o.correct[remedy].numpy() for o in outcomes]) for remedy in REMEDIES}
    cells = [f"{s.mean():.1f} ± {s.mean(1).std(ddof=1) if len(s) > 1 else 0:.1f}" for s in scores.values()]
    for control in REMEDIES[:2]:
        cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval(scores["coordinator"] - scores[control])))
    for view in case.pair.split("+"):
        found = [np.mean([o.probes[remedy][view] for o in outcomes]) for remedy in ("alone", *REMEDIES)]
        cells.append(" / ".join(f"{accuracy:.1f}" for accuracy in found))
    return f"| {' | '.join([*case, *cells])} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an .npz of views x_NAME, labels y and split")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="WEAK+STRONG", help=" ".join(PAIRS))
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS, choices=CONDITIONS)
    parser.add_argument("--noise", type=float, default=1.0, metavar="SIZE", help="in standard deviations (1)")
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"], choices=["sgd", "adam"])
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--test", action="store_true", help="report the test split instead of validation")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    args = parser.parse_args(argv)
    if not args.data.is_file():
        parser.error(f"argument --data: {args.data} is no file, expected an .npz of views; check the path")
    known = {name.removeprefix("x_") for name in np.load(args.data).files if name.startswith("x_")}
    for pair in args.pairs:
        if len(pair.split("+")) != 2 or set(pair.split("+")) - known:
            parser.error(f"argument --pairs: {pair}, expected two of {', '.join(sorted(known))} as WEAK+STRONG")

    cases = [Case(*case) for case in product(args.pairs, args.conditions, args.optimizers)]
    print(f"{'test' if args.test else 'validation'} split, {len(args.seeds)} seeds, noise {args.noise:g}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    one = partial(run, path=args.data, split=2 if args.test else 1, noise=args.noise, epochs=args.epochs)
    tasks = [(case, seed) for case in cases for seed in args.seeds]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) if args.jobs > 1 else nullcontext() as pool:
        outcomes = iter((pool.map if pool else map)(one, *zip(*tasks, strict=True)))
        for case in cases:
            print(row(case, [next(outcomes) for _ in args.seeds]), flush=True)


if __name__ == "__main__":
    main()
