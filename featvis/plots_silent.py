"""The figures of the chapter on silent units: the axis, the geometry, what is shown, where it fails, the promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from featvis.fooling import Silencing, Strengths, Survey
from featvis.plots import INK, NATURAL, VISUALIZATION, _style, show
from featvis.plots_fooling import DASHED, FAILED, SHUT, WIDTH, _wilson
from featvis.subjects import Subject

__all__ = ["axis", "before_after", "geometry", "giveaway", "promised", "reached", "survey"]


def axis(result: Silencing) -> Figure:
    """Largest responses of the silent filters: to natural images, to the units' own visualizations, to the new ones."""
    held = result.responses[result.responses["set"] == "held-out"]
    width = held["left"].iloc[1] - held["left"].iloc[0]
    judged = result.judged()
    margin = result.recipe.margin
    rows: tuple[tuple[str, str, Any], ...] = (
        ("natural images\n(held out)", NATURAL, held),
        ("visualization of the\noriginal unit", INK, judged["response_before"]),
        ("visualization of the\nmanipulated unit", VISUALIZATION, judged["response_after"]),
    )
    low = min(held.loc[held["count"] > 0, "left"].min(), 0) - 0.5
    high = max(judged["response_after"].max(), judged["response_before"].max(), margin) * 1.04 + 0.5
    with _style():
        figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 3.5), sharex=True)
        for ax, (name, colour, values) in zip(axes, rows, strict=True):
            if isinstance(values, pd.DataFrame):
                ax.bar(values["left"], values["count"], width, align="edge", color=colour, alpha=0.85, lw=0)
                total = f"{values['count'].sum():,} pairs of image and unit"
            else:
                ax.hist(values, np.arange(low, high + width, width), color=colour, alpha=0.85, lw=0)
                total = f"{len(values)} units, {(values > margin).mean():.0%} beyond the threshold"
            ax.axvline(margin, color=INK, ls=DASHED, lw=1.2)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, fontweight="bold", labelpad=8)
            ax.text(1, 1.02, total, transform=ax.transAxes, ha="right", fontsize=8)
        place = {"transform": axes[0].get_xaxis_transform(), "ha": "right", "fontsize": 8}
        axes[0].text(margin, 1.02, "threshold", **place)
        axes[-1].set(xlim=(low, high))
        axes[-1].set_xlabel("largest response, in standard deviations beyond the largest of all calibration images")
        figure.tight_layout(pad=0.6)
    return figure


