"""Command lines whose errors are two lines: what is wrong with the option that was meant, and where to read on."""

from __future__ import annotations

import argparse
import re
from difflib import get_close_matches
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """`raises`: the exception that replaces the end of the program, for options given in Python."""

    def __init__(self, raises: type[Exception] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.raises = raises

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            given = next((word for word in unknown[1].split() if word.startswith("-")), unknown[1].split()[0])
            message = f"unknown option {given}{near(given.partition('=')[0], self._option_string_actions)}"
        elif choice:
            message += near(choice[1], [word.strip(" '") for word in choice[2].split(",")])
        if self.raises is not None:
            raise self.raises(message)
        self.exit(2, f"error: {message}\n{self.prog} --help lists all options.\n")


def near(given: str, known: object) -> str:
    """The end of a message about a name that is not known."""
    found = get_close_matches(given, list(known), 1)  # type: ignore[call-overload]
    return f"; did you mean {found[0]}?" if found else ""
