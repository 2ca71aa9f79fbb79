"""Figures of the report: plain data in, SVG text out. One colour, marker and dash per modality throughout."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import count, cycle
from typing import Any, NamedTuple

import numpy as np

INK, FAINT = "#1f2933", "#9aa5b1"
WIDTH, SMALL = 4.8, 3.2  # inches: two large or three small figures side by side on a desktop

# Okabe and Ito's colours, distinct for any colour vision; yellow is left out, it fades on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#5D4037", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)))
# Classes have their own colours (Tol's muted scheme), so that no class looks like a modality.
CLASSES = (
    "#332288",
    "#CC6677",
    "#117733",
    "#DDCC77",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#BBBBBB",
)
RC = {
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a modality may be called "a$b$"
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "svg.hashsalt": "modbalance",  # same data, same file
}

Curve = Sequence[tuple[float, float]]  # (epoch, value)
Panel = Mapping[str, Mapping[str, Sequence[float]]]  # {model: {level: value by seed}}


class Style(NamedTuple):
    colour: str = INK
    marker: str = "o"
    dash: Any = "-"


class Row(NamedTuple):
    """One line of the missing-modality figure."""

    label: str
    colour: str
    filled: bool
    values: Sequence[float]  # by seed
    rival: float  # NaN where there is none


def palette(modalities: Sequence[str]) -> dict[str, Style]:
    """A style per modality; text, audio and vision look the same in every run."""
    fixed = ("text", "audio", "vision")
    free = (i for i in count() if i >= len(fixed) or fixed[i] not in modalities)
    slots = {name: fixed.index(name) if name in fixed else next(free) for name in modalities}
    return {
        name: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for name, i in slots.items()
    }


def model_styles(models: Sequence[str], modalities: Sequence[str]) -> dict[str, Style]:
    """A style per model: EBMC dark, a single modality as it looks elsewhere, the others in what is left."""
    own = palette(modalities)
    used = {*COLOURS[:3], *(style.colour for style in own.values())}  # text, audio and vision keep theirs
    free = cycle([colour for colour in COLOURS if colour not in used] or COLOURS)
    rest = (name for name in models if name not in own and name != "ebmc")
    others = {name: Style(next(free), MARKERS[-1 - i % 4], DASHES[1 + i % 3]) for i, name in enumerate(rest)}
    return {name: {"ebmc": Style()}.get(name) or own.get(name) or others[name] for name in models}


_seen: list[Callable[[str, Any], None]] = []


@contextmanager
def each_figure(see: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `see` with the name and the Figure of all that is drawn inside the context."""
    _seen.append(see)
    try:
        yield
    finally:
        _seen.remove(see)


