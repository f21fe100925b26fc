"""The setting: a domain, what an observer of extrema sees of a function, and what follows from it.

Functions map points (n, d) to values (n,), both in double precision. They are scaled: their minimum is 0 and their
maximum 1 (a constant's are equal). Points are tensors (d,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featvis.errors import FeatvisError

MIDDLE = 0.5
TOLERANCE = 1e-9  # what double precision may cost


@dataclass(frozen=True)
class Box:
    """All points with coordinates in [0, 1]: all images of a size."""

    dimension: int

    def inside(self, points: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return ((points >= 0) & (points <= 1)).all(1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, d): half of them anywhere, half of them corners."""
        points = torch.rand(n, self.dimension, dtype=torch.double, generator=generator)
        points[n // 2 :] = points[n // 2 :].round()
        return points

    def __str__(self) -> str:
        return f"[0, 1]^{self.dimension}"


@dataclass(frozen=True)
class Ball:
    """All points within `RADIUS` of the middle of the box, in the Euclidean norm: the largest ball inside it."""

    dimension: int
    RADIUS = 0.5

    def inside(self, points: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return (points - MIDDLE).norm(dim=1) <= self.RADIUS * (1 + TOLERANCE)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, d): half of them anywhere, half of them on the surface."""
        points = torch.randn(n, self.dimension, dtype=torch.double, generator=generator)
        length = torch.rand(n, 1, dtype=torch.double, generator=generator) ** (1 / self.dimension)
        length[n // 2 :] = 1
        return MIDDLE + self.RADIUS * length * points / points.norm(dim=1, keepdim=True)

    def __str__(self) -> str:
        return f"the ball of radius {self.RADIUS:g} around the middle of [0, 1]^{self.dimension}"


Domain = Box | Ball


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.double)


@dataclass(frozen=True)
class Extrema:
    """What the observer sees: where the function is least and greatest, and its values there.

    at_min, at_max  (d,)
    points, values  (m, d) and (m,): further pictures, with what the function gives there
    """

    at_min: Tensor
    at_max: Tensor
    low: float = 0.0
    high: float = 1.0
    points: Tensor = field(default_factory=_none)
    values: Tensor = field(default_factory=_none)

    def __post_init__(self) -> None:
        sizes = (self.at_min.shape, self.at_max.shape)
        if self.at_min.dim() != 1 or sizes[0] != sizes[1]:
            raise FeatvisError(f"extrema of shapes {tuple(sizes[0])} and {tuple(sizes[1])} were given; both are (d,).")
        if self.points.numel() != len(self.values) * self.dimension:
            raise FeatvisError(
                f"further pictures of shape {tuple(self.points.shape)} were given with {len(self.values)} values; they "
                f"are ({len(self.values)}, {self.dimension})."
            )

    @property
    def dimension(self) -> int:
        return len(self.at_min)

    @property
    def distance(self) -> float:
        """Between the two extrema, Euclidean."""
        return float((self.at_max - self.at_min).norm())

    @property
    def knots(self) -> tuple[Tensor, Tensor]:
        """All points that are seen (2 + m, d), the extrema first, and the values there (2 + m,)."""
        ends = torch.stack([self.at_min, self.at_max])
        values = torch.tensor([self.low, self.high], dtype=torch.double)
        return torch.cat([ends, self.points.view(-1, self.dimension)]), torch.cat([values, self.values])


@dataclass(frozen=True)
class Certificate:
    """What is sure about f at some points: all that is known is that f lies between `low` and `high`, both (n,).

    The middle of the two is the prediction with the smallest worst error, which is half of their distance.
    """

    low: Tensor
    high: Tensor

    @property
    def width(self) -> Tensor:
        """(n,): how far apart two functions of the class can be that look alike."""
        return self.high - self.low

    @property
    def prediction(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def error(self) -> Tensor:
        """(n,): the largest error that the prediction can have."""
        return self.width / 2

    @property
    def exact(self) -> Tensor:
        return self.width <= TOLERANCE

    def within(self, epsilon: float) -> Tensor:
        return self.error <= epsilon + TOLERANCE

    @property
    def nearer(self) -> Tensor:
        """(n,): 1 where f is surely nearer to its maximum, -1 where surely nearer to its minimum, else 0."""
        return (self.low > MIDDLE + TOLERANCE).int() - (self.high < MIDDLE - TOLERANCE).int()

    def sentence(self) -> str:
        """One point's certificate in words."""
        if len(self.low) != 1:
            raise FeatvisError(f"this certificate is about {len(self.low)} points; a sentence is about 1.")
        if bool(self.exact):
            return f"f(x) is exactly {float(self.prediction):.3g}."
        side = {1: "surely nearer to the maximum", -1: "surely nearer to the minimum", 0: "either side is possible"}
        return (
            f"f(x) lies between {float(self.low):.3g} and {float(self.high):.3g}: no guess is sure to be closer than "
            f"{float(self.error):.3g}; {side[int(self.nearer)]}."
        )


def as_points(x: Tensor, domain: Domain) -> Tensor:
    """A point (d,) or points (n, d) as (n, d) doubles; raises FeatvisError for points outside of the domain."""
    points = torch.atleast_2d(torch.as_tensor(x)).double()
    if points.shape[1] != domain.dimension:
        raise FeatvisError(f"a point with {points.shape[1]} coordinates was given; {domain} has {domain.dimension}.")
    outside = ~domain.inside(points)
    if bool(outside.any()):
        shown = ", ".join(f"{v:.4g}" for v in points[outside][0][:4].tolist())
        more = ", ..." if domain.dimension > 4 else ""
        raise FeatvisError(f"the point ({shown}{more}) lies outside of {domain}, where f is defined.")
    return points


def least_slope(seen: Extrema) -> float:
    """The smallest Lipschitz constant that a function with these values can have."""
    points, values = seen.knots
    far = torch.cdist(points, points)
    rise = (values[:, None] - values[None, :]).abs()
    steepest = torch.where(far > 0, rise / far.clamp(min=1e-300), torch.where(rise > 0, math.inf, 0.0))
    return float(steepest.max())
