"""Every balancer in one plain loop, on four data sets, clean and with noise, beside plain unimodal losses.

python examples/compare_balancers.py --data FOLDER --out runs/balancers --jobs 2

FOLDER holds mfeat/mfeat.npz, ravdess/ravdess.npz, iemocap/ and mosi/; what it lacks is left out. Runs that are there
already are not run again. Methods stand at their defaults and have one learning rate for all, which was chosen on
validation; with --tune each chooses among three in every cell, on validation. Then the test split is opened, once.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # steps this small gain nothing from more

import torch
from torch import Tensor, nn

from balancer_data import CONDITIONS, DATA, Views, load
from balancer_table import collect, draw, table, write
from ebmc_msa.training.best import better
from modbalance import EnergyCoordinator
from modbalance.balancers import (
    AGM,
    CGGM,
    OGMGE,
    PMR,
    UMT,
    Balancer,
    BalancerOutput,
    DetachedFusion,
    GradientBlending,
    MMPareto,
    ModalityDropout,
    UnimodalLosses,
)
from modbalance.tasks import task_loss

STEPS, EVERY, BATCH, WIDTH = 120, 20, 100, 64
TUNING, SEEDS = 1, (11, 12, 13, 14, 15)
RATES = {"sgd": (0.03,), "adam": (0.003,)}  # one for all methods
TUNED = {"sgd": (0.01, 0.03, 0.1), "adam": (0.001, 0.003, 0.01)}  # with --tune
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}
METHODS = (
    *("joint", "unimodal", "detached", "dropout", "ogm-ge", "agm", "cggm", "mmpareto", "g-blend", "umt", "pmr"),
    "coordinator",
)
CONTROL = "unimodal"
CONTROLS = ("weak alone", "strong alone", "late")  # models of one modality, and the mean of their predictions


class Run(NamedTuple):
    data: str
    condition: str
    optimizer: str
    method: str
    rate: float
    seed: int
    test: bool
    tuned: bool  # whether the rate is chosen by method and cell

    @property
    def key(self) -> str:
        return json.dumps(self)

    @property
    def rates(self) -> tuple[float, ...]:
        """What there is to choose from."""
        return (TUNED if self.tuned else RATES)[self.optimizer]


class Model(nn.Module):
    """An encoder for each modality, concatenation, a linear head."""

    def __init__(self, views: Views, names: tuple[str, ...]) -> None:
        super().__init__()
        sizes = {name: views.x[name].shape[1] for name in names}
        layers = {n: (nn.Linear(d, 128), nn.ReLU(), nn.Linear(128, WIDTH), nn.ReLU()) for n, d in sizes.items()}
        self.encoders = nn.ModuleDict({name: nn.Sequential(*parts) for name, parts in layers.items()})
        self.head = nn.Linear(WIDTH * len(names), views.num_outputs)

    def encode(self, views: Views, rows: Tensor) -> dict[str, Tensor]:
        return {name: encoder(views.x[name][rows]) for name, encoder in self.encoders.items()}

    def fuse(self, features: dict[str, Tensor], present: dict[str, Tensor] | None = None) -> Tensor:
        return self.head(torch.cat(list(features.values()), -1))

    @torch.no_grad()
    def outputs(self, views: Views, rows: Tensor) -> Tensor:
        return self.fuse(self.encode(views, rows))


class Dropout(Balancer):
    """Modality dropout: the dropped features are zero."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop = ModalityDropout(rate)

    def forward(self, features: dict[str, Tensor], target: Any = None, present: Any = None) -> BalancerOutput:
        left = self.drop({name: torch.ones(len(z), dtype=torch.bool) for name, z in features.items()})
        out = super().forward(features)
        return out._replace(features={name: z * left[name][:, None] for name, z in features.items()})


