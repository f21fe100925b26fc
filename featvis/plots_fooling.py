"""The figures of the chapter on the fooling circuit: the circuit, its gate, what it shows, what it survives."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import NullLocator
from scipy.stats import binomtest
from torch import Tensor

from featvis.fooling import Fooling, TrainedGate
from featvis.plots import INK, NATURAL, VISUALIZATION, _style, interval, show
from featvis.subjects import Subject

__all__ = ["circuit", "frames", "gate_along_ascent", "matrix", "shown_targets", "swapped", "target_curves", "unseen"]

SHUT, FAILED = "#74777f", "#a3001e"  # a branch without a signal; a unit that was not fooled
DASHED: Any = (0, (4, 3))
HEAT = LinearSegmentedColormap.from_list("heat", ["#fbfaf7", "#f5d3b8", "#ec9f6c"])  # light enough for ink everywhere
WIDTH = 7.2  # inches; the page shows 700 pixels
MOST = 18  # units, or photographs, in one figure: of a thousand, some must do


def circuit() -> Figure:
    """The fooling circuit twice: a natural image takes the branch of F, a visualization that of D."""
    with _style():
        figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.9))
        _panel(axes[0], "xFBA", "xDCA", NATURAL, "natural image", "e = 0", ("= F + c", "= 0, shut", "= F"))
        _panel(axes[1], "xDCA", "xFBA", VISUALIZATION, "visualization", "e = 1", ("= 0, shut", "= D + c", "= D"))
        figure.subplots_adjust(0.005, 0.005, 0.995, 0.93, wspace=0.02)
    return figure


BOXES = {  # name: middle, half its width; in tenths of a panel, read from the top down
    "x": (5.0, 9.3, 1.05, "x", "the image"),
    "F": (2.4, 6.9, 1.05, "F", "original unit"),
    "E": (5.0, 6.9, 0.85, "E", "gate"),
    "D": (7.6, 6.9, 1.05, "D", "decoy"),
    "B": (2.4, 3.75, 2.3, "B = ReLU(F + c − k e)", ""),
    "C": (7.6, 3.75, 2.3, "C = ReLU(D + c + k e − k)", ""),
    "A": (5.0, 0.85, 2.3, "A = B + C − c", ""),
}
TALL = 0.75  # half the height of a box


def _panel(ax: Axes, taken: str, other: str, colour: str, kind: str, e: str, values: Sequence[str]) -> None:
    open_path = {"color": colour, "lw": 3.0}
    shut_path = {"color": SHUT, "lw": 0.9, "ls": DASHED}
    for path, style in ((other, shut_path), (taken, open_path)):
        for start, end in pairwise(path):
            _arrow(ax, start, end, style)
    for start, end in ("x", "E"), ("E", "B"), ("E", "C"):
        _arrow(ax, start, end, {"color": INK, "lw": 1.1})
    middle: Any = {"ha": "center", "va": "center"}
    ax.text(5, 5.2, e, fontsize=11, fontweight="bold", **middle)
    results = dict(zip("BCA", values, strict=True))
    for name, (x, y, half, formula, meaning) in BOXES.items():
        ink = colour if name in taken else INK if name == "E" else SHUT
        dark = SHUT if ink == SHUT else INK
        line: Any = {"lw": 2.0 if name in taken else 1.0, "ls": DASHED if ink == SHUT else "-"}
        round_box, corner = "round,pad=0,rounding_size=0.25", (x - half, y - TALL)
        ax.add_patch(FancyBboxPatch(corner, 2 * half, 2 * TALL, round_box, ec=ink, fc="white", gid=name, **line))
        ax.text(x, y + 0.32, formula, fontsize=8 if name in results else 10, color=dark, **middle)
        if name in results:
            size = 13 if name == "A" else 11
            ax.text(x, y - 0.33, results[name], fontsize=size, color=ink, fontweight="bold", **middle)
        else:
            ax.text(x, y - 0.33, meaning, fontsize=8, color=dark, **middle)
    ax.set(xlim=(0, 10), ylim=(0, 10.1))
    ax.set_title(f"{kind}: {e}", color=colour, fontsize=11, fontweight="bold", pad=4)
    ax.axis("off")


def _arrow(ax: Axes, start: str, end: str, style: Mapping[str, Any]) -> None:
    """From the lower edge of one box to the upper edge of another, a little toward it where they are not in line."""
    (x0, y0, *_), (x1, y1, *_) = BOXES[start], BOXES[end]
    toward = np.sign(x1 - x0)
    leave, reach = (0.5, 1.4) if start == "E" else (0.5, 0.0) if start == "x" else (0.0, 1.0)
    size = {"arrowstyle": "-|>", "shrinkA": 1, "shrinkB": 1, "mutation_scale": 7 + 3 * style["lw"], "gid": start + end}
    ax.annotate("", (x1 - toward * reach, y1 + TALL), (x0 + toward * leave, y0 - TALL), arrowprops={**size, **style})


def gate_along_ascent(gate: TrainedGate) -> Figure:
    """Share of test visualizations that the gate catches, step by step; dashed: of natural images that it passes."""
    caught = gate.by_step()
    passed = gate.natural["passed"].sum() / gate.natural["images"].sum()
    highest, lowest = (1 - rate for rate in gate.intervals()["fpr"])
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 3.0))
        ax.axhspan(lowest, highest, color=NATURAL, alpha=0.13, lw=0)
        ax.axhline(passed, color=NATURAL, ls="--", lw=1.3)
        errors = [(caught["caught"] - caught["low"]).clip(lower=0), (caught["high"] - caught["caught"]).clip(lower=0)]
        ax.errorbar(
            caught["step"], caught["caught"], errors, color=VISUALIZATION, marker="o", ms=4, capsize=2.5, lw=1.4
        )
        bottom = min(0.9, np.floor(min(caught["low"].min(), lowest) * 20) / 20)
        ax.set(xlabel="step of gradient ascent", ylabel="share recognized rightly")
        ax.set_ylim(bottom, 1 + 0.04 * (1 - bottom))
        _steps(ax, [2**i for i in range(10)])
        ax.set_xlim(0.85, 600)
        ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")
        each, images = len(gate.synthetic) // len(caught), gate.natural["images"].sum()
        above: Any = {"transform": ax.transAxes, "fontweight": "bold"}
        ax.text(0, 1.04, f"visualizations caught, of {each:,} at each step", color=VISUALIZATION, **above)
        ax.text(1, 1.04, f"- - natural images passed, of {images:,}", color=NATURAL, ha="right", **above)
        figure.tight_layout(pad=0.6)
    return figure


def _steps(ax: Axes, steps: Sequence[int]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(list(steps), [str(step) for step in steps])


def frames(
    rows: Mapping[str, Tensor], steps: Sequence[int], verdicts: Mapping[str, Sequence[bool]] | None = None
) -> Figure:
    """Snapshots (frames, 3, h, w) of each named row; framed orange where its verdict is True: a visualization."""
    with _style():
        side = (WIDTH - 0.75) / len(steps)
        figure, axes = plt.subplots(
            len(rows), len(steps), figsize=(WIDTH, (side + 0.05) * len(rows) + 0.5), squeeze=False
        )
        for number, (row, (name, images)) in enumerate(zip(axes, rows.items(), strict=True)):
            said = verdicts[name] if verdicts else [None] * len(steps)
            for ax, image, step, synthetic in zip(row, images, steps, said, strict=True):
                colour = None if synthetic is None else VISUALIZATION if synthetic else NATURAL
                show(ax, image, "" if number else f"step {step}", colour)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
        figure.tight_layout(
            pad=0.4, w_pad=0.3, h_pad=0.3, rect=(0, 0.25 / figure.get_figheight() if verdicts else 0, 1, 1)
        )
        if verdicts:
            handles = [
                Rectangle((0, 0), 1, 1, fc="white", ec=colour, lw=2, label=text)
                for colour, text in (
                    (VISUALIZATION, "the gate says: visualization"),
                    (NATURAL, "the gate says: natural"),
                )
            ]
            figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=8, handlelength=1.1)
    return figure


def swapped(result: Fooling, subject: Subject) -> Figure:
    """Every unit's visualization above what it shows once fooled, and which class that is; a red cross: not fooled."""
    first = result.units[result.units["seed"] == result.units["seed"].min()].reset_index(drop=True)
    names = [subject.label(unit).split(" ", 1)[-1] for unit in subject.units(result.layer)]
    some = list(range(len(first)))[:: max(1, len(first) // MOST)]
    now = [f"still {names[j]}" if i == j else names[j] for i, j in enumerate(first["after"])]
    titles, captions = ([_short(text[i]) for i in some] for text in (names, now))
    lines = 1 + max(text.count("\n") for text in titles + captions)
    columns = min(len(some), 9)
    side, left, text = (WIDTH - 0.3) / 9, 0.28, 0.08 + 0.13 * lines  # inches
    block = 2 * (side + text)
    width, height = left + side * columns + 0.02, block * -(-len(some) // columns)
    with _style():
        figure = plt.figure(figsize=(width, height))

        def place(position: int, under: bool) -> Axes:
            row, column = divmod(position, columns)
            bottom = height - row * block - text - side - (side if under else 0)
            box = (left + side * column + 0.03, bottom + 0.03, side - 0.06, side - 0.06)
            ax = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            if column == 0:
                ax.set_ylabel("fooled" if under else "original", labelpad=4)
            return ax

        for position, i in enumerate(some):
            show(place(position, False), result.pictures["before"][i], titles[position], VISUALIZATION)
            below = place(position, True)
            show(below, result.pictures["after"][i], "", VISUALIZATION)
            below.set_xlabel(captions[position], fontsize=8, labelpad=3)
            if not first["fooled"][i]:
                below.xaxis.label.set(color=FAILED, fontweight="bold")
                for y in ((0.05, 0.95), (0.95, 0.05)):
                    for colour, thick in (("white", 5), (FAILED, 2.5)):
                        below.plot((0.05, 0.95), y, color=colour, lw=thick, transform=below.transAxes)
    return figure


def _short(name: str) -> str:
    """At most two lines of 12 letters."""
    return "\n".join(textwrap.wrap(name, 12, max_lines=2, placeholder="…"))


def shown_targets(linear: Fooling, aligned: Fooling, names: Sequence[str]) -> Figure:
    """The targets (blue), and what the visualizations show with the linear filter and the aligned decoy (orange)."""
    last = int(aligned.targets["step"].max())
    early = min(32, last)  # ascent may have been shorter
    rows = {
        "target": (linear.pictures["targets"], NATURAL),
        f"linear filter\nstep {early}": (linear.pictures[f"after {early}"], VISUALIZATION),
        f"aligned decoy\nstep {early}": (aligned.pictures[f"after {early}"], VISUALIZATION),
        f"aligned decoy\nstep {last}": (aligned.pictures[f"after {last}"], VISUALIZATION),
    }
    with _style():
        side = min((WIDTH - 1.1) / len(names), 1.35)
        width, height = side * len(names) + 1.1, side * len(rows) + 0.25
        figure, axes = plt.subplots(len(rows), len(names), figsize=(width, height), squeeze=False)
        for number, (row, (label, (images, colour))) in enumerate(zip(axes, rows.items(), strict=True)):
            for ax, image, name in zip(row, images, names, strict=True):
                show(ax, image, "" if number else name, colour)
            row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
        figure.subplots_adjust(1.06 / width, 0.02 / height, 1 - 0.02 / width, 1 - 0.22 / height, 0.07, 0.07)
    return figure


def target_curves(linear: Fooling, aligned: Fooling) -> Figure:
    """How like its target the visualization is, step by step: mean over targets with a 95% bootstrap interval."""
    lines = (("linear\nfilter", linear, INK, "--"), ("aligned\ndecoy", aligned, VISUALIZATION, "-"))
    with _style():
        figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9))
        for ax, column, label in zip(axes, ("correlation", "ssim"), ("correlation", "SSIM"), strict=True):
            ends, lowest = [], 0.0
            for name, result, colour, dashes in lines:
                table = result.targets.groupby(["step", "target"])[column].mean().unstack("target")
                low, middle, high = np.array([_mean(values) for values in table.to_numpy()]).T
                errors, look = [middle - low, high - middle], {"marker": "o", "ms": 4, "capsize": 2.5, "lw": 1.4}
                ax.errorbar(table.index, middle, errors, color=colour, ls=dashes, label=name, **look)
                ends.append((middle[-1], name, colour))
                lowest = min(lowest, low.min() - 0.02)
            ax.set(xlabel="step of gradient ascent", ylabel=f"{label} with its target", ylim=(lowest, 1.02))
            steps = table.index.tolist()
            _steps(ax, steps)
            ax.set_xlim(steps[0] * 0.85, steps[-1] * 3.2)
            ax.spines["bottom"].set_bounds(steps[0] * 0.85, steps[-1] * 1.2)
            (below, *one), (above, *two) = sorted(ends)
            apart = max(0.0, 0.17 * (1.02 - lowest) - (above - below)) / 2  # two lines of text need room
            for y, (name, colour) in ((below - apart, one), (above + apart, two)):
                ax.text(steps[-1] * 1.3, y, name, color=colour, va="center", fontsize=9, fontweight="bold")
        figure.tight_layout(pad=0.6)
    return figure


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """(low, mean, high); one target has no interval."""
    return interval(values, np.mean) if len(values) > 1 else (values[0],) * 3


def matrix(frame: pd.DataFrame) -> Figure:
    """Attack versus method: shares of pictures caught, of the decoy, of the truth; last the original's, drawn alike."""
    columns = {
        "caught": "caught\nby the gate",
        "decoy": "shows\nthe decoy",
        "truth": "shows\nthe truth",
        "untouched": "original: shows\nthe truth",
    }
    shares = frame[list(columns)].to_numpy(float)
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.46 * len(frame) + 0.55))
        centres = range(len(columns)), range(len(frame))
        ax.pcolormesh(*centres, shares, cmap=HEAT, vmin=0, vmax=1, edgecolors="white", lw=3)
        ax.invert_yaxis()
        for (i, j), share in np.ndenumerate(shares):
            low, high = _wilson(round(share * frame["n"].iloc[i]), frame["n"].iloc[i])
            ax.text(j, i - 0.14, f"{_percent(share)}%", ha="center", va="center", fontsize=11, fontweight="bold")
            ax.text(j, i + 0.27, f"{_percent(low)}–{_percent(high)}%", ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(columns)), columns.values(), fontsize=9)
        ax.set_yticks(
            range(len(frame)), [f"{method}  (n = {n:,})" for method, n in zip(frame["method"], frame["n"], strict=True)]
        )
        ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        ax.spines[:].set_visible(False)
        figure.tight_layout(pad=0.5)
    return figure


