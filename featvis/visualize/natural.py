"""What visualizations that rest on natural images share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.exemplars import exemplars
from featvis.images import NaturalImages
from featvis.subjects import Subject, Unit, unit_means
from featvis.visualize.result import Visualizations
from featvis.visualize.transforms import Crops

VIEWS = Crops(views=4, smallest=0.6, largest=1.0, noise=0.02)  # milder than MACO's: a seed image stays recognizable


def before(subject: Subject, unit: Unit) -> list[str]:
    """The blocks that are finished before the unit's layer begins, or that layer itself if there is none."""
    order = list(subject.layers)
    blocks = [block for block in subject.blocks if order.index(block) < order.index(unit.layer)]
    return blocks or [unit.layer]


def chosen_units(
    subject: Subject, units: Sequence[str] | str, seeds: int | Sequence[int]
) -> tuple[list[Unit], tuple[int, ...]]:
    """Units and the numbers of the seeds, as `render` understands them; at least one of each."""
    chosen = [subject.unit(unit) for unit in ([units] if isinstance(units, str) else units)]
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise FeatvisError("no unit was given; a unit is written LAYER:INDEX, such as inception4b:17.")
    if not numbers:
        raise FeatvisError("no seed was given; at least 1 is needed.")
    return chosen, numbers


def best_images(subject: Subject, natural: NaturalImages, units: Sequence[Unit], k: int, progress: bool) -> Tensor:
    """The k natural images (units, k, 3, h, w) that excite each unit most."""
    best = exemplars(subject, natural, [str(unit) for unit in units], k, progress=progress)
    return torch.stack([best.pictures(natural, unit) for unit in best.units])


def with_own_activations(subject: Subject, units: Sequence[Unit], found: Visualizations) -> Visualizations:
    """The result with the units' own activations for that of the objectives."""
    activation = found.activation.copy()
    for row, unit in enumerate(units):
        (seen,) = subject.activations(found.images[row], [unit.layer], batch_size=len(found.seeds))
        activation[row] = unit_means(seen[unit.layer])[:, unit.index].cpu().numpy()
    return replace(found, activation=activation)


def for_each(images: Tensor, units: int, seeds: int) -> Tensor:
    """Seed images (3, h, w), (units, 3, h, w) or (units, seeds, 3, h, w) as (units, seeds, 3, h, w)."""
    wide = images.unsqueeze(1) if images.dim() == 4 else images
    if images.dim() < 3 or wide.shape[-3] != 3 or wide.shape[:-3] not in ((), (units, 1), (units, seeds)):
        raise FeatvisError(
            f"the seed images have shape {tuple(images.shape)}; they are one image (3, h, w) in [0, 1], one for each "
            f"unit ({units}, 3, h, w), or one for each unit and seed ({units}, {seeds}, 3, h, w)."
        )
    return wide.expand(units, seeds, *wide.shape[-3:])


def side_of(images: Tensor, subject: Subject) -> int | None:
    """The `size` of `render` for images (..., h, w): None if it is the subject's own."""
    return None if tuple(images.shape[-2:]) == tuple(subject.preprocess.size) else images.shape[-1]
