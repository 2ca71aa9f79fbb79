"""The HTML that the report is built of; every text that comes in is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import NamedTuple

CSS = """
:root{color-scheme:light dark;--page:#f5f7fa;--card:#fff;--ink:#1f2933;--faint:#52606d;--line:#e4e7eb;--link:#0b5cad;
--good:#00664b;--goodbg:#edf8f4;--bad:#b44d12;--badbg:#fdf3ec;--level:#52606d;--levelbg:#f0f3f7}
@media(prefers-color-scheme:dark){:root{--page:#11161c;--card:#1a2129;--ink:#e4e9ef;--faint:#a3b1c0;--line:#323d49;
--link:#7cc0ff;--good:#4ecba2;--goodbg:#15302a;--bad:#f2a06b;--badbg:#3a2418;--level:#a3b1c0;--levelbg:#232c36}
img,.chip i{filter:invert(.89) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.3rem;margin:0 0 .5rem}
h3{font-size:1rem;margin:0 0 .4rem;line-height:1.3}h4{font-size:1.05rem;margin:1.6rem 0 .2rem}
p{margin:.3rem 0 .8rem;max-width:56rem}header p{max-width:none}a{color:var(--link)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.2rem;margin:1.2rem 0}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.92rem}
.quiet,figcaption{color:var(--faint);font-size:.88rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,29rem),1fr));gap:1.4rem}
.grid figure:last-child:nth-child(odd){grid-column:1/-1}
figure{margin:0;min-width:0}img{width:100%;height:auto;display:block}figcaption{margin-top:.3rem}
.picture{max-width:36rem}
@media(min-width:62rem){.grid:not(.terms) figure:only-child{display:grid;grid-template-columns:1fr 1fr;gap:0 1.4rem}
.grid:not(.terms) figure:only-child h3{grid-column:1/-1}
.grid:not(.terms) figure:only-child figcaption{align-self:center}}
.terms figure{display:grid;grid-template:auto 1fr/15rem 1fr;gap:0 1rem}
.terms h3{grid-column:2;margin:.2rem 0 0}.terms .picture{grid-column:1;grid-row:1/span 2}
.terms figcaption{grid-column:2;margin:0}
.scroll{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.38rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{white-space:normal;vertical-align:bottom;font-weight:600;color:var(--faint)}tbody th{font-weight:500}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,29rem),1fr));gap:0 1.4rem}
.beside>*{min-width:0;align-self:center}
.words td{text-align:left}.words td:last-child{white-space:normal;min-width:16rem}
th.sort{cursor:pointer}th.sort:hover{color:var(--link)}[aria-sort]::after{content:" \\25be"}
[aria-sort=ascending]::after{content:" \\25b4"}
.range{color:var(--faint);font-size:.85em}td.good{color:var(--good)}td.bad{color:var(--bad)}
p.good,p.flag,p.level{border-left:4px solid var(--level);background:var(--levelbg);padding:.5rem .8rem;max-width:none}
p.good{border-color:var(--good);background:var(--goodbg)}p.flag{border-color:var(--bad);background:var(--badbg)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:.8rem;margin:1rem 0}
.cards div{border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
.cards dt{font-size:.88rem;color:var(--faint)}.cards dd{margin:0;font-size:.88rem;color:var(--faint)}
.cards dd.big{font-size:1.7rem;line-height:1.3;color:var(--ink)}
.bar{display:block;width:100%;height:1rem;margin:.3rem 0}.bar line{stroke:var(--line)}.bar rect{fill:var(--c)}
.bar circle{fill:var(--c);stroke:var(--card);stroke-width:2}
.chip{display:inline-flex;align-items:center;gap:.35rem;margin-right:.9rem}
.chip i{width:.8rem;height:.8rem;border-radius:3px;background:var(--c)}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--link)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--page);padding:.7rem;border-radius:6px;font-size:.85rem}
@media(max-width:30rem){section{padding:.9rem .7rem}main{padding:1rem .5rem 3rem}th,td{padding:.35rem .4rem}
table{font-size:.85rem}th:first-child{min-width:6.5rem;max-width:9.5rem;white-space:normal}
.terms figure{grid-template:none/1fr}.terms h3,.terms figcaption,.terms .picture{grid-column:1;grid-row:auto}}
@media print{section{break-inside:avoid;border:0}}
"""

# A click on a column's head sorts by it: numbers by their first number, the best direction last used turned round.
SCRIPT = """
document.querySelectorAll("table.sortable").forEach(t=>t.querySelectorAll("thead th").forEach((h,i)=>{
h.classList.add("sort");h.tabIndex=0;h.title="sort by this column";
const go=()=>{const up=h.getAttribute("aria-sort")!=="ascending",b=t.tBodies[0];
t.querySelectorAll("thead th").forEach(o=>o.removeAttribute("aria-sort"));
h.setAttribute("aria-sort",up?"ascending":"descending");
const v=r=>{const s=r.cells[i].textContent,n=parseFloat(s);return isNaN(n)?s:n};
[...b.rows].sort((p,q)=>{const x=v(p),y=v(q);
return (typeof x===typeof y?(x>y?1:x<y?-1:0):typeof x==="number"?-1:1)*(up?1:-1)}).forEach(r=>b.append(r))};
h.onclick=go;h.onkeydown=e=>{if(e.key==="Enter")go()}}));
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
        f"<p>{escape(about)} {chips}</p><nav>{links}</nav></header>{bodies}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def p(text: str, kind: str = "") -> str:
    """A paragraph; kind is "quiet", "flag", "good", "level" or nothing."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


class Card(NamedTuple):
    """A figure that matters: what it is, the figure, what to know about it, and perhaps its interval as a bar."""

    title: str
    figure: str
    note: str
    bar: str = ""


def cards(found: Iterable[Card]) -> str:
    items = "".join(
        f'<div><dt>{escape(card.title)}</dt><dd class="big">{escape(card.figure)}</dd>{card.bar}'
        f"<dd>{escape(card.note)}</dd></div>"
        for card in found
    )
    return f'<dl class="cards">{items}</dl>'


def bar(mean: float, low: float, high: float, limit: float, kind: str) -> str:
    """An interval on the line from -limit to limit, with a mark at 0; kind is "good", "bad" or "level"."""
    left, at, right = (50 + 50 * value / limit for value in (low, mean, high))
    return (
        f'<dd><svg class="bar" style="--c:var(--{kind})" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="95 % interval"><line x1="0" y1="5" x2="100" y2="5"/><line x1="50" y1="0" x2="50" y2="10"/>'
        f'<rect x="{left:.2f}" y="3.5" width="{max(right - left, 0.5):.2f}" height="3"/>'
        f'<rect x="{at - 0.6:.2f}" y="1" width="1.2" height="8"/></svg></dd>'
    )


def figure(svg: str, title: str, caption: str = "") -> str:
    """An `img` rather than inline SVG: one alt text, and no clash of ids between figures."""
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(f"{title}. {caption}".strip())}">'
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><h3>{escape(title)}</h3><div class="picture">{image}</div>{note}</figure>'


def grid(figures: Iterable[str], kind: str = "pairs") -> str:
    """Two to a row; kind "terms" has small pictures, each beside its caption."""
    return f'<div class="grid {kind}">{"".join(figures)}</div>'


def beside(*parts: str) -> str:
    """Side by side where the page is wide enough."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


