"""EBMC beside baselines and published balancers: same encoders, same loop, same seeds, one table.

python examples/ebmc_msa/compare.py --data PATH --out DIR --jobs 2
python examples/ebmc_msa/compare.py --data PATH --out DIR --methods ebmc "ebmc -cce" "ebmc eta=0.2" --valid
python examples/ebmc_msa/compare.py --data PATH --out DIR --ablation
python examples/ebmc_msa/compare.py --data PATH --out DIR --sweep eta 0.03 0.1 0.3 1
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

# Steps this small gain nothing from more threads. Set before torch starts them, and inherited by the processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ebmc_msa.data import DataError, Dataset, config
from ebmc_msa.data.check import check_class_weight, context_of
from ebmc_msa.data.exit_status import exit_status
from ebmc_msa.data.options import add_label_options, label_options
from ebmc_msa.data.parser import Parser
from ebmc_msa.evaluation.metrics import KINDS
from ebmc_msa.experiments.baselines import NAMES, NEED_ALONE
from ebmc_msa.experiments.dataset_view import Source, read
from ebmc_msa.experiments.jobs import Job, claim, run
from ebmc_msa.experiments.method import Method
from ebmc_msa.experiments.summary import report, result_path, stored, sweep_plot
from ebmc_msa.model.settings import COMPONENTS, CONTEXTS, ORDERS, Settings

SEEDS = (1111, 1112, 1113, 1114, 1115)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    config.add_config_options(parser.add_argument_group("options from a file"))
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="PATH", type=Path, help="as for train.py; the synthetic set without it")
    data.add_argument("--imbalance", type=float, metavar="I", help="as for train.py")
    data.add_argument("--split-seed", type=int, default=0, metavar="N", help="as for train.py (%(default)s)")
    add_label_options(data)
    data.add_argument("--modalities", nargs="+", default=[], metavar="NAME", help="only these")
    data.add_argument(
        "--noisy", nargs="+", default=[], metavar="NAME=SIZE", type=_noise,
        help="Gaussian noise on a modality in all splits, in standard deviations of each of its columns",
    )  # fmt: skip
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--methods", nargs="+", default=[], metavar="METHOD",
        help=f'all (the default), or some of {", ".join(NAMES)}; variants in quotes: "ebmc -cce", "ebmc eta=0.2"',
    )  # fmt: skip
    switch = argparse.BooleanOptionalAction
    what.add_argument(
        "--ablation", action=switch, default=False, help="EBMC, EBMC without each of its components, and with EMC"
    )
    what.add_argument("--orders", action=switch, default=False, help="EBMC with its stages in each order")
    what.add_argument(
        "--sweep", nargs="+", default=[], metavar="KEY VALUE",
        help="EBMC with each value of a setting, on validation: --sweep eta 0.03 0.1 0.3",
    )  # fmt: skip
    what.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a setting of every method")
    what.add_argument(
        "--context", choices=("auto", *CONTEXTS), default="auto", metavar="NAME", help="as for train.py (%(default)s)"
    )
    what.add_argument("--causal", action=switch, default=False, help="as for train.py")
    what.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED", help="(1111 … 1115)")
    what.add_argument(
        "--noise", action=switch, default=False,
        help="also corrupt one modality in half of the test samples, as train.py --missing noise does",
    )  # fmt: skip
    what.add_argument(
        "--unequal", action=switch, default=False,
        help="also let modalities of test samples be missing at unequal rates, as train.py --missing unequal does",
    )  # fmt: skip
    what.add_argument("--valid", action=switch, default=False, help="validation only: the test split is not opened")
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, metavar="DIR", help="what it holds already is not run again")
    out.add_argument("--again", action=switch, default=False, help="run --methods again, whatever is there")
    out.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    args = config.parse_args(parser, argv)
    if args.dump_config is not None:
        config.write(parser, args.dump_config, config.dump(parser, vars(args)))
        parser.exit()
    args.protocols = [name for name in ("unequal", "noise") if getattr(args, name)]
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"argument --seeds: {args.seeds}, expected each once; leave out what is there twice")
    closed = "--valid" if args.valid else "--sweep" if args.sweep else None
    if closed and args.protocols:
        parser.error(f"{closed}: the test split stays closed, where --{args.protocols[0]} is measured; leave one out")
    if args.out is None:
        parser.error("argument --out: none, expected a folder for the results; pass --out runs/comparison")
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    return exit_status(
        lambda: compare(args, shlex.join(["compare.py", *argv])), interrupted="The same command continues from here."
    )


def compare(args: argparse.Namespace, command: str) -> int:
    """Run what is not there yet, and write the tables; 1 if a job failed."""
    labels = ordered(requested(args))
    for label in labels:
        Method.parse(" ".join([label, *args.set]))
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
    if not KINDS[dataset.kind].compared:
        known = ", ".join(kind for kind, entry in KINDS.items() if entry.compared)
        raise DataError(f"--data: {dataset.kind} labels, expected {known}; pass data of such a kind.")
    context = context_of(dataset, args.context, causal=args.causal)
    shared = [f"context={context}"] * (context != "none") + ["causal=True"] * args.causal
    methods = {}
    for label in labels:
        name, *changes = label.split()
        methods[label] = Method.parse(" ".join([name, *shared, *changes, *args.set]))
        check_settings(label, methods[label].settings(), dataset)
    claim(args.out, source)

    split = "valid" if args.valid else "test"
    jobs = [Job(method, seed) for seed in args.seeds for method in methods.values()]
    alone = dict.fromkeys(
        Job(method.alone(modality), seed)
        for method, seed in jobs
        if args.noise or method.name in NEED_ALONE
        for modality in dataset.modalities
    )
    first = [job for job in alone if args.again or not result_path(args.out, *job).exists()]
    then = [job for job in jobs if args.again or not has_all(stored(args.out, *job, split), args.protocols)]
    print(f"{dataset.name}: {len(first) + len(then)} of {len(alone) + len(jobs)} to run", flush=True)
    failed = sum(run(some, source, args.out, args.jobs, args.protocols) for some in (first, then))
    title = dataset.name if context == "none" else f"{dataset.name}, {context} context"
    print("\n" + report(args.out, title, methods, args.seeds, split, command))
    if args.sweep and not failed:
        print(f"Plot: {sweep_plot(args.out, methods, args.seeds)}")
    return 1 if failed else 0


def has_all(result: dict[str, Any] | None, protocols: list[str]) -> bool:
    return result is not None and all(name in result for name in protocols)


def check_settings(label: str, settings: Settings, dataset: Dataset) -> None:
    """Whether the data allow them."""
    context_of(dataset, settings.context, causal=settings.causal, impute=settings.impute_context)
    check_class_weight(label, dataset, settings.class_weight)


def requested(args: argparse.Namespace) -> list[str]:
    given = list(args.methods)
    if args.ablation:
        # EMC's weight is 0 by default: there is nothing to leave out.
        given += ["ebmc", *(f"ebmc -{part}" for part in COMPONENTS if part != "emc"), "ebmc gamma=0.1"]
    if args.orders:
        given += ["ebmc", *(f"ebmc order={order}" for order in ORDERS[1:])]
    if args.sweep:
        key, *values = args.sweep
        if not values or given:
            raise DataError("--sweep: expected a setting and its values, and no other methods; correct the command.")
        given, args.valid = [f"ebmc {key}={value}" for value in values], True
    return [name for method in given or ["all"] for name in (NAMES if method == "all" else [method])]


def ordered(labels: list[str]) -> list[str]:
    """As in NAMES, variants after the method itself, each once."""
    return sorted(dict.fromkeys(map(str, map(Method.parse, labels))), key=lambda label: NAMES.index(label.split()[0]))


def _noise(text: str) -> tuple[str, float]:
    name, _, size = text.partition("=")
    try:
        value = float(size)
    except ValueError:
        value = math.nan
    if not name or not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}, expected NAME=SIZE, such as text=1.0")
    return name, value


_noise.by_name = True  # a table in a file of options