def drawing(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Run `draw` under the report's look and turn the Figure it returns into SVG text, or into a PNG's bytes."""

    @wraps(draw)
    def drawn(*args: Any, image: str = "svg", **kwargs: Any) -> Any:
        import matplotlib

        small = {"font.size": 8, "axes.labelsize": 8} if kwargs.get("small") else {}
        if image == "png":
            with matplotlib.rc_context(RC), io.BytesIO() as file:
                draw(*args, **kwargs).savefig(file, format="png", dpi=120, metadata={"Software": None})
                return file.getvalue()
        with matplotlib.rc_context(RC | small), io.StringIO() as file:
            figure = draw(*args, **kwargs)
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
            for see in _seen:
                see(draw.__name__, figure)
            return file.getvalue()

    return drawn


def short(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def spread(heights: Sequence[float], gap: float) -> np.ndarray:
    """Move heights in [0, 1] apart so that labels there do not overlap; the order stays."""
    order = np.argsort(heights, kind="stable")
    placed = np.asarray(heights, float)[order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed[-1] = min(placed[-1], 1.0)
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    return placed[np.argsort(order)]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _end_labels(axis: Any, ends: Mapping[str, float], styles: Mapping[str, Style], height: float) -> None:
    """Write each line's name beside its end, so that no legend has to be matched by colour."""
    from matplotlib.transforms import ScaledTranslation

    to_axes = axis.transData + axis.transAxes.inverted()
    heights = [to_axes.transform((1, value))[1] for value in ends.values()]
    for name, at in zip(ends, spread(heights, 15 / (72 * height * 0.75)), strict=True):
        style = styles[name]
        place = {"xy": (1, at), "xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
        axis.annotate(short(name), xytext=(21, 0), **place)
        marker = axis.transAxes + ScaledTranslation(13 / 72, 0, axis.figure.dpi_scale_trans)
        line = axis.plot(1, at, transform=marker, clip_on=False, marker=style.marker, ms=5)[0]
        line.set(color=style.colour, in_layout=False)


def _draw_curves(axis: Any, curves: Sequence[Curve], selected: Sequence[int], style: Style) -> None:
    """The first seed bold, the others faint behind it; a dot at each selected epoch."""
    for i, curve in reversed(list(enumerate(curves))):
        width, alpha, size = (1.8, 1.0, 5) if i == 0 else (0.8, 0.45, 3)
        x, y = np.asarray(curve, float).T
        axis.plot(x, y, color=style.colour, ls=style.dash, lw=width, alpha=alpha)
        at = x == selected[i]
        axis.plot(x[at], y[at], "o", ms=size, color=style.colour, alpha=alpha)


@drawing
def over_time(
    stages: Mapping[str, Mapping[str, Sequence[Curve]]],
    selected: Mapping[str, Sequence[int]],
    styles: Mapping[str, Style],
    *,
    ylabel: str = "",
    equal: float | None = None,
    small: bool = False,
) -> Any:
    """Curves by epoch: one panel per stage, one line per name (curves by seed, the first one bold)."""
    from matplotlib.ticker import MaxNLocator

    width, height = (SMALL, 1.75) if small else (WIDTH, 3.2)
    figure = _figure(width, height)
    longest = [max(curve[-1][0] for by_seed in lines.values() for curve in by_seed) for lines in stages.values()]
    ratios = np.maximum(longest, 0.4 * max(longest))
    axes = figure.subplots(1, len(stages), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for axis, (stage, lines) in zip(axes, stages.items(), strict=True):
        for name, by_seed in lines.items():
            _draw_curves(axis, by_seed, selected[stage], styles.get(name, Style()))
        axis.axvline(selected[stage][0], color=FAINT, ls=":", lw=1.2, zorder=0)
        if equal is not None:
            axis.axhline(equal, color=FAINT, ls="--", lw=1, zorder=0)
        axis.grid(axis="y")
        axis.margins(x=0.04)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axis.set(xlabel="epoch", title=stage)
    for axis in axes[1:]:
        axis.tick_params(left=False)
    axes[0].set_ylabel(ylabel)
    if styles:
        ends = {name: by_seed[0][-1][1] for name, by_seed in lines.items()}
        _end_labels(axes[-1], ends, styles, height)
    return figure


@drawing
def contributions(shares: Mapping[str, Mapping[str, Sequence[float]]], styles: Mapping[str, Style]) -> Any:
    """{"before", "after": {modality: percent by seed}} as bars of the mean, pale before; a dot per seed."""
    figure = _figure(WIDTH, 0.9 + 0.31 * len(shares) * len(styles))
    axis = figure.subplots()
    thick = 0.8 / len(shares)
    for i, (when, by_modality) in enumerate(shares.items()):
        for y, (name, values) in enumerate(by_modality.items()):
            at, mean = y + thick * (i - (len(shares) - 1) / 2), float(np.mean(values))
            axis.barh(at, mean, 0.9 * thick, color=styles[name].colour, alpha=0.38 if when == "before" else 1.0)
            if len(values) > 1:
                axis.plot(values, [at] * len(values), "o", mfc="white", mec=INK, mew=0.8, ms=4)
            text = f"{mean:.0f}% {when}" if len(shares) > 1 else f"{mean:.0f}%"
            label = axis.annotate(text, (max(values), at), (7, 0), textcoords="offset points", va="center")
            label.set_bbox({"fc": "white", "ec": "none", "pad": 0.5})
    equal = 100 / len(styles)
    axis.axvline(equal, color=FAINT, ls="--", lw=1, zorder=0)
    high = max(equal, *(v for by_modality in shares.values() for values in by_modality.values() for v in values))
    axis.set_xlim(0, 1.32 * high)
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= min(100, 1.32 * high)])
    axis.set_yticks(range(len(styles)), [short(name) for name in styles])
    axis.tick_params(left=False)
    axis.invert_yaxis()
    axis.set_xlabel("share of the contribution (%)")
    return figure


@drawing
def trust_bands(trust: Mapping[str, np.ndarray], styles: Mapping[str, Style]) -> Any:
    """Stacked trust of each utterance, grouped by the modality trusted most."""
    weights = np.stack(list(trust.values()))
    leader = weights.argmax(0)
    order = np.lexsort((-weights.max(0), leader))
    order = order[np.linspace(0, len(order) - 1, min(len(order), 400)).round().astype(int)]
    figure = _figure(WIDTH, 3.3)
    axis = figure.subplots()
    stacked = 100 * weights[:, np.append(order, order[-1])]  # the last step needs an end
    look = {"colors": [styles[name].colour for name in trust], "labels": list(map(short, trust)), "lw": 0}
    axis.stackplot(np.linspace(0, 100, len(order) + 1), stacked, step="post", **look)
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="test utterances, sorted (% of all)", ylabel="trust (%)")
    figure.legend(loc="outside upper left", ncols=min(len(trust), 3), handlelength=1, columnspacing=1.2)
    return figure


