"""The options that state what the labels of a file are, alike for every command. Does not import torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ebmc_msa.data.tasks import TASKS

if TYPE_CHECKING:
    from ebmc_msa.data.task import LabelOptions


def add_label_options(group: Any) -> None:
    """Add `--task`, `--range` and `--labels` to an argument group."""
    group.add_argument(
        "--task", choices=("auto", *TASKS), default="auto",
        help="what the labels are; auto guesses, prints its guess, and refuses an ambiguous one (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--range", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="lowest and highest sentiment (-3 3, or what the file is known to have)",
    )  # fmt: skip
    group.add_argument(
        "--labels", metavar="NAME",
        help="which labels, of a file that holds several: sentiment or emotions of MOSEI and MELD; sentiment, text, "
        "audio or vision of CH-SIMS",
    )  # fmt: skip


def label_options(args: argparse.Namespace) -> LabelOptions:
    from ebmc_msa.data.task import LabelOptions

    return LabelOptions(args.task, args.range and tuple(args.range), args.labels)
