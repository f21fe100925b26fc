"""Activation matching: images that do to a network what natural images do, after VITAL (Gorgun et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.images import NaturalImages
from featvis.shelf import shelved
from featvis.subjects import Subject, Unit, unit_means
from featvis.visualize.ascent import generator_for
from featvis.visualize.natural import before, best_images, chosen_units, side_of, with_own_activations
from featvis.visualize.objectives import Objective, l2, matched, sorted_maps, total_variation
from featvis.visualize.parameterizations import Parameterization
from featvis.visualize.render import render
from featvis.visualize.result import Visualizations
from featvis.visualize.transforms import Affine, Transform

REFERENCES = 4  # exemplars whose activations are matched
DRAWS = 4  # transforms that each of them is seen through
SMOOTHNESS = 0.3  # weight of the total variation
MODERATION = 0.3  # weight of l2


def matching(
    subject: Subject, unit: str, images: Tensor, *, layers: Sequence[str] | None = None, relevance: bool = True
) -> Objective:
    """How well an image's sorted activations match those of reference images (k, 3, h, w) in [0, 1]; 0 is a match.

    For each of `layers` (the first block and the last below the unit, by default), the values of each channel are
    sorted over space, averaged over the references, and compared by mean squared error: `matched`, summed over layers
    (in the spirit of Gorgun et al. 2025, VITAL). With `relevance`, channels are weighted by what they contribute to the
    unit on the references: the positive part of gradient times activation, a simple stand-in for the layer-wise
    relevance propagation of the paper; else all alike.
    Raises FeatvisError for a layer or unit that the subject lacks, a layer that does not lead to the unit, and images
    of another shape.
    """
    if images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise FeatvisError(f"the reference images have shape {tuple(images.shape)}; they are (k, 3, h, w) in [0, 1].")
    return _matchings(subject, [subject.unit(unit)], images[None], layers, relevance)[0]


def _matchings(
    subject: Subject, units: Sequence[Unit], images: Tensor, layers: Sequence[str] | None, relevance: bool
) -> list[Objective]:
    """One for each unit and its references (units, k, 3, h, w)."""
    read = [list(layers) if layers else ends(subject, unit) for unit in units]
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, unit in enumerate(units):
        groups.setdefault((unit.layer, *read[row]), []).append(row)
    found: list[Objective | None] = [None] * len(units)
    for (above, *below), rows in groups.items():
        network = subject.until(*below, above)
        for row in rows:
            x = subject.prepared(images[row])
            seen = network(x.requires_grad_(relevance))
            total: Objective | None = None
            for layer in below:
                weights = _relevance(seen, layer, units[row]) if relevance else None
                target = sorted_maps(seen[layer].detach()).mean(0).cpu()
                part = matched(layer, target, torch.ones(len(target)) if weights is None else weights)
                total = part if total is None else total + part
            assert total is not None
            found[row] = replace(total, name=str(units[row]))
    return [objective for objective in found if objective is not None]


def _relevance(seen: dict[str, Tensor], layer: str, unit: Unit) -> Tensor:
    """What each channel of a layer contributes to the unit, (c,): the positive part of gradient times activation."""
    value = unit_means(seen[unit.layer])[:, unit.index].sum()
    (gradient,) = torch.autograd.grad(value, seen[layer], retain_graph=True, allow_unused=True)
    if gradient is None:
        raise FeatvisError(f"{layer} does not lead to {unit}; match layers before {unit.layer}, or that layer itself.")
    shares = unit_means(seen[layer].detach() * gradient).mean(0).clamp(min=0)
    return shares.cpu() if shares.sum() > 0 else torch.ones(len(shares))


@shelved(1, Visualizations, free=("batch", "progress"))
def match_activations(
    subject: Subject,
    images: NaturalImages | Tensor,
    units: Sequence[str] | str,
    *,
    steps: int = 128,
    seeds: int | Sequence[int] = 1,
    layers: Sequence[str] | None = None,
    relevance: bool = True,
    smoothness: float = SMOOTHNESS,
    moderation: float = MODERATION,
    parameterization: str | Parameterization = "fourier",
    transform: Transform | None = None,
    rate: float | None = None,
    start: Tensor | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Visualizations:
    """Images whose sorted activations match those of each unit's exemplars, for all units at once (see `matching`).

    `images` are a stream of natural images, of which every unit's 4 best exemplars are the references, or a tensor of
    references (units, k, 3, h, w). They are seen through the same kind of transform (`Affine()` by default) as what is
    rendered. `smoothness` weighs the total variation, `moderation` the l2 that are subtracted. `activation` of the
    result is the unit's own, `curve` the objective's.
    """
    chosen, numbers = chosen_units(subject, units, seeds)
    given = images if isinstance(images, Tensor) else best_images(subject, images, chosen, REFERENCES, progress)
    if given.dim() != 5 or given.shape[0] != len(chosen) or given.shape[2] != 3:
        raise FeatvisError(
            f"the reference images have shape {tuple(given.shape)}; they are ({len(chosen)}, k, 3, h, w) in [0, 1], k "
            "for each unit."
        )
    seen_through = transform or Affine()
    k = given.shape[1]
    references = []
    for row, unit in enumerate(chosen):
        drawn = seen_through.draw([generator_for(f"{unit} reference", i) for i in range(k)], DRAWS)
        references.append(torch.cat([seen_through.apply(given[row], step) for step in drawn]))
    calm = smoothness * total_variation() + moderation * l2()
    wanted = [
        replace(match - calm, name=match.name)
        for match in _matchings(subject, chosen, torch.stack(references), layers, relevance)
    ]
    found = render(
        subject,
        wanted,
        steps=steps,
        seeds=numbers,
        parameterization=parameterization,
        transform=seen_through,
        rate=rate,
        size=side_of(given, subject),
        start=start,
        batch=batch,
        progress=progress,
    )
    return with_own_activations(subject, chosen, found)


def ends(subject: Subject, unit: Unit) -> list[str]:
    """The first and the last of the blocks below the unit."""
    blocks = before(subject, unit)
    return list(dict.fromkeys((blocks[0], blocks[-1])))