@drawing
def trust_by_error(
    trust: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    error: np.ndarray,
    styles: Mapping[str, Style],
    *,
    xlabel: str,
) -> Any:
    """Mean trust where present, with its standard error, in fifths from the least error to the most."""
    fifths = [fifth for fifth in np.array_split(np.argsort(error, kind="stable"), 5) if len(fifth)]
    figure = _figure(WIDTH, 3.3)
    axis = figure.subplots()
    ends = {}
    for name, weights in trust.items():
        groups = [100 * weights[fifth][present[name][fifth]] for fifth in fifths]
        at = [i for i, group in enumerate(groups) if len(group)]
        if not at:
            continue
        mean = [groups[i].mean() for i in at]
        spreads = [groups[i].std() / len(groups[i]) ** 0.5 for i in at]
        style = styles[name]
        axis.errorbar(at, mean, spreads, color=style.colour, marker=style.marker, ls=style.dash, ms=5, capsize=2)
        ends[name] = mean[-1]
    axis.set_xticks(range(len(fifths)), [f"{np.median(error[fifth]):.2g}" for fifth in fifths])
    axis.set(xlabel=xlabel, ylabel="mean trust (%)")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")
    _end_labels(axis, ends, styles, 3.3)
    return figure


@drawing
def conditions(rows: Sequence[Row], *, xlabel: str, legend: tuple[str, str] | None) -> Any:
    """One line per set of present modalities: mean (large), each seed (small), a rival model (grey)."""
    figure = _figure(WIDTH, 1.05 + 0.3 * len(rows))
    axis = figure.subplots()
    for y, row in enumerate(rows):
        axis.plot(row.rival, y, "D", ms=6, mfc="white", mec="#616e7c", zorder=2)
        if len(row.values) > 1:
            axis.plot(row.values, [y] * len(row.values), ".-", color=row.colour, lw=1, ms=4, alpha=0.6)
        fill = row.colour if row.filled else "white"
        axis.plot(np.mean(row.values), y, "o", ms=8, mfc=fill, mec=row.colour, mew=1.8, zorder=3)
    axis.axvline(float(np.mean(rows[0].values)), color=FAINT, ls="--", lw=1, zorder=0)
    axis.set_yticks(range(len(rows)), [short(row.label, 24) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y")
    axis.tick_params(left=False)
    axis.margins(x=0.08)
    axis.set_xlabel(xlabel)
    if legend:
        axis.plot([], [], "o", color=INK, ms=8, label=legend[0])
        axis.plot([], [], "D", mfc="white", mec="#616e7c", ms=6, label=legend[1])
        figure.legend(loc="outside upper right", ncols=2, handletextpad=0.2, columnspacing=1)
    return figure


@drawing
def embedding(points: np.ndarray, target: np.ndarray, *, classes: bool, label: str) -> Any:
    """A scatter of the laid-out features, coloured by class or by value."""
    figure = _figure(WIDTH, 4.2)
    axis = figure.subplots()
    dot = {"s": 17, "lw": 0.3, "edgecolors": "#52606d"}
    if classes:
        for i, value in enumerate(np.unique(target)):
            look = {"color": CLASSES[i % len(CLASSES)], "marker": MARKERS[i % len(MARKERS)]}
            axis.scatter(*points[target == value].T, label=f"{value:g}", **look, **dot)
        figure.legend(
            title=label, loc="outside lower left", ncols=6, handletextpad=0.1, columnspacing=1, alignment="left"
        )
    else:
        limit = np.abs(target).max() if target.min() < 0 < target.max() else None
        scale = {"cmap": "coolwarm", "vmin": -limit, "vmax": limit} if limit else {"cmap": "viridis"}
        dots = axis.scatter(*points.T, c=target, **scale, **dot)
        figure.colorbar(dots, ax=axis, location="bottom", label=label, aspect=40, pad=0.03).outline.set_visible(False)
    axis.set(xticks=[], yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    return figure


@drawing
def degradation(panels: Mapping[str, Panel], styles: Mapping[str, Style], names: Mapping[str, str]) -> Any:
    """A panel per measure: curves where the levels are rates, else a row for each level and a mark for each model."""
    first = next(iter(panels.values()))
    levels = list(dict.fromkeys(level for by_level in first.values() for level in by_level))
    rates = all(level.replace(".", "", 1).isdigit() for level in levels)
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    height = 2.9 if rates else 0.7 + len(levels) * (0.16 + 0.055 * len(styles))
    figure = _figure(WIDTH * columns, 0.2 * -(-len(styles) // (3 * columns)) + height * lines)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, (label, models) in zip(axes, panels.items(), strict=False):
        for i, (name, by_level) in enumerate(models.items()):
            values = [np.asarray(v, float) for v in by_level.values()]
            mean = np.array([v.mean() for v in values])
            deviation = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
            style = styles[name]
            look = {"color": style.colour, "marker": style.marker, "ms": 4, "label": short(names[name])}
            if rates:
                x = [float(level) for level in by_level]
                axis.plot(x, mean, ls=style.dash, lw=2 if name == "ebmc" else 1.3, **look)
                axis.fill_between(x, mean - deviation, mean + deviation, color=style.colour, alpha=0.12, lw=0)
            else:
                y = [levels.index(level) + 0.7 * ((i + 0.5) / len(models) - 0.5) for level in by_level]
                axis.errorbar(mean, y, xerr=deviation, ls="", elinewidth=1, **look)
        if rates:
            axis.set(xlabel="rate", ylabel=label)
            axis.grid(axis="y")
            continue
        axis.set_yticks(range(len(levels)), [short(level, 24) for level in levels])
        axis.set(ylim=(len(levels) - 0.5, -0.5), xlabel=label)
        axis.tick_params(left=False)
        axis.grid(axis="x")
        for y in range(1, len(levels)):
            axis.axhline(y - 0.5, color="#e4e7eb", lw=1, zorder=0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=3 * columns, handlelength=2.4, columnspacing=1.2)
    return figure
