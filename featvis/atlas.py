"""The atlas: every unit of a subject with its visualizations and exemplars, as the unit explorer shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from featvis import budget, sheets
from featvis.exemplars import Exemplars, exemplars
from featvis.images import NaturalImages
from featvis.shelf import RECIPES, Shelf, shelved
from featvis.subjects import Subject
from featvis.visualize import Visualizations, render

THUMB = 64
THUMB_COLUMNS = 32
PER_SHEET = 1024
SHOWN_TOP, SHOWN_BOTTOM = 9, 3


@dataclass(frozen=True)
class Thumbs:
    """Small pictures of the natural images that are exemplars of any unit, in sheets of 1024."""

    ids: tuple[str, ...]
    images: Tensor = field(repr=False)

    def difference(self, again: Thumbs) -> str:
        """ "" if the same images are shown."""
        return "" if self.ids == again.ids else "other exemplars are shown"

    def save(self, folder: Path) -> None:
        for number, part in enumerate(self.images.split(PER_SHEET)):
            sheets.write(folder / f"thumbs-{number}.webp", part, 62, THUMB_COLUMNS)
        (folder / "ids.txt").write_text("\n".join(self.ids))

    @classmethod
    def load(cls, folder: Path) -> Thumbs:
        return cls(tuple((folder / "ids.txt").read_text().split("\n")), torch.empty(0))


@dataclass(frozen=True)
class Atlas:
    """Layer by layer: maxima and minima by activation maximization, exemplars, and their sheets on the shelf."""

    subject: Subject
    natural: NaturalImages
    maxima: dict[str, Visualizations] = field(repr=False)
    minima: dict[str, Visualizations] = field(repr=False)
    exemplars: dict[str, Exemplars] = field(repr=False)
    sheets: dict[str, list[str]] = field(repr=False)  # "max inception4b" -> sheets, as paths below the shelf's root
    thumbs: tuple[str, ...] = field(repr=False)
    root: Path = field(repr=False)

    @property
    def files(self) -> dict[str, Path]:
        """Every sheet's name and where it lies, for a widget with a kernel behind it."""
        return {name: self.root / name for names in self.sheets.values() for name in names}

    def explorer(self) -> dict[str, Any]:
        """The unit explorer's data: plain numbers, text, and names of sheets."""
        position = {id: i for i, id in enumerate(self.thumbs)}
        layers = [self._layer(layer, position) for layer in self.maxima]
        height, _ = self.subject.preprocess.size
        return {
            "subject": self.subject.name,
            "tile": height,
            "thumb": THUMB,
            "columns": sheets.COLUMNS,
            "layers": layers,
            "thumbs": {
                "sheets": self.sheets["thumbs"],
                "per_sheet": PER_SHEET,
                "columns": THUMB_COLUMNS,
                "labels": [id.split("/")[0] if "/" in id else "" for id in self.thumbs],
            },
        }

    def _layer(self, layer: str, position: dict[str, int]) -> dict[str, Any]:
        high, low, best = self.maxima[layer], self.minima[layer], self.exemplars[layer]
        is_logit = self.subject.layers[layer] == (len(self.subject.classes),)
        rows = []
        for i in range(len(high.units)):
            status = sorted({str(s).split()[0] for s in high.status[i]})
            rows.append(
                {
                    "a": _rounded(high.activation[i]),
                    "b": _rounded(low.activation[i]),
                    "s": "ok" if "ok" in status else status[0],
                    "top": _pairs(best.top_ids[i], best.top_values[i], SHOWN_TOP, position),
                    "bottom": _pairs(best.bottom_ids[i], best.bottom_values[i], SHOWN_BOTTOM, position),
                    "hist": best.histogram[i].tolist(),
                    "lo": float(f"{best.quantiles[i, 0]:.4g}"),
                    "hi": float(f"{best.quantiles[i, -1]:.4g}"),
                    "q": _rounded(best.quantiles[i, [1, 3, 4, 5, 7]]),
                }
            )
        return {
            "name": layer,
            "units": len(rows),
            "max": {"sheet": self.sheets[f"max {layer}"][0], "seeds": len(high.seeds)},
            "min": {"sheet": self.sheets[f"min {layer}"][0], "seeds": len(low.seeds)},
            "labels": list(self.subject.classes[: len(rows)]) if is_logit else None,
            "rows": rows,
        }


