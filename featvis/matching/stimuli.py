"""What trials are made of: units of three depths, the natural images that excite them, and their visualizations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis import budget
from featvis.errors import FeatvisError
from featvis.exemplars import ROUNDING
from featvis.images import NaturalImages, PhotoCrops, natural_images
from featvis.shelf import Shelf, shelved
from featvis.subjects import Subject
from featvis.visualize.objectives import channel, unit_means
from featvis.visualize.render import render

DEPTHS = ("early", "middle", "late")
PRACTICE = "practice"  # late units that are shown with feedback and never asked about
STRONGEST = 10  # exemplars of a unit that count alike, as on the poster
SEEDS = 10
SPARE = 14  # more of them, for trials in which another unit has taken an image
SILENT = 1e-6


@dataclass(frozen=True)
class Stimuli:
    """Units with their exemplars and visualizations.

    units      what they are called, such as "inception4b:17"
    depths     of each unit: one of `DEPTHS`, or `PRACTICE`
    ids        (units, m) natural images, the strongest first; none of them shares a photograph with another
    values     (units, m) their activations
    seeds      how many visualizations of each unit there are
    sources    what each natural image was cut from: its photograph, or itself
    recipe     what `gather` needs to make them again
    """

    subject: str
    natural: str
    units: tuple[str, ...]
    depths: tuple[str, ...]
    ids: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    sources: dict[str, str] = field(repr=False)
    seeds: int
    make: Callable[[], Tensor] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False, default_factory=dict)

    @cached_property
    def synthetic(self) -> Tensor:
        """Visualizations (units, seeds, 3, h, w) in [0, 1], made when they are first asked for."""
        return self.make()

    def of(self, depth: str) -> tuple[str, ...]:
        """The units of one depth."""
        return tuple(unit for unit, at in zip(self.units, self.depths, strict=True) if at == depth)

    def ranked(self, unit: str) -> list[str]:
        """The exemplars of a unit, the strongest first."""
        return [str(id) for id in self.ids[self.units.index(unit)]]

    def picture(self, key: str, natural: NaturalImages) -> Tensor:
        """The image (3, h, w) behind a trial's key: the id of a natural image, or UNIT#SEED."""
        unit, found, seed = key.rpartition("#")
        if found and unit in self.units:
            return self.synthetic[self.units.index(unit), int(seed)]
        return natural.image(key)

    def strength(self) -> np.ndarray:
        """Mean activation of the ten exemplars of each unit, as a share of its strongest."""
        return self.values[:, :STRONGEST].mean(1) / self.values[:, 0]


def depths(subject: Subject) -> dict[str, tuple[str, ...]]:
    """The subject's layers but the logits, in three parts: early, middle, late."""
    hidden = subject.blocks[:-1]
    if len(hidden) < 3:
        raise FeatvisError(f"{subject.name} has {len(hidden)} hidden layers; three depths need at least 3.")
    parts = np.array_split(np.array(hidden), 3)
    return {name: tuple(str(layer) for layer in part) for name, part in zip(DEPTHS, parts, strict=True)}


