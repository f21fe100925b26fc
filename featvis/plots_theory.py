"""The figures of the chapter on extrema: pairs, twins, both tables, structured networks, straight units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from featvis.linearity import MEASURES, Linearity
from featvis.plots import INK, NATURAL, VISUALIZATION, _style, interval, show
from featvis.ranks import within
from featvis.structured import Structured
from featvis.theory import Convex, Extrema, FunctionClass, Lipschitz, ReluNetworks
from featvis.theory.twins import Twins

__all__ = ["averages", "certificates", "linear_unit", "pairs", "reading", "straightness", "table", "twins"]

WIDTH = 7.2  # inches; the page shows 700 pixels
ONE, OTHER, SURE, POSSIBLE = "#1d6fa5", "#6d3fa8", "#2f7d4f", "#d9dbe0"
DASHED: Any = (0, (4, 2))
VERDICTS = {True: "yes", False: "no"}
NAMES = {
    "bend": "bend of the path",
    "unexplained": "share that a line leaves unexplained",
    "turn": "turn of the gradient",
}


def pairs(rows: Sequence[FunctionClass], seen: Sequence[Extrema], points: Sequence[Any]) -> Figure:
    """For each class its pair at x: two functions, the extrema that they share, and all that is possible.

    Functions of one variable are drawn as curves, functions of two by the lines on which they are 1/4, 1/2 and 3/4.
    """
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    with _style():
        figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, 1.9 * lines + 0.35), squeeze=False)
        for ax, klass, known, x in zip(axes.flat, rows, seen, points, strict=False):
            panel = _line if known.dimension == 1 else _plane
            panel(ax, klass, known, torch.atleast_1d(torch.as_tensor(x, dtype=torch.double)))
            ax.set_title(f"{klass.row}: {klass.name}", fontsize=8)
            ax.set(xlim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        for ax in axes.flat[len(rows) :]:
            ax.axis("off")
        _legend(figure)
        figure.tight_layout(pad=0.5, rect=(0, 0.3 / figure.get_figheight(), 1, 1))
    return figure


def _line(ax: Axes, klass: FunctionClass, known: Extrema, x: Tensor) -> None:
    pair = klass.pair(known, x)
    y = torch.linspace(0, 1, 801, dtype=torch.double)
    dense = torch.cat([y, known.knots[0][:, 0], pair.x]).sort().values
    smooth = y if klass.row == "D1" else dense  # a single changed point is drawn as a dot
    found = klass.bounds(known, y[:, None])
    ax.fill_between(y, found.low, found.high, color=POSSIBLE, lw=0, gid="possible")
    for function, colour, dashes in ((pair.low, ONE, "-"), (pair.high, OTHER, DASHED)):
        ax.plot(smooth, function(smooth[:, None]), color=colour, ls=dashes, lw=1.8)
        ax.plot(x, function(pair.x[None]), "o", color=colour, ms=5, mec="white", zorder=4)
    centres, values = klass._fixed(known) if isinstance(klass, ReluNetworks) else known.knots
    if len(values) > 2:
        ax.plot(centres[2:, 0], values[2:], "o", color=INK, mfc="white", ms=4.5, zorder=4)
    ax.plot(known.at_min, [known.low], "v", color=VISUALIZATION, ms=7, clip_on=False, zorder=5)
    ax.plot(known.at_max, [known.high], "^", color=VISUALIZATION, ms=7, clip_on=False, zorder=5)
    ax.axvline(float(x), color=INK, lw=0.8, ls=":")
    ax.set_ylim(-0.04, 1.04)


def _plane(ax: Axes, klass: FunctionClass, known: Extrema, x: Tensor) -> None:
    pair = klass.pair(known, x)
    ticks = torch.linspace(0, 1, 101, dtype=torch.double)
    grid = torch.cartesian_prod(ticks, ticks)
    inside = klass.domain(2).inside(grid)
    width = torch.full((len(grid),), torch.nan, dtype=torch.double)
    width[inside] = klass.bounds(known, grid[inside]).width
    shades = LinearSegmentedColormap.from_list("open", ["#f4f4f7", POSSIBLE, "#a9adb8"])
    ax.imshow(width.view(101, 101).T, origin="lower", extent=(0, 1, 0, 1), cmap=shades, vmin=0, vmax=1, gid="possible")
    for function, colour, dashes in ((pair.low, ONE, "-"), (pair.high, OTHER, DASHED)):
        values = torch.where(inside, function(grid), torch.nan).view(101, 101).T
        ax.contour(ticks, ticks, values, (0.25, 0.5, 0.75), colors=colour, linestyles=[dashes], linewidths=1.8)
    ax.plot(*x, "o", color=INK, ms=5, mec="white", zorder=4)
    for end, mark in ((known.at_min, "v"), (known.at_max, "^")):
        ax.plot(*end, mark, color=VISUALIZATION, ms=7, clip_on=False, zorder=5)
    ax.set(ylim=(0, 1), aspect="equal")


def _legend(figure: Figure) -> None:
    marks = [
        Line2D([], [], color=VISUALIZATION, marker="^", ls="", ms=7, label="extrema, all that is seen"),
        Line2D([], [], color=ONE, lw=1.8, label="one function"),
        Line2D([], [], color=OTHER, lw=1.8, ls=DASHED, label="the other"),
        Rectangle((0, 0), 1, 1, color=POSSIBLE, label="all that is possible"),
    ]
    figure.legend(handles=marks, loc="lower center", ncols=4, frameon=False, fontsize=8.5, handlelength=1.6)


def certificates(seen: Extrema, slopes: Sequence[float]) -> Figure:
    """On the square: where f is surely nearer to its maximum (orange) or minimum (blue), for Lipschitz functions of
    different slopes and for convex ones."""
    ticks = torch.linspace(0, 1, 201, dtype=torch.double)
    grid = torch.cartesian_prod(ticks, ticks)
    corner = Extrema(seen.at_min, seen.at_max.round())
    panels: list[tuple[FunctionClass, Extrema]] = [(Lipschitz(slope / seen.distance), seen) for slope in slopes]
    panels.append((Convex(), corner))
    colours = LinearSegmentedColormap.from_list("sides", [NATURAL, "#f1f1f4", VISUALIZATION])
    with _style():
        figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, WIDTH / len(panels) + 0.55))
        for ax, (klass, known), slope in zip(axes, panels, [*slopes, None], strict=True):
            side = klass.bounds(known, grid).nearer.view(201, 201).T
            ax.imshow(side, origin="lower", extent=(0, 1, 0, 1), cmap=colours, vmin=-1.6, vmax=1.6)
            for end, mark in ((known.at_min, "v"), (known.at_max, "^")):
                ax.plot(*end, mark, color=INK, ms=7, mec="white", clip_on=False)
            share = float((side != 0).double().mean())
            name = "convex" if slope is None else f"slope {slope:g} × least"
            ax.set_title(f"{name}\n{share:.0%} sure", fontsize=8.5)
            ax.set(xticks=(), yticks=())
            ax.spines[:].set_visible(True)
        figure.tight_layout(pad=0.5)
    return figure


def table(frame: pd.DataFrame) -> Figure:
    """The table: for each class whether f(x) can be told exactly, within epsilon, and to which extremum it is nearer;
    how far the built pair is apart; on what share of the domain a side is sure."""
    columns = ("exactly", "within ε", "nearer to\nwhich", "gap of\nthe pair", "a side\nis sure on")
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.29 * len(frame) + 0.6))
        rows: Any = frame.to_dict("records")
        for i, row in enumerate(rows):
            ax.text(-3.3, i, row["row"], va="center", fontsize=8.5)
            ax.text(-2.85, i, row["class"], va="center", fontsize=8.5)
            for j, good in enumerate((row["exact"], row["within"], row["nearer"])):
                colour = SURE if good else VISUALIZATION
                ax.add_patch(Rectangle((j - 0.46, i - 0.42), 0.92, 0.84, color=colour, alpha=0.16, lw=0))
                text = VERDICTS[bool(good)]
                ax.text(j, i, text, ha="center", va="center", fontsize=9, fontweight="bold", color=INK)
            ax.text(3, i, f"{row['gap']:.2f}", ha="center", va="center", fontsize=9)
            ax.text(4, i, f"{row['decided']:.0%}", ha="center", va="center", fontsize=9)
        for j, name in enumerate(columns):
            ax.text(j, -0.8, name, ha="center", va="bottom", fontsize=8.5)
        ax.set(xlim=(-3.35, 4.5), ylim=(len(frame) - 0.5, -2.0))
        ax.axis("off")
        figure.tight_layout(pad=0.2)
    return figure


def twins(found: Twins) -> Figure:
    """Above, the visualizations of the unit in both twins; below, its activation at x between both extrema."""
    names = {"original": "original", "down": "twin “down”", "up": "twin “up”"}
    scaled = found.scaled()
    with _style():
        figure = plt.figure(figsize=(WIDTH, 3.3))
        layout = figure.add_gridspec(
            2, 7, height_ratios=(1, 1.15), width_ratios=(1, 1, 0.18, 1, 1, 0.18, 1), hspace=0.5
        )
        show(figure.add_subplot(layout[0, 6]), found.pictures["x"], f"x: {found.facts['x'].split('/')[0]}", NATURAL)
        shown = [("down", 0), ("up", 3)]
        for name, column in shown:
            for offset, end in enumerate(("max", "min")):
                ax = figure.add_subplot(layout[0, column + offset])
                text = "maximum" if end == "max" else "minimum"
                show(ax, found.pictures[f"{end} {name}"], f"{names[name]}\n{text}", VISUALIZATION)
        ax = figure.add_subplot(layout[1, :])
        colours = {"original": INK, "down": ONE, "up": OTHER}
        for i, (colour, value) in enumerate((colours[str(key)], value) for key, value in scaled.items()):
            ax.plot([0, 1], [i, i], color=POSSIBLE, lw=5, solid_capstyle="round", zorder=1)
            ax.plot([value], [i], "o", color=colour, ms=9, zorder=3)
        ax.axvline(0.5, color=INK, lw=0.8, ls=":")
        ax.set_yticks(range(3), [names[str(name)] for name in scaled.index])
        ax.set(ylim=(2.6, -0.6), xlim=(-0.03, 1.03))
        ax.set_xticks((0, 0.5, 1), ("minimum", "half-way", "maximum"))
        ax.set_xlabel(f"activation of {found.facts['label']} at x, between its extrema")
        ax.tick_params(axis="y", length=0)
        figure.subplots_adjust(0.13, 0.15, 0.96, 0.9)
    return figure


def averages(frame: pd.DataFrame) -> Figure:
    """Unavoidable error by class: at the worst natural image, on average for a pair built for one image, and for one
    built for all; intervals are bootstraps over photographs."""
    looks = (
        ("worst", "worst image", INK, "|"),
        ("one", "average, pair built for one image", ONE, "o"),
        ("all", "average, pair built for all images", VISUALIZATION, "D"),
    )
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.3 * len(frame) + 0.95))
        y = np.arange(len(frame))
        for column, text, colour, mark in looks:
            shift = {"worst": 0.0, "one": 0.14, "all": -0.14}[column]
            if column != "worst":
                ax.hlines(y + shift, frame[f"{column}_low"], frame[f"{column}_high"], color=colour, lw=2, alpha=0.5)
            size: Any = {"ms": 13, "mew": 2} if mark == "|" else {"ms": 5}
            ax.plot(frame[column], y + shift, mark, color=colour, label=text, clip_on=False, **size)
        ax.set_yticks(y, [f"{r} {c}" for r, c in zip(frame["row"], frame["class"], strict=True)])
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", color=INK, alpha=0.08)
        ax.set(
            ylim=(len(frame) - 0.5, -0.5),
            xlim=(-0.01, 0.52),
            xlabel="error that no prediction avoids (0.5: knows nothing)",
        )
        ax.legend(
            loc="lower left", bbox_to_anchor=(-0.42, 1.0), ncols=3, frameon=False, fontsize=8.5, handletextpad=0.3
        )
        figure.tight_layout(pad=0.5)
    return figure


def linear_unit(found: Structured, label: str) -> Figure:
    """One linear unit, visualized on the box and on the ball: pictures of its maximum, predictions against truth."""
    with _style():
        figure = plt.figure(figsize=(WIDTH, 2.6))
        layout = figure.add_gridspec(1, 7, width_ratios=(1, 0.32, 1.2, 0.08, 1, 0.32, 1.2), wspace=0.05)
        for column, domain in ((0, "box"), (4, "ball")):
            image = found.pictures[f"linear {domain}"][0]
            if domain == "ball":  # its largest weights alone would fill the range
                image = 0.5 + 0.2 * (image - 0.5) / (image - 0.5).std()
            show(figure.add_subplot(layout[0, column]), image, f"maximum on\nthe {domain}", VISUALIZATION)
            ax = figure.add_subplot(layout[0, column + 2])
            part = found.scatter[(found.scatter["network"] == "linear") & (found.scatter["domain"] == domain)]
            _scatter(ax, part, label)
            ax.set_title(f"from both extrema on the {domain}", fontsize=8.5)
        figure.subplots_adjust(0.02, 0.2, 0.99, 0.87)
    return figure


def _scatter(ax: Axes, part: pd.DataFrame, label: str) -> None:
    ax.axline((part["actual"].mean(),) * 2, slope=1, color=INK, lw=0.8, zorder=1)  # where predictions are right
    ax.plot(part["predicted"], part["actual"], ".", color=NATURAL, ms=3, alpha=0.6)
    ax.set(xlabel="predicted", ylabel=f"activation of {label}")
    ax.tick_params(labelsize=8)
    ax.locator_params(nbins=4)


def reading(found: Structured) -> Figure:
    """How much of each unit the affine function with its extrema explains: units (dots), mean with bootstrap interval
    over units, for visualizations on the box and on the ball."""
    by_unit = found.table.groupby(["network", "domain", "unit"], sort=False)["line"].mean()
    networks = list(dict.fromkeys(found.table["network"]))
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 2.9))
        rng = np.random.default_rng(0)
        for i, network in enumerate(networks):
            for shift, domain, colour in ((-0.19, "box", VISUALIZATION), (0.19, "ball", ONE)):
                values = by_unit[network, domain].to_numpy()
                ax.plot(i + shift + rng.uniform(-0.1, 0.1, len(values)), values, ".", color=colour, ms=4, alpha=0.35)
                low, middle, high = interval(values, np.mean)
                ax.errorbar(
                    i + shift, middle, [[middle - low], [high - middle]], fmt="o", color=colour, mec="white", capsize=3
                )
        for x, domain, colour in (
            (0.01, "visualized on the box", VISUALIZATION),
            (0.31, "visualized on the ball", ONE),
        ):
            ax.text(x, 1.03, domain, color=colour, fontweight="bold", transform=ax.transAxes)
        ax.set_xticks(range(len(networks)), networks)
        ax.set(ylabel="r² of the affine prediction", ylim=(0, 1.03), xlim=(-0.5, len(networks) - 0.5))
        figure.tight_layout(pad=0.5)
    return figure


def straightness(found: Linearity, measure: str, success: str) -> Figure:
    """How bent units' paths are and how well extrema predict them: all units, then the correlation in each layer, where
    depth has no part in it, beside the one inside all layers together."""
    used = found.used.dropna(subset=[measure, success])
    layers = list(dict.fromkeys(used["layer"]))
    depth = {layer: i / max(1, len(layers) - 1) for i, layer in enumerate(layers)}
    every = found.correlations()
    (row,) = every[(every["measure"] == measure) & (every["success"] == success)].to_dict("records")
    ranks = pd.DataFrame({name: within(used["layer"], used[name]) for name in (measure, success)})
    alone = [part[measure].corr(part[success]) for _, part in ranks.groupby(used["layer"].to_numpy(), sort=False)]
    with _style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.3), layout="constrained")
        look: dict[str, Any] = {"cmap": "viridis_r", "vmin": 0, "vmax": 1, "lw": 0}
        left.scatter(used[measure], used[success], c=used["layer"].map(depth), s=14, **look)
        left.set(xlabel=NAMES[measure], ylabel="rank correlation of prediction")
        left.set_title(f"all layers: ρ = {row['across layers']:.2f}", fontsize=9)
        right.axhline(0, color=INK, lw=0.8)
        right.axhspan(row["low"], row["high"], color=VISUALIZATION, alpha=0.15, lw=0)
        right.axhline(row["rho"], color=VISUALIZATION, lw=1.3)
        right.scatter(range(len(layers)), alone, c=list(depth.values()), s=32, zorder=3, **look)
        right.set_xticks(range(len(layers)), layers, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        right.set(ylabel="ρ of the units of a layer", ylim=(-1.05, 1.05))
        right.set_title(f"inside layers: ρ = {row['rho']:.2f} ({row['low']:.2f} to {row['high']:.2f})", fontsize=9)
    return figure


assert set(MEASURES) == set(NAMES)
