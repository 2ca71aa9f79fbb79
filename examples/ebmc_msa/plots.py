"""Figures of the report: plain data in, SVG text out. One colour, marker and dash per modality throughout."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import numpy as np

INK, FAINT = "#1f2933", "#9aa5b1"
WIDTH, SMALL = 4.8, 2.4  # inches: two large or four small panels side by side on a desktop

# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, it fades on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#5D4037", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)))
# Classes have their own colours (Tol's muted scheme), so that no class looks like a modality.
CLASSES = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
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
    rival: float | None = None


def palette(modalities: Sequence[str]) -> dict[str, Style]:
    """A style per modality; text, audio and vision look the same in every run."""
    known = [name for name in ("text", "audio", "vision") if name in modalities]
    slots = {name: ("text", "audio", "vision").index(name) for name in known}
    free = [i for i in range(max(len(modalities), 3)) if i not in slots.values()]
    slots |= dict(zip([name for name in modalities if name not in known], free, strict=False))
    return {
        name: Style(
            COLOURS[slots[name] % len(COLOURS)],
            MARKERS[slots[name] % len(MARKERS)],
            DASHES[slots[name] % len(DASHES)],
        )
        for name in modalities
    }


def drawing(draw: Callable[..., Any]) -> Callable[..., str]:
    """Run `draw` under the report's look and turn the Figure it returns into SVG text."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> str:
        import matplotlib

        small = {"font.size": 8, "axes.labelsize": 8} if kwargs.get("small") else {}
        with matplotlib.rc_context(RC | small), io.StringIO() as file:
            draw(*args, **kwargs).savefig(file, format="svg", metadata={"Date": None, "Creator": None})
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
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = [to_axes.transform((1, value))[1] for value in ends.values()]
    for name, at in zip(ends, spread(heights, 15 / (72 * height * 0.75)), strict=True):
        style = styles[name]
        line = axis.plot(1.04, at, transform=axis.transAxes, clip_on=False, marker=style.marker, ms=5)[0]
        line.set(color=style.colour, in_layout=False)
        axis.text(1.08, at, short(name), transform=axis.transAxes, va="center")


def _draw_curves(axis: Any, curves: Sequence[Curve], chosen: Sequence[int | None], style: Style) -> None:
    """The first seed bold, the others faint behind it; a dot at each selected epoch."""
    for i, curve in reversed(list(enumerate(curves))):
        if not len(curve):
            continue
        width, alpha = (1.8, 1.0) if i == 0 else (0.8, 0.45)
        marker = style.marker if len(curve) == 1 else None
        x, y = np.asarray(curve, float).T
        axis.plot(x, y, color=style.colour, ls=style.dash, lw=width, alpha=alpha, marker=marker)
        at = x == chosen[i] if i < len(chosen) and chosen[i] is not None else np.zeros(len(x), bool)
        axis.plot(x[at], y[at], "o", ms=5 if i == 0 else 3, color=style.colour, alpha=alpha)


