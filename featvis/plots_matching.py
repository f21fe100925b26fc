"""The figures of the chapter on matching: trials, scores of machines, power, and people's answers recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from featvis.matching.analysis import chance as exact_chance
from featvis.matching.stimuli import DEPTHS
from featvis.matching.trials import KINDS, Trial
from featvis.plots import INK, NATURAL, VISUALIZATION, _style, interval, show

__all__ = ["cells", "chance", "humans", "machines", "polysemy", "power", "trial"]

COLOURS = {"exemplar": NATURAL, "visualization": VISUALIZATION, "natural": NATURAL, "synthetic": VISUALIZATION}
MARKS = {"exemplar": "o", "visualization": "s", "natural": "o", "synthetic": "s", "none": "D"}
WIDTH = 7.2  # inches; the page shows 700 pixels
MUTED = "#74777f"


def trial(one: Trial, pictures: Mapping[str, Tensor]) -> Figure:
    """A trial as an observer sees it: rows on the left, rows on the right; below, upside down, the answer."""
    k, n = len(one.units), one.n
    with _style():
        figure, axes = plt.subplots(k, 2 * n + 1, figsize=(0.95 * (2 * n + 1), 1.05 * k + 0.3), squeeze=False)
        for row in range(k):
            axes[row, n].axis("off")
            for column in range(n):
                show(axes[row, column], pictures[one.left[row][column]], "", NATURAL)
                colour = NATURAL if one.kind != "visualization" else VISUALIZATION
                show(axes[row, n + 1 + column], pictures[one.right[row][column]], "", colour)
            axes[row, 0].set_ylabel("ABCDE"[row], rotation=0, ha="right", va="center", labelpad=8, fontsize=11)
            axes[row, n].text(1.0, 0.5, f"{row + 1}", ha="right", va="center", fontsize=11)
        figure.tight_layout(pad=0.3, rect=(0, 0.06, 1, 1))
        matches = ", ".join(f"{j + 1} belongs to {'ABCDE'[row]} ({one.units[row]})" for j, row in enumerate(one.answer))
        figure.text(0.5, 0.015, matches, ha="center", fontsize=8, rotation=180)
    return figure


def chance(sizes: tuple[int, ...] = (3, 5)) -> Figure:
    """The exact distribution of the number of correct matches when guessing, for trials of several sizes."""
    with _style():
        figure, axes = plt.subplots(1, len(sizes), figsize=(WIDTH, 2.2), sharey=True, squeeze=False)
        for ax, k in zip(axes[0], sizes, strict=True):
            table = exact_chance(k)
            bars = ax.bar(table["correct"], table["probability"], color=MUTED, width=0.7)
            for bar, p in zip(bars, table["probability"], strict=True):
                label = "impossible" if p == 0 else f"{100 * p:.1f}%"
                ax.text(bar.get_x() + bar.get_width() / 2, p + 0.01, label, ha="center", fontsize=8)
            ax.set(title=f"{k} units", xlabel="correct matches", xticks=range(k + 1), ylim=(0, 0.6))
        axes[0, 0].set_ylabel("probability")
        figure.tight_layout()
    return figure


def cells(table: pd.DataFrame) -> Figure:
    """Share correct by images in a row, one panel for each depth, as on the poster; dashed: guessing.

    `table` is what `analysis.participants` gives, or the rows of one observer of `analysis.machines`.
    """
    with _style():
        figure, axes = plt.subplots(1, len(DEPTHS), figsize=(WIDTH, 2.7), sharey=True)
        for ax, depth in zip(axes, DEPTHS, strict=True):
            _cell(ax, table[table["depth"] == depth])
            ax.set_title(f"{depth} layers")
        axes[0].set_ylabel("share of matches correct")
        axes[0].legend(frameon=False, fontsize=8, loc="lower left")
        figure.tight_layout()
    return figure


def _cell(ax: Axes, part: pd.DataFrame) -> None:
    numbers = sorted(part["n"].unique())
    for shift, kind in zip((-0.08, 0.08), KINDS, strict=True):
        rows = part[part["kind"] == kind].sort_values("n")
        _line(ax, np.array([numbers.index(n) for n in rows["n"]]) + shift, rows, kind, f"{kind} trials")
    if len(part):
        ax.axhline(part["chance"].mean(), color=INK, ls="--", lw=1)
    ax.set_xticks(range(len(numbers)), [str(n) for n in numbers])
    ax.set(xlabel="images in a row", ylim=(0, 1.05))


def _line(ax: Axes, x: np.ndarray, rows: pd.DataFrame, kind: str, label: str) -> None:
    low, middle, high = (rows[name].to_numpy(float) for name in ("low", "share", "high"))
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    error = [np.maximum(middle - low, 0), np.maximum(high - middle, 0)]
    look: Any = {"color": COLOURS[kind], "marker": MARKS[kind], "ms": 4.5, "capsize": 3, "lw": 1.4}
    ax.errorbar(x, middle, error, label=label, **look)


def machines(table: pd.DataFrame, by: str = "depth") -> Figure:
    """Share correct of every machine observer, one panel each; `table` is `analysis.machines` by kind and `by`."""
    names = list(dict.fromkeys(table["observer"]))
    order = list(DEPTHS) if by == "depth" else sorted(table[by].unique())
    with _style():
        figure, axes = plt.subplots(1, len(names), figsize=(WIDTH, 2.7), sharey=True, squeeze=False)
        for ax, name in zip(axes[0], names, strict=True):
            part = table[table["observer"] == name]
            for shift, kind in zip((-0.08, 0.08), KINDS, strict=True):
                rows = part[part["kind"] == kind].set_index(by).loc[order].reset_index()
                _line(ax, np.arange(len(order)) + shift, rows, kind, f"{kind} trials")
            ax.axhline(part["chance"].mean(), color=INK, ls="--", lw=1)
            ax.set_xticks(range(len(order)), [str(x) for x in order])
            ax.set_xlim(-0.4, len(order) - 0.6)
            ax.set_ylim(0, 1.05)
            ax.set_title(name.replace("machine: ", "machine:\n").replace(" of ", "\nof "), fontsize=8)
        axes[0, 0].set_ylabel("share of matches correct")
        axes[0, 0].legend(frameon=False, fontsize=7.5, loc="lower left")
        figure.supxlabel("images in a row" if by == "n" else "layers", fontsize=9)
        figure.tight_layout(pad=0.5)
    return figure


def power(table: pd.DataFrame) -> Figure:
    """Share of simulated studies that find the gap, by participants; columns participants, power, low, high."""
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 2.7))
        error = [table["power"] - table["low"], table["high"] - table["power"]]
        ax.errorbar(table["participants"], table["power"], error, color=INK, marker="o", ms=4, capsize=3, lw=1.4)
        ax.axhline(0.8, color=MUTED, ls="--", lw=1)
        ax.set_xscale("log", base=2)
        ax.set_xticks(table["participants"], [str(x) for x in table["participants"]])
        ax.set(xlabel="participants", ylabel="share of studies\nthat find the gap", ylim=(0, 1.05))
        figure.tight_layout()
    return figure


def humans(table: pd.DataFrame) -> Figure:
    """Percent correct in every condition of both experiments, two standard errors either way; dashed: chance."""
    with _style():
        figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9), sharey=True, width_ratios=(3, 4))
        for ax, experiment in zip(axes, ("I", "II"), strict=True):
            part = table[table["experiment"] == experiment]
            kinds = part["condition"].str.split().str[-1]
            groups = (
                ["natural", "synthetic", "none"] if experiment == "I" else ["Max-1", "Min-Max-1", "Max-9", "Min-Max-9"]
            )
            for kind in dict.fromkeys(kinds):
                rows = part[kinds == kind]
                names = [kind] if experiment == "I" else rows["condition"].str.rsplit(n=1).str[0].tolist()
                x = np.array([groups.index(name) for name in names]) + (0.08 if kind == "synthetic" else -0.08)
                colour = COLOURS.get(kind, MUTED)
                ax.errorbar(
                    x, rows["percent_correct"], rows["two_sem"], color=colour, marker=MARKS[kind], ms=4.5, capsize=3,
                    lw=1.4, ls="none", label=kind,
                )  # fmt: skip
            ax.axhline(50, color=INK, ls="--", lw=1)
            ax.set_xticks(range(len(groups)), groups)
            ax.set_xlim(-0.5, len(groups) - 0.5)
            ax.set_title(f"experiment {experiment} ({part['participants'].iloc[0]} people)")
        axes[0].set(ylabel="percent correct", ylim=(30, 100))
        axes[1].legend(frameon=False, fontsize=8, title="references", title_fontsize=8)
        figure.tight_layout()
    return figure


def polysemy(table: pd.DataFrame) -> Figure:
    """Units by clusters among their exemplars, and how often a machine matches them; black: means, 95% bootstrap."""
    rng = np.random.default_rng(0)
    with _style():
        figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9), sharey=True, width_ratios=(3, 2))
        single = table[~table["mixed"]]
        x = single["clusters"] + rng.uniform(-0.15, 0.15, len(single))
        for depth, mark in zip(DEPTHS, "o^s", strict=True):
            at = single["depth"] == depth
            axes[0].scatter(x[at], single["visualization"][at], s=20, marker=mark, color=VISUALIZATION, alpha=0.7, lw=0,
                            label=depth)  # fmt: skip
        axes[0].legend(frameon=False, fontsize=7.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        axes[0].set(xlabel="clusters among the exemplars (visualization trials)", ylabel="share matched by a machine")
        axes[0].set_xticks(sorted(single["clusters"].unique()))
        for i, mixed in enumerate((False, True)):
            part = table[table["mixed"] == mixed]
            for kind, shift in (("exemplar", -0.12), ("visualization", 0.12)):
                spread = i + shift + rng.uniform(-0.06, 0.06, len(part))
                label = None if mixed else f"{kind} trials"
                axes[1].scatter(spread, part[kind], s=12, color=COLOURS[kind], alpha=0.5, lw=0, label=label)
                low, mean, high = interval(part[kind].to_numpy(), np.mean)
                span = [[mean - low], [high - mean]]
                axes[1].errorbar(i + shift, mean, span, fmt="_", ms=13, mew=2, color=INK, capsize=3, lw=1.3)
        axes[1].set_xticks([0, 1], ["single units", "mixtures\nof two"])
        axes[1].legend(frameon=False, fontsize=7.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        for ax in axes:
            ax.set_ylim(0, 1.05)
        figure.tight_layout()
    return figure
