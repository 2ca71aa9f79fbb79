"""What all commands share: options that state the task of the labels, and short errors. Does not import torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

TASKS = ("sentiment", "classification", "multilabel", "regression")


class Parser(argparse.ArgumentParser):
    """Its errors say what is wrong with which option was meant, and where to read on."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            given = next((word for word in unknown[1].split() if word.startswith("-")), unknown[1].split()[0])
            message = f"unknown option {given}{_meant(given.partition('=')[0], self._option_string_actions)}"
        elif choice:
            message += _meant(choice[1], [word.strip(" '") for word in choice[2].split(",")])
        self.exit(2, f"error: {message}\n{self.prog} --help lists all options.\n")


def add_label_options(group: Any) -> None:
    """Add `--task`, `--range` and `--labels` to a parser or one of its groups."""
    group.add_argument(
        "--task", choices=("auto", *TASKS), default="auto",
        help="what the labels are; auto guesses, reports its guess, and refuses what is in doubt (%(default)s)",
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


def _meant(given: str, known: Iterable[str]) -> str:
    near = get_close_matches(given, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
