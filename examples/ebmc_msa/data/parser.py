"""Command lines whose errors are two lines: what is wrong with the option that was meant, and where to read on."""

from __future__ import annotations

import argparse
import re
from difflib import get_close_matches
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            given = next((word for word in unknown[1].split() if word.startswith("-")), unknown[1].split()[0])
            message = f"unknown option {given}{_meant(given.partition('=')[0], self._option_string_actions)}"
        elif choice:
            message += _meant(choice[1], [word.strip(" '") for word in choice[2].split(",")])
        self.exit(2, f"error: {message}\n{self.prog} --help lists all options.\n")


def _meant(given: str, known: object) -> str:
    near = get_close_matches(given, list(known), 1)  # type: ignore[call-overload]
    return f"; did you mean {near[0]}?" if near else ""
