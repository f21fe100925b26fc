"""Controls of path similarity: images of which one knows beforehand what a check of visualizations should say.

The reviewers of Geirhos et al. (2024) asked whether the check sees more than that visualizations are unusual. Other
natural images, images that were damaged in several ways, and other ways to visualize are held against the same natural
images as the visualizations are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featvis import budget, sheets
from featvis.damage import adversarial, blurred, noise, recoloured, scrambled, unseen
from featvis.exemplars import Exemplars, exemplars
from featvis.images import NaturalImages
from featvis.path_result import PathSimilarity
from featvis.paths import PER_CLASS, SHOWN, Series, all_layers, like_images, path_similarity
from featvis.shelf import shelved
from featvis.similarity import METRICS
from featvis.subjects import Subject
from featvis.visualize import Fourier, Maco, Pixels, mean_magnitude, render

EXEMPLARS = 5  # of each logit
MOST = 40  # logits
KEPT = (1, 12, 16)  # groups of which pictures are kept
KINDS = {  # series -> what it controls for
    SHOWN: "shown",
    "natural, training images": "natural",
    "natural, other colours": "natural",
    "exemplars": "natural",
    "natural, other classes": "natural",
    "natural, of no class": "natural",
    "blurred": "damaged",
    "adversarial": "damaged",
    "phases scrambled": "damaged",
    "noise": "damaged",
    "pixels": "shown",
    "MACO": "shown",
    "from an exemplar": "shown",
    "from an exemplar, rate / 10": "shown",
}


@dataclass(frozen=True)
class ControlledPaths:
    """Path similarity of visualizations and of all controls, on the same natural images.

    seen      series -> share of its images that the network gives the class they are held against
    pictures  series -> images (groups, 3, h, w) of a few groups, whose names are `shown`
    """

    paths: PathSimilarity
    seen: dict[str, float]
    shown: tuple[str, ...]
    pictures: dict[str, Tensor] = field(repr=False)

    def frame(self) -> Any:
        """The rows of `PathSimilarity.frame`."""
        return self.paths.frame()

    def difference(self, again: ControlledPaths) -> str:
        """ "" if the normalized similarities are about the same."""
        return self.paths.difference(again.paths)

    def save(self, folder: Path) -> None:
        self.paths.save(folder)
        every = torch.cat(list(self.pictures.values()))
        about = {"seen": self.seen, "shown": self.shown, "series": list(self.pictures), "shape": list(every.shape)}
        (folder / "about.json").write_text(json.dumps(about))
        sheets.write(folder / "pictures.webp", every, 70)

    @classmethod
    def load(cls, folder: Path) -> ControlledPaths:
        about = json.loads((folder / "about.json").read_text())
        n, _, height, width = about["shape"]
        parts = sheets.read(folder / "pictures.webp", n, (height, width)).chunk(len(about["series"]))
        pictures = dict(zip(about["series"], parts, strict=True))
        return cls(PathSimilarity.load(folder), about["seen"], tuple(about["shown"]), pictures)


@shelved(2, ControlledPaths)
def controlled_paths(
    subject: Subject,
    natural: NaturalImages,
    other: NaturalImages,
    *,
    seeds: int = 10,
    few: int = 3,
    steps: int = 128,
    per_class: int = PER_CLASS,
    extra: int = 10,
    progress: bool = True,
) -> ControlledPaths:
    """Path similarity of the logits' visualizations, and of every control, in all three metrics.

    natural  natural images to compare with: of each class `per_class`, and `extra` more that controls are made from
    other    more natural images of the same classes, those that the network was trained on
    seeds    visualizations of each logit; `few` of each other method
    """
    units = some_logits(subject)
    options: dict[str, Any] = {"steps": steps, "progress": progress}
    pictures = render(subject, units, seeds=seeds, **options)
    series = natural_controls(subject, natural, other, units, per_class, extra)
    best = exemplars(subject, natural, units, k=EXEMPLARS, progress=progress)
    series["exemplars"] = Series(
        torch.stack([best.pictures(natural, unit) for unit in units]), best.top_ids.astype(str).tolist()
    )
    methods: dict[str, dict[str, Any]] = {"pixels": {"parameterization": Pixels()}}
    methods["MACO"] = {"parameterization": Maco(mean_magnitude(other))}
    for name, ways in methods.items():
        series[name] = Series(render(subject, units, seeds=few, **ways, **options).images)
    for name, rate in (("from an exemplar", None), ("from an exemplar, rate / 10", Fourier().rate / 10)):
        series[name] = _from_exemplars(subject, units, best, natural, rate, steps)
    series = {name: series[name] for name in KINDS if name in series}
    paths = path_similarity(
        subject, pictures, natural, metric=METRICS, per_class=per_class, controls=series, progress=progress
    )
    every = {SHOWN: pictures.images, **{name: found.images for name, found in series.items()}}
    kept = sorted({group % len(units) for group in KEPT})
    return ControlledPaths(
        paths,
        {name: _seen(subject, units, images) for name, images in every.items()},
        tuple(paths.groups[group] for group in kept),
        {name: images[kept, 0] for name, images in every.items()},
    )


def some_logits(subject: Subject) -> list[str]:
    """All logits, or of a thousand a few."""
    units = subject.units(subject.blocks[-1])
    return budget.some(units[:: -(-len(units) // MOST)])


def natural_controls(
    subject: Subject,
    natural: NaturalImages,
    other: NaturalImages,
    units: Sequence[str],
    per_class: int,
    extra: int,
) -> dict[str, Series]:
    """The controls that need no visualization: other natural images, and damaged ones."""
    ids = [row[per_class:] for row in like_images(subject, natural, units, per_class + extra)]
    images = torch.stack([torch.stack([natural.image(id) for id in row]) for row in ids])
    elsewhere = like_images(subject, other, units, extra)
    away = torch.stack([torch.stack([other.image(id) for id in row]) for row in elsewhere])
    flat, generator = images.flatten(0, 1), torch.Generator().manual_seed(0)
    towards = torch.tensor([subject.unit(unit).index for unit in units]).roll(-1).repeat_interleave(extra)
    damaged = {
        "natural, other colours": recoloured(flat, generator),
        "blurred": blurred(flat),
        "adversarial": adversarial(subject, flat, towards.to(subject.device)),
        "phases scrambled": scrambled(flat, generator),
        "noise": noise(flat, generator),
    }
    found = {name: Series(made.view_as(images), ids) for name, made in damaged.items()}
    found["natural, training images"] = Series(away, elsewhere)
    # Classes that follow each other may be alike (brick, grass, gravel): take the images from all others in turn.
    groups = len(units)
    away_from = [1 + number * (groups - 1) // extra for number in range(extra)]
    foreign = [[(group + step) % groups for step in away_from] for group in range(groups)]
    found["natural, other classes"] = Series(
        torch.stack([images[row, range(extra)] for row in foreign]),
        [[ids[g][number] for number, g in enumerate(row)] for row in foreign],
    )
    found["natural, of no class"] = Series(unseen(groups * extra, natural.size, generator).view_as(images))
    return found


def _from_exemplars(
    subject: Subject, units: Sequence[str], best: Exemplars, natural: NaturalImages, rate: float | None, steps: int
) -> Series:
    """Ascent from the best exemplar of each unit."""
    starts = torch.stack([natural.image(str(row[0])) for row in best.top_ids])
    found = render(subject, units, start=starts, steps=steps, rate=rate, progress=False)
    return Series(found.images, best.top_ids[:, :1].astype(str).tolist())


def _seen(subject: Subject, units: Sequence[str], images: Tensor) -> float:
    """The share of images (units, m, 3, h, w) that the network gives the class of their logit."""
    answers = torch.cat([logits.argmax(1).cpu() for logits in subject.logits(images.flatten(0, 1))])
    own = torch.tensor([subject.unit(unit).index for unit in units])
    return float((answers.view(images.shape[:2]) == own[:, None]).float().mean())


@shelved(2, PathSimilarity)
def rendered_paths(
    subject: Subject,
    natural: NaturalImages,
    units: Sequence[str] | None = None,
    *,
    seeds: int = 10,
    steps: int = 128,
    per_class: int = PER_CLASS,
    metric: str = "spearman",
    every_layer: bool = False,
    progress: bool = True,
) -> PathSimilarity:
    """Visualize `units` (the logits by default) and compare the pictures with natural images, layer by layer.

    `every_layer` takes `all_layers` for the axis. Works for a manipulated subject as for any other.
    """
    units = some_logits(subject) if units is None else units
    pictures = render(subject, units, steps=steps, seeds=seeds, progress=progress)
    layers = all_layers(subject) if every_layer else None
    return path_similarity(
        subject, pictures, natural, layers=layers, metric=metric, per_class=per_class, progress=progress
    )