def draw(subject: Subject, layers: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """n different units at random: a layer first, each as likely as the others, then a channel."""
    rng = np.random.default_rng([seed, *(ord(c) for c in layers[0])])
    most = sum(subject.channels(layer) for layer in layers)
    if n > most:
        raise FeatvisError(f"{n} units of {', '.join(layers)} were asked for; there are {most}.")
    found: dict[str, None] = {}
    while len(found) < n:
        layer = layers[int(rng.integers(len(layers)))]
        found[f"{layer}:{rng.integers(subject.channels(layer))}"] = None
    return list(found)


def images_of(source: str, size: int) -> NaturalImages:
    """The natural images to look for exemplars in: of "photos" a hundred held-out crops of each, of a folder "val"."""
    split = "heldout" if source in ("photos", "cifar10") else "val"
    return natural_images(source, split=split, n=1700 if source == "photos" else None, size=size)


def gather(
    subject: Subject,
    natural: NaturalImages,
    *,
    units: int = 12,
    seeds: int = SEEDS,
    steps: int = 96,
    seed: int = 0,
    spare: int = 3,
    alone: bool = True,
    shelf: Shelf | None = None,
    pictures: Shelf | None = None,
    progress: bool = True,
) -> Stimuli:
    """`units` units of each depth, drawn at random among those that some natural image activates.

    Of one photograph only the strongest crop counts: two crops of it side by side would give a match away without
    any look at the unit. (Not so with `alone` off, which is there to show what happens then.) `spare` more late units
    are for practice. Visualizations are made when they are first needed; on the shelf `pictures`, interrupted work
    goes on. Raises FeatvisError if there are too few units.
    """
    units, seeds, steps, spare = (
        budget.most(value, cap) for value, cap in ((units, 6), (seeds, budget.SEEDS), (steps, budget.STEPS), (spare, 2))
    )
    drawn = {
        depth: draw(subject, layers, min(2 * (units + spare), sum(subject.channels(layer) for layer in layers)), seed)
        for depth, layers in depths(subject).items()
    }
    every = [unit for part in drawn.values() for unit in part]
    best = rank(subject, natural, every, alone=alone, progress=progress, shelf=shelf)
    chosen: list[str] = []
    labels: list[str] = []
    for depth, part in drawn.items():
        awake = [unit for unit in part if best.values[every.index(unit), 0] > SILENT]
        wanted = units + (spare if depth == DEPTHS[-1] else 0)
        if len(awake) < wanted:
            raise FeatvisError(f"only {len(awake)} of {len(part)} {depth} units are ever active; {wanted} are needed.")
        chosen += awake[:wanted]
        labels += [depth] * units + [PRACTICE] * (wanted - units)
    rows = [every.index(unit) for unit in chosen]

    def make() -> Tensor:
        parts = [
            [unit for unit, at in zip(chosen, labels, strict=True) if at == depth] for depth in dict.fromkeys(labels)
        ]
        show: dict[str, Any] = {"progress": progress, "shelf": pictures}
        return torch.cat([render(subject, part, steps=steps, seeds=seeds, **show).images for part in parts])

    found = Ranking(best.ids[rows], best.values[rows])
    return Stimuli(
        subject.name,
        natural.name,
        tuple(chosen),
        tuple(labels),
        found.ids,
        found.values,
        found.sources(natural) if alone else {str(id): str(id) for id in found.ids.ravel()},
        seeds,
        make,
        {
            "stimuli": {"units": units, "seeds": seeds, "steps": steps, "seed": seed, "spare": spare, "alone": alone},
            "natural": natural.recipe,
        },
    )


def mixtures(
    subject: Subject,
    natural: NaturalImages,
    base: Stimuli,
    *,
    each: int = 4,
    seeds: int = 5,
    steps: int = 96,
    progress: bool = True,
) -> Stimuli:
    """Units that are polysemantic by construction: `each` pairs of a depth, each unit scaled to 1, added up.

    Natural images are ranked by the sum, and the visualization maximizes it, so what is mixed is known.
    """
    pairs, seeds = [], budget.most(seeds, budget.SEEDS)
    for depth in DEPTHS:
        part = base.of(depth)[: 2 * each]
        pairs += [(depth, *pair) for pair in zip(part[::2], part[1::2], strict=False)]
    names = tuple(f"{first}+{second}" for _, first, second in pairs)
    best = rank(subject, natural, names, progress=progress)
    top = dict(zip(base.units, base.values[:, 0].tolist(), strict=True))
    goals = [channel(first) * (1 / top[first]) + channel(second) * (1 / top[second]) for _, first, second in pairs]
    depths = tuple(depth for depth, *_ in pairs)

    def make() -> Tensor:
        return render(subject, goals, steps=steps, seeds=seeds, progress=progress).images

    found = best.sources(natural)
    return Stimuli(base.subject, base.natural, names, depths, best.ids, best.values, found, seeds, make)


@dataclass(frozen=True)
class Ranking:
    """For each unit the natural images (units, m) that excite it most, one of each source, and their activations."""

    ids: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)

    def sources(self, natural: NaturalImages) -> dict[str, str]:
        """What each of the images was cut from."""
        return {str(id): source_of(natural, str(id)) for id in self.ids.ravel()}

    def difference(self, again: Ranking) -> str:
        """ "" if the strongest activations are the same but for rounding."""
        change = np.abs(self.values - again.values).max() / np.abs(self.values).max()
        return "" if change <= ROUNDING else f"the exemplars' activations differ by {change:.2%}"

    def save(self, folder: Path) -> None:
        np.savez_compressed(folder / "ranking.npz", ids=self.ids.astype(str), values=self.values)

    @classmethod
    def load(cls, folder: Path) -> Ranking:
        with np.load(folder / "ranking.npz", allow_pickle=False) as saved:
            return cls(saved["ids"], saved["values"])


@shelved(1, Ranking)
def rank(
    subject: Subject, natural: NaturalImages, units: Sequence[str], *, alone: bool = True, progress: bool = True
) -> Ranking:
    """One pass over `natural`, for units and for sums "A+B" of units that are scaled to a maximum of 1.

    Without `alone` several crops of a photograph may be among a unit's exemplars, unless they largely overlap.
    All activations of these units are held at once: 4 bytes for each image and unit. Raises FeatvisError for images of
    another size than the subject's.
    """
    subject.check_size(natural)
    parts = [[subject.unit(name) for name in unit.split("+")] for unit in units]
    layers = list(dict.fromkeys(unit.layer for part in parts for unit in part))
    ids: list[str] = []
    found: list[dict[str, Tensor]] = []
    total = len(natural)
    for images, _labels, names in tqdm(
        natural.batches(64), total=-(-total // 64), desc="exemplars", disable=not progress, leave=False
    ):
        maps = next(subject.activations([images], layers))
        found.append({layer: unit_means(maps[layer]).cpu() for layer in layers})
        ids += names
    by_layer = {layer: torch.cat([part[layer] for part in found]) for layer in layers}
    rows = []
    for part in parts:
        columns = [by_layer[unit.layer][:, unit.index].float().numpy() for unit in part]
        total_of = columns[0] if len(columns) == 1 else sum(c / max(c.max(), SILENT) for c in columns)
        best: list[int] = []
        taken: set[str] = set()
        for i in np.argsort(-total_of, kind="stable").tolist():
            source = source_of(natural, ids[i])
            if source not in taken if alone else not any(natural.overlap(ids[i], ids[j]) for j in best):
                best.append(i)
                taken.add(source)
            if len(best) == STRONGEST + SPARE:
                break
        rows.append([(ids[i], float(total_of[i])) for i in best])
    keep = min(len(row) for row in rows)
    if keep < STRONGEST:
        raise FeatvisError(f"{natural.name} has {keep} images that are independent; at least {STRONGEST} are needed.")
    return Ranking(
        np.array([[id for id, _ in row[:keep]] for row in rows]),
        np.array([[value for _, value in row[:keep]] for row in rows], np.float32),
    )


def source_of(natural: NaturalImages, id: str) -> str:
    """The photograph that a crop was cut from; any other image is its own."""
    return id.partition("/")[0] if isinstance(natural, PhotoCrops) else id