def _pairs(ids: np.ndarray, values: np.ndarray, most: int, position: dict[str, int]) -> list[list[float]]:
    return [[position[str(id)], float(f"{v:.4g}")] for id, v in zip(ids[:most], values[:most], strict=True) if str(id)]


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


@shelved(1, Thumbs)
def thumbs(subject: Subject, natural: NaturalImages, ids: Sequence[str]) -> Thumbs:
    """The images with these ids at 64 pixels; `subject` only names the shelf."""
    images = torch.stack([natural.image(id) for id in ids])
    return Thumbs(tuple(ids), F.interpolate(images, size=(THUMB, THUMB), mode="area"))


def atlas(
    subject: Subject,
    natural: NaturalImages,
    shelf: Shelf,
    *,
    layers: Sequence[str] | None = None,
    steps: int = 128,
    seeds: int = 2,
    k: int = SHOWN_TOP,
    progress: bool = True,
) -> Atlas:
    """All units of `layers` (the subject's blocks by default): what stands on the shelf is taken from there.

    Every layer is an entry of its own, so interrupted work goes on where it was. Under the quick budget some layers,
    and a few units of each, have to do.
    """
    seeds = budget.most(seeds, 1)
    *hidden, head = subject.blocks
    layers = tuple(layers or (*budget.some(hidden, budget.LAYERS - 1), head))
    chosen = {layer: _chosen(subject, layer) for layer in layers}
    # A whole layer is asked for by its name.
    wanted = [unit for units in chosen.values() for unit in units] if budget.quick() else layers
    best = exemplars(subject, natural, wanted, k=k, progress=progress, shelf=shelf)
    by_layer = {layer: _part(best, layer) for layer in layers}
    shown = [(b.top_ids[:, :SHOWN_TOP], b.bottom_ids[:, :SHOWN_BOTTOM]) for b in by_layer.values()]
    ids = sorted({str(id) for pair in shown for part in pair for id in part.ravel() if id})
    maxima: dict[str, Visualizations] = {}
    minima: dict[str, Visualizations] = {}
    names: dict[str, list[str]] = {}
    for layer in tqdm(layers, desc=f"atlas {subject.name}", unit="layer", disable=not progress, leave=False):
        units = chosen[layer]
        for kind, store, options in (
            ("max", maxima, {"steps": steps, "seeds": seeds}),
            ("min", minima, {"steps": steps, "minimize": True}),
        ):
            store[layer] = render(subject, units, **options, progress=progress, shelf=shelf)
            names[f"{kind} {layer}"] = [_sheet(shelf, "images.webp", "render", subject, units, **options)]
    thumbs(subject, natural, ids, shelf=shelf)
    names["thumbs"] = [
        _sheet(shelf, f"thumbs-{i}.webp", "thumbs", subject, natural, ids) for i in range(-(-len(ids) // PER_SHEET))
    ]
    return Atlas(subject, natural, maxima, minima, by_layer, names, tuple(ids), shelf.root)


def _chosen(subject: Subject, layer: str) -> list[str]:
    """All units of a layer, or the first ones that the budget allows, the examples of the logits among them."""
    units = subject.units(layer)
    shown = [units.index(unit) + 1 for unit in subject.examples()] if layer == subject.blocks[-1] else []
    return units[: budget.most(len(units), max(budget.UNITS, *shown, 0))]


def _sheet(shelf: Shelf, file: str, function: str, *given: Any, **options: Any) -> str:
    """A sheet's path below the shelf's root."""
    folder = shelf.folder(RECIPES[function].key(*given, **options))
    return (folder / file).relative_to(shelf.root).as_posix()


def _part(best: Exemplars, layer: str) -> Exemplars:
    """The rows of one layer."""
    rows = [i for i, unit in enumerate(best.units) if unit.rpartition(":")[0] == layer]
    arrays = {
        name: getattr(best, name)[rows]
        for name in ("top_ids", "top_values", "top_at", "bottom_ids", "bottom_values", "quantiles", "histogram")
    }
    return replace(best, units=tuple(best.units[i] for i in rows), **arrays)
