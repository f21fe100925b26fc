"""A function class: what extrema tell about their members, and two members that look alike and are not.

Each class knows the sharp bounds of f(x) given the extrema (`bounds`), two members that come as close to them as one
likes (`pair`), and whether a function shows itself to be no member (`violation`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featvis.errors import FeatvisError
from featvis.theory.extrema import TOLERANCE, Box, Certificate, Domain, Extrema, as_points
from featvis.theory.functions import Function

MARGIN = 0.05
SINGLE = 1e-6  # what single precision may cost


@dataclass(frozen=True)
class Pair:
    """Two members with the same extrema, whose values at `x` (d,) differ by `gap`."""

    low: Function
    high: Function
    seen: Extrema
    x: Tensor
    gap: float


class FunctionClass(ABC):
    """One row of the table. `row` is its statement, `name` what the table calls it, `why` its proof in one line.

    `more`: whether its bounds know what to do with further pictures beside the extrema.
    """

    row: str
    name: str
    why: str
    more = False

    def domain(self, dimension: int) -> Domain:
        return Box(dimension)

    @abstractmethod
    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        """A random member, and what is seen of it."""

    @abstractmethod
    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and largest value that members with these extrema can approach at each point."""

    @abstractmethod
    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        """Two members with these extrema, whose values at x are `low` and `high`, strictly inside of the bounds."""

    def spread(self, seen: Extrema, natural: Tensor, margin: float = MARGIN) -> tuple[Function, Function]:
        """Two members with these extrema that lie apart on many points at once, not only at one.

        `natural` (n, d) are points that they may be chosen with. This is the adversary who must settle on two functions
        before the point is drawn.
        """
        return self._pair(seen, natural[0], *inside(0.0, 1.0, margin))

    def bounds(self, seen: Extrema, x: Tensor) -> Certificate:
        """What the extrema say about f at x, (d,) or (n, d): sharp, and the best decoder's prediction.

        Raises FeatvisError for points outside of the domain and for extrema that no member can have.
        """
        points = as_points(x, self.domain(seen.dimension))
        self.possible(seen)
        low, high = self._bounds(seen, points)
        knots, values = seen.knots
        for knot, value in zip(knots, values, strict=True):
            here = (points == knot).all(1)
            low, high = torch.where(here, value, low), torch.where(here, value, high)
        return Certificate(low, high)

    def pair(self, seen: Extrema, x: Tensor, margin: float = MARGIN) -> Pair:
        """Two members with exactly these extrema; at x they differ by (1 - margin) times what is possible at all.

        With a margin of 0 the gap would be whole, but the extrema no longer unique. Raises FeatvisError for a margin
        that is not between 0 and 1, a point outside of the domain or one whose value is seen.
        """
        if not 0 < margin < 1:
            raise FeatvisError(f"margin={margin:g} was given; it lies between 0 and 1, both excluded.")
        found = self.bounds(seen, x)
        if len(found.low) != 1:
            raise FeatvisError(f"{len(found.low)} points were given; a pair is built for 1.")
        (point,) = as_points(x, self.domain(seen.dimension))
        if bool((seen.knots[0] == point).all(1).any()):
            raise FeatvisError("x is one of the pictures that the observer sees; choose a point whose value is open.")
        low, high = inside(float(found.low), float(found.high), margin)
        first, second = self._pair(seen, point, low, high)
        return Pair(first, second, seen, point, high - low)

    def possible(self, seen: Extrema) -> None:
        """Raise FeatvisError if no member of the class has these extrema."""
        as_points(seen.knots[0], self.domain(seen.dimension))
        if (seen.low, seen.high) != (0.0, 1.0):
            given = f"{seen.low:g} and {seen.high:g}"
            raise FeatvisError(f"extrema of {given} were given; scale the function to a minimum of 0 and maximum of 1.")
        if seen.distance == 0:
            raise FeatvisError("minimum and maximum were given at the same point; a function has one value there.")
        if len(seen.values) and not self.more:
            raise FeatvisError(f"the bounds for {self.name} functions are about extrema; further pictures were given.")
        outside = (seen.values < seen.low) | (seen.values > seen.high) | seen.values.isnan()
        if bool(outside.any()):
            raise FeatvisError(
                f"a further picture has the value {float(seen.values[outside][0]):g}, which does not lie between the "
                f"extrema {seen.low:g} and {seen.high:g}."
            )
        points, values = seen.knots
        for point, value in zip(points, values, strict=True):
            if bool((values[(points == point).all(1)] != value).any()):
                raise FeatvisError("two pictures at the same point have different values; a function has one there.")

    def violation(self, f: Function, seen: Extrema, near: Tensor | None = None, seed: int = 0, n: int = 400) -> str:
        """ "" if nothing speaks against f being a member with these extrema; else what does, in one sentence.

        `f` maps points (n, d) to values (n,) or (n, 1); a torch module may have single precision, and is checked to it.
        Looks at random points of the domain, at points at all distances from the extrema and from `near`, and at pairs
        of them. That it finds nothing proves nothing. What it finds is a proof, except that a function is affine in
        pieces: of pieces it only counts how many it meets, and jumps it infers from steps that do not shrink.
        """
        f, tolerance = _as_function(f)
        generator = torch.Generator().manual_seed(seed)
        domain = self.domain(seen.dimension)
        points = domain.draw(n, generator)
        knots, wanted = seen.knots
        centres = knots if near is None else torch.cat([knots, near.view(-1, seen.dimension).double()])
        chosen = centres[torch.randint(len(centres), (n,), generator=generator)]
        toward = domain.draw(n, generator)
        share = 10 ** (-6 * torch.rand(n, 1, dtype=torch.double, generator=generator))
        points = torch.cat([points, chosen + share * (toward - chosen)])  # the domain is convex
        values = f(points)
        given = f(knots)
        if bool(((given - wanted).abs() > tolerance).any()):
            i = int((given - wanted).abs().argmax())
            return f"f is {float(given[i]):.10g} where {float(wanted[i]):.10g} is seen."
        if not bool(values.isfinite().all()):
            return "f has a value that is not finite."
        low, high = float(values.min()), float(values.max())
        if low < seen.low - tolerance or high > seen.high + tolerance:
            return f"f takes values from {low:.4g} to {high:.4g}, beyond its extrema {seen.low:g} and {seen.high:g}."
        return self._violation(f, seen, points, generator)

    def check(self, f: Function, seen: Extrema, near: Tensor | None = None, seed: int = 0) -> None:
        """Raise FeatvisError with the sentence of `violation`, if there is one."""
        if found := self.violation(f, seen, near, seed):
            raise FeatvisError(f"this function is not in the class of {self.name}: {found}")

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        """The same for what only this class asks."""
        return ""


