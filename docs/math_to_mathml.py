"""Equations become MathML while the site is built: no script and no network in the reader's browser."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    def mathml(match: re.Match[str]) -> str:
        if match[2] == "(":
            return convert(unescape(match[3]))
        return f'<div class="equation">{convert(unescape(match[3]), display="block")}</div>'

    return _MATH.sub(mathml, html)