def balancer(run: Run, views: Views, model: Model) -> Balancer:
    """The method at its defaults."""
    dims = dict.fromkeys(views.x, WIDTH)
    common = dims, views.num_outputs, views.task
    scaling = dict(model.encoders), views.num_outputs, model.fuse, views.task
    build: dict[str, Callable[[], Balancer]] = {
        "joint": Balancer,
        "unimodal": lambda: UnimodalLosses(*common),
        "detached": lambda: DetachedFusion(*common),
        "dropout": lambda: Dropout(0.2),
        "ogm-ge": lambda: OGMGE(*scaling, seed=run.seed),
        "agm": lambda: AGM(*scaling),
        "cggm": lambda: CGGM(scaling[0], dims, *scaling[1:]),
        "mmpareto": lambda: MMPareto(scaling[0], *common),
        "g-blend": lambda: GradientBlending(*common),
        "umt": UMT,
        "pmr": lambda: PMR(*common),
        "coordinator": lambda: EnergyCoordinator(*common),
    }
    return build[run.method]()


class Trained(NamedTuple):
    model: Model
    quality: float  # of its best state on validation
    seconds: float  # processor time of a step


def batches(rows: Tensor) -> Iterator[Tensor]:
    while True:
        yield from rows[torch.randperm(len(rows))].split(BATCH)


def train(run: Run, views: Views, names: tuple[str, ...], teacher: Model | None = None) -> Trained:
    torch.manual_seed(run.seed)
    model = Model(views, names)
    balance = balancer(run, views, model) if len(names) > 1 else Balancer()
    optimizer = OPTIMIZERS[run.optimizer]([*model.parameters(), *balance.parameters()], lr=run.rate)
    best, seconds = better(None, -float("inf"), model), 0.0
    for step, rows in zip(range(1, STEPS + 1), batches(views.rows[0]), strict=False):
        start = time.process_time()
        y, extra = views.y[rows], {}
        if teacher is not None:
            with torch.no_grad():
                extra = {"teacher_features": teacher.encode(views, rows)}
        z = model.encode(views, rows)
        if not all(x.isfinite().all() for x in z.values()):
            break  # diverged, as some do at the largest rate; the best state so far stands
        out = balance(z, y, **extra)
        loss = task_loss(views.task, model.fuse(out.features), y).mean()
        optimizer.zero_grad()
        balance.backward(loss, out)
        balance.step()
        optimizer.step()
        seconds += time.process_time() - start
        finite = all(p.isfinite().all() for p in model.parameters())
        if finite and isinstance(balance, GradientBlending) and step % (2 * EVERY) == 1:
            balance.update(held_out(balance, model, views))
        if step % EVERY == 0:
            quality = views.quality(model.outputs(views, views.rows[1]), views.rows[1])
            best = better(best, quality, model)
    model.load_state_dict(best[1])
    return Trained(model, best[0], seconds / STEPS)


@torch.no_grad()
def held_out(balance: GradientBlending, model: Model, views: Views) -> dict[str, tuple[float, float]]:
    """Training and validation loss of every head."""
    losses = []
    for rows in views.rows[:2]:
        z, y = model.encode(views, rows), views.y[rows]
        own = {name: loss.item() for name, loss in balance(z, y).losses.items()}
        losses.append({**own, "task": task_loss(views.task, model.fuse(z), y).mean().item()})
    return {name: (losses[0][name], losses[1][name]) for name in losses[0]}


@lru_cache(maxsize=8)
def alone(folder: Path, data: str, condition: str, optimizer: str, seed: int, tuned: bool) -> Trained:
    """Encoders trained by themselves, each at its best rate, as one model whose head is not used."""
    views, parts = load(folder, data, condition), []
    for name in views.x:
        run = Run(data, condition, optimizer, "joint", 0.0, seed, False, tuned)
        found = [train(run._replace(rate=rate), views, (name,)) for rate in run.rates]
        parts.append(max(found, key=lambda trained: trained.quality))
    model = Model(views, tuple(views.x))
    for name, part in zip(views.x, parts, strict=True):
        model.encoders[name] = part.model.encoders[name]
    model.singles = nn.ModuleList([part.model for part in parts])
    return Trained(model, 0.0, sum(part.seconds for part in parts))


