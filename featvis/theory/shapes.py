"""Classes whose structure does not help enough: monotone, convex, affine on a box. D5 to D7."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.theory.base import MARGIN, FunctionClass, anywhere, crooked, inside, partners, seeded, uniform
from featvis.theory.extrema import TOLERANCE, Extrema
from featvis.theory.functions import Affine, Blend, Function, Gauge, Hinge, Power


class Monotone(FunctionClass):
    """D5."""

    row, name = "D5", "monotone in every coordinate"
    why = "mean(y) ** p reaches any value, and all extrema are black and white"

    def possible(self, seen: Extrema) -> None:
        super().possible(seen)
        if bool((seen.at_min != 0).any()) or bool((seen.at_max != 1).any()):
            raise FeatvisError("a function that rises in every coordinate is least at all zeros, greatest at all ones.")

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        generator = seeded(seed)
        weights = torch.randint(1, 100, (dimension,), generator=generator).double()
        return Power(weights, float(4 ** (2 * uniform(generator, 1) - 1))), _black_and_white(dimension)

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        return anywhere(points)

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        plain = Power(torch.ones_like(x), 1.0)
        mean = float(plain(x[None]))
        first, second = (Power(plain.weights, math.log(v) / math.log(mean)) for v in (low, high))
        return first, second

    def spread(self, seen: Extrema, natural: Tensor, margin: float = MARGIN) -> tuple[Function, Function]:
        # Powers so large and so small that even the brightest image is low, even the darkest one high.
        means = natural.mean(1).clamp(1e-3, 1 - 1e-3)
        ends = zip(inside(0.0, 1.0, margin), (means.max(), means.min()), strict=True)
        low, high = (Power(torch.ones_like(natural[0]), math.log(v) / math.log(float(m))) for v, m in ends)
        return low, high

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        other = partners(points, generator)
        drop = float((f(torch.minimum(points, other)) - f(torch.maximum(points, other))).max())
        return f"it falls by {drop:.3g} where no coordinate falls." if drop > TOLERANCE else ""


def _black_and_white(dimension: int) -> Extrema:
    return Extrema(torch.zeros(dimension, dtype=torch.double), torch.ones(dimension, dtype=torch.double))


class Convex(FunctionClass):
    """D6: f(x) <= gauge(x), how far x is on the way from the minimum to the surface; nothing bounds it from below."""

    row, name = "D6", "convex"
    why = "a hinge at the corner is 0 at x, the gauge of the box is almost 1"

    def possible(self, seen: Extrema) -> None:
        super().possible(seen)
        if bool(((seen.at_max != 0) & (seen.at_max != 1)).any()):
            raise FeatvisError("a convex function on a box is greatest at a corner; this maximum is at none.")

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        generator = seeded(seed)
        seen = Extrema(uniform(generator, dimension), uniform(generator, dimension).round())
        hinge = Hinge(seen.at_max, 0.9 * float((seen.at_min - seen.at_max).abs().sum()))
        power, share = 1 + 3 * float(uniform(generator, 1)), 0.1 + 0.8 * float(uniform(generator, 1))
        return Blend(hinge, Gauge(seen.at_min, power), share), seen

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(points), dtype=torch.double), Gauge(seen.at_min)(points)

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        near = min(float((point - seen.at_max).abs().sum()) for point in (x, seen.at_min))
        hinge, gauge = Hinge(seen.at_max, 0.99 * near), Gauge(seen.at_min)
        whole = float(gauge(x[None]))
        return Blend(hinge, gauge, low / whole), Blend(hinge, gauge, high / whole)

    def spread(self, seen: Extrema, natural: Tensor, margin: float = MARGIN) -> tuple[Function, Function]:
        far = (torch.cat([natural, seen.at_min[None]]) - seen.at_max).abs().sum(1)
        hinge, gauge = Hinge(seen.at_max, 0.99 * float(far[far > 0].min())), Gauge(seen.at_min)
        return Blend(hinge, gauge, margin / 2), Blend(hinge, gauge, 1 - margin / 2)

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        other = partners(points, generator)
        above = float((f((points + other) / 2) - (f(points) + f(other)) / 2).max())
        return f"between two points it lies {above:.3g} above the line through them." if above > TOLERANCE else ""


class AffineOnBox(FunctionClass):
    """D7: f is a weighted mean of z_i = |x_i - x_min,i|, so all that is known is min z <= f(x) <= max z."""

    row, name = "D7", "affine on a box"
    why = "the maximum shows the signs of the weights, not their sizes"

    def possible(self, seen: Extrema) -> None:
        super().possible(seen)
        if seen.dimension < 2:
            raise FeatvisError("this class needs 2 dimensions or more; in one, an affine function is known (D9).")
        corners = torch.stack([seen.at_min, seen.at_max])
        if bool(((corners != 0) & (corners != 1)).any()) or bool((corners[0] == corners[1]).any()):
            raise FeatvisError("an affine function on a box has its only extrema at two opposite corners.")

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        generator = seeded(seed)
        corner = uniform(generator, dimension).round()
        weights = torch.randint(1, 1000, (dimension,), generator=generator).double()
        return Affine(corner, weights), Extrema(corner, 1 - corner)

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        z = (points - seen.at_min).abs()
        return z.amin(1), z.amax(1)

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        z = (x - seen.at_min).abs()
        ends = self._one(seen, int(z.argmin())), self._one(seen, int(z.argmax()))
        least, most = float(z.min()), float(z.max())
        equal = Affine(seen.at_min, torch.ones_like(x))
        if least == most:
            return equal, equal
        # A member with all weights above 0 and the value in the middle: a little of it makes the extrema unique.
        middle, plain = (least + most) / 2, float(equal(x[None]))
        end, far = (ends[1], most) if plain < middle else (ends[0], least)
        central = Blend(equal, end, (middle - plain) / (far - plain))
        share = (low - least) / (middle - least)
        return Blend(ends[0], central, share), Blend(ends[1], central, share)

    def _one(self, seen: Extrema, coordinate: int) -> Affine:
        return Affine(seen.at_min, F.one_hot(torch.tensor(coordinate), seen.dimension).double())

    def spread(self, seen: Extrema, natural: Tensor, margin: float = MARGIN) -> tuple[Function, Function]:
        # The mean of |sum_i (a_i - b_i) z_i| is convex in a and b: largest where each is a single coordinate.
        generator = seeded(0)
        some = torch.randperm(seen.dimension, generator=generator)[:512]
        z = (natural[:, some] - seen.at_min[some]).abs()
        apart = torch.stack([(z - z[:, [i]]).abs().mean(0) for i in range(len(some))])
        i, j = divmod(int(apart.argmax()), len(some))
        plain = Affine(seen.at_min, torch.ones_like(seen.at_min))
        return (
            Blend(self._one(seen, int(some[i])), plain, margin / 2),
            Blend(self._one(seen, int(some[j])), plain, margin / 2),
        )

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        return crooked(f, points, generator)
