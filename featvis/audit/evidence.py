"""What all checks of an audit look at, gathered once: visualizations, exemplars, and what the network does on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featvis import photographs, zoo
from featvis.audit import changes
from featvis.audit.traces import Trace, filters, gradient_shares, parts_of, traces
from featvis.engine import LOCAL, Engine
from featvis.errors import FeatvisError
from featvis.exemplars import Exemplars, exemplars
from featvis.images import NaturalImages
from featvis.path_result import PathSimilarity
from featvis.paths import path_similarity
from featvis.subjects import Subject
from featvis.visualize import Fourier, Maco, Pixels, Visualizations, mean_magnitude, render
from featvis.visualize.objectives import unit_means

EXEMPLARS = 9  # of each unit
SOME = 512  # natural images that modules are traced on, and that a little training uses
FEW = 128  # natural images that decide whether a channel is used
SEEDS = 2
WAYS = ("fourier", "pixels", "maco", "exemplar")  # of visualizing; the last starts from the first exemplar
CHANGED = ("tuned", "pruned")
PARTS = ("exemplars", *WAYS, *CHANGED, "paths", "features", "gates")


@dataclass(frozen=True)
class Evidence:
    """What an audit has seen of some units (u) of a subject.

    pictures   way of visualizing (`WAYS`, and `CHANGED` where that was possible) -> visualizations of all units
    exemplars  (u, k, 3, h, w), the strongest first; `best` has their activations
    own        set of images ("exemplars" or a way) -> features (u, images, d) by the subject, standardized on natural
               images; `other` by another network, `other_network`
    paths      path similarity of the visualizations, in the order of `units`
    traces     module -> Trace, of the modules in the units' layers, which `parts` lists by layer
    filters    module -> (c,) log of the root mean square of each filter, of the whole network
    shares     (u,) mean shares of gradients on exemplars and on visualizations, a pair of (channels,) for each
    unused     channels that no natural image uses
    seen       how many natural images there were; `left_out` names those that could not be read
    """

    units: tuple[str, ...]
    layers: tuple[str, ...]
    pictures: dict[str, Visualizations] = field(repr=False)
    exemplars: Tensor = field(repr=False)
    best: Exemplars = field(repr=False)
    own: dict[str, Tensor] = field(repr=False)
    other: dict[str, Tensor] = field(repr=False)
    other_network: str
    paths: PathSimilarity = field(repr=False)
    traces: dict[str, Trace] = field(repr=False)
    parts: dict[str, list[str]] = field(repr=False)
    filters: dict[str, Tensor] = field(repr=False)
    shares: list[tuple[Tensor, Tensor]] = field(repr=False)
    unused: int
    seen: int
    left_out: tuple[str, ...]

    @property
    def alive(self) -> np.ndarray:
        """(u,) whether the standard visualization came to something."""
        return (self.pictures["fourier"].status == "ok").any(1)


def gather(
    subject: Subject,
    natural: NaturalImages,
    units: list[str],
    *,
    steps: int,
    seed: int = 0,
    engine: Engine = LOCAL,
    tick: Callable[[str], object] = lambda _: None,
) -> Evidence:
    """All evidence about `units`. `tick` is told of each of `PARTS` as it begins.

    engine  where visualizations and exemplars are made
    """
    tick("exemplars")
    best = exemplars(subject, natural, units, k=min(EXEMPLARS, len(natural)), engine=engine, progress=False)
    shown = torch.stack([_filled(best.pictures(natural, unit), best.top_ids.shape[1]) for unit in best.units])
    some, labels = spread(natural, SOME)
    first = (2 * seed,)
    ways: dict[str, dict[str, Any]] = {
        "fourier": {"seeds": tuple(range(2 * seed, 2 * seed + SEEDS))},
        "pixels": {"seeds": first, "parameterization": Pixels(decorrelate=True)},
        "maco": {"seeds": first, "parameterization": Maco(mean_magnitude(some.split(100)))},
        "exemplar": {"seeds": first, "start": shown[:, 0], "rate": Fourier().rate / 10},
    }
    pictures: dict[str, Visualizations] = {}

    def climb(name: str, of: Subject, **options: Any) -> None:
        pictures[name] = render(of, units, steps=steps, engine=engine, progress=False, **options)

    for name, options in ways.items():
        tick(name)
        climb(name, subject, **options)
    tick("tuned")
    # Folders are called by other names than classes ("n01440764"), but come in the same order.
    if bool((labels >= 0).any()) and len(natural.classes) == subject.channels(subject.blocks[-1]):
        climb("tuned", changes.tuned(subject, some[labels >= 0], labels[labels >= 0], seed), seeds=first)
    tick("pruned")
    idle = changes.unused(subject, some[:: max(1, len(some) // FEW)])
    if idle:
        climb("pruned", changes.pruned(subject, idle), seeds=first)
    tick("paths")
    options = {"per_class": len(shown[0]), "same": "exemplars", "progress": False}
    paths = path_similarity(subject, pictures["fourier"], natural, **options)
    tick("features")
    sets = {"exemplars": shown} | {name: found.images for name, found in pictures.items()}
    other = zoo.load("cifarnet" if subject.classes == photographs.CLASSES else "photonet", device=str(subject.device))
    own, others = _features(subject, some, sets), _features(other, some, sets)
    tick("gates")
    parts = {layer: parts_of(subject, layer) for layer in dict.fromkeys(subject.unit(unit).layer for unit in units)}
    every = torch.cat([found.images.flatten(0, 1) for found in pictures.values()])
    inside = list(dict.fromkeys(part for names in parts.values() for part in names))
    return Evidence(
        best.units,
        subject.blocks,
        pictures,
        shown,
        best,
        own,
        others,
        other.name,
        paths,
        traces(subject, inside, some, every),
        parts,
        {name: weights.square().mean(1).sqrt().log() for name, weights in filters(subject.network)},
        [_shares(subject, unit, shown[i], pictures, i) for i, unit in enumerate(best.units)],
        sum(int(flags.sum()) for flags, _ in idle.values()),
        best.images,
        tuple(natural.skipped),
    )


def spread(natural: NaturalImages, most: int) -> tuple[Tensor, Tensor]:
    """At most `most` images (n, 3, h, w), evenly from the whole stream, and their labels (n,); none that is broken.

    Raises FeatvisError if none can be read.
    """
    images, labels = [], []
    for index in np.unique(np.linspace(0, len(natural) - 1, min(most, len(natural))).astype(int)):
        with suppress(FeatvisError):
            image, label, _ = natural[int(index)]
            images.append(image)
            labels.append(label)
    if not images:
        raise FeatvisError(f"none of the images of {natural.name} can be read.")
    return torch.stack(images), torch.tensor(labels)


def _filled(images: Tensor, k: int) -> Tensor:
    """k images: the last one again where crops that overlap left fewer."""
    return images[torch.arange(k).clamp(max=len(images) - 1)]


def _features(network: Subject, natural: Tensor, sets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Channel means of the last two blocks before the logits, each feature standardized on `natural` images."""
    layers = network.blocks[-3:-1] or network.blocks[-1:]

    def of(images: Tensor) -> Iterator[Tensor]:
        for batch in images.split(64):
            fitted = F.interpolate(batch, network.preprocess.size, mode="bilinear", antialias=True)
            found = next(network.activations([fitted], layers))
            yield torch.cat([unit_means(found[layer]).float().cpu() for layer in layers], 1)

    base = torch.cat(list(of(natural)))
    mean, deviation = base.mean(0), base.std(0)
    # A feature that hardly varies on natural images says nothing about them.
    scale = torch.where(deviation > 1e-3 * deviation.max(), 1 / deviation.clamp(min=1e-12), 0.0)
    return {
        name: torch.cat([(part - mean) * scale for part in of(images.flatten(0, 1))]).unflatten(0, images.shape[:2])
        for name, images in sets.items()
    }


def _shares(
    subject: Subject, unit: str, natural: Tensor, pictures: dict[str, Visualizations], row: int
) -> tuple[Tensor, Tensor]:
    shown = torch.cat([found.images[row] for name, found in pictures.items() if name in WAYS])
    one = subject.unit(unit)
    return gradient_shares(subject, one, natural).mean(0), gradient_shares(subject, one, shown).mean(0)
