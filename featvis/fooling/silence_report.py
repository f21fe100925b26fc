"""What silent units do, measured: nothing on natural images, and another picture for every unit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featvis import sheets
from featvis.errors import FeatvisError
from featvis.fooling import promise
from featvis.fooling.branch import Recipe, branch_of
from featvis.fooling.report import _table
from featvis.fooling.silence_measures import Behaviour, behaviour, filter_statistics, judge, reached, reason_of
from featvis.fooling.silent import (
    DIRECTIONS,
    FACTOR,
    MARGIN,
    REDIRECT,
    STRENGTH,
    Ingredients,
    check_recipe,
    filled,
    ingredients,
)
from featvis.images import NaturalImages
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.visualize import render

STEPS = 128
SHOWN = 11  # units whose pictures are kept, as in the paper's figure
EDGES = np.linspace(-12, 8, 101)  # of the histograms of natural responses, in standard deviations
TABLES = ("natural", "units", "wakes", "responses", "weights")


@dataclass(frozen=True)
class Silencing:
    """One silenced subject, measured. Responses are in standard deviations beyond the largest calibration image.

    natural    one row for "calibration" and "held-out": `images`, `photographs`, `effective` (their effective number),
               `identical` (images whose logits agree to the bit), `change` (largest change of a logit), `woken` (images
               that wake a unit), `top1_before`, `top1_after`, `top5_before`, `top5_after` (how many are right)
    units      one row for each unit: `alive`, its activation for its own visualization (`before`), for that of the
               manipulated unit (`after`), for the strongest natural image (`natural`); the silent filter's response to
               the two pictures (`response_before`, `response_after`); which unit of the original the pictures resemble
               most (`nearest_before`, `nearest_after`; -1: the decoy, where that is none of them) and excite most
               (`seen_before`, `seen_after`); their correlation with the decoy (`to_decoy`) and with the unit's own
               visualization (`to_own`); `flipped`; why not (`reason`). All pictures are rendered with redirected ReLUs
               for `redirect` steps; `response_plain` and `flipped_plain` are of a picture of the manipulated unit that
               was rendered without
    wakes      `promise.sweep` over margins, for "held-out" images, and for "unseen photograph": the same against
               thresholds that the photograph had no part in
    responses  histograms of all units' largest responses to natural images: `set`, `left` (edge), `count`
    weights    the filters of each layer: `filters`, median and largest `norm`, lowest `bias` in units of the norm
    pictures   "before" and "after" (units, 3, h, w) of the units in `shown`, "decoy" (n, 3, h, w)
    """

    recipe: Recipe
    redirect: int
    natural: pd.DataFrame = field(repr=False)
    units: pd.DataFrame = field(repr=False)
    wakes: pd.DataFrame = field(repr=False)
    responses: pd.DataFrame = field(repr=False)
    weights: pd.DataFrame = field(repr=False)
    shown: tuple[str, ...] = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """The table of units."""
        return self.units

    def judged(self) -> pd.DataFrame:
        """The units that count: alive, and not the decoy itself."""
        return self.units[self.units["alive"] & (self.units["unit"] != self.recipe.decoy)]

    def promised(self, which: str = "held-out") -> dict[str, Any]:
        """The row of `wakes` at the margin that the network was made with."""
        rows = self.wakes[(self.wakes["set"] == which) & (self.wakes["margin"] == self.recipe.margin)]
        return {str(name): value for name, value in rows.iloc[0].items()}

    def summary(self) -> dict[str, Any]:
        """The numbers of `report.json`."""
        judged, promised = self.judged(), self.promised()
        known, fresh = self.natural.to_dict("records")
        independent = fresh["photographs"] == fresh["images"]
        found = {
            **{name: value for name, value in asdict(self.recipe).items() if name not in ("units", "images")},
            "units": len(self.units),
            "units_alive": int(self.units["alive"].sum()),
            "units_judged": len(judged),
            "units_flipped": int(judged["flipped"].sum()),
            "units_flipped_plain": int(judged["flipped_plain"].sum()),
            "redirect": self.redirect,
            "units_resisting": dict(judged.loc[~judged["flipped"], ["unit", "reason"]].to_numpy().tolist()),
            "max_logit_change_calibration": float(known["change"]),
            "max_logit_change_heldout": float(fresh["change"]),
            "calibration_images": int(known["images"]),
            "heldout_images": int(fresh["images"]),
            "calibration_identical": int(known["identical"]),
            "heldout_identical": int(fresh["identical"]),
            "heldout_images_waking": int(fresh["woken"]),
            "wake_probability_bound": float(promised["bound"]),
            "confidence": promise.CONFIDENCE,
            "sampling_model": "independent images"
            if independent
            else "crops drawn at random from these same photographs; for others see the bounds below",
            **{f"{name}_{when}": float(fresh[f"{name}_{when}"] / fresh["images"])
               for name in ("top1", "top5") for when in ("before", "after")},
        }  # fmt: skip
        if not independent:
            unseen = self.promised("unseen photograph")
            found |= {
                "heldout_photographs": int(fresh["photographs"]),
                "effective_images": float(fresh["effective"]),
                "wake_probability_bound_effective": float(promised["effective_bound"]),
                "unseen_photographs_waking": int(unseen["woken"]),
                "wake_probability_bound_unseen_photograph": float(unseen["photograph_bound"]),
            }
        return found

    def difference(self, again: Silencing) -> str:
        """ "" if the logits' identity, the shares of units and the accuracy are about the same."""
        if (self.natural["identical"] != again.natural["identical"]).any():
            return "another number of images has identical logits"
        return shares_differ(self._shares(), again._shares(), 0.15)  # a few units on the brink tip with rounding

    def _shares(self) -> list[float]:
        found = self.summary()
        flipped = [found[name] / found["units_judged"] for name in ("units_flipped", "units_flipped_plain")]
        return [*flipped, found["top1_before"], found["top1_after"]]

    def save(self, folder: Path) -> None:
        sizes = {name: list(images.shape) for name, images in self.pictures.items()}
        about = {"recipe": asdict(self.recipe), "redirect": self.redirect, "shown": self.shown, "pictures": sizes}
        (folder / "about.json").write_text(json.dumps(about))
        for name in TABLES:
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        for name, images in self.pictures.items():
            sheets.write(folder / f"{name}.webp", images, 85)

    @classmethod
    def load(cls, folder: Path) -> Silencing:
        about = json.loads((folder / "about.json").read_text())
        recipe = Recipe(**about["recipe"] | {"units": tuple(about["recipe"]["units"])})
        tables = {name: _table(folder / f"{name}.csv") for name in TABLES}
        pictures = {
            name: sheets.read(folder / f"{name}.webp", n, (height, width))
            for name, (n, _, height, width) in about["pictures"].items()
        }
        return cls(recipe, about["redirect"], **tables, shown=tuple(about["shown"]), pictures=pictures)