class _Flat(nn.Module):
    """A module with values (n,) or (n, 1), as a function with values (n,)."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, y: Tensor) -> Tensor:
        values = self.module(y)
        if values.numel() != len(y):
            raise FeatvisError(
                f"f gives values of shape {tuple(values.shape)} for {len(y)} points; it must give 1 each."
            )
        return values.reshape(len(y))


def _as_function(f: Function) -> tuple[Function, float]:
    """f with values (n,) in double precision, and what its own precision may cost."""
    if not isinstance(f, nn.Module):
        return f, TOLERANCE
    if any(part.dtype == torch.float32 for part in (*f.parameters(), *f.buffers())):
        return _Flat(copy.deepcopy(f).double()), SINGLE
    return _Flat(f), TOLERANCE


def inside(low: float, high: float, margin: float) -> tuple[float, float]:
    """An interval shrunk by half of `margin` times its width at either end."""
    return low + margin * (high - low) / 2, high - margin * (high - low) / 2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.double, generator=generator)


def partners(points: Tensor, generator: torch.Generator) -> Tensor:
    return points[torch.randperm(len(points), generator=generator)]


def anywhere(points: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds that say nothing: 0 and 1."""
    return torch.zeros(len(points), dtype=torch.double), torch.ones(len(points), dtype=torch.double)


def joined(known: tuple[Tensor, Tensor], x: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Known points and values, and one more."""
    centres, values = known
    return torch.cat([centres, x[None]]), torch.cat([values, values.new_tensor([value])])


def crooked(f: Function, points: Tensor, generator: torch.Generator) -> str:
    """Half-way between two points an affine function has the mean of both values."""
    other = partners(points, generator)
    off = float((f((points + other) / 2) - (f(points) + f(other)) / 2).abs().max())
    return f"between two points it lies {off:.3g} off the line through them." if off > TOLERANCE else ""
