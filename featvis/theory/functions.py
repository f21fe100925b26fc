"""Members of the function classes, as torch modules and small callables: points (n, d) -> values (n,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
CHUNK = 2**22  # numbers at once in the distances of many points from many others


def distances(points: Tensor, centres: Tensor, order: float) -> Tensor:
    """(n, d) and (k, d) -> (n, k): in the 1-, 2- or maximum norm, exactly 0 between equal points."""
    parts = points.split(max(1, CHUNK // max(1, centres.numel())))
    return torch.cat([torch.linalg.vector_norm(p[:, None] - centres, order, dim=2) for p in parts])


def spacing(centres: Tensor, order: float) -> float:
    """The radius with which no two of the centres' balls overlap."""
    far = distances(centres, centres, order)
    far.fill_diagonal_(torch.inf)
    return float(far.min()) / 2


class L1Distance(nn.Module):
    """|y - c|_1 for every centre: 2 d k ReLUs, each of one coordinate, and a sum."""

    def __init__(self, centres: Tensor):
        super().__init__()
        self.register_buffer("centres", centres)

    def forward(self, y: Tensor) -> Tensor:
        assert isinstance(self.centres, Tensor)
        parts = y.split(max(1, CHUNK // max(1, self.centres.numel())))
        apart = (part[:, None] - self.centres for part in parts)
        return torch.cat([(torch.relu(a) + torch.relu(-a)).sum(2) for a in apart])


class Hats(nn.Module):
    """A ReLU network with two hidden layers: `base`, but `values` at the centres (k, d), on hats of radius `radius`.

    f(y) = base + sum_k (v_k - base) ReLU(1 - |y - c_k|_1 / radius)
    """

    def __init__(self, centres: Tensor, values: Tensor, radius: float, base: float = 0.5):
        super().__init__()
        self.distance = L1Distance(centres)
        self.radius, self.base = radius, base
        self.register_buffer("heights", values - base)

    def forward(self, y: Tensor) -> Tensor:
        assert isinstance(self.heights, Tensor)
        return self.base + torch.relu(1 - self.distance(y) / self.radius) @ self.heights

    def dense(self) -> nn.Sequential:
        """The same function out of nothing but `Linear` and `ReLU`: points (n, d) -> (n, 1)."""
        centres, heights = self.distance.centres, self.heights
        assert isinstance(centres, Tensor)
        assert isinstance(heights, Tensor)
        k, d = centres.shape
        first, second, last = nn.Linear(d, 2 * k * d), nn.Linear(2 * k * d, k), nn.Linear(k, 1)
        one = torch.eye(d, dtype=torch.double).repeat(k, 1)
        rows = torch.eye(k, dtype=torch.double).repeat_interleave(d, 1)
        parts = {
            first: (torch.cat([one, -one]), torch.cat([-centres.flatten(), centres.flatten()])),
            second: (-torch.cat([rows, rows], 1) / self.radius, torch.ones(k, dtype=torch.double)),
            last: (heights[None], torch.tensor([self.base], dtype=torch.double)),
        }
        for layer, (weight, bias) in parts.items():
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).requires_grad_(False)


@dataclass(frozen=True)
class Pyramids:
    """`base`, but `values` at the centres, on pyramids (cubes are their level sets): affine in pieces."""

    centres: Tensor
    values: Tensor
    radius: float
    base: float = 0.5

    def __call__(self, y: Tensor) -> Tensor:
        return self.base + (1 - distances(y, self.centres, torch.inf) / self.radius).clamp(min=0) @ (
            self.values - self.base
        )


@dataclass(frozen=True)
class Points:
    """Another function, but for single points: the least that two functions can differ in."""

    centres: Tensor
    values: Tensor
    rest: Function

    def __call__(self, y: Tensor) -> Tensor:
        hit = (y[:, None] == self.centres).all(2)
        return torch.where(hit.any(1), self.values[hit.int().argmax(1)], self.rest(y))


@dataclass(frozen=True)
class Power:
    """(weighted mean of y) ** p: rises in every coordinate, from 0 at black to 1 at white.

    Weights are positive whole numbers: their sums, and so the ends, are exact.
    """

    weights: Tensor
    power: float

    def __call__(self, y: Tensor) -> Tensor:
        return (y @ self.weights / self.weights.sum()) ** self.power


@dataclass(frozen=True)
class Affine:
    """The weighted mean of |y_i - corner_i|: affine on the box, 0 at the corner, 1 at the opposite one.

    Weights are whole numbers and not negative: their sums, and so the ends, are exact.
    """

    corner: Tensor
    weights: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return (y - self.corner).abs() @ self.weights / self.weights.sum()


@dataclass(frozen=True)
class Along:
    """Affine: 0 at one point, 1 at another, constant across the line through both."""

    start: Tensor
    end: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        way = self.end - self.start
        return (y - self.start) @ way / (way @ way)


@dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def __call__(self, y: Tensor) -> Tensor:
        return torch.full((len(y),), self.value, dtype=torch.double)


@dataclass(frozen=True)
class Noise:
    """A value strictly between 0 and 1 without any order: neighbours have nothing in common."""

    direction: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return 0.05 + 0.9 * ((y @ self.direction) * 1e5).sin().abs()


@dataclass(frozen=True)
class Gauge:
    """How far a point is on its way from `start` to the surface of the box: convex, 0 at the start, 1 on the surface.

    `power` >= 1 keeps it convex.
    """

    start: Tensor
    power: float = 1.0

    def __call__(self, y: Tensor) -> Tensor:
        step = y - self.start
        room = torch.where(step > 0, 1 - self.start, self.start)
        share = torch.where(step == 0, 0.0, step.abs() / room.clamp(min=1e-300))
        return share.amax(1) ** self.power


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - |y - corner|_1 / radius): convex on the box, because |y_i - corner_i| is affine there."""

    corner: Tensor
    radius: float

    def __call__(self, y: Tensor) -> Tensor:
        return (1 - (y - self.corner).abs().sum(1) / self.radius).clamp(min=0)


@dataclass(frozen=True)
class Envelope:
    """Between the least and the greatest L-Lipschitz function from [0, 1] to itself through given points.

        lower(y) = max(0, max_k v_k - L |y - x_k|)        upper(y) = min(1, min_k v_k + L |y - x_k|)

    (McShane 1934, Whitney 1934). `share` 0 gives the lower one, 1 the upper one.
    """

    points: Tensor
    values: Tensor
    slope: float
    share: float

    def ends(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both envelopes at y, (n,) each."""
        apart = distances(y, self.points, 2)
        known, which = (apart == 0).max(1)
        lower = (self.values - self.slope * apart).amax(1).clamp(min=0)
        upper = (self.values + self.slope * apart).amin(1).clamp(max=1)
        # Rounding must not move a value that is given.
        return torch.where(known, self.values[which], lower), torch.where(known, self.values[which], upper)

    def __call__(self, y: Tensor) -> Tensor:
        lower, upper = self.ends(y)
        return lower + self.share * (upper - lower)


@dataclass(frozen=True)
class Blend:
    """(1 - share) * first + share * second."""

    first: Function
    second: Function
    share: float

    def __call__(self, y: Tensor) -> Tensor:
        first = self.first(y)
        return first + self.share * (self.second(y) - first)  # where both are equal, exactly that