@shelved(2, Silencing)
def silencing(
    subject: Subject,
    natural: NaturalImages,
    test: NaturalImages,
    layer: str,
    decoy: str | Tensor | None = None,
    units: str | Sequence[str] = "all",
    *,
    direction: str = DIRECTIONS[0],
    strength: float = STRENGTH,
    factor: float = FACTOR,
    margin: float = MARGIN,
    steps: int = STEPS,
    redirect: int = REDIRECT,
    progress: bool = True,
) -> Silencing:
    """Silence a layer of a subject (the arguments are those of `silence`) and measure what comes of it.

    `steps` and `redirect` are those of the reader who renders the units.
    """
    check_recipe(direction, strength, factor, margin, redirect)
    subject.check_size(natural, test)
    check_fresh(natural, test)
    parts = ingredients(subject, natural, layer, decoy, units, direction=direction, progress=progress)
    silenced = filled(parts, natural, direction, strength, factor, margin, progress)
    return measured(subject, silenced, parts, natural, test, steps, redirect, progress)


def measured(
    subject: Subject,
    silenced: Subject,
    parts: Ingredients,
    natural: NaturalImages,
    test: NaturalImages,
    steps: int = STEPS,
    redirect: int = REDIRECT,
    progress: bool = True,
) -> Silencing:
    """What `silencing` measures, of a subject that was silenced with these ingredients and images."""
    recipe = branch_of(silenced).recipe
    assert recipe is not None
    layer, margin = recipe.layer, recipe.margin
    known, fresh = (behaviour(subject, silenced, images, progress) for images in (natural, test))
    names = [f"{layer}:{i}" for i in parts.channels.tolist()]
    before, after, plain = (
        render(s, names, steps=steps, redirect=way, progress=progress)
        for s, way in ((subject, redirect), (silenced, redirect), (silenced, 0))
    )
    table = pd.DataFrame(
        {
            "unit": names,
            "alive": (before.status[:, 0] != "dead") & (before.activation[:, 0] > 0),
            "before": before.activation[:, 0],
            "after": after.activation[:, 0],
            "natural": torch.maximum(known.strongest, fresh.strongest)[parts.channels.cpu()].numpy(),
        }
    )
    spread = known.peaks.std(0)
    for name, run in (("before", before), ("after", after), ("plain", plain)):
        table[f"response_{name}"] = reached(silenced, run.images[:, 0], parts.channels) / spread.numpy() + margin
    judged, judged_plain = (judge(subject, parts, before.images[:, 0], run.images[:, 0]) for run in (after, plain))
    table = pd.concat([table, judged], axis=1).assign(flipped_plain=judged_plain["flipped"])
    table["reason"] = [reason_of(row, margin) for row in table.to_dict("records")]
    some = np.unique(np.linspace(0, len(names) - 1, SHOWN).round().astype(int))
    pictures = {"before": before.images[some, 0], "after": after.images[some, 0], "decoy": parts.pictures[:4]}
    shown = tuple(names[i] for i in some)
    tables = _natural(known, fresh, recipe), table, _wakes(known, fresh, margin), _histograms(known, fresh)
    return Silencing(recipe, redirect, *tables, filter_statistics(silenced), shown, pictures)


