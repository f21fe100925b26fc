"""The figures of the chapter on path similarity: curves along the layers, controls on one axis, the check's check."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from featvis.path_result import PathSimilarity, quantiles
from featvis.plots import INK, NATURAL, VISUALIZATION, _style, show

__all__ = ["compared", "control_curves", "controls", "diagnostics", "examples", "metrics", "paths"]

WIDTH = 7.2  # inches; the page shows 700 pixels
MOST = 24  # names below an axis
GREY, SECOND, BAND = "#74777f", "#8a4fa0", 0.16
COLOURS = {"natural": NATURAL, "damaged": GREY, "shown": VISUALIZATION}
KINDS = {"natural": "natural images", "damaged": "damaged images", "shown": "visualizations"}
NAMES = {"spearman": "Spearman's ρ", "pearson": "Pearson's r", "cosine": "cosine"}
NORMALIZED = "normalized similarity"


def paths(result: PathSimilarity, series: str | None = None, metric: str | None = None) -> Figure:
    """Above, mean similarities of the three kinds of pairs; below, the first scaled by the other two.

    Bands are 95% bootstrap intervals over groups; the dotted line ends the first two thirds of the layers.
    """
    metric, series = metric or result.metrics[0], series or result.series[0]
    found = result.curves(series, metric)
    lines = {
        "nat_same": (f"natural, same {_group(result)}", NATURAL, "-"),
        "fv_same": (f"{series}, same {_group(result)}", VISUALIZATION, "-"),
        "nat_different": (f"natural, different {_plural(result)}", NATURAL, "--"),
    }
    with _style():
        figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 5.4), sharex=True, height_ratios=(1, 1.15))
        for name, (label, colour, dashes) in lines.items():
            _curve(above, found[name], colour, label, ls=dashes)
        above.set_ylabel(f"{NAMES[metric]}, mean over pairs")
        above.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1), fontsize=8.5, columnspacing=1)
        _frame(below, result)
        _curve(below, result.draws(series, metric), VISUALIZATION, series)
        figure.tight_layout(pad=0.6)
    return figure


def metrics(result: PathSimilarity, series: str | None = None) -> Figure:
    """The normalized curve of one series in every metric."""
    looks = {"spearman": ("-", VISUALIZATION), "pearson": ("--", INK), "cosine": (":", NATURAL)}
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 3.1))
        _frame(ax, result)
        for metric in result.metrics:
            dashes, colour = looks[metric]
            _curve(ax, result.draws(series, metric), colour, NAMES[metric], ls=dashes)
        ax.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1))
        figure.tight_layout(pad=0.6)
    return figure


def diagnostics(result: PathSimilarity, metric: str | None = None) -> Figure:
    """Halves of the natural images held against each other: same groups have to give 1, different ones 0."""
    table = result.diagnostics(metric)
    with _style():
        figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 3.4), sharex=True)
        for ax, name, true in zip(axes, ("same", "different"), (1.0, 0.0), strict=True):
            ax.axhline(true, color=INK, lw=1)
            value = table[name].to_numpy()
            errors = np.abs([value - table[f"{name}_low"], table[f"{name}_high"] - value])
            ax.errorbar(range(len(value)), value, errors, fmt="o", color=NATURAL, ms=4, capsize=3, lw=1.2)
            reach = max(0.02, 1.15 * np.nanmax(np.abs(table[[f"{name}_low", f"{name}_high"]].to_numpy() - true)))
            ax.set_ylim(true - reach, true + reach)
            ax.set_title(f"halves of {'the same' if name == 'same' else 'different'} {_plural(result)}", loc="left")
        _name_layers(axes[1], result)
        figure.supylabel(NORMALIZED, fontsize=9)
        figure.tight_layout(pad=0.6)
    return figure


def examples(pictures: Mapping[str, Tensor], seen: Mapping[str, float], kinds: Mapping[str, str]) -> Figure:
    """One image of each group for every series, and the share of its images that the network gives their class."""
    columns, names = 7, [name for name in kinds if name in pictures]
    blocks = -(-len(names) // columns)
    each = len(pictures[names[0]])
    side, text = WIDTH / columns, 0.5  # inches
    height = blocks * (each * side + text)
    with _style():
        figure = plt.figure(figsize=(WIDTH, height))
        for number, name in enumerate(names):
            block, column = divmod(number, columns)
            top = height - block * (each * side + text) - text
            for row, image in enumerate(pictures[name]):
                box = (column * side + 0.03, top - (row + 1) * side + 0.03, side - 0.06, side - 0.06)
                ax = figure.add_axes((box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height))
                show(ax, image, "", COLOURS[kinds[name]])
            label = "\n".join([*textwrap.wrap(name, 15), f"{100 * seen[name]:.0f}%"])
            place = ((column + 0.5) * side / WIDTH, (top + 0.04) / height)
            figure.text(*place, label, ha="center", va="bottom", fontsize=8, color=COLOURS[kinds[name]], linespacing=1)
    return figure


def controls(
    result: PathSimilarity,
    kinds: Mapping[str, str],
    metric: str | None = None,
    more: Mapping[str, tuple[PathSimilarity, str]] | None = None,
) -> Figure:
    """Every series on one axis: its mean over the first two thirds of the layers (open) and over the rest (filled).

    `more` are series of other results, below a line: label -> (result, series).
    """
    rows = {name: (result, name, COLOURS[kinds[name]]) for name in kinds if name in result.series}
    own = len(rows)
    rows |= {label: (*found, VISUALIZATION) for label, found in (more or {}).items()}
    names = list(rows)
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.32 * len(names) + 0.95))
        for x in (0, 1):
            ax.axvline(x, color=INK, lw=1, ls="-" if x else "--")
        if more:
            ax.axhline(own - 0.5, color=INK, lw=0.8)
        for y, (source, name, colour) in enumerate(rows.values()):
            table = source.parts(name, metric).set_index("layers").T
            for part, shift, face in (("first two thirds", -0.14, "white"), ("last third", 0.14, colour)):
                value, low, high = table[part].to_numpy(float)
                ax.hlines(y + shift, low, high, color=colour, lw=1.3)
                ax.plot(value, y + shift, "o", ms=5.5, color=colour, mfc=face, mew=1.4, zorder=3)
        ax.set_yticks(range(len(names)), names)
        for label, name in zip(ax.get_yticklabels(), names, strict=True):
            label.set_color(rows[name][2])
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", color=INK, alpha=0.08)
        several, one = (f"{word} (units)" if more else word for word in (_plural(result), _group(result)))
        ax.set_xlabel(f"{NORMALIZED}: 0 as unlike as different {several}, 1 as alike as one {one}")
        handles = [
            Line2D([], [], color=INK, marker="o", mfc=face, lw=1.3, label=text)
            for face, text in (("white", "first two thirds of the layers"), (INK, "last third"))
        ]
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, frameon=False)
        figure.tight_layout(pad=0.6)
    return figure


def control_curves(result: PathSimilarity, kinds: Mapping[str, str], metric: str | None = None) -> Figure:
    """Layer by layer, one panel a series; the thin orange line is the visualizations' in each."""
    names = [name for name in kinds if name in result.series]
    columns = 4
    rows = -(-len(names) // columns)
    own = result.draws(None, metric)[0]
    with _style():
        figure = plt.figure(figsize=(WIDTH, 1.45 * rows + 0.35), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax, name in zip(axes.flat, names, strict=False):
            for y in (0, 1):
                ax.axhline(y, color=INK, lw=0.8, ls="-" if y else "--")
            ax.plot(own, color=VISUALIZATION, lw=0.9, alpha=0.7)
            _curve(ax, result.draws(name, metric), COLOURS[kinds[name]], ms=2)
            ax.set_title(name, fontsize=8.5, color=COLOURS[kinds[name]])
            ax.set_xticks([0, len(result.layers) - 1], ["first", "last"])
        for ax in axes.flat[len(names) :]:
            ax.axis("off")
        figure.supylabel(NORMALIZED, fontsize=9)
        figure.supxlabel("layer; thin orange line: the visualizations, from the first panel", fontsize=9)
    return figure


def compared(curves: Mapping[str, tuple[PathSimilarity, str]], metric: str | None = None) -> Figure:
    """Several results with the same layers on one axis: label -> (result, series)."""
    looks = [(VISUALIZATION, "-"), (INK, "--"), (SECOND, ":")]  # none in the colour of natural images
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 3.3))
        _frame(ax, next(iter(curves.values()))[0])
        for (label, (result, series)), (colour, dashes) in zip(curves.items(), looks, strict=False):
            _curve(ax, result.draws(series, metric), colour, label, ls=dashes)
        ax.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1), fontsize=8.5)
        figure.tight_layout(pad=0.6)
    return figure


