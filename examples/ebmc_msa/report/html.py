"""The HTML that the report is built of; every text that comes in is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Sequence
from html import escape

CSS = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f5f7fa;color:#1f2933;font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.3rem;margin:0 0 .3rem}
h3{font-size:1rem;margin:0 0 .4rem;line-height:1.3}
p{margin:.3rem 0 .8rem;max-width:50rem}header p{max-width:none}a{color:#0b5cad}
section{background:#fff;border:1px solid #e4e7eb;border-radius:10px;padding:1.2rem;margin:1.2rem 0}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.92rem}
.quiet,figcaption{color:#52606d;font-size:.88rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,28rem),1fr));gap:1.4rem}
.grid:not(.small) figure{display:grid;grid-row:span 3;grid-template-rows:subgrid;row-gap:0;align-items:start}
.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1rem .8rem;margin:.8rem 0}
.small h3{font-weight:500;font-size:.92rem;margin:0}
figure{margin:0;min-width:0;max-width:36rem}img{width:100%;height:auto;display:block}figcaption{margin-top:.3rem}
.scroll{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.38rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid #e4e7eb}
thead th{white-space:normal;vertical-align:bottom;font-weight:600;color:#52606d}tbody th{font-weight:500}
th:first-child{text-align:left;position:sticky;left:0;background:#fff}
.flag{border-left:4px solid #b44d12;background:#fdf3ec;padding:.5rem .8rem}
.good{border-left:4px solid #00664b;background:#edf8f4;padding:.5rem .8rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(7rem,1fr));gap:.6rem;margin:.8rem 0}
.cards div{border:1px solid #e4e7eb;border-radius:8px;padding:.5rem .7rem;display:flex;flex-direction:column}
.cards dt{font-size:.82rem;color:#52606d;flex:1}.cards dd{margin:0;font-size:1.3rem}
.chip{display:inline-flex;align-items:center;gap:.35rem;margin-right:.9rem}
.chip i{width:.8rem;height:.8rem;border-radius:3px;background:var(--c)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f7fa;padding:.7rem;border-radius:6px;font-size:.85rem}
@media(max-width:30rem){section{padding:.9rem .7rem}main{padding:1rem .5rem 3rem}th,td{padding:.35rem .4rem}
table{font-size:.85rem}th:first-child{min-width:7.5rem;max-width:9.5rem;white-space:normal}}
@media print{section{break-inside:avoid;border:0}}
"""


def document(title: str, about: str, colours: dict[str, str], sections: dict[str, tuple[str, str]]) -> str:
    """The whole page; `sections` is {id: (title, body)}."""
    chips = "".join(f'<span class="chip"><i style="--c:{c}"></i>{escape(name)}</span>' for name, c in colours.items())
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, (head, _) in sections.items())
    bodies = "".join(
        f'<section id="{name}"><h2>{escape(head)}</h2>{body}</section>' for name, (head, body) in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f"<p>{escape(about)} {chips}</p><nav>{links}</nav></header>{bodies}</main></body></html>\n"
    )


def p(text: str, kind: str = "") -> str:
    """A paragraph; kind is "quiet", "flag", "good" or nothing."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def fact(name: str, text: str) -> str:
    return f"<p><strong>{escape(name)}</strong>: {escape(text)}</p>"


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def cards(values: dict[str, str]) -> str:
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items())
    return f'<dl class="cards">{items}</dl>'


def figure(svg: str, title: str, caption: str = "") -> str:
    """An `img` rather than inline SVG: one alt text, and no clash of ids between figures."""
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(f"{title}. {caption}".strip())}">'
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{image}{note}</figure>"


def grid(figures: Iterable[str], kind: str = "") -> str:
    return f'<div class="grid {kind}">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], bold: Collection[tuple[int, int]] = ()) -> str:
    """The first column holds the row's name; `bold` lists (row, column)."""

    def line(i: int, row: Sequence[str]) -> str:
        cells = (f"<strong>{escape(c)}</strong>" if (i, j) in bold else escape(c) for j, c in enumerate(row[1:], 1))
        return f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'

    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(head[0])} table">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(line(i, row) for i, row in enumerate(rows))}"
        "</tbody></table></div>"
    )
