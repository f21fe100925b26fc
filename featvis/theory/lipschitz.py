"""Lipschitz functions: certain near the pictures that are seen, the less the steeper they may be. D8."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.theory.base import MARGIN, FunctionClass, inside, joined, partners, seeded, uniform
from featvis.theory.extrema import TOLERANCE, Extrema, least_slope
from featvis.theory.functions import Envelope, Function


class Lipschitz(FunctionClass):
    """D8: |f(a) - f(b)| <= slope |a - b|. Every picture that is seen narrows the bounds, extrema or not."""

    row = "D8"
    more = True
    why = "no function of this slope leaves the two cones, and both cones are such functions"

    def __init__(self, slope: float):
        if not 0 < slope < math.inf:
            raise FeatvisError(f"a slope of {slope:g} was given; it is a finite number above 0.")
        self.slope = slope
        self.name = f"Lipschitz, slope {slope:.3g}"

    def possible(self, seen: Extrema) -> None:
        super().possible(seen)
        least = least_slope(seen)
        if self.slope < least * (1 - TOLERANCE):
            raise FeatvisError(
                f"a slope of {self.slope:.4g} was given, but no such function has these values: it takes at least "
                f"{least:.4g}, their difference over the distance of the points."
            )

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        generator = seeded(seed)
        ends = uniform(generator, 2, dimension)
        if float((ends[0] - ends[1]).norm()) * self.slope < 1:  # too close: take opposite corners
            ends = torch.stack([ends[0].round(), 1 - ends[0].round()])
        seen = Extrema(*ends)
        self.possible(seen)
        points, values = seen.knots
        for x in uniform(generator, 4, dimension):  # random values, each within what the earlier ones allow
            low, high = Envelope(points, values, self.slope, 0).ends(x[None])
            share = float(0.1 + 0.8 * uniform(generator, 1))
            points, values = joined((points, values), x, float(low + share * (high - low)))
        return Envelope(points, values, self.slope, float(0.1 + 0.8 * uniform(generator, 1))), seen

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        return Envelope(*seen.knots, self.slope, 0).ends(points)

    def extremal(self, seen: Extrema) -> tuple[Function, Function]:
        """The least and the greatest member: they attain the bounds at every point at once."""
        self.possible(seen)
        return Envelope(*seen.knots, self.slope, 0), Envelope(*seen.knots, self.slope, 1)

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        ends = Envelope(*seen.knots, self.slope, 0).ends(x[None])
        least, most = (float(end) for end in ends)
        shares = [(v - least) / (most - least) if most > least else 0.5 for v in (low, high)]
        first, second = (Envelope(*seen.knots, self.slope, share) for share in shares)
        return first, second

    def spread(self, seen: Extrema, natural: Tensor, margin: float = MARGIN) -> tuple[Function, Function]:
        first, second = (Envelope(*seen.knots, self.slope, share) for share in inside(0.0, 1.0, margin))
        return first, second

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        other = partners(points, generator)
        close = points + 1e-3 * (other - points)
        for a, b in ((points, other), (points, close)):
            far = (a - b).norm(dim=1)
            excess = (f(a) - f(b)).abs() - self.slope * far
            if bool((excess > TOLERANCE).any()):
                i = int(excess.argmax())
                steep = float((f(a[[i]]) - f(b[[i]])).abs() / far[i])
                return f"it climbs with a slope of {steep:.3g} between two points; {self.slope:.3g} is allowed."
        return ""
