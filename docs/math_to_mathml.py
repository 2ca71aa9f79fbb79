"""Equations become MathML while the site is built: no script and no network in the reader's browser."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    def mathml(match: re.Match[str]) -> str:
        block = match[2] == "["
        equation = convert(unescape(match[3]), display="block" if block else "inline")
        if "\\" in equation:
            raise ValueError(f"equation: {match[3]} has a command that MathML does not get; write it in another way.")
        return f'<div class="equation">{equation}</div>' if block else equation

    return _MATH.sub(mathml, html)
