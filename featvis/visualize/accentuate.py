"""Feature accentuation: a natural image, changed towards what excites a unit (Hamblin et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.images import NaturalImages
from featvis.shelf import shelved
from featvis.subjects import Subject, Unit
from featvis.visualize.ascent import evaluate, generator_for
from featvis.visualize.natural import VIEWS, before, best_images, chosen_units, for_each, side_of, with_own_activations
from featvis.visualize.objectives import Objective, channel, check, near, stacked
from featvis.visualize.parameterizations import Parameterization
from featvis.visualize.render import batch_size, named, render
from featvis.visualize.result import Visualizations
from featvis.visualize.transforms import Transform

STRENGTH = 1.0


def accentuation(
    subject: Subject,
    unit: str,
    seed: Tensor,
    *,
    layer: str | None = None,
    strength: float = STRENGTH,
    seeds: Sequence[int] = (0,),
    parameterization: str | Parameterization = "fourier",
    transform: Transform = VIEWS,
) -> Objective:
    """The unit's activation less strength * rho * ||h(x) - h(seed)||_2, to be rendered from that natural image.

    `seed` is an image (3, h, w) in [0, 1], or one for each of `seeds` (seeds, 3, h, w); h are the activations of
    `layer` (by default the block in the middle of those below the unit). rho is the ratio of the L1 norms of the
    gradients of both terms with respect to the parameters, at the first step that `render` takes from that image with
    these seeds, this parameterization and this transform; 0 where one of them vanishes (feature accentuation, Hamblin
    et al. 2024). The seed image is shown through the same transform as what is rendered, as in the authors' code.
    Raises FeatvisError for a layer or unit that the subject lacks, a seed image of another shape, and strength < 0.
    """
    wide = seed.expand(len(seeds), *seed.shape[-3:]) if seed.dim() == 3 else seed
    if wide.dim() != 4 or wide.shape[:2] != (len(seeds), 3):
        raise FeatvisError(
            f"the seed image of {unit} has shape {tuple(seed.shape)}; it is one image (3, h, w) in [0, 1], or one for "
            f"each seed ({len(seeds)}, 3, h, w)."
        )
    chosen = subject.unit(unit)
    return _accentuations(subject, [chosen], wide[None], layer, strength, seeds, parameterization, transform)[0]


def _accentuations(
    subject: Subject,
    units: Sequence[Unit],
    images: Tensor,
    layer: str | None,
    strength: float,
    seeds: Sequence[int],
    parameterization: str | Parameterization,
    transform: Transform,
) -> list[Objective]:
    """One for each unit and its seed images (units, seeds, 3, h, w)."""
    if not strength >= 0:
        raise FeatvisError(f"strength={strength:g} was given; it is 0 or more.")
    gains = [channel(str(unit)) for unit in units]
    penalties = [near(layer or middle(subject, unit), row) for unit, row in zip(units, images, strict=True)]
    rho = balance(
        subject, gains, penalties, images, seeds=seeds, parameterization=parameterization, transform=transform
    )
    return [
        replace(gain + near(penalty.layers[0], row, strength * ratio), name=gain.name)
        for gain, penalty, row, ratio in zip(gains, penalties, images, rho, strict=True)
    ]


def balance(
    subject: Subject,
    gains: Sequence[Objective],
    penalties: Sequence[Objective],
    images: Tensor,
    *,
    seeds: Sequence[int] = (0,),
    parameterization: str | Parameterization = "fourier",
    transform: Transform = VIEWS,
) -> Tensor:
    """How strong a penalty is as strong as the gain: ||grad gain||_1 / ||grad penalty||_1, (units, seeds).

    The gradients are those of the first step of `render` from images (units, seeds, 3, h, w), with respect to the
    parameters; the ratio is 0 where one of them vanishes.
    """
    size = (images.shape[-2], images.shape[-1])
    form = named(parameterization, subject, size)
    ratios = torch.zeros(images.shape[:2])
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, (gain, penalty) in enumerate(zip(gains, penalties, strict=True)):
        for objective in (gain, penalty):
            check(objective, subject, size, len(seeds))
        groups.setdefault((gain.layers, penalty.layers), []).append(row)
    most = max(1, batch_size(size, subject.device) // len(seeds))
    for (above, below), every in groups.items():
        network = subject.until(*above, *below)
        for rows in (every[first : first + most] for first in range(0, len(every), most)):
            generators = [generator_for(gains[row].name, seed) for row in rows for seed in seeds]
            start = form.start(generators, size, images[rows].flatten(0, 1)).to(subject.device).requires_grad_(True)
            numbers = transform.draw(generators, 1)[0].to(subject.device)
            norms = []
            for terms in (gains, penalties):
                term = stacked([terms[row] for row in rows], [len(seeds)] * len(rows))
                value = evaluate(network, subject.preprocess, term, transform, form.image(start, size), numbers)
                (gradient,) = torch.autograd.grad(value.sum(), start)
                norms.append(gradient.flatten(1).abs().sum(1).cpu().view(len(rows), -1))
            ratios[rows] = torch.where(norms[1] > 0, norms[0] / norms[1].clamp(min=1e-30), 0)
    return ratios


@shelved(1, Visualizations, free=("batch", "progress"))
def accentuate(
    subject: Subject,
    images: NaturalImages | Tensor,
    units: Sequence[str] | str,
    *,
    steps: int = 128,
    seeds: int | Sequence[int] = 1,
    layer: str | None = None,
    strength: float = STRENGTH,
    parameterization: str | Parameterization = "fourier",
    transform: Transform = VIEWS,
    rate: float | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Visualizations:
    """Feature accentuation of natural images, for all units at once (see `accentuation`).

    `images` are a stream of natural images, of which every unit's best exemplars are accentuated, one for each seed; or
    a tensor of seed images, (3, h, w), (units, 3, h, w) or (units, seeds, 3, h, w). `activation` of the result is the
    unit's own, `curve` the objective's.
    """
    chosen, numbers = chosen_units(subject, units, seeds)
    if isinstance(images, Tensor):
        starts = for_each(images, len(chosen), len(numbers))
    else:
        starts = best_images(subject, images, chosen, len(numbers), progress)
    wanted = _accentuations(subject, chosen, starts, layer, strength, numbers, parameterization, transform)
    found = render(
        subject,
        wanted,
        steps=steps,
        seeds=numbers,
        parameterization=parameterization,
        transform=transform,
        rate=rate,
        size=side_of(starts, subject),
        start=starts,
        batch=batch,
        progress=progress,
    )
    return with_own_activations(subject, chosen, found)


def middle(subject: Subject, unit: Unit) -> str:
    """The block in the middle of those below the unit."""
    blocks = before(subject, unit)
    return blocks[len(blocks) // 2]