def check_fresh(natural: NaturalImages, test: NaturalImages) -> None:
    """Raise FeatvisError where silence would be tested on no image, or on those that the threshold comes from."""
    if len(natural) < 2 or len(test) < 1:
        raise FeatvisError(f"{len(natural)} images to calibrate with leave {len(test)} held out; give more images.")
    if natural.fingerprint == test.fingerprint:
        raise FeatvisError(f"the held-out images are the calibration images, {natural.name}; give others.")


def _natural(known: Behaviour, fresh: Behaviour, recipe: Recipe) -> pd.DataFrame:
    rows = []
    for name, part in (("calibration", known), ("held-out", fresh)):
        images = part.images
        values, groups = promise.beyond(known.peaks, part.peaks), images["group"].tolist()
        right = {column: int(images[column].sum()) for column in map(str, images) if column.startswith("top")}
        rows.append(
            {
                "set": name,
                "images": len(images),
                "photographs": images["group"].nunique(),
                "effective": promise.effective_number(values, groups),
                "identical": int(images["identical"].sum()),
                "change": images["change"].max(),
                "woken": int((part.peaks > 0).any(1).sum()),
                **right,
            }
        )
    return pd.DataFrame(rows)


def _wakes(known: Behaviour, fresh: Behaviour, margin: float) -> pd.DataFrame:
    margins = sorted({*promise.MARGINS, margin})
    groups = fresh.images["group"].tolist()
    parts = [promise.sweep(promise.beyond(known.peaks, fresh.peaks), groups, margins).assign(set="held-out")]
    if fresh.images["group"].nunique() < len(fresh.images):
        values = promise.without_its_photograph(known.peaks, known.images["group"].tolist(), fresh.peaks, groups)
        parts.append(promise.sweep(values, groups, margins).assign(set="unseen photograph"))
    return pd.concat(parts, ignore_index=True)


def _histograms(known: Behaviour, fresh: Behaviour) -> pd.DataFrame:
    highest, spread = known.peaks.amax(0), known.peaks.std(0)
    parts = []
    for name, part in (("calibration", known), ("held-out", fresh)):
        values = ((part.peaks - highest) / spread).clamp(EDGES[0], EDGES[-1]).numpy()
        counts, edges = np.histogram(values, EDGES)
        parts.append(pd.DataFrame({"set": name, "left": edges[:-1], "count": counts}))
    return pd.concat(parts, ignore_index=True)
