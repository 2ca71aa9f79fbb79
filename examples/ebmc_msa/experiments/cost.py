"""What balancing costs: a training step of each component and of EBMC beside plain concatenation, an answer with
none, one and all of its teachers, and EnergyCoordinator beside an encoder of BERT-base's size.

python examples/ebmc_msa/benchmark.py cost                    all of it
python examples/ebmc_msa/benchmark.py cost --run runs/NAME    where the time of a run went
python examples/ebmc_msa/benchmark.py cost --data PATH        what a context of conversations adds to a step

Everything in one table takes turns on the same tensors, so that a busy machine slows all alike; medians. On a CPU the
clock is processor time. Writes `cost.csv`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports each start on stderr; read at import

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ebmc_msa.data import DataError, Split, load
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.exit_status import exit_status
from ebmc_msa.data.files import write_text
from ebmc_msa.data.parser import Parser
from ebmc_msa.data.split import SplitView
from ebmc_msa.experiments.context_cost import cost_of_context
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.ensemble import FUSED, Mixture, TrustEnsemble
from ebmc_msa.model.settings import CONTEXTS, Settings
from modbalance import ComplementaryEnhancer, EnergyCoordinator, SemanticDecoupler, TrustDistiller
from modbalance.dropout import modality_dropout

DIMS = {"text": 768, "audio": 74, "vision": 35}  # MOSEI's, with its 50 aligned frames
Row = dict[str, Any]  # of the CSV


def interleaved(methods: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each: one call of every method a round, after one that does not count."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    times: dict[str, list[float]] = {name: [] for name in methods}
    for i in range(rounds + 1):
        for name, method in methods.items():
            _wait(device)
            start = clock()
            method()
            _wait(device)
            if i:
                times[name].append(1000 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stepper(parameters: Any, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One training step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def make_split(size: int, frames: int, spec: Spec, device: torch.device) -> SplitView:
    """Samples of `frames` frames, or with 0 of one vector, in each modality."""
    there = torch.ones(size, dtype=torch.bool)
    split = Split(
        {name: torch.randn(size, *([frames] if frames else []), dim) for name, dim in DIMS.items()},
        {name: torch.full((size,), frames) for name in DIMS if frames},
        dict.fromkeys(DIMS, there),
        torch.randn(size),
        [str(i) for i in range(size)],
    )
    return SplitView.of(split, spec, device)


def components(size: int, dim: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """A step of each on features that need a gradient, as EBMC uses it."""
    dims = dict.fromkeys(DIMS, dim)
    features, shared, private, teachers = (
        {name: torch.randn(size, width, device=device, requires_grad=grad) for name in DIMS}
        for width, grad in ((dim, True), (dim, True), (dim, True), (2, False))
    )
    target, student = torch.randn(size, device=device), torch.randn(size, 2, device=device, requires_grad=True)
    head = nn.Linear(dim, 2).to(device)
    decouple, coordinate = (
        component(dims, *width, 1, "gaussian").to(device)
        for component, width in ((SemanticDecoupler, (dim,)), (EnergyCoordinator, ()))
    )
    enhance, distill = ComplementaryEnhancer(dims, dim, 1, "gaussian").to(device), TrustDistiller(1, "gaussian")

    def predict(z: Mapping[str, Tensor]) -> Tensor:
        return head(torch.stack(list(z.values())).mean(0))

    return {
        "SemanticDecoupler": stepper(decouple.parameters(), lambda: decouple(features, target).loss),
        "ComplementaryEnhancer": stepper(
            enhance.parameters(), lambda: enhance(features, shared, private, predict, target).loss
        ),
        "EnergyCoordinator": stepper(coordinate.parameters(), lambda: coordinate(features, target).loss),
        "TrustDistiller": stepper([student], lambda: distill(student, teachers).loss),
    }


def pipeline(size: int, frames: int, rounds: int, device: torch.device) -> list[Row]:
    """Steps and answers of concatenation and of EBMC, and a step of each component on its own."""
    spec, settings = Spec("sentiment", DIMS, tuple(DIMS) if frames else (), 1), Settings()
    split = make_split(size, frames, spec, device)
    batch = split.rows(torch.arange(size))
    # as in training: teachers read only what is there
    dropped = modality_dropout(batch.present, settings.modality_dropout, generator=torch.Generator().manual_seed(0))
    lacking = batch.with_present(dropped)
    plain, first, second = Concat(spec, settings), EBMC(spec, settings), EBMC(spec, settings)
    without = EBMC(spec, replace(settings, without=("cce",)))
    models = {
        "concatenation": plain,
        "EBMC, enhance": first,
        "EBMC, balance": second,
        "EBMC, balance, without CCE": without,
    }
    for model in models.values():
        model.to(device)
    without.eval().start_balancing(split, split, {})
    second.eval().start_balancing(split, split, {})
    steps = {name: stepper(m.train().parameters(), lambda m=m: m(lacking).loss) for name, m in models.items()}
    rows = table("training step", interleaved(steps | components(size, settings.dim, device), rounds, device))

    def answer(model: nn.Module) -> Callable[[], object]:
        return torch.no_grad()(lambda: model.answer(replace(batch, target=None)))

    answers = {}
    for name, teachers in {"no teacher": (), "its text teacher": ("text",), "all its teachers": DIMS}.items():
        ensemble = TrustEnsemble(second)
        ensemble.mixtures = {tuple(DIMS): Mixture(0.0, 0.0, dict.fromkeys((*teachers, FUSED), 0.0))}
        answers[f"EBMC with {name}"] = ensemble
    students = {"EBMC, its student alone": second, "EBMC, its student alone, without CCE": without}
    students = {name: copy.deepcopy(model) for name, model in students.items()}
    for student in students.values():
        student.teachers = None
    answering = {"concatenation": plain, **students, **answers}
    return rows + table(
        "inference", interleaved({name: answer(m.eval()) for name, m in answering.items()}, rounds, device)
    )


def beside_bert(size: int, tokens: int, layers: int, width: int, rounds: int, device: torch.device) -> list[Row]:
    """EnergyCoordinator over a text encoder of BERT-base's size and a small one of audio.

    The whole step with and without it; and, since on a CPU its cost drowns in the noise of a step that large, the
    coordinator's own share timed on features of the same shape: forward, backward and optimiser.
    """
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, activation="gelu", batch_first=True)
    text = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).to(device)
    audio = nn.Sequential(nn.Linear(74, 128), nn.GELU(), nn.Linear(128, 128)).to(device)
    head = nn.Linear(width + 128, 4).to(device)
    coordinate = EnergyCoordinator({"text": width, "audio": 128}, 4).to(device)
    tokens_in, frames = torch.randn(size, tokens, width, device=device), torch.randn(size, 74, device=device)
    target = torch.randint(4, (size,), device=device)
    parameters = [p for module in (text, audio, head) for p in module.parameters()]

    def loss(balance: bool) -> Tensor:
        z = {"text": text(tokens_in).mean(1), "audio": audio(frames)}
        task = cross_entropy(head(torch.cat(list(z.values()), -1)), target)
        return task + coordinate(z, target).loss if balance else task

    steps = {
        "encoder": stepper(parameters, lambda: loss(False)),
        "encoder + EnergyCoordinator": stepper([*parameters, *coordinate.parameters()], lambda: loss(True)),
    }
    z = {name: torch.randn(size, dim, device=device, requires_grad=True) for name, dim in coordinate.dims.items()}
    alone = {"EnergyCoordinator alone": stepper(coordinate.parameters(), lambda: coordinate(z, target).loss)}
    times = interleaved(steps, rounds, device) | interleaved(alone, 20 * rounds, device)
    return table(f"{layers} layers, {width} wide, batch {size} x {tokens}", times)


def table(what: str, times: Mapping[str, float]) -> list[Row]:
    """Milliseconds, and the ratio to the first."""
    base = next(iter(times.values()))
    return [{"table": what, "name": name, "ms": ms, "ratio": ms / base} for name, ms in times.items()]


def stages(run: Path) -> list[Row]:
    """Where the time of a run went, by model and stage: the mean over its seeds."""
    try:
        found = json.loads((run / "metrics.json").read_text())
        models = found.get("models") or {found["model"]: found}
        return [
            {"table": f"run {run.name}", "name": f"{model}, {stage}", **cost}
            for model, entry in models.items()
            for stage, cost in entry["cost"].items()
        ]
    except (OSError, ValueError, KeyError) as problem:
        raise DataError(
            f"--run: {run} holds no times ({type(problem).__name__}: {problem}), expected the folder of a run that "
            "train.py wrote; name one."
        ) from problem


def show(rows: list[Row], console: Console) -> None:
    for what in dict.fromkeys(row["table"] for row in rows):
        mine = [row for row in rows if row["table"] == what]
        columns = [name for name in mine[0] if name not in ("table", "name")]
        shown = Table(title=what, title_justify="left")
        shown.add_column("")
        for name in columns:
            shown.add_column(name, justify="right")
        for row in mine:
            shown.add_row(row["name"], *(f"{row[name]:.3f}" for name in columns))
        console.print(shown)


def stamp(device: torch.device) -> Row:
    cpu = f"{platform.machine()} CPU, threads: {torch.get_num_threads()}, processor time"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"date": datetime.date.today().isoformat(), "device": name, "torch": torch.__version__}


def write(rows: list[Row], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(column for row in rows for column in row))
    writer.writeheader()
    writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="benchmark.py cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of each small table (%(default)s)")
    parser.add_argument("--bert-rounds", type=int, default=5, metavar="N", help="of the large encoder (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="of the small tables (%(default)s)")
    parser.add_argument(
        "--frames", type=int, default=50, metavar="N", help="of each sequence; 0 is one vector (%(default)s)"
    )
    parser.add_argument("--layers", type=int, default=12, metavar="N", help="of the large encoder (%(default)s)")
    parser.add_argument("--width", type=int, default=768, metavar="N", help="of it, a multiple of 64 (%(default)s)")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="only what --context adds to a step on these conversations"
    )
    parser.add_argument("--context", choices=CONTEXTS[1:], default=CONTEXTS[1], help="with --data (%(default)s)")
    parser.add_argument("--run", type=Path, metavar="RUN", help="only where the time of runs/NAME went")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/cost"), metavar="DIR", help="of cost.csv (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; pass --device cpu")
    least = {"rounds": 1, "bert_rounds": 1, "batch_size": 1, "frames": 0, "layers": 1, "width": 1}
    for name, value in least.items():
        if getattr(options, name) < value:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected a whole number from {value}")
    if options.width % 64:
        parser.error(f"--width {options.width}: expected a multiple of 64, the width of a head")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return exit_status(lambda: run(options), interrupted="Nothing was written.")


def run(options: argparse.Namespace) -> None:
    console, device = Console(), torch.device(options.device)
    torch.manual_seed(0)
    if options.run is not None:
        show(stages(options.run), console)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.data is not None:
        rows = cost_of_context(load(options.data), options.context, options.rounds, options.batch_size)
        show(rows, console)
        write([{**stamp(device), **row} for row in rows], options.out / "context.csv")
        console.print(f"Written to {options.out}/context.csv.")
        return
    rows = pipeline(options.batch_size, options.frames, options.rounds, device)
    rows += beside_bert(8, 64, options.layers, options.width, options.bert_rounds, device)
    show(rows, console)
    write([{**stamp(device), **row} for row in rows], options.out / "cost.csv")
    console.print(f"Written to {options.out}/cost.csv.")
