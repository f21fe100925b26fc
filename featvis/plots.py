"""Every figure of the book: one function for each kind of picture, on results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from featvis.exemplars import Exemplars
from featvis.images import NaturalImages
from featvis.subjects import Subject
from featvis.visualize import Visualizations

INK, VISUALIZATION, NATURAL = "#30323d", "#c2410c", "#1d6fa5"  # one colour for one thing, in every chapter
AVERAGED = 16  # steps: pictures are moved before each, and a single one says little
STYLE: Any = {
    "figure.dpi": 110,
    "savefig.facecolor": "white",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def _style() -> Iterator[None]:
    with plt.rc_context(STYLE):
        yield
        interactive = matplotlib.is_interactive()
    # A notebook's backend, loaded by its first figure, turns interactive; leaving the context would undo that.
    matplotlib.interactive(interactive)


def show(axes: Axes, image: Tensor, title: str = "", colour: str | None = None) -> None:
    """Draw one image (3, h, w) in [0, 1] into axes, framed in `colour`."""
    axes.imshow(image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="bilinear")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(colour is not None)
        spine.set_color(colour)
        spine.set_linewidth(2)


def grid(
    images: Sequence[Tensor] | Tensor, titles: Sequence[str] = (), columns: int = 6, width: float = 1.35
) -> Figure:
    """Images (3, h, w) in rows of `columns`, with a title over each."""
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    with _style():
        figure, axes = plt.subplots(rows, columns, figsize=(width * columns, (width + 0.22) * rows), squeeze=False)
        for position, ax in enumerate(axes.flat):
            if position < len(images):
                show(ax, images[position], titles[position] if position < len(titles) else "")
            else:
                ax.axis("off")
        figure.tight_layout(pad=0.4)
    return figure


def ladder(
    steps: Mapping[str, Sequence[Tensor]], labels: Sequence[str], width: float = 1.35, natural: Sequence[str] = ()
) -> Figure:
    """One row for each step of a method (name -> images), one column for each unit.

    Where some rows are of `natural` images, those are framed in blue and the others in orange.
    """
    with _style():
        size = (width * len(labels) + 1.4, (width + 0.05) * len(steps) + 0.3)
        figure, axes = plt.subplots(len(steps), len(labels), figsize=size, squeeze=False)
        for number, (row, (name, images)) in enumerate(zip(axes, steps.items(), strict=True)):
            frame = (NATURAL if name in natural else VISUALIZATION) if natural else None
            for ax, image, label in zip(row, images, labels, strict=True):
                show(ax, image, "" if number else label, frame)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
        figure.tight_layout(pad=0.4)
    return figure


def side_by_side(
    pictures: Visualizations,
    best: Exemplars,
    natural: NaturalImages,
    subject: Subject,
    units: Sequence[str] | None = None,
    k: int = 4,
) -> Figure:
    """For each unit its visualizations (orange frames) and k strongest exemplars (blue frames), with activations."""
    units, seeds = list(units or pictures.units), len(pictures.seeds)
    with _style():
        size = (1.25 * (seeds + k) + 1.3, 1.45 * len(units) + 0.1)
        figure, axes = plt.subplots(len(units), seeds + k, figsize=size, squeeze=False)
        for row, unit in zip(axes, units, strict=True):
            i, j = pictures.units.index(unit), best.units.index(unit)
            for ax, image, value in zip(row, pictures[unit], pictures.activation[i], strict=False):
                show(ax, image, f"{value:.3g}", VISUALIZATION)
            found = best.pictures(natural, unit)[:k]
            for ax, image, value in zip(row[seeds:], found, best.top_values[j], strict=False):
                show(ax, image, f"{value:.3g}", NATURAL)
            label = subject.label(unit).replace(" ", "\n")
            row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
        figure.tight_layout(pad=0.4)
    return figure


def trajectory(pictures: Visualizations, unit: str, best_natural: float | None = None) -> Figure:
    """The snapshots of one unit above its activation step by step (log axis); dashed: the best natural image."""
    i = pictures.units.index(unit)
    steps = sorted(pictures.snapshots)
    with _style():
        figure = plt.figure(figsize=(7.2, 3.2))
        layout = figure.add_gridspec(2, len(steps), height_ratios=(1.05, 2), hspace=0.28, wspace=0.06)
        for column, step in enumerate(steps):
            show(figure.add_subplot(layout[0, column]), pictures.snapshots[step][i, 0], f"step {step}")
        ax = figure.add_subplot(layout[1, :])
        x = np.arange(1, pictures.steps + 1)
        window = min(AVERAGED, pictures.steps)
        for curve in pictures.curve[i]:
            ax.plot(x, curve, color=VISUALIZATION, lw=0.8, alpha=0.45)
            mean = np.convolve(curve, np.ones(window) / window, "valid")
            ax.plot(x[window - 1 :], mean, color=VISUALIZATION, lw=1.8)
        if best_natural is not None:
            ax.axhline(best_natural, color=NATURAL, ls="--", lw=1.2)
            ax.text(1.05, best_natural, "strongest natural image", color=NATURAL, va="bottom", fontsize=8.5)
        ax.set(xscale="log", xlabel=f"step (bold: mean of {window})", xlim=(1, pictures.steps))
        ax.set_ylabel(f"activation of {unit}")
        ax.set_xticks(steps, [str(step) for step in steps])
        ax.minorticks_off()
        figure.subplots_adjust(bottom=0.15, left=0.08, right=0.99, top=0.93)
    return figure


def gaps(frame: pd.DataFrame, value: str = "ratio") -> Figure:
    """Layer by layer, how far visualizations out-activate the strongest natural image: all units, median, interval."""
    layers = list(dict.fromkeys(frame["layer"]))
    with _style():
        figure, ax = plt.subplots(figsize=(7.2, 3.2))
        rng = np.random.default_rng(0)
        for x, layer in enumerate(layers):
            values = frame.loc[frame["layer"] == layer, value].to_numpy()
            ax.scatter(x + rng.uniform(-0.28, 0.28, len(values)), values, s=4, color=VISUALIZATION, alpha=0.25, lw=0)
            low, middle, high = interval(values)
            ax.errorbar(x, middle, [[middle - low], [high - middle]], fmt="o", color=INK, ms=4, capsize=3, lw=1.2)
        ax.axhline(1, color=NATURAL, ls="--", lw=1.2)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right")
        ax.set_ylabel("activation of visualization\n/ strongest natural image")
        figure.tight_layout()
    return figure


def interval(values: np.ndarray, statistic: Callable = np.median) -> tuple[float, float, float]:
    """(low, statistic, high): a 95% percentile bootstrap over units; fewer than two values have no interval."""
    from scipy.stats import bootstrap

    values = np.asarray(values, float)
    if len(values) < 2:
        return np.nan, float(statistic(values)) if len(values) else np.nan, np.nan
    found = bootstrap((values,), statistic, method="percentile", n_resamples=2000, random_state=0).confidence_interval
    return float(found.low), float(statistic(values)), float(found.high)


def by_layer(frame: pd.DataFrame, columns: Mapping[str, tuple[str, str]], label: str) -> Figure:
    """Means over the units of each layer with bootstrap intervals; `columns` maps a column to (legend, colour)."""
    layers = list(dict.fromkeys(frame["layer"]))
    with _style():
        figure, ax = plt.subplots(figsize=(7.2, 3.0))
        for column, (legend, colour) in columns.items():
            found = [interval(frame.loc[frame["layer"] == layer, column].dropna(), np.mean) for layer in layers]
            low, middle, high = np.array(found).T
            ax.errorbar(
                range(len(layers)),
                middle,
                [middle - low, high - middle],
                color=colour,
                marker="o",
                ms=4,
                capsize=3,
                lw=1.3,
                label=legend,
            )
        ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right")
        ax.set(ylabel=label, ylim=(0, 1.05))
        ax.legend(frameon=False)
        figure.tight_layout()
    return figure