@drawing
def over_time(
    stages: Mapping[str, Mapping[str, Sequence[Curve]]],
    styles: Mapping[str, Style],
    *,
    ylabel: str,
    selected: Mapping[str, Sequence[int | None]],
    equal: float | None = None,
    small: bool = False,
) -> Any:
    """Curves by epoch: one panel per stage, one line per name (curves by seed, the first one bold)."""
    from matplotlib.ticker import MaxNLocator

    width, height = (SMALL, 1.55) if small else (WIDTH, 3.2)
    figure = _figure(width, height)
    curves = [[c for by_seed in lines.values() for c in by_seed] for lines in stages.values()]
    longest = np.array([max((c[-1][0] for c in group if len(c)), default=1) for group in curves])
    ratios = np.maximum(longest, longest.max() * 0.4)
    axes = figure.subplots(1, len(stages), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for i, (axis, (stage, lines)) in enumerate(zip(axes, stages.items(), strict=True)):
        chosen = selected.get(stage, [])
        for name, by_seed in lines.items():
            _draw_curves(axis, by_seed, chosen, styles.get(name, Style()))
        if chosen and chosen[0] is not None:
            axis.axvline(chosen[0], color=FAINT, ls=":", lw=1.2, zorder=0)
        if equal is not None:
            axis.axhline(equal, color=FAINT, ls="--", lw=1, zorder=0)
        axis.grid(axis="y")
        axis.margins(x=0.04)
        axis.xaxis.set_major_locator(MaxNLocator(4 if len(stages) > 1 else 5, integer=True, min_n_ticks=1))
        axis.set_xlabel("epoch")
        axis.set_title("" if small else stage)
        if i:
            axis.tick_params(left=False)
    axes[0].set_ylabel(ylabel)
    if small:
        axes[0].yaxis.set_major_locator(MaxNLocator(4))
        return figure
    values = np.array([v for group in curves for c in group for _, v in c])
    if values.size and values.min() > 0 and values.max() / values.min() > 30:
        axes[0].set_yscale("log")
    if len(styles) > 1:
        last = list(stages.values())[-1]
        ends = {name: by_seed[0][-1][1] for name, by_seed in last.items() if by_seed and len(by_seed[0])}
        if ends:
            _end_labels(axes[-1], ends, styles, height)
    return figure


@drawing
def before_after(shares: Mapping[str, tuple[Sequence[float], Sequence[float]]], styles: Mapping[str, Style]) -> Any:
    """Two bars per modality: mean share over seeds before (pale) and after (full); a dot per seed."""
    figure = _figure(WIDTH, 0.9 + 0.62 * len(shares))
    axis = figure.subplots()
    for y, (name, moments) in enumerate(shares.items()):
        for offset, alpha, values in zip((-0.2, 0.2), (0.38, 1.0), moments, strict=True):
            if not len(values):
                continue
            mean = 100 * float(np.mean(values))
            axis.barh(y + offset, mean, 0.36, color=styles[name].colour, alpha=alpha)
            if len(values) > 1:
                axis.plot(
                    100 * np.asarray(values), [y + offset] * len(values), "o", mfc="white", mec=INK, mew=0.8, ms=4
                )
            edge = 100 * max(*values, 0.0)
            word = "before" if offset < 0 else "after"
            axis.annotate(
                f"{mean:.0f}% {word}", (edge, y + offset), (7, 0), textcoords="offset points", va="center"
            ).set_bbox({"fc": "white", "ec": "none", "pad": 0.5})
    axis.axvline(100 / len(shares), color=FAINT, ls="--", lw=1, zorder=0)
    axis.axvline(0, color=INK, lw=0.8)
    low = min(0.0, *(100 * v for moments in shares.values() for values in moments for v in values))
    high = max(100 * v for moments in shares.values() for values in moments for v in values)
    axis.set_xlim(low * 1.1, max(high, 100 / len(shares)) * 1.32)
    axis.set_xticks([tick for tick in axis.get_xticks() if low * 1.1 <= tick <= min(100, axis.get_xlim()[1])])
    axis.set_yticks(range(len(shares)), [short(name) for name in shares])
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
    stacked = 100 * np.cumsum(np.vstack([np.zeros(len(order)), weights[:, order]]), axis=0)
    figure = _figure(WIDTH, 3.3)
    axis = figure.subplots()
    x = np.linspace(0, 100, len(order) + 1)
    for name, low, high in zip(trust, stacked[:-1], stacked[1:], strict=True):
        low, high = (np.append(edge, edge[-1]) for edge in (low, high))
        axis.fill_between(x, low, high, step="post", color=styles[name].colour, lw=0, label=short(name))
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="test utterances, sorted (% of all)", ylabel="trust (%)")
    figure.legend(loc="outside upper left", ncols=min(len(trust), 3), handlelength=1, columnspacing=1.2)
    return figure


