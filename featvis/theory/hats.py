"""The classes without structure: two members agree wherever anybody looks, and differ at x. D1 to D4, and D12."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featvis.errors import FeatvisError
from featvis.theory.base import MARGIN, FunctionClass, anywhere, inside, joined, partners, seeded, uniform
from featvis.theory.extrema import TOLERANCE, Extrema
from featvis.theory.functions import Constant, Function, Hats, Noise, Points, Pyramids, distances, spacing

HALVINGS = 45  # of a segment, to find a jump


class Anything(FunctionClass):
    """D1."""

    row, name = "D1", "all functions"
    more = True
    why = "change one point"

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        generator = seeded(seed)
        seen = Extrema(*uniform(generator, 2, dimension))
        return Points(*seen.knots, Noise(uniform(generator, dimension))), seen

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        return anywhere(points)

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        first, second = (Points(*joined(seen.knots, x, value), Constant(0.5)) for value in (low, high))
        return first, second

    def spread(self, seen: Extrema, natural: Tensor, margin: float = MARGIN) -> tuple[Function, Function]:
        low, high = (Points(*seen.knots, Constant(value)) for value in inside(0.0, 1.0, margin))
        return low, high


class ReluNetworks(FunctionClass):
    """D2: continuous, affine in pieces, computed by a torch module."""

    row, name = "D2", "ReLU networks"
    more = True
    why = "a hat at x needs two hidden layers of ReLUs"
    kind: type[Hats] | type[Pyramids] = Hats
    order: float = 1

    def possible(self, seen: Extrema) -> None:
        super().possible(seen)
        if spacing(seen.knots[0], self.order) == 0:
            raise FeatvisError("the same picture was given more than once; give each once.")

    def _fixed(self, seen: Extrema) -> tuple[Tensor, Tensor]:
        """All points whose values every member shares."""
        return seen.knots

    def _made(self, centres: Tensor, values: Tensor, base: float = 0.5) -> Function:
        # A little apart, so that every centre is alone on its hat even after rounding.
        return self.kind(centres, values, 0.99 * spacing(centres, self.order), base)

    def _seen(self, dimension: int, generator: torch.Generator) -> Extrema:
        return Extrema(*uniform(generator, 2, dimension))

    def sample(self, dimension: int, seed: int) -> tuple[Function, Extrema]:
        generator = seeded(seed)
        seen = self._seen(dimension, generator)
        centres, values = self._fixed(seen)
        hidden = torch.cat([centres, uniform(generator, 3, dimension)])
        return self._made(hidden, torch.cat([values, 0.1 + 0.8 * uniform(generator, 3)])), seen

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        return anywhere(points)

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        first, second = (self._made(*joined(self._fixed(seen), x, value)) for value in (low, high))
        return first, second

    def spread(self, seen: Extrema, natural: Tensor, margin: float = MARGIN) -> tuple[Function, Function]:
        low, high = (self._made(*self._fixed(seen), base) for base in inside(0.0, 1.0, margin))
        return low, high

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        if not isinstance(f, nn.Module):
            return f"it is a {type(f).__name__} and no torch module."
        return _bent(f, points, generator) or _broken(f, points, generator)


class Minimizers(ReluNetworks):
    """D3: ReLU networks that fit the labels (n,), strictly between 0 and 1, of some images (n, d): a loss of 0."""

    row, name = "D3", "networks of least training loss"
    why = "the hat at x avoids the training images: the same loss"

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images.double(), labels.double()
        if len(self.images) != len(self.labels):
            raise FeatvisError(f"{len(images)} training images and {len(labels)} labels were given; each has one.")
        if not bool(((self.labels > 0) & (self.labels < 1)).all()):
            raise FeatvisError("a training label lies outside of (0, 1), where only the extrema have 0 and 1.")
        if len(self.images) > 1 and spacing(self.images, 1) == 0:
            raise FeatvisError("two training images are the same; give each once.")

    def _fixed(self, seen: Extrema) -> tuple[Tensor, Tensor]:
        centres, values = seen.knots
        return torch.cat([centres, self.images]), torch.cat([values, self.labels])

    def possible(self, seen: Extrema) -> None:
        super().possible(seen)
        if seen.dimension != self.images.shape[1]:
            raise FeatvisError(f"training images have {self.images.shape[1]} numbers, the extrema {seen.dimension}.")
        if bool((distances(seen.knots[0], self.images, torch.inf) == 0).any()):
            raise FeatvisError("one of the pictures that the observer sees is a training image; choose others.")

    def loss(self, f: Function) -> float:
        """The empirical risk, as a mean squared error."""
        return float((f(self.images) - self.labels).square().mean())

    def _bounds(self, seen: Extrema, points: Tensor) -> tuple[Tensor, Tensor]:
        low, high = anywhere(points)
        apart = distances(points, self.images, 1)
        known, which = (apart == 0).max(1)
        return torch.where(known, self.labels[which], low), torch.where(known, self.labels[which], high)

    def _pair(self, seen: Extrema, x: Tensor, low: float, high: float) -> tuple[Function, Function]:
        if bool((self.images == x).all(1).any()):
            raise FeatvisError(
                "x is a training image, where all networks of least training loss agree; choose another."
            )
        return super()._pair(seen, x, low, high)

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        worst = float((f(self.images) - self.labels).abs().max())
        if worst > TOLERANCE:
            return f"it misses a training label by {worst:.3g}, though a loss of 0 is possible."
        return super()._violation(f, seen, points, generator)


class MorePictures(ReluNetworks):
    """D12: the observer is shown `m` further points, with the network's values there."""

    row = "D12"
    why = "a hat avoids any finite number of points"

    def __init__(self, m: int):
        if m < 0:
            raise FeatvisError(f"m={m} more pictures were asked for; 0 is the fewest.")
        self.m = m
        self.name = f"ReLU networks, {m} more pictures"

    def _seen(self, dimension: int, generator: torch.Generator) -> Extrema:
        at_min, at_max = uniform(generator, 2, dimension)
        more = uniform(generator, self.m, dimension)
        return Extrema(at_min, at_max, points=more, values=0.1 + 0.8 * uniform(generator, self.m))


