"""What train.py does: train, resume or evaluate a run."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebmc_msa.data import config
from ebmc_msa.data.options import label_options
from ebmc_msa.training.options import DATA, as_toml, complete, parse, parser, settings_of


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args, first = parse(argv), os.environ.get("RANK", "0") == "0"
    if args.dump_config is not None:
        options = parser()
        config.write(options, args.dump_config, config.dump(options, vars(config.parse_args(options, argv))))
        return 0
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


def train(**options: Any) -> Path:
    """Do from Python what train.py does, `train(data="mosi", seeds=[1, 2])`; the folder of the run.

    Raises:
        ValueError: there is no such option, or it has no such value.
        DataError: the errors that end train.py later on, such as those of the data.
    """
    checker = parser(raises=ValueError)
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    args = checker.parse_args([], argparse.Namespace(**config.convert(given, checker, "train()")))
    complete(args, checker)
    call = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return work(args, [], f"train({call})")


def work(args: argparse.Namespace, argv: list[str], call: str | None = None) -> Path:
    """Train, resume or evaluate, as `argv` or a `call` from Python asks; the folder of the run."""
    from ebmc_msa.data import load, synthetic
    from ebmc_msa.data.check import check_class_weight, context_of
    from ebmc_msa.training import checkpoint, distributed, evaluate, log, resume, run

    log.check_installed(args.log)
    partial = None
    if args.resume is not None:
        partial = resume.reopen(args.resume)
        args = as_begun(argv, partial)
    if args.evaluate is not None:
        if distributed.rank() > 0:
            return args.evaluate
        evaluate.check_finished(args.evaluate)
        if args.data is None:
            args = with_data_of_run(args)
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
        context = context_of(dataset, args.context, causal=args.causal, impute=args.impute_context)
        settings = settings_of(args, context)
        check_class_weight("--class-weight", dataset, settings.class_weight)
        text = as_toml(args, settings, leave_out=("name",))
        # What repeats the run under another name must not overwrite its predictions.
        repeat = as_toml(args, settings, leave_out=("name", "predictions"))
        command = {"cwd": os.getcwd(), "command": call or resume.command(argv), "config": text, "repeat": repeat}
        return run.train(dataset, args, settings, command, partial)
    return args.evaluate


def with_data_of_run(args: argparse.Namespace) -> argparse.Namespace:
    """The options with those about the data, where not given, as the run of `--evaluate` had them."""
    from ebmc_msa.data import DataError
    from ebmc_msa.training.console import console

    file, options = args.evaluate / "config.toml", parser()
    if not file.exists():
        raise DataError(
            f"--evaluate: {args.evaluate} has no config.toml, which names its data, expected --data; pass it."
        )
    begun = config.read(file, options)
    about_data = [action for action in config.actions(options) if action.container.title == DATA]
    recorded = {
        action.dest: begun[action.dest]
        for action in about_data
        if action.dest in begun and getattr(args, action.dest) == action.default
    }
    data = recorded.get("data")
    if data is not None and not data.exists():
        raise DataError(
            f"--evaluate: {args.evaluate} was trained on {data}, which is not here now; pass --data PATH."
        )
    console.print(f"Data of the run ({file}): {data or 'the synthetic set'}.", markup=False)
    return argparse.Namespace(**{**vars(args), **recorded})


def as_begun(argv: list[str], run: Any) -> argparse.Namespace:
    """The options that a run began with; of those given now, only the place of the data, the device and
    the number of jobs may differ."""
    from ebmc_msa.data import DataError

    begun, cwd = run.metadata["config"], run.metadata["cwd"]
    args = parse([], config.loads(begun, parser(), f"--resume {run.partial}"))
    args.name = run.final.name
    for name in ("data", "predictions", "finetune_text", "against"):
        if getattr(args, name) is not None and os.getcwd() != cwd:
            setattr(args, name, Path(cwd, getattr(args, name)))
    unset = object()
    given = config.parse_args(parser(), argv, dict.fromkeys(vars(args), unset))
    for name, value in vars(given).items():
        if name in ("data", "device", "jobs") and value is not unset:
            setattr(args, name, value)
        elif (name, value) == ("context", "auto"):
            continue  # what it means for these data is recorded
        elif name not in ("resume", "config") and value not in (unset, getattr(args, name)):
            raise DataError(
                f"--resume: --{name.replace('_', '-')} is {value}, expected {_as_begun(getattr(args, name))}; "
                "leave it out, or start another run."
            )
    return args


def _as_begun(value: object) -> str:
    return "none, as the run began" if value is None else f"{value} as the run began with"