class Cell(NamedTuple):
    """Text with what a pointer on it shows, a fainter addition and a colour: "good", "bad" or nothing."""

    text: str
    hover: str = ""
    faint: str = ""
    kind: str = ""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    bold: Collection[tuple[int, int]] = (),
    kind: str = "sortable",
) -> str:
    """The first column holds the row's name; `bold` lists (row, column); kind "words" has texts, not figures."""

    def cell(i: int, j: int, content: str | Cell) -> str:
        found = content if isinstance(content, Cell) else Cell(content)
        text = f"<strong>{escape(found.text)}</strong>" if (i, j) in bold else escape(found.text)
        faint = f' <span class="range">{escape(found.faint)}</span>' if found.faint else ""
        hover = f' title="{escape(found.hover)}"' if found.hover else ""
        colour = f' class="{found.kind}"' if found.kind else ""
        return f"<td{colour}{hover}>{text}{faint}</td>"

    def line(i: int, row: Sequence[str | Cell]) -> str:
        return (
            f'<tr><th scope="row">{escape(str(row[0]))}</th>'
            + "".join(cell(i, j, content) for j, content in enumerate(row[1:], 1))
            + "</tr>"
        )

    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(head[0])} table">'
        f'<table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(line(i, row) for i, row in enumerate(rows))}</tbody></table></div>"
    )
