"""What is maximized: functions of activations that add, negate and scale.

An objective names the layers that it reads and maps {layer: (n, channels, ...)} to one value per image (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.subjects import Subject, Unit

Activations = Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """`value(activations)` gives one number per image; `name` is what a figure calls it.

    `units` are the units that it reads, where it reads single ones: `check` looks whether they exist.
    """

    name: str
    layers: tuple[str, ...]
    value: Callable[[Activations], Tensor]
    units: tuple[Unit, ...] = ()

    def __add__(self, other: Objective) -> Objective:
        layers = tuple(dict.fromkeys((*self.layers, *other.layers)))
        units = self.units + other.units
        return Objective(f"{self.name} + {other.name}", layers, lambda a: self.value(a) + other.value(a), units)

    def __mul__(self, weight: float) -> Objective:
        return Objective(f"{weight:g} * {self.name}", self.layers, lambda a: weight * self.value(a), self.units)

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return Objective(f"-{self.name}", self.layers, lambda a: -self.value(a), self.units)

    def __sub__(self, other: Objective) -> Objective:
        return self + (-other)


def unit_means(activation: Tensor) -> Tensor:
    """A layer's units, averaged over space or tokens: (n, c, h, w), (n, t, c) or (n, c) -> (n, c)."""
    if activation.dim() == 4:
        return activation.mean((2, 3))
    return activation.mean(1) if activation.dim() == 3 else activation


def unit_means_of(activation: Tensor, indices: Tensor) -> Tensor:
    """One unit per image, averaged over space or tokens: (n, c, ...) and (n,) -> (n,)."""
    rows = torch.arange(len(indices), device=activation.device)
    if activation.dim() == 3:
        return activation[rows, :, indices].mean(1)
    chosen = activation[rows, indices]
    return chosen.mean((1, 2)) if activation.dim() == 4 else chosen


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


def batched(units: Sequence[Unit], device: torch.device) -> Objective:
    """One unit of the same layer per image of a batch."""
    layer = units[0].layer
    indices = torch.tensor([unit.index for unit in units], device=device)

    def value(activations: Activations) -> Tensor:
        views = len(activations[layer]) // len(indices)  # of each image, one after the other
        return unit_means_of(activations[layer], indices.repeat_interleave(views))

    return Objective(layer, (layer,), value)


def check(objective: Objective, subject: Subject) -> None:
    """Raise FeatvisError unless the subject has all layers and units of the objective."""
    for layer in objective.layers:
        subject.channels(layer)
    for unit in objective.units:
        subject.unit(unit)


def _split(unit: str) -> Unit:
    layer, _, index = unit.rpartition(":")
    if not layer or not index.isdecimal():
        raise FeatvisError(f"{unit!r} names no unit; a unit is written LAYER:INDEX, such as inception4b:17.")
    return Unit(layer, int(index))
