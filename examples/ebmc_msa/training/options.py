"""The options of train.py. Does not import torch: `--help` and a misspelt option answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ebmc_msa.data import config
from ebmc_msa.data.options import add_label_options
from ebmc_msa.data.parser import Parser
from ebmc_msa.model.settings import COMPONENTS, CONTEXTS, PROTOCOLS, SYNTHETIC, Settings, whole

DATA, WHAT, HOW = "data", "what to train", "how to train"  # groups
OPTIONS = {field.name: field for field in fields(Settings) if "help" in field.metadata}


def parser(raises: type[Exception] | None = None) -> Parser:
    small = Settings(**SYNTHETIC)
    parser = Parser(
        prog="train.py",
        raises=raises,
        description="Train EBMC (enhance, then balance) on multimodal data. Epochs are selected on\n"
        "validation; the test split is opened once, at the end. Writes OUT/NAME/ with\n"
        "metrics.json, report.html and a checkpoint per model and seed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without --data the built-in synthetic set is used, by EBMC and what --compare\n"
        "sets beside it, with at most "
        f"{small.stage1_epochs} and {small.stage2_epochs} epochs and patience {small.patience}.\n"
        "\nexamples:\n"
        "  train.py --data mosi/unaligned_50.pkl --seeds 1111 1112 1113 --compare\n"
        "  train.py --data IEMOCAP/ --without cce --name no-cce\n"
        "  train.py --config runs/no-cce/config.toml --seeds 2\n"
        "  train.py --evaluate runs/no-cce --data IEMOCAP/ --predictions predictions.csv\n"
        "  train.py --evaluate runs/no-cce --data IEMOCAP/ --missing noise",
    )
    config.add_config_options(parser.add_argument_group("options from a file"))
    data = parser.add_argument_group(DATA)
    data.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="a file or folder in a layout of docs/your-data.md: .pkl, .npz, .pt, .safetensors, .h5, .mat, .csv, or "
        "what convert.py made",
    )
    data.add_argument(
        "--imbalance", type=float, metavar="I",
        help="another synthetic set: 0, all modalities are equally informative, to 1, only text is",
    )  # fmt: skip
    data.add_argument(
        "--split-seed", type=int, default=0, metavar="N",
        help="draws the validation split where the data have none (%(default)s)",
    )  # fmt: skip
    add_label_options(data)
    what = parser.add_argument_group(WHAT)
    what.add_argument(
        "--model", metavar="NAME", help="ebmc, concat, or a modality's name: that one alone (with --data: ebmc)"
    )
    what.add_argument(
        "--compare", action=argparse.BooleanOptionalAction,
        help="ebmc, concat and every modality alone, with a verdict; so it is without --data and --model",
    )  # fmt: skip
    what.add_argument(
        "--without", nargs="*", default=[], choices=COMPONENTS, metavar="PART",
        help="leave components of EBMC out: msd, cce, emc, imtd",
    )  # fmt: skip
    what.add_argument("--seeds", nargs="+", type=int, default=[1111], metavar="SEED", help="one run each (1111)")
    how = parser.add_argument_group(HOW)
    for name, field in OPTIONS.items():
        keywords = dict(field.metadata)
        default = "" if field.default is None else f" ({field.default})"
        how.add_argument(f"--{name.replace('_', '-')}", **{**keywords, "help": keywords["help"] + default})
    how.add_argument(
        "--context", choices=("auto", *CONTEXTS), default="auto", metavar="NAME",
        help="read the other utterances of a conversation too: none, gru, transformer, or auto, which is gru where "
        "the data hold conversations and their order (%(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--causal", action=argparse.BooleanOptionalAction, default=False, help="context of earlier utterances only"
    )
    how.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (%(default)s)")
    how.add_argument(
        "--jobs", type=whole, metavar="N",
        help="models trained at once, each in a process of its own (one for each core of a CPU on Linux, 8 at most; "
        "else 1)",
    )  # fmt: skip
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="holds the runs (%(default)s)")
    out.add_argument("--name", help="of this run's folder (made of the data's name, the model and a number)")
    out.add_argument(
        "--log", choices=("tensorboard",), metavar="LOGGER",
        help="tensorboard: scalars of each epoch and the figures of the report, in OUT/NAME/tensorboard",
    )  # fmt: skip
    out.add_argument(
        "--against", type=Path, metavar="RUN", help="the report shows the finished run runs/NAME beside this one"
    )
    out.add_argument("--resume", type=Path, metavar="RUN", help="continue runs/NAME, which was interrupted; alone")
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


def parse(argv: list[str], start: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """The options that `argv`, the file of its `--config` and `start` give, in this order of precedence."""
    options = parser()
    args = config.parse_args(options, argv, start)
    complete(args, options)
    return args


def complete(args: argparse.Namespace, options: Parser) -> None:
    """End the program with an error where options contradict each other; fill in what to train."""
    if args.text_lr is not None and not args.finetune_text:
        options.error(f"argument --text-lr: {args.text_lr}, expected a positive number beside --finetune-text")
    if len(set(args.seeds)) < len(args.seeds):
        options.error(f"argument --seeds: {args.seeds}, expected each once; leave out what is there twice")
    if args.stage1_epochs == 0 and args.stage2_epochs == 0:
        options.error("argument --stage1-epochs: no epoch in either stage, expected at least one")
    if args.missing and (args.evaluate is None or args.predictions is not None):
        options.error(
            "argument --missing: goes with --evaluate RUN and without --predictions; train first, then "
            f"--evaluate runs/NAME --missing {args.missing}"
        )
    if args.against and args.evaluate is not None:
        options.error("argument --against: is about the report of training, and --evaluate writes none; leave it out")
    if args.log and args.evaluate is not None:
        options.error("argument --log: logs training, and --evaluate does not train; leave it out")
    if args.evaluate is not None and (given := of_training(args, options)):
        options.error(
            f"argument --evaluate: tests a run as it was trained, without {', '.join(given)}; leave "
            + ("it out" if len(given) == 1 else "them out")
        )
    if args.imbalance is not None and args.data is not None:
        options.error(
            "argument --imbalance: is about the synthetic set, and --data names another; leave one of them out"
        )
    if args.model not in (None, "ebmc") and args.compare:
        options.error(
            f"argument --model: {args.model} with --compare, which trains every model; pass --no-compare, or leave "
            "--model out"
        )
    if args.model not in (None, "ebmc") and args.without:
        options.error(f"argument --without: is about ebmc, and --model is {args.model}; leave one of them out")
    if args.compare is None:
        args.compare = args.model is None and args.data is None and args.evaluate is None
    args.model = args.model or "ebmc"


def of_training(args: argparse.Namespace, options: Parser) -> list[str]:
    """The options given that state what or how to train."""
    return [
        action.option_strings[0]
        for action in config.actions(options)
        if action.container.title in (WHAT, HOW) and action.dest not in ("device", "jobs")
        if getattr(args, action.dest) != action.default
    ]


def settings_of(args: argparse.Namespace, context: str) -> Settings:
    """The settings that the options state; `context` is the encoder of conversations where that is `auto`."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if args.finetune_text is not None:
        given["finetune_text"] = str(args.finetune_text)
    defaults = SYNTHETIC if args.data is None else {}
    given |= {"context": context, "causal": args.causal}
    return Settings(without=tuple(sorted(set(args.without))), **{**defaults, **given})


def as_toml(args: argparse.Namespace, settings: Settings, leave_out: tuple[str, ...] = ()) -> str:
    """The options as a file for `--config`, those without a value at what `settings` has for them."""
    set_here = {name: getattr(settings, name) for name in (*OPTIONS, "context")}
    if settings.finetune_text is None:
        del set_here["text_lr"]
    return config.dump(parser(), {**vars(args), **set_here}, leave_out)
