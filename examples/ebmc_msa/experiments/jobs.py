"""EBMC beside baselines and published balancers: same encoders, same loop, same seeds, one table.

python examples/ebmc_msa/compare.py --data PATH --out DIR --jobs 2
python examples/ebmc_msa/compare.py --data PATH --out DIR --methods ebmc "ebmc -emc" "ebmc eta=0.2" --valid
python examples/ebmc_msa/compare.py --data PATH --out DIR --ablation
python examples/ebmc_msa/compare.py --data PATH --out DIR --sweep eta 0.03 0.1 0.3 1
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

# Steps this small gain nothing from more threads. Set before torch starts them, and inherited by the processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from ebmc_msa.data import DataError, Dataset, LabelOptions
from ebmc_msa.data.check import check_class_weight, context_of
from ebmc_msa.data.files import read_tensors, write_tensors, write_text
from ebmc_msa.data.missing import conditions, restrict
from ebmc_msa.data.options import add_label_options, label_options
from ebmc_msa.data.parser import Parser
from ebmc_msa.data.split import Fold
from ebmc_msa.data.task import MOSI
from ebmc_msa.evaluation import robustness
from ebmc_msa.evaluation.scores import SELECTION, answer, measure, predict, truth
from ebmc_msa.experiments import internals
from ebmc_msa.experiments.baselines import METHODS, NAMES, NEED_ALONE, Work, trained
from ebmc_msa.experiments.dataset_view import Source, read
from ebmc_msa.experiments.summary import MEASURES, ordered, report, result_path, stored, sweep_plot
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.prediction import spec_of
from ebmc_msa.model.settings import CLASS_WEIGHTS, COMPONENTS, CONTEXTS, ORDERS, Settings
from ebmc_msa.training.run import with_something
from ebmc_msa.training.stages import train

SEEDS = (1111, 1112, 1113, 1114, 1115)


class Job(NamedTuple):
    method: str  # one of NAMES, or "alone:MODALITY"; then -PART and KEY=VALUE
    seed: int


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="PATH", type=Path, help="as for train.py; the synthetic set without it")
    data.add_argument("--imbalance", type=float, default=0.8, metavar="I", help="of the synthetic set (%(default)s)")
    data.add_argument("--split-seed", type=int, default=0, metavar="N", help="as for train.py (%(default)s)")
    add_label_options(data)
    data.add_argument("--modalities", nargs="+", default=[], metavar="NAME", help="only these")
    data.add_argument(
        "--noisy", nargs="+", default=[], metavar="NAME=SIZE", type=_noise,
        help="Gaussian noise on a modality in all folds, in standard deviations of each of its columns",
    )  # fmt: skip
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--methods", nargs="+", default=[], metavar="METHOD",
        help=f'all (the default), or some of {", ".join(NAMES)}; variants in quotes: "ebmc -emc", "ebmc eta=0.2"',
    )  # fmt: skip
    what.add_argument("--ablation", action="store_true", help="EBMC whole, and without each of its components")
    what.add_argument("--orders", action="store_true", help="EBMC with its stages in each order")
    what.add_argument(
        "--sweep", nargs="+", default=[], metavar="KEY VALUE",
        help="EBMC with each value of a setting, on validation: --sweep eta 0.03 0.1 0.3",
    )  # fmt: skip
    what.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a setting of every method")
    what.add_argument(
        "--context", choices=("auto", *CONTEXTS), default="auto", metavar="NAME", help="as for train.py (%(default)s)"
    )
    what.add_argument("--causal", action="store_true", help="as for train.py")
    what.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED", help="(1111 … 1115)")
    what.add_argument(
        "--noise", action="store_true",
        help="also spoil one modality in half of the test samples, as train.py --missing noise does",
    )  # fmt: skip
    what.add_argument("--valid", action="store_true", help="validation only: the test fold is not opened")
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="what it holds already is not run again")
    out.add_argument("--again", action="store_true", help="run --methods again, whatever is there")
    out.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        return compare(args, shlex.join(["compare.py", *(sys.argv[1:] if argv is None else argv)]))
    except DataError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def asked(args: argparse.Namespace) -> list[str]:
    given = list(args.methods)
    if args.ablation:
        given += ["ebmc", *(f"ebmc -{part}" for part in COMPONENTS)]
    if args.orders:
        given += ["ebmc", *(f"ebmc order={order}" for order in ORDERS[1:])]
    if args.sweep:
        key, *values = args.sweep
        if not values or given:
            raise DataError("--sweep: expected a setting and its values, and no other methods; correct the command.")
        given, args.valid = [f"ebmc {key}={value}" for value in values], True
    return [name for method in given or ["all"] for name in (NAMES if method == "all" else [method])]


def compare(args: argparse.Namespace, command: str) -> int:
    given = asked(args)
    for method in given:
        settings_of(" ".join([method, *args.set]))
    source = Source(
        args.data,
        args.imbalance,
        args.split_seed,
        tuple(args.modalities),
        tuple(args.noisy),
        not args.valid,
        label_options(args),
    )
    dataset = read(source)
    if dataset.kind not in MEASURES:
        raise DataError(f"--data: {dataset.kind} labels, expected {', '.join(MEASURES)}; pass data of such a kind.")
    context = context_of(dataset, args.context, causal=args.causal)
    shared = [f"context={context}"] * (context != "none") + ["causal=True"] * args.causal
    methods = {}
    for method in ordered(given):
        name, *changes = method.split()
        methods[" ".join([name, *shared, *changes, *args.set])] = method
    for method in methods:
        check_settings(method, settings_of(method), dataset)
    claim(args.out, source)

    fold = "valid" if args.valid else "test"
    jobs = [Job(method, seed) for seed in args.seeds for method in methods]
    alone = dict.fromkeys(
        Job(" ".join([f"alone:{modality}", *method.split()[1:]]), seed)
        for method, seed in jobs
        if args.noise or method.split()[0] in NEED_ALONE
        for modality in dataset.modalities
    )
    first = [job for job in alone if args.again or not result_path(args.out, *job).exists()]
    then = [job for job in jobs if args.again or stored(args.out, *job, fold) is None]
    print(f"{dataset.name}: {len(first) + len(then)} of {len(alone) + len(jobs)} to run", flush=True)
    failed = sum(run(some, source, args.out, args.jobs, args.noise) for some in (first, then))
    title = dataset.name if context == "none" else f"{dataset.name}, {context} context"
    print("\n" + report(args.out, title, methods, args.seeds, fold, command))
    if args.sweep and not failed:
        print(f"Plot: {sweep_plot(args.out, methods, args.seeds)}")
    return 1 if failed else 0


def run(jobs: list[Job], source: Source, out: Path, processes: int, spoilt: bool) -> int:
    """Do the jobs; the number of those that failed."""
    if processes < 2 or len(jobs) < 2:
        return sum(tell(i, jobs, job, partial(do, job, source, out, spoilt)) for i, job in enumerate(jobs, 1))
    # Left to Python, Ctrl-C would print a traceback for each process.
    quiet = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, quiet) as pool:
        running = {pool.submit(do, job, source, out, spoilt): job for job in jobs}
        try:
            return sum(tell(i, jobs, running[done], done.result) for i, done in enumerate(as_completed(running), 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def tell(number: int, jobs: list[Job], job: Job, result: Callable[[], str]) -> int:
    try:
        line, failed = result(), 0
    except DataError as problem:
        line, failed = f"failed: {problem}", 1
    print(f"[{number}/{len(jobs)}] {job.method} {job.seed}: {line}", flush=True)
    return failed


def do(job: Job, source: Source, out: Path, spoilt: bool = False) -> str:
    """Train one method from one seed; write what it says of validation and test with every set of modalities."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    started = time.process_time()
    dataset, settings = read(source), settings_of(job.method)
    name, *changes = job.method.split()
    modality = name.partition("alone:")[2]
    spec = spec_of(dataset, settings, [modality] if modality else None)
    folds = {fold: Fold.of(split, spec, torch.device("cpu")) for fold, split in dataset.splits.items()}

    def alone(modality: str) -> Concat:
        model = Concat(spec_of(dataset, settings, [modality]), settings)
        path = result_path(out, " ".join([f"alone:{modality}", *changes]), job.seed)
        model.load_state_dict(read_tensors(path)["state"])
        return model.eval()

    work = Work(spec, settings, with_something(folds["train"]), folds["valid"], job.seed, alone)
    kind = spec.kind if spec.range in (None, MOSI) else "regression"  # Acc-2 has0 is of MOSI's scale
    result: dict[str, Any] = {"kind": kind, "conditions": list(conditions(spec.dims))}
    if name == "ebmc":
        ebmc = train(EBMC(spec, settings), work.train, work.valid, settings, job.seed, lambda *_: None)
        model = ebmc.model
    else:
        model = trained(Concat(spec, settings), work) if modality else METHODS[name](work)
    for fold in folds.keys() & {"valid", "test"}:
        shown = [folds[fold].showing(restrict(folds[fold].present, keep)) for keep in conditions(spec.dims).values()]
        outputs = [predict(model, batch).outputs for batch in shown]
        result[fold] = torch.stack([answer(spec, said) for said in outputs])
        result |= {f"{fold}_target": truth(spec, folds[fold].target), f"{fold}_outputs": outputs[-1]}
    if modality:
        result["state"] = model.state_dict()
    if spoilt and "test" in folds:
        sizes = {}
        for one in spec.dims:
            judge = model if modality else alone(one)
            valid = Fold.of(dataset.splits["valid"], judge.spec, torch.device("cpu"))
            sizes[one] = robustness.noise_size(one, f"alone:{one}", [judge], [valid])
        result["noise"] = robustness.spoil(model, folds["test"], sizes)
    result |= {"settings": settings.as_dict(), "seconds": time.process_time() - started}
    if name == "ebmc":
        result["inside"] = internals.look(ebmc, folds | {"train": work.train})
    write_tensors(result_path(out, *job), result)
    metric = SELECTION[spec.kind]
    return f"valid {metric} {measure(model, work.valid)[metric]:.3f}, {result['seconds']:.0f} s"


