"""Figures of attacks on weights: what each gains, and what it costs, over its weight."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featvis.errors import FeatvisError, listed
from featvis.fooling.trade_off import TradeOff
from featvis.plots import INK, VISUALIZATION, _style, show

COLOURS = {"slingshot": VISUALIZATION, "push": "#7a4fa3", "prox_pulse": "#2f7d4f"}
NAMES = {"slingshot": "gradient slingshot", "push": "push down and up", "prox_pulse": "ProxPulse-like"}
MEASURES = {
    "correlation": "correlation of the visualization\nwith the target's picture",
    "success": "share of visualizations that the\noriginal network takes for the target",
}


def trade_off(*results: TradeOff, measure: str = "success") -> Figure:
    """Accuracy on held-out images against `measure` ("success" or "correlation"), one curve for each attack.

    Every point is one weight of the attack, written beside it, with 95% intervals both ways; all curves begin at the
    honest visualizations (weight 0). Above them, for each attack, a visualization for every weight, and the target.
    """
    if measure not in MEASURES:
        raise FeatvisError(f"measure={measure!r} was given; valid are {listed(MEASURES)}.")
    if not results:
        raise FeatvisError("no result was given; trade_off(subject, ...) of featvis.fooling makes one.")
    rows, columns = len(results), max(len(result.pictures["shown"]) for result in results) + 1
    with _style():
        figure = plt.figure(figsize=(7.2, 3.5 + 1.25 * rows), layout="constrained")
        halves = figure.add_gridspec(2, 1, height_ratios=(1.25 * rows, 3.5))
        upper, lower = (figure.add_subfigure(halves[row]) for row in (0, 1))
        for axes, result in zip(upper.subplots(rows, columns, squeeze=False), results, strict=True):
            _strip(axes, result)
        ax = lower.subplots()
        for result in results:
            _curve(ax, result, measure)
        ax.set(xlabel="right answers on held-out natural images (right: behaves as before)", ylabel=MEASURES[measure])
        ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f}%")
        if measure == "success":
            ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")
            ax.set_ylim(-0.04, 1.06)
        ax.set_title("Up: the visualization is fooled. Numbers: the attack's weight.", loc="left")
        ax.legend(frameon=False, loc="lower left")
    return figure


def _curve(ax: Axes, result: TradeOff, measure: str) -> None:
    curve, colour = result.curve(), COLOURS.get(result.attack, INK)

    def spread(name: str) -> list[np.ndarray]:
        middle, low, high = (curve[name + end].to_numpy() for end in ("", "_low", "_high"))
        return [(middle - low).clip(min=0), (high - middle).clip(min=0)]

    options: Any = {"xerr": spread("accuracy"), "yerr": spread(measure), "elinewidth": 0.8, "capsize": 2}
    x, y = curve["accuracy"], curve[measure]
    label = f"{NAMES.get(result.attack, result.attack)}, target {result.target}"
    ax.errorbar(x, y, color=colour, marker="o", ms=4, lw=1.4, label=label, **options)
    for weight, a, b in zip(curve["weight"], x, y, strict=True):
        text = "honest" if weight == 0 else f"{weight:g}"
        ax.annotate(text, (a, b), (4, 4), textcoords="offset points", color=colour, fontsize=8)


def _strip(axes: np.ndarray, result: TradeOff) -> None:
    shown, weights = result.pictures["shown"], result.curve()["weight"]
    for ax in axes[len(shown) : -1]:
        ax.axis("off")
    for ax, image, weight in zip(axes, shown, weights, strict=False):
        show(ax, image, f"weight {weight:g}" if weight else "honest")
    show(axes[-1], result.pictures["target"][0], f"target {result.target}", INK)
    label = NAMES.get(result.attack, result.attack).replace(" ", "\n", 1)
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6, color=COLOURS.get(result.attack, INK))
