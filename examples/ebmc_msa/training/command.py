"""Train EBMC, or the plain models it is compared with, and write a report.

python examples/ebmc_msa/train.py                        the built-in synthetic set, under two minutes
python examples/ebmc_msa/train.py --data PATH --compare  your files: EBMC, concatenation, each modality alone
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebmc_msa.data import DataError, Dataset, load, synthetic
from ebmc_msa.data.check import check_class_weight, context_of
from ebmc_msa.data.options import add_label_options, label_options
from ebmc_msa.data.parser import Parser
from ebmc_msa.model.settings import (
    CLASS_WEIGHTS,
    COMPONENTS,
    CONTEXTS,
    ENCODERS,
    ORDERS,
    PROTOCOLS,
    SYNTHETIC,
    Settings,
)


def options() -> argparse.ArgumentParser:
    d, small = Settings(), Settings(**SYNTHETIC)
    parser = Parser(
        description="Train EBMC (enhance, then balance) on multimodal data. Epochs are selected on\n"
        "validation; the test fold is opened once, at the end. Writes OUT/NAME/ with\n"
        "metrics.json, report.html and a checkpoint per model and seed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without --data the built-in synthetic set is used, with at most\n"
        f"{small.stage1_epochs} and {small.stage2_epochs} epochs and patience {small.patience}.\n"
        "\nexamples:\n"
        "  train.py --data mosi/unaligned_50.pkl --seeds 1111 1112 1113 --compare\n"
        "  train.py --data IEMOCAP/ --without emc --name no-emc\n"
        "  train.py --evaluate runs/no-emc --data IEMOCAP/ --predictions predictions.csv\n"
        "  train.py --evaluate runs/no-emc --data IEMOCAP/ --missing noise",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="an MMSA or MulT pickle, a GCNet or bc-LSTM folder, an .npz, or what convert.py made",
    )
    data.add_argument(
        "--imbalance", type=float, default=0.8, metavar="I",
        help="of the synthetic set: 0, all modalities tell the same, to 1, only text does (%(default)s)",
    )  # fmt: skip
    data.add_argument(
        "--split-seed", type=int, default=0, metavar="N",
        help="draws the validation fold where the data have none (%(default)s)",
    )  # fmt: skip
    add_label_options(data)
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--model", default="ebmc", metavar="NAME", help="ebmc, concat, or a modality's name: that one alone (ebmc)"
    )
    what.add_argument("--compare", action="store_true", help="ebmc, concat and every modality alone, in one table")
    what.add_argument(
        "--without", nargs="+", default=[], choices=COMPONENTS, metavar="PART",
        help="leave components of EBMC out: msd, cce, emc, imtd",
    )  # fmt: skip
    what.add_argument("--seeds", nargs="+", type=int, default=[1111], metavar="SEED", help="one run each (1111)")
    how = parser.add_argument_group("how to train")
    how.add_argument("--stage1-epochs", type=_count, metavar="N", help=f"at most, enhance ({d.stage1_epochs})")
    how.add_argument("--stage2-epochs", type=_count, metavar="N", help=f"at most, balance ({d.stage2_epochs})")
    how.add_argument(
        "--patience", type=_positive, metavar="N", help=f"epochs without a better validation score ({d.patience})"
    )
    how.add_argument("--batch-size", type=_positive, metavar="N", help=f"utterances a step ({d.batch_size})")
    how.add_argument("--lr", type=float, metavar="X", help=f"learning rate of AdamW ({d.lr})")
    how.add_argument(
        "--modality-dropout", type=float, metavar="P",
        help=f"chance that a training sample lacks a modality it has ({d.modality_dropout})",
    )  # fmt: skip
    how.add_argument(
        "--corruption", type=float, metavar="P",
        help=f"chance that a modality of a training sample is spoilt by noise or lost frames ({d.corruption})",
    )  # fmt: skip
    how.add_argument("--order", choices=ORDERS, help=f"of EBMC's stages ({d.order})")
    how.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (%(default)s)")
    how.add_argument(
        "--encoder", choices=ENCODERS, help=f"of sequences; mean averages frames seen one by one ({d.encoder})"
    )
    how.add_argument(
        "--finetune-text", type=Path, metavar="DIR",
        help="a BERT on this disk, as save_pretrained writes it, to read text and learn with the rest",
    )  # fmt: skip
    how.add_argument(
        "--context", choices=("auto", *CONTEXTS), default="auto", metavar="NAME",
        help="read the other utterances of a conversation too: none, gru, transformer, or auto, which is gru where "
        "the data tell conversations and their order (%(default)s)",
    )  # fmt: skip
    how.add_argument("--causal", action="store_true", help="context of earlier utterances only")
    how.add_argument(
        "--class-weight", choices=CLASS_WEIGHTS,
        help=f"balanced: in the loss all classes count alike ({d.class_weight})",
    )  # fmt: skip
    how.add_argument("--text-lr", type=float, metavar="X", help=f"learning rate of that BERT ({d.text_lr})")
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="holds the runs (%(default)s)")
    out.add_argument("--name", help="of this run's folder (made of the data's name, the model and a number)")
    out.add_argument("--resume", type=Path, metavar="RUN", help="go on with runs/NAME, which was interrupted; alone")
    out.add_argument("--evaluate", type=Path, metavar="RUN", help="no training: test the checkpoints of runs/NAME")
    out.add_argument(
        "--predictions", type=Path, metavar="FILE.csv",
        help="write each test utterance's prediction, variance and trust by modality; "
        "with --evaluate, for data without labels too",
    )  # fmt: skip
    out.add_argument(
        "--missing", choices=PROTOCOLS, metavar="PROTOCOL",
        help=f"with --evaluate: degradation under one of {', '.join(PROTOCOLS)}; writes robustness-PROTOCOL.*",
    )  # fmt: skip
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options()
    args = parser.parse_args(argv)
    if args.lr is not None and not args.lr > 0:
        parser.error(f"argument --lr: {args.lr}, expected a positive number")
    if args.text_lr is not None and not (args.text_lr > 0 and args.finetune_text):
        parser.error(f"argument --text-lr: {args.text_lr}, expected a positive number beside --finetune-text")
    for name in ("modality_dropout", "corruption"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < 1:
            parser.error(f"argument --{name.replace('_', '-')}: {value}, expected a probability in [0, 1)")
    if args.stage1_epochs == 0 and args.stage2_epochs == 0:
        parser.error("argument --stage1-epochs: no epoch in either stage, expected at least one")
    if args.missing and (args.evaluate is None or args.predictions is not None):
        parser.error("argument --missing: goes with --evaluate RUN and without --predictions")
    return args


def parse_again(argv: list[str], about: dict[str, Any]) -> argparse.Namespace:
    """The options that a run began with; of those given now, only the place of the data and the device may differ."""
    args = parse(about["argv"])
    for name in ("data", "predictions", "finetune_text"):
        if getattr(args, name) is not None and os.getcwd() != about["cwd"]:
            setattr(args, name, Path(about["cwd"], getattr(args, name)))
    unset = object()
    given = options().parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    for name, value in vars(given).items():
        if name in ("data", "device") and value is not unset:
            setattr(args, name, value)
        elif name != "resume" and value not in (unset, getattr(args, name)):
            raise DataError(
                f"--resume: --{name.replace('_', '-')} is {value}, expected {getattr(args, name)} as the run began "
                "with; leave it out, or start another run."
            )
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args, first = parse(argv), os.environ.get("RANK", "0") == "0"
    try:
        # Only now: --help and a misspelt option should not wait for torch.
        from ebmc_msa.training import distributed

        with distributed.joined():
            work(args, argv)
    except DataError as problem:
        if first or not time.sleep(2):  # what all have run into, the first tells, and torchrun ends the others
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        if first:
            how = str(stopped) or "Nothing was written; the same command starts again."
            print(f"\nInterrupted. {how}", file=sys.stderr)
        return 130
    return 0


def work(args: argparse.Namespace, argv: list[str]) -> None:
    from ebmc_msa.training import checkpoint, distributed, resume, run

    begun = None
    if args.resume is not None:
        begun = resume.reopen(args.resume)
        args = parse_again(argv, begun.about)
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
        from ebmc_msa.evaluation import robustness

        robustness.evaluate(args.evaluate, dataset, args.missing, args.device)
    elif args.evaluate is not None:
        run.evaluate(args.evaluate, dataset, args.device, args.predictions)
    else:
        about = {"argv": argv, "cwd": os.getcwd(), "command": resume.command(argv)}
        run.train(dataset, args, settings(args, dataset), about, begun)


def settings(args: argparse.Namespace, dataset: Dataset) -> Settings:
    names = (
        "stage1_epochs",
        "stage2_epochs",
        "patience",
        "batch_size",
        "lr",
        "modality_dropout",
        "corruption",
        "order",
        "encoder",
        "class_weight",
        "text_lr",
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.finetune_text is not None:
        given["finetune_text"] = str(args.finetune_text)
    defaults = SYNTHETIC if args.data is None else {}
    given |= {"context": context_of(dataset, args.context, causal=args.causal), "causal": args.causal}
    chosen = Settings(without=tuple(sorted(set(args.without))), **{**defaults, **given})
    check_class_weight("--class-weight", dataset, chosen.class_weight)
    return chosen


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}, expected a whole number from 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected a whole number from 1")
    return value