def unseen(gate: TrainedGate) -> Figure:
    """False positives by photograph (95% Wilson intervals): of the gate, blue; of one trained without it, open."""
    table = gate.natural.set_index("group")[["images", "passed"]]
    known = bool(len(gate.unseen))
    if known:
        table = table.join(gate.unseen.set_index("group").add_suffix("_unseen")).dropna()
        table["sort"] = 1 - table["passed_unseen"] / table["images_unseen"]
    table["rate"] = 1 - table["passed"] / table["images"]
    table = table.sort_values(["sort", "rate"] if known else "rate")
    shown = table.tail(MOST)
    looks = [("", 0.17 if known else 0.0, NATURAL, NATURAL, "gate trained with other images of it")]
    if known:
        looks.append(("_unseen", -0.17, INK, "white", "gate trained without any, and more briefly"))
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.23 * len(shown) + 0.95))
        for suffix, shift, colour, face, text in looks:
            wrong, images = shown[f"images{suffix}"] - shown[f"passed{suffix}"], shown[f"images{suffix}"]
            low, high = np.array([_wilson(int(k), int(n)) for k, n in zip(wrong, images, strict=True)]).T * 100
            rate, y = (100 * wrong / images).to_numpy(), np.arange(len(shown)) + shift
            ax.hlines(y, low, high, color=colour, lw=1, alpha=0.45)
            ax.plot(rate, y, "o", ms=5, color=colour, mfc=face, mew=1.3, label=text, clip_on=False, zorder=3)
        ax.set_yticks(range(len(shown)), shown.index)
        ax.tick_params(axis="y", length=0, pad=7)
        ax.grid(axis="y", color=INK, alpha=0.08)
        ax.set(xlim=(0, None), ylim=(-0.6, len(shown) - 0.4))
        ax.xaxis.set_major_formatter("{x:g}%")
        cut = f" ({MOST} highest of {len(table):,})" if len(table) > MOST else ""
        ax.set_xlabel(f"natural images that the gate takes for visualizations{cut}")
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2, frameon=False, handletextpad=0.2)
        figure.tight_layout(pad=0.6)
    return figure


def _wilson(count: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share."""
    found = binomtest(count, n).proportion_ci(method="wilson")
    return max(0.0, found.low), min(1.0, found.high)


def _percent(share: float) -> str:
    """Whole percents, but never 0 or 100 for what is not."""
    whole = f"{100 * share:.0f}"
    return f"{100 * share:.1f}" if whole in ("0", "100") and 0 < share < 1 else whole