def claim(out: Path, source: Source) -> None:
    """Results of different data must not meet in one folder."""
    held = {**source._asdict(), "path": source.path and str(source.path.resolve()), "test": None}
    stated = held.pop("options")
    data = json.dumps(held | (asdict(stated) if stated != LabelOptions() else {}), indent=2)
    path = out / "source.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text() != data:
            raise DataError(f"--out: {out} holds results of other data ({path}), expected its own; pass another.")
        write_text(path, data)
    except OSError as problem:
        raise DataError(f"--out: {out} ({problem.strerror}), expected a folder of yours; change it.") from problem


def check_settings(method: str, settings: Settings, dataset: Dataset) -> None:
    """Whether the data allow them."""
    context_of(dataset, settings.context, causal=settings.causal)
    check_class_weight(method, dataset, settings.class_weight)


def settings_of(method: str) -> Settings:
    """The defaults, changed as the words after a method's name say.

    Raises:
        DataError: a method, part or setting that does not exist, or a value of the wrong kind.
    """
    name, *changes = method.split() or [""]
    if name not in NAMES and not name.startswith("alone:"):
        raise DataError(f"--methods: {name!r}, expected all or some of {', '.join(NAMES)}; correct the name.")
    defaults = {field.name: field.default for field in fields(Settings) if field.default is not None}
    given: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        if change.removeprefix("-") in COMPONENTS and change.startswith("-"):
            given["without"] = tuple(sorted({*given.get("without", ()), change[1:]}))
        elif key in defaults and key != "without":
            kind = type(defaults[key])
            try:
                given[key] = {"True": True, "False": False}[text] if kind is bool else kind(text)
            except (ValueError, KeyError) as problem:
                raise DataError(f"--methods: {change}, expected {kind.__name__} for {key}; correct it.") from problem
        else:
            raise DataError(
                f"--methods: {change!r} after {name}, expected -{', -'.join(COMPONENTS)} or KEY=VALUE with a key of "
                f"{', '.join(sorted(defaults.keys() - {'without'}))}; correct it."
            )
    if given.get("order", ORDERS[0]) not in ORDERS:
        raise DataError(f"--methods: order={given['order']}, expected one of {', '.join(ORDERS)}; correct it.")
    for key, known in (("context", CONTEXTS), ("class_weight", CLASS_WEIGHTS)):
        if given.get(key, known[0]) not in known:
            raise DataError(f"--methods: {key}={given[key]}, expected one of {', '.join(known)}; correct it.")
    return Settings(**given)


def _noise(text: str) -> tuple[str, float]:
    name, _, size = text.partition("=")
    return name, float(size)