def _curve(ax: Axes, draws: np.ndarray, colour: str, label: str | None = None, **look: Any) -> None:
    low, high = quantiles(draws)
    x = np.arange(len(low))
    ax.fill_between(x, low, high, color=colour, alpha=BAND, lw=0)
    few = len(low) <= MOST
    style: dict[str, Any] = {"marker": "o" if few else "", "ms": 3.5, "lw": 1.5 if few else 1, **look}
    ax.plot(x, draws[0], color=colour, label=label, **style)


def _frame(ax: Axes, result: PathSimilarity) -> None:
    """The axis of normalized similarities with its two anchors, and where the first two thirds of the layers end."""
    ax.axhline(1, color=INK, lw=1)
    ax.axhline(0, color=INK, lw=1, ls="--")
    end = round(2 * len(result.layers) / 3) - 0.5
    ax.axvline(end, color=GREY, lw=1, ls=":")
    ax.text(1, 1.02, "dotted: two thirds of the layers", ha="right", color=GREY, fontsize=8, transform=ax.transAxes)
    ax.set_ylabel(NORMALIZED)
    _name_layers(ax, result)


def _name_layers(ax: Axes, result: PathSimilarity) -> None:
    """Names below the axis; of very many layers those that lie in no other, as far as there is room."""
    total = len(result.layers)
    named: list[int] = []
    for i, name in enumerate(result.layers):
        if (total <= MOST or "." not in name) and (not named or i - named[-1] >= total / MOST):
            named.append(i)
    ax.set_xticks(named, [result.layers[i] for i in named], rotation=40, ha="right")


def _group(result: PathSimilarity) -> str:
    return "class" if result.same == "class" else "unit"


def _plural(result: PathSimilarity) -> str:
    return "classes" if result.same == "class" else "units"