def geometry(strength: float) -> Figure:
    """A sketch, to scale: the original filter w, the direction d orthogonal to it, and w + strength d cut to length."""
    new = np.array([1.0, strength]) / np.hypot(1, strength)
    across = np.array([-new[1], new[0]])
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 3.9))
        ax.add_patch(Ellipse((0.0, 0.0), 1.5, 0.85, angle=0, fc=NATURAL, ec=NATURAL, alpha=0.15))
        ax.add_patch(Ellipse((0.0, 0.0), 1.5, 0.85, angle=0, fill=False, ec=NATURAL, lw=1.3))
        reach = float(np.hypot(0.75 * new[0], 0.425 * new[1]))  # the ellipse's own support in that direction
        slope = float(np.degrees(np.arctan2(-across[1], -across[0])))
        for name, at, style, above in (
            ("largest natural response", reach, ":", "top"),
            ("threshold", reach + 0.16, DASHED, "bottom"),
        ):
            ends = np.array([at * new - 1.35 * across, at * new + 1.3 * across])
            ax.plot(*ends.T, color=INK, lw=1.2, ls=style)
            look: dict[str, Any] = {"rotation": slope, "rotation_mode": "anchor", "fontsize": 8, "va": above}
            clear = ends[1] + (-0.04 if above == "top" else 0.04) * new
            ax.text(float(clear[0]), float(clear[1]), f" {name}", **look)
        arrows: tuple[tuple[Any, str, str, tuple[float, float], str], ...] = (
            ((1, 0), "w, the original filter", INK, (-0.1, -0.1), "left"),
            ((0, 1), "d, orthogonal to w,\nas long", VISUALIZATION, (-0.06, 0.05), "right"),
            (tuple(new), "w + λ d,\ncut to length", FAILED, (0.06, 0.05), "left"),
        )
        for end, text, colour, shift, side in arrows:
            arrow = {"arrowstyle": "-|>", "lw": 2.4, "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 16}
            ax.annotate("", end, (0, 0), arrowprops=arrow)
            place = (end[0] + shift[0], end[1] + shift[1])
            ax.text(*place, text, color=colour, ha=side, va="center", fontsize=9, fontweight="bold")
        own, decoy = (1.62, 0.17), tuple(1.25 * new + np.array([0.5, 0.02]))
        for place, text, up in ((own, "unit's own\nvisualization", 0.0), (decoy, "the decoy", 0.06)):
            ax.plot(*place, "o", ms=8, color=VISUALIZATION)
            ax.text(place[0] + 0.06, place[1] + up, text, va="center", fontsize=9)
        ax.annotate("", decoy, own, arrowprops={"arrowstyle": "->", "ls": ":", "lw": 1.5, "color": VISUALIZATION,
                    "connectionstyle": "arc3,rad=0.25", "shrinkA": 8, "shrinkB": 8})  # fmt: skip
        ax.text(-0.4, -0.12, "patches of\nnatural images", color=NATURAL, ha="center", va="center", fontsize=9)
        ax.set(xlim=(-1.35, 2.25), ylim=(-0.75, 1.42), aspect="equal")
        ax.axis("off")
        figure.subplots_adjust(0, 0, 1, 1)
    return figure


def before_after(result: Silencing, subject: Subject) -> Figure:
    """Units before and after, and what they should show; a red cross where the picture is not the decoy's."""
    table = result.units.set_index("unit").loc[list(result.shown)]
    count = len(result.shown)
    with _style():
        side = min((WIDTH - 0.75) / (count + 1.25), 1.1)
        width, height = side * (count + 1.25) + 0.75, 2 * side + 0.55
        figure = plt.figure(figsize=(width, height))

        def place(column: float, row: int) -> Axes:
            left, bottom = 0.72 + side * column + 0.02, height - 0.3 - side * (row + 1) + 0.02
            box = (left / width, bottom / height, (side - 0.04) / width, (side - 0.04) / height)
            return figure.add_axes(box)

        for i, unit in enumerate(result.shown):
            for row, name in enumerate(("before", "after")):
                ax = place(i, row)
                show(ax, result.pictures[name][i], f"{subject.unit(unit).index}" if row == 0 else "", VISUALIZATION)
                if i == 0:
                    ax.set_ylabel(("original", "silenced")[row], labelpad=4, fontsize=8)
            if not table["flipped"].iloc[i] and unit != result.recipe.decoy:
                for y in ((0.05, 0.95), (0.95, 0.05)):
                    for colour, thick in (("white", 4), (FAILED, 2)):
                        ax.plot((0.05, 0.95), y, color=colour, lw=thick, transform=ax.transAxes)
        ax = place(count + 0.25, 1)
        show(ax, result.pictures["decoy"][0], "decoy", NATURAL if result.recipe.decoy == "image" else VISUALIZATION)
        figure.text(0.72 / width, 0.02, f"units of {result.recipe.layer}", fontsize=8)
    return figure


def _with_bars(frame: pd.DataFrame) -> pd.DataFrame:
    """The layers that have a silent unit; the others as one row."""
    bare = frame[frame["silent"] == 0]
    if len(bare) < 2:
        return frame
    counts = ["units", "silent", "still", "excitable"]
    rest = bare[counts].sum().astype(int).to_frame().T.assign(layer=f"{len(bare)} layers")
    return pd.concat([frame[frame["silent"] > 0], rest], ignore_index=True)


def survey(result: Survey, control: Survey | None = None) -> Figure:
    """Layer by layer: units that no training image activates, nor held-out ones, but ascent; a control below."""
    frame = result.frame() if control is None else _with_bars(result.frame())
    own = len(frame)
    if control is not None:
        below = _with_bars(control.frame())
        frame = pd.concat([frame, below.assign(layer="silenced: " + below["layer"])], ignore_index=True)
    looks = (
        ("silent", "no training image activates it", NATURAL, 0.27),
        ("still", "nor does a held-out image", SHUT, 0.0),
        ("excitable", "activation maximization does", VISUALIZATION, -0.27),
    )
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, (0.26 if control is None else 0.5) * len(frame) + 1.0))
        y = np.arange(len(frame))[::-1]
        for column, text, colour, shift in looks:
            share = 100 * frame[column] / frame["units"]
            ax.barh(y + shift, share, 0.25, color=colour, label=text)
            for at, value, many in zip(y + shift, share, frame[column], strict=True):
                if many:
                    ax.text(value, at, f" {many}", va="center", fontsize=8, color=colour)
        labels = [f"{layer} ({units})" for layer, units in zip(frame["layer"], frame["units"], strict=True)]
        ax.set_yticks(y, labels)
        ax.tick_params(axis="y", length=0)
        ax.set(xlim=(0, None), ylim=(-0.6, len(frame) - 0.4))
        if not frame["silent"].any():
            ax.set_xlim(0, 1)
        if not frame["silent"][:own].any():
            middle = ax.get_yaxis_transform()
            ax.text(
                0.5, y[:own].mean(), "every unit is activated", transform=middle, ha="center", va="center", fontsize=11
            )
        if control is not None:
            ax.axhline(y[own - 1] - 0.5, color=INK, lw=1)
        ax.xaxis.set_major_formatter("{x:g}%")
        ax.set_xlabel("share of the layer's units")
        figure.legend(loc="upper left", ncols=3, frameon=False, fontsize=8, columnspacing=1)
        figure.tight_layout(pad=0.6, rect=(0, 0, 1, 1 - 0.25 / figure.get_figheight()))
    return figure


