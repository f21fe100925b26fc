"""What is maximized: functions of activations that add, negate and scale.

An objective names the layers that it reads and maps {layer: (n, channels, ...)} to one value per image (n,). It may
also read the images themselves, and what other images, shown beside them through the same transform, do to its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.subjects import Subject, Unit
from featvis.subjects import unit_means as unit_means
from featvis.subjects import unit_means_of as unit_means_of

Activations = Mapping[str, Tensor]
IMAGE = "image"  # the transformed images (n, 3, h, w) in [0, 1], among the activations
BESIDE = "beside "  # before a layer's name: its activations for the images beside


@dataclass(frozen=True)
class Objective:
    """`value(activations)` gives one number per image; `name` is what a figure calls it.

    `units` are the units that it reads, where it reads single ones: `check` looks whether they exist. `beside` is an
    image (3, h, w), or one for each seed (seeds, 3, h, w), that the network sees through the same transform; its
    activations stand under `BESIDE + layer`.
    """

    name: str
    layers: tuple[str, ...]
    value: Callable[[Activations], Tensor]
    units: tuple[Unit, ...] = ()
    beside: Tensor | None = field(default=None, repr=False)

    def __add__(self, other: Objective) -> Objective:
        given = [what.beside for what in (self, other) if what.beside is not None]
        if len(given) == 2 and not torch.equal(*given):
            raise FeatvisError(f"{self.name} and {other.name} bring images of their own; a sum has those of one.")
        return Objective(
            f"{self.name} + {other.name}",
            tuple(dict.fromkeys((*self.layers, *other.layers))),
            lambda a: self.value(a) + other.value(a),
            self.units + other.units,
            given[0] if given else None,
        )

    def __mul__(self, weight: float) -> Objective:
        name = f"{weight:g} * {self.name}"
        return Objective(name, self.layers, lambda a: weight * self.value(a), self.units, self.beside)

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return Objective(f"-{self.name}", self.layers, lambda a: -self.value(a), self.units, self.beside)

    def __sub__(self, other: Objective) -> Objective:
        return self + (-other)


def channel(unit: str) -> Objective:
    """The mean activation of a channel, "inception4b:17" (a logit's activation is its value)."""
    layer, index = _split(unit)
    return Objective(unit, (layer,), lambda a: unit_means(a[layer])[:, index], (Unit(layer, index),))


logit = channel


def neuron(unit: str, y: int | None = None, x: int | None = None) -> Objective:
    """One position of a channel's map, the centre by default."""
    layer, index = _split(unit)

    def value(activations: Activations) -> Tensor:
        map_ = activations[layer][:, index]
        return map_[:, map_.shape[1] // 2 if y is None else y, map_.shape[2] // 2 if x is None else x]

    where = f"[{'' if y is None else y},{'' if x is None else x}]"
    return Objective(unit + where, (layer,), value, (Unit(layer, index),))


def direction(layer: str, vector: Tensor | Sequence[float]) -> Objective:
    """The projection of a layer's mean activation (n, c) on a vector (c,)."""
    weights = torch.as_tensor(vector, dtype=torch.float32)
    return Objective(f"{layer}:direction", (layer,), lambda a: unit_means(a[layer]) @ weights.to(a[layer]))


def diversity(layer: str) -> Objective:
    """How different the images of one batch are: minus the mean cosine between their Gram matrices (Olah et al. 2017).

    Only meaningful with two seeds or more; every image gets its mean cosine with the others.
    """

    def value(activations: Activations) -> Tensor:
        flat = activations[layer].flatten(2)
        gram = F.normalize((flat @ flat.transpose(1, 2)).flatten(1), dim=1)
        similarity = gram @ gram.T
        n = len(similarity)
        return -(similarity.sum(1) - similarity.diagonal()) / max(n - 1, 1)

    return Objective(f"diversity({layer})", (layer,), value)


def near(layer: str, seed: Tensor, weight: float | Tensor = 1.0) -> Objective:
    """Minus the distance of a layer's activations h from those of a seed image: -||h(x) - h(seed)||_2.

    `seed` is (3, h, w) or one for each seed (seeds, 3, h, w), and so may be its weight (seeds,). Both images go through
    the same random transform, so that the distance is one of content and not of place (Hamblin et al. 2024).
    """
    weights = torch.as_tensor(weight, dtype=torch.float32).view(-1)

    def value(activations: Activations) -> Tensor:
        apart = (activations[layer] - activations[BESIDE + layer]).float().flatten(1).norm(dim=1)
        return -weights.to(apart.device).repeat_interleave(len(apart) // len(weights)) * apart

    return Objective(f"near({layer})", (layer,), value, beside=seed)


def sorted_maps(activation: Tensor) -> Tensor:
    """Every unit's values over space or tokens, ascending: (n, c, h, w), (n, t, c) or (n, c) -> (n, c, places)."""
    maps = activation.transpose(1, 2) if activation.dim() == 3 else activation.unsqueeze(2).flatten(2)
    return maps.float().sort(2).values


def matched(layer: str, target: Tensor, weights: Tensor) -> Objective:
    """Minus the error of a layer's sorted activations, sum_c w_c mean_s (z_cs - t_cs)^2 / sum_c w_c mean_s t_cs^2.

    z are the sorted maps of the image, `target` (c, places) those to be reached, `weights` (c,). It is 0 for an image
    that has the same values anywhere, and -1 for one that excites nothing (after Gorgun et al. 2025, who leave the
    error unscaled).
    """
    scale = (weights * target.square().mean(1)).sum().clamp(min=1e-12)

    def value(activations: Activations) -> Tensor:
        found = sorted_maps(activations[layer])
        if found.shape[1:] != target.shape:
            raise FeatvisError(
                f"the reference of {layer} has shape {tuple(target.shape)}, the image's sorted activations have "
                f"{tuple(found.shape[1:])}, (units, places); reference images are as large as what is rendered."
            )
        return -((found - target.to(found)).square().mean(2) @ (weights / scale).to(found))

    return Objective(f"matched({layer})", (layer,), value)


def total_variation() -> Objective:
    """The mean absolute difference of neighbouring pixels of an image, across and down; subtract it for smoothness."""

    def value(activations: Activations) -> Tensor:
        x = activations[IMAGE].float()
        return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))

    return Objective("total variation", (), value)


def l2() -> Objective:
    """The mean squared distance of an image's pixels from mid-grey; subtract it for moderate contrast."""
    return Objective("l2", (), lambda a: (a[IMAGE].float() - 0.5).square().mean((1, 2, 3)))


def batched(units: Sequence[Unit], device: torch.device) -> Objective:
    """One unit of the same layer per image of a batch."""
    layer = units[0].layer
    indices = torch.tensor([unit.index for unit in units], device=device)

    def value(activations: Activations) -> Tensor:
        views = len(activations[layer]) // len(indices)  # of each image, one after the other
        return unit_means_of(activations[layer], indices.repeat_interleave(views))

    return Objective(layer, (layer,), value)


def stacked(parts: Sequence[Objective], counts: Sequence[int]) -> Objective:
    """Objectives of the same layers as one: the first is that of the first counts[0] images of a batch, and so on."""
    given = [
        part.beside.expand(count, *part.beside.shape[-3:])
        for part, count in zip(parts, counts, strict=True)
        if part.beside is not None
    ]

    def value(activations: Activations) -> Tensor:
        views = len(activations[IMAGE]) // sum(counts)
        shares = {key: found.split([views * count for count in counts]) for key, found in activations.items()}
        return torch.cat([part.value({key: share[i] for key, share in shares.items()}) for i, part in enumerate(parts)])

    units = tuple(unit for part in parts for unit in part.units)
    return Objective(parts[0].name, parts[0].layers, value, units, torch.cat(given) if given else None)


def check(objective: Objective, subject: Subject, size: tuple[int, int], seeds: int) -> None:
    """Raise FeatvisError unless the subject has all layers and units of the objective, and its images have the size."""
    if not objective.layers:
        raise FeatvisError(f"{objective.name} reads no layer; add it to an objective that does, such as channel(...).")
    for layer in objective.layers:
        subject.channels(layer)
    for unit in objective.units:
        subject.unit(unit)
    valid = [(3, *size), (1, 3, *size), (seeds, 3, *size)]
    if objective.beside is not None and objective.beside.shape not in valid:
        raise FeatvisError(
            f"the seed image of {objective.name} has shape {tuple(objective.beside.shape)}; it is one image {valid[0]} "
            f"in [0, 1], or one for each seed {valid[2]}."
        )


def _split(unit: str) -> Unit:
    layer, _, index = unit.rpartition(":")
    if not layer or not index.isdecimal():
        raise FeatvisError(f"{unit!r} names no unit; a unit is written LAYER:INDEX, such as inception4b:17.")
    return Unit(layer, int(index))
