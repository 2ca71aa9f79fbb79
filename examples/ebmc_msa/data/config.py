"""Options from a TOML file, and the file that holds the options of a run. Does not import torch.

The keys are the long options without their dashes; values are checked by the option itself.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ebmc_msa.data.parser import Parser, near

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ON_THE_COMMAND_LINE = ("help", "config", "dump_config", "resume")


def add_config_options(parser: Any) -> None:
    """Add `--config` and `--dump-config` to a parser or an argument group."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="a TOML file of options; those of the command line override it. A run's folder holds its own",
    )  # fmt: skip
    parser.add_argument(
        "--dump-config", nargs="?", const="-", metavar="FILE",
        help="print all options as TOML, or write them to FILE, and end",
    )  # fmt: skip


def parse_args(parser: Parser, argv: list[str], start: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """Parse `argv`; the file of `--config` gives what `argv` does not, and `start` what neither does."""
    early = Parser(prog=parser.prog, add_help=False)
    early.add_argument("--config", type=Path, metavar="FILE")
    path = early.parse_known_args(argv)[0].config
    found = {} if path is None else read(path, parser)
    return parser.parse_args(argv, argparse.Namespace(**{**(start or {}), **found}))


def read(path: Path, parser: Parser) -> dict[str, Any]:
    """The options that a TOML file states, by their name in the parsed arguments.

    A file that cannot be used ends the program with an error that names it.
    """
    expected = f"expected a TOML file of options; {parser.prog} --dump-config FILE writes one"
    if path.is_dir():
        parser.error(f"--config: {path} is a folder, expected a TOML file; pass {path / 'config.toml'}")
    try:
        return loads(path.read_text(encoding="utf-8"), parser, f"--config {path}")
    except FileNotFoundError:
        parser.error(f"--config: {path} does not exist, {expected}")
    except OSError as problem:
        parser.error(f"--config: {path} cannot be read ({problem.strerror}), {expected}")
    except ValueError as problem:
        parser.error(f"--config: {path} is not TOML ({problem}), expected lines such as seeds = [1, 2]; correct it")


def loads(text: str, parser: Parser, where: str) -> dict[str, Any]:
    """As `read`, of a text."""
    return convert(tomllib.loads(text), parser, where)


def convert(content: Mapping[str, Any], parser: Parser, where: str) -> dict[str, Any]:
    """Values of Python or TOML by option, checked as the command line checks them; `where` opens the errors."""
    options = {action.option_strings[0][2:]: action for action in actions(parser)}
    values = {}
    for key, value in content.items():
        action = options.get(key)
        if isinstance(value, Mapping) and (action is None or not _takes_table(action)):
            inside = next((name for name in value if name in options), None)
            parser.error(
                f"{where}: {key} is a table, expected options outside any table"
                + (f"; write {inside} = … without the line [{key}]" if inside else near(key, options))
            )
        if action is None and key.replace("-", "_") in ON_THE_COMMAND_LINE:
            parser.error(f"{where}: {key}, which is an option of the command line only; leave it out")
        if action is None:
            parser.error(f"{where}: unknown option {key}, expected one that --help lists{near(key, options)}")
        if not _fits(action, value):
            parser.error(f"{where}: {key} = {to_toml(value)}, expected {_expected(action)}")
        try:
            values[action.dest] = _checked(parser, action, value)
        except argparse.ArgumentError as problem:
            parser.error(f"{where}: {key} = {to_toml(value)}: {problem.message}")
        action.required = False
    return values


def dump(parser: Parser, values: Mapping[str, Any], leave_out: Iterable[str] = ()) -> str:
    """All options as TOML with their help, in the groups of `--help`; those without a value as comments."""
    lines = [
        f"# Options of {parser.prog}; the command line overrides them. Paths are relative to where it is started."
    ]
    group = None
    for action in actions(parser):
        if action.container.title != group:
            group = action.container.title
            lines += ["", f"# {group}"]
        value = None if action.dest in leave_out else values.get(action.dest)
        empty = value is None or value == []
        help_text = re.sub(r" \(%\(default\)s\)|%%", "", action.help or "")
        line = f"{'# ' * empty}{action.option_strings[0][2:]} = {'' if value is None else to_toml(value)}".rstrip()
        lines += [f"{line}  # {help_text}"]
    return "\n".join(lines) + "\n"


def write(parser: Parser, target: str, text: str) -> None:
    """Print a text, or write it to a file."""
    if target == "-":
        print(text, end="")
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as problem:
        parser.error(f"--dump-config: {target} cannot be written ({problem.strerror}), expected a file of yours")


def actions(parser: Parser) -> list[argparse.Action]:
    """The options that a file may hold, by group."""
    return [
        action
        for group in parser._action_groups
        for action in group._group_actions
        if action.option_strings and action.dest not in ON_THE_COMMAND_LINE
    ]


def to_toml(value: Any) -> str:
    """A value as TOML: text, numbers, paths, lists, and pairs of a name and a number as an inline table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{to_toml(str(name))} = {to_toml(x)}" for name, x in value.items()) + "}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(x, tuple) for x in value):
            return to_toml(dict(value))
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return repr(value)


def _takes_table(action: argparse.Action) -> bool:
    """Whether the command line takes NAME=NUMBER."""
    return getattr(action.type, "by_name", False)


def _fits(action: argparse.Action, value: Any) -> bool:
    """Whether a value has the TOML type of an option; what it may be is left to the option."""
    if action.nargs == 0:
        return isinstance(value, bool)
    if isinstance(value, Mapping):
        return all(_is(float, x) for x in value.values())
    if action.nargs is None and _takes_table(action):
        return _is(float, value) or _is(str, value)
    if action.nargs is not None:
        if not isinstance(value, list | tuple) or (action.nargs == "+" and not value):
            return False
        counted = not isinstance(action.nargs, int) or len(value) == action.nargs
        return counted and all(_is(_kind(action), x) for x in value)
    return _is(_kind(action), value)


def _kind(action: argparse.Action) -> type:
    name = getattr(action.type, "__name__", "str")
    return {"int": int, "float": float}.get(name, str)


def _is(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, {int: int, float: int | float, str: str | Path}[kind])


def _expected(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "true or false"
    kind = float if action.nargs is None and _takes_table(action) else _kind(action)
    table = ", or a table such as {text = 0.1, audio = 0.5}" if _takes_table(action) else ""
    if action.nargs is None:
        return {int: "a whole number", float: "a number", str: "text in quotes"}[kind] + table
    size = f"{action.nargs} " if isinstance(action.nargs, int) else ""
    return f"a list of {size}" + {int: "whole numbers", float: "numbers", str: "texts in quotes"}[kind] + table


def _checked(parser: Parser, action: argparse.Action, value: Any) -> Any:
    if action.nargs == 0:
        return value
    if isinstance(value, Mapping):
        pairs = [f"{name}={x}" for name, x in value.items()]
        value = pairs if action.nargs else ",".join(pairs)
    texts = [str(x) for x in value] if isinstance(value, list | tuple) else [str(value)]
    return parser._get_values(action, texts)
