"""What train.py does: train, resume or evaluate a run."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebmc_msa.data.options import label_options
from ebmc_msa.training.options import parse, parser, settings_of


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args, first = parse(argv), os.environ.get("RANK", "0") == "0"
    try:
        # Only now: --help and a misspelt option do not wait for torch.
        from ebmc_msa.data import DataError
        from ebmc_msa.training.distributed import process_group

        try:
            with process_group():
                work(args, argv)
        except DataError as problem:
            if first or not time.sleep(2):  # the first process prints what all ran into; torchrun ends the others
                print(f"error: {problem}", file=sys.stderr)
            return 2
    except KeyboardInterrupt as stopped:
        if first:
            how = str(stopped) or "Nothing was written; the same command starts again."
            print(f"\nInterrupted. {how}", file=sys.stderr)
        return 130
    return 0


def work(args: argparse.Namespace, argv: list[str]) -> None:
    from ebmc_msa.data import load, synthetic
    from ebmc_msa.data.check import check_class_weight, context_of
    from ebmc_msa.training import checkpoint, distributed, evaluate, resume, run

    partial = None
    if args.resume is not None:
        partial = resume.reopen(args.resume)
        args = parse_again(argv, partial.metadata)
    if args.evaluate is not None and distributed.rank() > 0:
        return
    if args.data is None:
        dataset = synthetic(imbalance=args.imbalance)
    else:
        stated = label_options(args)
        if args.evaluate is not None:
            stated = replace(stated, expected=checkpoint.expected(args.evaluate))
        labels = args.evaluate is None or args.missing == "noise"
        dataset = load(args.data, split_seed=args.split_seed, labels=labels, options=stated)
    if args.missing:
        evaluate.evaluate_robustness(args.evaluate, dataset, args.missing, args.device)
    elif args.evaluate is not None:
        evaluate.evaluate(args.evaluate, dataset, args.device, args.predictions)
    else:
        command = {"argv": argv, "cwd": os.getcwd(), "command": resume.command(argv)}
        context = context_of(dataset, args.context, causal=args.causal, impute=args.impute_context)
        settings = settings_of(args, context)
        check_class_weight("--class-weight", dataset, settings.class_weight)
        run.train(dataset, args, settings, command, partial)


def parse_again(argv: list[str], metadata: dict[str, Any]) -> argparse.Namespace:
    """The options that a run began with; of those given now, only the place of the data and the device may differ."""
    from ebmc_msa.data import DataError

    args = parse(metadata["argv"])
    for name in ("data", "predictions", "finetune_text"):
        if getattr(args, name) is not None and os.getcwd() != metadata["cwd"]:
            setattr(args, name, Path(metadata["cwd"], getattr(args, name)))
    unset = object()
    given = parser().parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    for name, value in vars(given).items():
        if name in ("data", "device") and value is not unset:
            setattr(args, name, value)
        elif name != "resume" and value not in (unset, getattr(args, name)):
            raise DataError(
                f"--resume: --{name.replace('_', '-')} is {value}, expected {_as_begun(getattr(args, name))}; "
                "leave it out, or start another run."
            )
    return args


def _as_begun(value: object) -> str:
    return "none, as the run began" if value is None else f"{value} as the run began with"
