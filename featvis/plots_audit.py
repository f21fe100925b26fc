"""The figures of the chapter on audits: attacks against checks, false alarms, attacked units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor

from featvis.audit import Audit
from featvis.audit.checks import CHECKS
from featvis.plots import INK, NATURAL, VISUALIZATION, _style, show

__all__ = ["alarms", "attacks", "detected", "evidence", "remedies", "trade_offs"]

WIDTH = 7.2  # inches; the page shows 700 pixels
WAYS = {
    "fourier": "Fourier",
    "pixels": "pixels",
    "maco": "MACO",
    "exemplar": "from an\nexemplar",
    "tuned": "after a little\ntraining",
    "pruned": "after\npruning",
}


def detected(areas: pd.DataFrame) -> Figure:
    """Every attack against every check: the area under the ROC curve, its 95% interval, and the networks' own areas.

    Bold where the interval and the area of every network lie above one half.
    """
    attacks = list(dict.fromkeys(areas["attack"]))
    checks = list(dict.fromkeys(areas["check"]))
    table = areas.set_index(["attack", "check"])
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.62 * len(attacks)))
        grid = np.array([[table.loc[(a, c), "auc"] for c in checks] for a in attacks])
        # White at chance: what is blind looks blind.
        ax.imshow(np.clip(grid, 0.5, 1), cmap="Oranges", vmin=0.5, vmax=1.4, aspect="auto")
        for i, attack in enumerate(attacks):
            for j, check in enumerate(checks):
                row = table.loc[(attack, check)]
                text = "–" if np.isnan(row["auc"]) else f"{row['auc']:.2f}"
                known = not np.isnan(row["auc"])
                bold = "bold" if known and np.nanmin([row["low"], *row["each"]]) > 0.5 else "normal"
                ax.text(j, i - 0.2, text, ha="center", va="center", fontsize=9.5, fontweight=bold)
                if known:
                    span = f"{row['low']:.2f}–{row['high']:.2f}"
                    ax.text(j, i + 0.1, span, ha="center", va="center", fontsize=7.5)
                    own = " | ".join("–" if np.isnan(area) else f"{area:.2f}" for area in row["each"])
                    ax.text(j, i + 0.32, own, ha="center", va="center", fontsize=7.5, style="italic")
        ax.set_xticks(range(len(checks)), checks)
        ax.set_yticks(range(len(attacks)), attacks)
        ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        ax.set_xlabel("area under the ROC curve; its 95% interval; the area in each network", fontsize=9, labelpad=8)
        ax.axvline(len(checks) - 1.5, color="white", lw=4)
        for side in ax.spines.values():
            side.set_visible(False)
        figure.tight_layout(pad=0.6)
    return figure


def alarms(rates: pd.DataFrame, level: float = 0.05) -> Figure:
    """How many units of honest networks stand out: a dot and a 95% interval each, the last row all together."""
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.7 + 0.34 * len(rates)))
        at = np.arange(len(rates))[::-1]
        for y, row in zip(at, rates.to_dict("records"), strict=True):
            whole = row["network"] == "all"
            colour = VISUALIZATION if whole else INK
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=3 if whole else 1.6, solid_capstyle="round")
            ax.plot(row["rate"], y, "o", color=colour, ms=7 if whole else 5)
            ax.text(
                max(0.34, rates["high"].max() + 0.01),
                y,
                f"{row['alarms']} of {row['units']}",
                va="center",
                fontsize=8.5,
            )
        ax.axvline(level, color=NATURAL, lw=1.4, ls="--")
        ax.text(level, len(rates) - 0.42, f" {level:.0%}, as intended", color=NATURAL, fontsize=8.5, va="bottom")
        ax.set_yticks(at, rates["network"])
        ax.set_ylim(-0.6, len(rates) - 0.1)
        ax.set_xlim(0, max(0.4, rates["high"].max() + 0.08))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        ax.set_xlabel("units that stand out (p ≤ .05, all checks together), with 95% intervals")
        figure.tight_layout(pad=0.6)
    return figure


def attacks(pictures: Mapping[str, Tensor], most: int = 3) -> Figure:
    """Attacked units, a row for each attack: before, after, and the strongest exemplar after, of `most` units.

    pictures  title -> images (units, 3, 3, h, w)
    """
    with _style():
        figure, axes = plt.subplots(
            len(pictures), 3 * most + most - 1, figsize=(WIDTH, 0.98 * len(pictures) + 0.25), squeeze=False,
            width_ratios=([1, 1, 1, 0.18] * most)[:-1],
        )  # fmt: skip
        for number, (row, (title, images)) in enumerate(zip(axes, pictures.items(), strict=True)):
            for ax in row:
                ax.axis("off")
            for u in range(min(most, len(images))):
                for k, kind in enumerate(("before", "after", "exemplar")):
                    ax = row[4 * u + k]
                    ax.axis("on")
                    show(ax, images[u, k], kind if number == 0 else "", NATURAL if k == 2 else VISUALIZATION)
            row[0].set_ylabel(title.replace(", ", ",\n"), rotation=0, ha="right", va="center", labelpad=6, fontsize=8.5)
        figure.tight_layout(pad=0.3, w_pad=0.2, h_pad=0.25)
    return figure


def trade_offs(natural: pd.DataFrame, units: int) -> Figure:
    """What an attack gains (above) and costs (below) as its weight rises, for each attack of several strengths.

    natural  rows of `audit.study.Trials.natural`, of one network; `units` attacked in each. Bars are 95% Wilson
             intervals, which take units and images for independent
    """
    several = natural[natural.groupby("attack")["strength"].transform("nunique") > 1]
    parts = list(several.groupby("attack", sort=False))
    with _style():
        options: dict[str, Any] = {"sharex": "col", "sharey": "row", "squeeze": False}
        figure, axes = plt.subplots(2, len(parts), figsize=(WIDTH, 3.8), **options)
        for (top, bottom), (attack, part) in zip(axes.T, parts, strict=True):
            rows = part.sort_values("strength")
            changed = rows["images"] - rows["same"]
            for ax, hits, of, colour in (
                (top, rows["shown"] * units, [units] * len(rows), VISUALIZATION),
                (bottom, changed, rows["images"], NATURAL),
            ):
                x, counts = rows["strength"].to_numpy(), list(zip(hits.round().astype(int), of, strict=True))
                bounds = [binomtest(hit, n).proportion_ci(method="wilson") for hit, n in counts]
                ax.vlines(x, [b.low for b in bounds], [b.high for b in bounds], color=colour, lw=1.2)
                ax.plot(x, [hit / n for hit, n in counts], "o-", color=colour, ms=5, lw=1.6)
                ax.set_xscale("log")
                ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
                ax.grid(axis="y", lw=0.4)
            top.set_title(attack, fontsize=10)
            top.set_ylim(-0.05, 1.05)
            bottom.set_ylim(bottom=0)
            bottom.set_xticks(x, [f"{v:g}" for v in x])
            bottom.minorticks_off()
            bottom.set_xlim(x[0] / 2, x[-1] * 2)
        axes[1, len(parts) // 2].set_xlabel("weight of the attack, α")
        axes[0, 0].set_ylabel("gain: units with\nanother picture", color=VISUALIZATION)
        axes[1, 0].set_ylabel("cost: images with\nanother answer", color=NATURAL)
        figure.align_ylabels(axes[:, 0])
        figure.tight_layout(pad=0.6)
    return figure


def remedies(table: pd.DataFrame) -> Figure:
    """Which way of visualizing shows the truth under which attack: shares with 95% Wilson intervals."""
    ways, attacks = (list(dict.fromkeys(table[name])) for name in ("way", "attack"))
    colours = [VISUALIZATION, "#6d3fa8", "#2f7d4f", NATURAL]
    with _style():
        figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.5 * len(attacks)))
        for k, (way, colour) in enumerate(zip(ways, colours, strict=False)):
            rows = table[table["way"] == way].set_index("attack").loc[attacks]
            at = np.arange(len(attacks))[::-1] + 0.27 - 0.18 * k
            share = (rows["own"] / rows["units"]).to_numpy()
            bounds = [
                binomtest(own, n).proportion_ci(method="wilson")
                for own, n in zip(rows["own"].tolist(), rows["units"].tolist(), strict=True)
            ]
            ax.hlines(at, [b.low for b in bounds], [b.high for b in bounds], color=colour, lw=1.6)
            ax.plot(share, at, "o", color=colour, ms=5, label=way)
        ax.set_yticks(np.arange(len(attacks))[::-1], attacks)
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        ax.set_xlabel("pictures that show the logit's own class, to the network before the attack")
        ax.grid(axis="x", lw=0.4)
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1.2)
        figure.tight_layout(pad=0.6)
    return figure


def evidence(audit: Audit, units: Sequence[str]) -> Figure:
    """What an audit saw of some units, by label: every way of visualizing, exemplars, and which checks stand out."""
    ways = [way for way in WAYS if way in audit.pictures]
    labels = audit.units["label"].tolist()
    with _style():
        figure, axes = plt.subplots(len(units), len(ways) + 2, figsize=(WIDTH, 1.02 * len(units) + 0.4), squeeze=False)
        for number, (row, unit) in enumerate(zip(axes, units, strict=True)):
            i = labels.index(unit)
            images = [audit.pictures[way][i, 0] for way in ways] + list(audit.pictures["exemplars"][i, :2])
            titles = [WAYS[way] for way in ways] + ["exemplar", "exemplar"]
            for k, (ax, image, title) in enumerate(zip(row, images, titles, strict=True)):
                show(ax, image, title if number == 0 else "", VISUALIZATION if k < len(ways) else NATURAL)
            values = audit.units.iloc[i]
            odd = [check.name for check in CHECKS if values[f"p {check.name}"] <= 0.05]
            text = f"{unit}\n" + (", ".join(odd) if odd else "nothing stands out")
            row[0].set_ylabel(text, rotation=0, ha="right", va="center", labelpad=6, fontsize=8)
        figure.tight_layout(pad=0.3, w_pad=0.3)
    return figure
