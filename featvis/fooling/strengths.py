"""Where silent units stop working: strength and direction of the decoy, factor and margin, and how one renders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featvis import budget, sheets
from featvis.fooling.silence_measures import judge, reached
from featvis.fooling.silence_report import check_fresh
from featvis.fooling.silent import (
    FACTOR,
    FIRST_SEED,
    MARGIN,
    REDIRECT,
    STEPS,
    STRENGTH,
    STRENGTHS,
    fill,
    ingredients,
    natural_peaks,
    threshold,
)
from featvis.images import NaturalImages
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.visualize import render

GRID = (0.3, 1.0, 3.0, 10.0, 30.0)  # strengths
MARGINS = (0.0, 0.25, 0.5, 1.0, 2.0)
FACTORS = (1.0, 5.0, 100.0)
KEPT = 3  # units whose pictures are kept
EDGES = np.linspace(-8, 10, 73)  # of histograms of responses, in standard deviations


@dataclass(frozen=True)
class Strengths:
    """Some units of a layer, silenced in many ways, responses in deviations beyond the largest calibration image.

    frame     one row for each way (`direction`, `strength`, `factor`, `margin`, and for how many steps the reader
              redirects ReLUs, `redirect`) and `unit`: `activation` of its visualization, `response` of the silent
              filter to it, `awake`, `flipped`, `to_decoy`, `to_own`, and `wakes`: the held-out images that wake it
    natural   histograms of the held-out images' responses to the filters of the units whose pictures are kept:
              `direction`, `strength`, `unit`, `left` (edge), `count`
    original  one row for each strength and unit: the silent filter's `response` to the unit's own visualization
    pictures  "ways": the visualizations (ways, 3, h, w) of the first units for every strength and margin, in the
              order of the frame; "own" (units, 3, h, w) and "decoy" (1, 3, h, w)
    """

    layer: str
    decoy: str
    images: int
    frame: pd.DataFrame = field(repr=False)
    natural: pd.DataFrame = field(repr=False)
    original: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def usual(self) -> dict[str, float]:
        """What `silencing` takes unless it is told otherwise."""
        return {"strength": STRENGTH, "factor": FACTOR, "margin": MARGIN, "redirect": REDIRECT}

    def difference(self, again: Strengths) -> str:
        """ "" if the shares of flipped units are about the same; each is of few units."""
        ways = ["direction", "strength", "factor", "margin", "redirect"]
        old, new = (one.frame.groupby(ways)["flipped"].mean().tolist() for one in (self, again))
        return shares_differ(old, new, 0.35)

    def save(self, folder: Path) -> None:
        sizes = {name: list(images.shape) for name, images in self.pictures.items()}
        about = {"layer": self.layer, "decoy": self.decoy, "images": self.images, "pictures": sizes}
        (folder / "about.json").write_text(json.dumps(about))
        for name in ("frame", "natural", "original"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
        for name, images in self.pictures.items():
            sheets.write(folder / f"{name}.webp", images, 70)

    @classmethod
    def load(cls, folder: Path) -> Strengths:
        about = json.loads((folder / "about.json").read_text())
        sizes = about.pop("pictures")
        tables: dict[str, Any] = {n: pd.read_csv(folder / f"{n}.csv") for n in ("frame", "natural", "original")}
        pictures = {name: sheets.read(folder / f"{name}.webp", s[0], (s[2], s[3])) for name, s in sizes.items()}
        return cls(**about, **tables, pictures=pictures)


@shelved(4, Strengths)
def strengths(
    subject: Subject,
    natural: NaturalImages,
    test: NaturalImages,
    layer: str,
    decoy: str,
    units: Sequence[str],
    *,
    steps: int = 96,
    progress: bool = True,
) -> Strengths:
    """Silence some units of a layer in many ways and visualize them anew each time.

    Every strength with every margin, and several factors; every strength, and the fitted direction, with and without
    redirected ReLUs. What is not varied is as `silencing` has it, but for the fitted direction's own strength.
    """
    subject.check_size(natural, test)
    check_fresh(natural, test)
    parts = ingredients(subject, natural, layer, decoy, units, direction="bridge", progress=progress)
    names = [f"{layer}:{i}" for i in parts.channels.tolist()]
    every = render(subject, subject.units(layer), steps=STEPS, seeds=[FIRST_SEED], progress=progress).images[:, 0]
    kinds = [("patch", strength) for strength in _tried(GRID, STRENGTH)] + [("bridge", STRENGTHS["bridge"])]
    made = [parts.filters(direction, strength, 1.0) for direction, strength in kinds]
    known, fresh = (natural_peaks(parts, images, made, progress) for images in (natural, test))
    rows, histograms, originals, pictures = [], [], [], []
    for (direction, strength), filters, seen, held in zip(kinds, made, known, fresh, strict=True):
        highest, spread = seen.amax(0), seen.std(0).clamp(min=1e-12)
        shown = names[:KEPT] if direction == "patch" else []
        for row, values in zip(shown, ((held - highest) / spread).T[: len(shown)], strict=True):
            counts, edges = np.histogram(values.clamp(EDGES[0], EDGES[-1]).numpy(), EDGES)
            about = {"direction": direction, "strength": strength, "unit": row}
            histograms.append(pd.DataFrame({**about, "left": edges[:-1], "count": counts}))
        fill(parts.branch, filters, parts.channels, highest)
        own = reached(parts.subject, parts.originals, parts.channels) / spread.numpy()
        originals.append(pd.DataFrame({"direction": direction, "strength": strength, "unit": names, "response": own}))
        for factor, margin, redirect in _ways(direction, strength):
            fill(parts.branch, factor * filters, parts.channels, factor * threshold(seen, margin))
            run = render(parts.subject, names, steps=steps, redirect=redirect, progress=False)
            images = run.images[:, 0]
            response = reached(parts.subject, images, parts.channels) / (factor * spread.numpy()) + margin
            found = judge(subject, parts, images, images, every)[["flipped", "to_decoy", "to_own"]]
            way = {"direction": direction, "strength": strength, "factor": factor, "margin": margin}
            way |= {"redirect": redirect, "unit": names}
            awake = {"activation": run.activation[:, 0], "response": response, "awake": response > margin}
            wakes = (held > threshold(seen, margin)).sum(0).numpy()
            rows.append(pd.concat([pd.DataFrame({**way, **awake, "wakes": wakes}), found], axis=1))
            if direction == "patch" and factor == FACTOR and redirect:
                pictures.append(images[:KEPT])
    kept = {"ways": torch.cat(pictures), "own": parts.originals[:KEPT], "decoy": parts.pictures[:1]}
    frame, histogram, own_responses = (pd.concat(part, ignore_index=True) for part in (rows, histograms, originals))
    return Strengths(layer, parts.name, len(test), frame, histogram, own_responses, kept)


def grid(result: Strengths) -> dict[str, Any]:
    """What the widget `Threshold` shows: every strength and margin for the units whose pictures were kept."""
    usual = {"direction": "patch", "factor": FACTOR, "redirect": REDIRECT}
    tried = result.frame[(result.frame[list(usual)] == pd.Series(usual)).all(axis=1)]
    strengths, margins = (sorted(tried[name].unique().tolist()) for name in ("strength", "margin"))
    names = list(dict.fromkeys(tried["unit"]))[:KEPT]
    tiles = torch.cat([result.pictures[name] for name in ("ways", "own", "decoy")])
    seen = result.natural[result.natural["direction"] == "patch"]
    first = result.original[result.original["direction"] == "patch"].set_index(["unit", "strength"])["response"]
    bins = len(EDGES) - 1
    units = []
    for number, name in enumerate(names):
        mine, histograms = tried[tried["unit"] == name], seen[seen["unit"] == name]
        cells = [mine[mine["strength"] == s].sort_values("margin").to_dict("records") for s in strengths]
        kept = ("response", "awake", "flipped", "wakes")
        units.append(
            {
                "name": name,
                "own": len(tiles) - 1 - len(names) + number,
                "natural": [histograms.loc[histograms["strength"] == s, "count"].tolist() for s in strengths],
                "original": [float(first[name, s]) for s in strengths],
                "cells": [
                    [
                        {**{key: cell[key] for key in kept}, "picture": (i * len(margins) + j) * len(names) + number}
                        for j, cell in enumerate(row)
                    ]
                    for i, row in enumerate(cells)
                ],
            }
        )
    about = {"layer": result.layer, "decoy": result.decoy, "images": result.images, "units": units}
    scale = {"left": float(EDGES[0]), "width": float(EDGES[1] - EDGES[0]), "bins": bins}
    columns = sheets.COLUMNS
    uri = sheets.uri(tiles, columns)
    return {**about, **scale, "strengths": strengths, "margins": margins, "sheet": uri, "columns": columns,
            "tiles": len(tiles)}  # fmt: skip


def _ways(direction: str, strength: float) -> list[tuple[float, float, int]]:
    """(factor, margin, redirect) to try with a strength."""
    both = [(FACTOR, MARGIN, 0), (FACTOR, MARGIN, REDIRECT)]
    if direction == "bridge":
        return both
    grid = [(FACTOR, margin, REDIRECT) for margin in _tried(MARGINS, MARGIN)]
    factors = _tried(FACTORS, FACTOR) if strength == STRENGTH else ()
    return both[:1] + grid + [(factor, MARGIN, REDIRECT) for factor in factors]


def _tried(values: Sequence[float], usual: float) -> tuple[float, ...]:
    """The values to try, under the quick budget the first and the usual one."""
    return tuple(value for value in values if not budget.quick() or value in (values[0], usual))