class PiecewiseAffine(ReluNetworks):
    """D4: any number of pieces, and jumps between them allowed."""

    row, name = "D4", "piecewise affine"
    why = "a pyramid at x is affine in pieces"
    kind = Pyramids
    order = torch.inf

    def _violation(self, f: Function, seen: Extrema, points: Tensor, generator: torch.Generator) -> str:
        return _bent(f, points, generator)


def _tiny(points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For every point another one, very close by, inside of any convex domain that holds them all.

    The more coordinates, the closer: each has kinks of its own to cross.
    """
    return points, points + 1e-4 * min(1.0, 10 / points.shape[1]) * (partners(points, generator) - points)


def _bent(f: Function, points: Tensor, generator: torch.Generator) -> str:
    """Of tiny segments, only few can cross from one affine piece to the next."""
    a, b = _tiny(points, generator)
    bend = (f(a) + f(b) - 2 * f((a + b) / 2)).abs()
    share = float((bend > 1e-12).double().mean())
    return (
        f"it is bent on {share:.0%} of {len(points)} tiny segments, so it is not affine in pieces."
        if share > 0.4
        else ""
    )


def _broken(f: Function, points: Tensor, generator: torch.Generator) -> str:
    a = points[::4]
    b = partners(points, generator)[::4]
    for _ in range(HALVINGS):  # towards the larger step, which shrinks with the segment unless f jumps
        middle = (a + b) / 2
        left = (f(a) - f(middle)).abs() > (f(middle) - f(b)).abs()
        a, b = torch.where(left[:, None], a, middle), torch.where(left[:, None], middle, b)
    step = float((f(a) - f(b)).abs().max())
    return f"it jumps by {step:.3g}, and networks are continuous." if step > 1e-3 else ""