@drawing
def trust_by_error(
    trust: Mapping[str, np.ndarray], error: np.ndarray, styles: Mapping[str, Style], *, xlabel: str
) -> Any:
    """Mean trust (with its standard error) in fifths of the utterances, from the least error to the most."""
    groups = np.array_split(np.argsort(error, kind="stable"), 5)
    figure = _figure(WIDTH, 3.3)
    axis = figure.subplots()
    ends = {}
    for name, weights in trust.items():
        parts = [100 * weights[g][np.isfinite(weights[g])] for g in groups]
        mean = [p.mean() if len(p) else np.nan for p in parts]
        spreads = [p.std(ddof=1) / len(p) ** 0.5 if len(p) > 1 else 0.0 for p in parts]
        style = styles[name]
        axis.errorbar(
            range(5), mean, spreads, color=style.colour, marker=style.marker, ls=style.dash, ms=5, capsize=2
        )
        if np.isfinite(mean[-1]):
            ends[name] = mean[-1]
    axis.set_xticks(range(5), [f"{np.median(error[g]):.2f}" for g in groups])
    axis.set(xlabel=xlabel, ylabel="mean trust (%)")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")
    _end_labels(axis, ends, styles, 3.3)
    return figure


@drawing
def conditions(rows: Sequence[Row], *, xlabel: str, names: tuple[str, str | None]) -> Any:
    """One line per set of present modalities: mean (large), each seed (small), a rival model (grey)."""
    height = 1.05 + 0.3 * len(rows)
    figure = _figure(WIDTH, height)
    axis = figure.subplots()
    for y, row in enumerate(rows):
        if row.rival is not None and np.isfinite(row.rival):
            axis.plot(row.rival, y, "D", ms=6, mfc="white", mec="#616e7c", zorder=2)
        if len(row.values) > 1:
            axis.plot([min(row.values), max(row.values)], [y, y], color=row.colour, lw=1, alpha=0.6)
            axis.plot(row.values, [y] * len(row.values), ".", color=row.colour, ms=4, alpha=0.6)
        fill = row.colour if row.filled else "white"
        axis.plot(np.mean(row.values), y, "o", ms=8, mfc=fill, mec=row.colour, mew=1.8, zorder=3)
    axis.axvline(float(np.mean(rows[0].values)), color=FAINT, ls="--", lw=1, zorder=0)
    axis.set_yticks(range(len(rows)), [short(row.label, 24) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y")
    axis.tick_params(left=False)
    axis.margins(x=0.08)
    axis.set_xlabel(xlabel)
    if names[1]:
        axis.plot([], [], "o", color=INK, ms=8, label=names[0])
        axis.plot([], [], "D", mfc="white", mec="#616e7c", ms=6, label=names[1])
        figure.legend(loc="outside upper right", ncols=2, handletextpad=0.2, columnspacing=1)
    return figure


def project(features: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Two-dimensional t-SNE of the rows; None where there is nothing to lay out."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all() or features.std(0).max(initial=0) == 0:
        return None
    perplexity = min(30.0, (len(features) - 1) / 3)
    init = "pca" if features.shape[1] > 1 else "random"
    with threadpool_limits(1):  # so few points gain nothing from threads, and lose much on busy cores
        return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(features)


@drawing
def embedding(points: np.ndarray, target: np.ndarray, *, classes: bool, label: str) -> Any:
    """A scatter of the laid-out features, coloured by class or by value."""
    figure = _figure(WIDTH, 4.2)
    axis = figure.subplots()
    if classes:
        for i, value in enumerate(np.unique(target)):
            at = target == value
            colour, marker = CLASSES[i % len(CLASSES)], MARKERS[i % len(MARKERS)]
            axis.scatter(
                *points[at].T,
                s=16,
                color=colour,
                marker=marker,
                lw=0.3,
                edgecolors="#52606d",
                alpha=0.9,
                label=f"{value:g}",
            )
        figure.legend(
            title=label,
            loc="outside lower left",
            ncols=6,
            handletextpad=0.1,
            columnspacing=1,
            alignment="left",
        )
    else:
        limit = np.abs(target).max() if target.min() < 0 < target.max() else None
        bounds = {"vmin": -limit, "vmax": limit} if limit else {}
        cmap = "coolwarm" if limit else "viridis"
        dots = axis.scatter(*points.T, c=target, s=17, cmap=cmap, edgecolors="#52606d", lw=0.3, **bounds)
        figure.colorbar(dots, ax=axis, location="bottom", label=label, aspect=40, pad=0.03).outline.set_visible(False)
    axis.set(xticks=[], yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    return figure