def reached(result: Strengths) -> Figure:
    """Share of units that flip (95% Wilson intervals over units), by strength, factor and margin."""
    frame, usual = result.frame[result.frame["direction"] == "patch"], result.usual()
    panels: tuple[tuple[str, str, Mapping[str, tuple[pd.DataFrame, str]]], ...] = (
        (
            "strength",
            "strength λ",
            {
                "redirected ReLU": (_at(frame, usual, "strength"), VISUALIZATION),
                "plain ReLU": (_at(frame, usual | {"redirect": 0}, "strength"), INK),
            },
        ),
        ("factor", "weight factor", {"": (_at(frame, usual, "factor"), VISUALIZATION)}),
        ("margin", "margin", {"": (_at(frame, usual, "margin"), VISUALIZATION)}),
    )
    with _style():
        figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.7), sharey=True)
        for ax, (column, label, lines) in zip(axes, panels, strict=True):
            for number, (name, (table, colour)) in enumerate(lines.items()):
                counts = table.groupby(column)["flipped"].agg(["sum", "size"])
                ends = np.array([_wilson(k, n) for k, n in counts.to_numpy().tolist()])
                x = np.arange(len(counts)) + 0.08 * number
                share = np.array([k / n for k, n in counts.to_numpy().tolist()])
                errors = np.array([share - ends[:, 0], ends[:, 1] - share]).clip(min=0)
                look: Any = {"marker": "o", "ms": 4, "capsize": 2.5, "lw": 1.4}
                ax.errorbar(x, share, errors, color=colour, label=name, ls="-" if number == 0 else "--", **look)
            ax.set_xticks(range(len(counts)), [f"{value:g}" for value in counts.index])
            ax.set(xlabel=label, ylim=(-0.03, 1.03))
        axes[0].yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")
        axes[0].set_ylabel("units that flip")
        axes[0].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.05, 1.0))
        figure.tight_layout(pad=0.6)
    return figure


def _at(frame: pd.DataFrame, usual: Mapping[str, float], varied: str) -> pd.DataFrame:
    """The rows in which only one thing is not as usual."""
    for name, value in usual.items():
        if name != varied:
            frame = frame[frame[name] == value]
    return frame


def promised(result: Silencing) -> Figure:
    """How many held-out images wake a unit, and upper bounds of the probability that another one does, by margin."""
    kinds = ["held-out", "unseen photograph"]
    parts = {kind: result.wakes[result.wakes["set"] == kind] for kind in kinds}
    images = int(result.natural["images"].to_numpy()[-1])
    lines: list[tuple[str, pd.Series, str, Any]] = [
        ("a unit woke (share of held-out images)", parts["held-out"]["wakes"] / images, NATURAL, "-"),
        ("bound, images independent", parts["held-out"]["bound"], INK, "-"),
    ]
    if len(parts["unseen photograph"]):
        lines.append(("bound, effective number of images", parts["held-out"]["effective_bound"], INK, "--"))
        lines.append(
            ("bound, any crop of another photograph", parts["unseen photograph"]["photograph_bound"], FAILED, ":")
        )
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
        for text, values, colour, dashes in lines:
            margins = parts["held-out"]["margin"].to_numpy()
            shown = values.to_numpy(float)
            ax.plot(
                margins, np.where(shown > 0, shown, np.nan), color=colour, ls=dashes, marker="o", ms=3.5, label=text
            )
        ax.axvline(result.recipe.margin, color=VISUALIZATION, lw=1.2)
        ax.text(result.recipe.margin, 1.02, "this network", color=VISUALIZATION, ha="center", fontsize=8,
                transform=ax.get_xaxis_transform())  # fmt: skip
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}%")
        ax.set(
            xlabel="margin of the threshold, in standard deviations of natural responses",
            ylabel="probability of a wake",
        )
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout(pad=0.6)
    return figure


def giveaway(result: Silencing) -> Figure:
    """What an auditor sees in the weights alone: each layer's largest filter and lowest bias; the branch, in red."""
    table = result.weights
    branch = table["layer"].str.endswith(".fool")
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 2.9))
        for mask, colour, size, text in (
            (~branch, NATURAL, 5, "other layers"),
            (branch, FAILED, 9, "the silent branch"),
        ):
            part = table[mask]
            ax.plot(part["largest"], -part["bias"], "o", color=colour, ms=size, label=text, alpha=0.85)
        ax.set(xscale="log", xlabel="largest norm of a filter, batch norm folded in")
        ax.set_yscale("symlog", linthresh=1)  # from 0 to 1 linear, for biases that are none
        ax.set_ylabel("lowest bias,\nin norms of its filter")
        ax.margins(0.1)
        ax.set_yticks([y for y in (0, 1, 2, 5, 10, 20, 50, 100) if y <= -1.2 * table["bias"].min()])
        ax.yaxis.set_major_formatter(lambda y, _: f"−{y:g}" if y else "0")
        ax.legend(frameon=False, loc="upper left")
        figure.tight_layout(pad=0.6)
    return figure