def do(folder: Path, run: Run) -> dict[str, Any]:
    torch.set_num_threads(1)
    views = load(folder, run.data, run.condition)
    test = views.rows[2]
    teacher = None
    if run.method in ("umt", *CONTROLS):
        found = alone(folder, run.data, run.condition, run.optimizer, run.seed, run.tuned)
        teacher = found.model
    if run.method in METHODS:
        trained = train(run, views, tuple(views.x), teacher)
        outputs = trained.model.outputs(views, test) if run.test else None
    else:
        trained = found
        singles = [single.outputs(views, test) for single in teacher.singles]
        if run.method == "late":
            scores = [s.log_softmax(-1) for s in singles] if views.task == "classification" else singles
            outputs = torch.stack(scores).mean(0)
        else:
            outputs = singles[CONTROLS.index(run.method)]
    record: dict[str, Any] = {"run": list(run), "valid": trained.quality, "seconds": trained.seconds}
    if run.test:
        record["correct"] = [None if v != v else int(v) for v in views.correct(outputs, test).tolist()]
    return record


def fits(method: str, data: str) -> bool:
    return method != "pmr" or data != "mosi"  # prototypes need classes


def tuning(data: str) -> Iterator[Run]:
    for condition, optimizer, method in product(CONDITIONS, OPTIMIZERS, METHODS):
        if fits(method, data):
            for rate in TUNED[optimizer]:
                yield Run(data, condition, optimizer, method, rate, TUNING, False, True)


def final(data: str, seeds: tuple[int, ...], tuned: bool, done: dict[str, dict[str, Any]]) -> Iterator[Run]:
    """Each method at the rate that was best on validation, or at the one for all."""
    for seed, condition, optimizer in product(seeds, CONDITIONS, OPTIMIZERS):
        for method in (m for m in METHODS if fits(m, data)):
            run = Run(data, condition, optimizer, method, 0.0, seed, True, tuned)
            quality = dict.fromkeys(run.rates, 0.0)
            if tuned:
                tries = {rate: run._replace(rate=rate, seed=TUNING, test=False).key for rate in run.rates}
                quality = {rate: done[key]["valid"] for rate, key in tries.items()}
            yield run._replace(rate=max(quality, key=quality.__getitem__))
        for method in CONTROLS:
            yield Run(data, condition, optimizer, method, 0.0, seed, True, tuned)


def work(folder: Path, file: Path, runs: list[Run], jobs: int) -> None:
    """Do what is not in the file yet, and add it there line by line."""
    done = read(file)
    if file.exists() and not file.read_text().endswith("\n"):  # cut off in the middle of a line
        file.write_text("".join(json.dumps(record) + "\n" for record in done.values()))
    left = [run for run in runs if run.key not in done]
    if left:
        print(
            f"{len(left)} of {len(runs)} runs to do: {left[0].data}, {'test' if left[0].test else 'tuning'}",
            flush=True,
        )
    with file.open("a") as out:
        if jobs == 1:
            for run in left:
                print(json.dumps(do(folder, run)), file=out, flush=True)
            return
        with ProcessPoolExecutor(jobs, mp_context=get_context("forkserver")) as pool:
            for record in pool.map(partial(do, folder), left, chunksize=8):
                print(json.dumps(record), file=out, flush=True)


def read(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")]  # the last may be cut off
    return {json.dumps(record["run"]): record for record in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--tune", action="store_true", help="choose the learning rate of each method in each cell")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    present = [data for data, (file, _) in DATA.items() if (options.data / file).exists()]
    file = options.out / "runs.jsonl"
    for seeds, data in product((SEEDS[:3], SEEDS[3:]), present):  # three of everything first
        if options.tune:
            work(options.data, file, list(tuning(data)), options.jobs)
        work(options.data, file, list(final(data, seeds, options.tune, read(file))), options.jobs)
    results = collect(record for record in read(file).values() if record["run"][-1] == options.tune)
    methods = [*METHODS, *CONTROLS]
    write(results, CONTROL, options.out / "balancers.csv")
    draw(options.out / "balancers.csv", CONTROL, methods, options.out / "balancers.png")
    (options.out / "table.md").write_text(table(results, CONTROL, methods))
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    main()
