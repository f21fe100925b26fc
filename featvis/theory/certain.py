"""The classes that extrema tell everything about: affine in one dimension, affine on a ball, constant. D9 to D11."""

from __future__ import annotations

import torch
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.theory.base import FunctionClass, crooked, seeded, uniform
from featvis.theory.extrema import MIDDLE, Ball, Domain, Extrema, as_points
from featvis.theory.functions import Along, Constant, Function


class AffineOnLine(FunctionClass):
    """D9: two points determine a line."""

    row, name = "D9", "affine, one dimension"
    why = "two points determine a line"

    def possible(self, seen: Extrema) -> None:
        super().possible(seen)
        if seen.dimension != 1:
            raise FeatvisError(f"this class has 1 dimension; {seen.dimension} were given.")
        if sorted([float(seen.at_min), float(seen.at_max)]) != [0, 1]:
            raise FeatvisError("an affine function on an interval has its extrema at the ends, 0 and 1.")

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        start = uniform(seeded(seed), 1).round()
        return Along(start, 1 - start), Extrema(start, 1 - start)

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        known = Along(seen.at_min, seen.at_max)(points)
        return known, known

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        only = Along(seen.at_min, seen.at_max)
        return only, only

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        return crooked(f, points, generator)


class AffineOnBall(AffineOnLine):
    """D11: on a ball the maximum of w . x + b lies in the direction of w, so that the extrema give w away."""

    row, name = "D11", "affine on a Euclidean ball"
    why = "the maximum lies where the weights point, and so shows them all"

    def domain(self, dimension: int) -> Domain:
        return Ball(dimension)

    def possible(self, seen: Extrema) -> None:
        FunctionClass.possible(self, seen)
        for end in (seen.at_min, seen.at_max):
            if abs(float((end - MIDDLE).norm()) - Ball.RADIUS) > 1e-6:
                raise FeatvisError("an affine function on a ball has its extrema on the surface; these are not there.")
        if float((seen.at_min + seen.at_max - 2 * MIDDLE).norm()) > 1e-6:
            raise FeatvisError("an affine function on a ball has its extrema opposite to each other; these are not.")

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        weights = torch.randn(dimension, dtype=torch.double, generator=seeded(seed))
        step = Ball.RADIUS * weights / weights.norm()
        return Along(MIDDLE - step, MIDDLE + step), Extrema(MIDDLE - step, MIDDLE + step)


class ConstantFunctions(FunctionClass):
    """D10: minimum and maximum are the same number."""

    row, name = "D10", "constant"
    why = "one value is all values"

    def possible(self, seen: Extrema) -> None:
        as_points(seen.knots[0], self.domain(seen.dimension))
        if seen.low != seen.high:
            raise FeatvisError(
                f"a constant has one value; a minimum of {seen.low:g} and maximum of {seen.high:g} differ."
            )

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        generator = seeded(seed)
        value = float(uniform(generator, 1))
        at_min, at_max = uniform(generator, 2, dimension)
        return Constant(value), Extrema(at_min, at_max, value, value)

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        known = torch.full((len(points),), seen.low, dtype=torch.double)
        return known, known

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        return Constant(seen.low), Constant(seen.low)
