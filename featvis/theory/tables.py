"""Both tables of the chapter, from the classes themselves: the worst point, and natural images on average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featvis.theory.base import MARGIN, FunctionClass, seeded, uniform
from featvis.theory.certain import AffineOnBall, AffineOnLine, ConstantFunctions
from featvis.theory.extrema import MIDDLE, Ball, Certificate, Extrema
from featvis.theory.functions import Function
from featvis.theory.hats import Anything, Minimizers, MorePictures, PiecewiseAffine, ReluNetworks
from featvis.theory.lipschitz import Lipschitz
from featvis.theory.shapes import AffineOnBox, Convex, Monotone

EPSILON = 0.4  # any below one half would do


def classes(dimension: int, slopes: Sequence[float] = (1.5, 10.0)) -> tuple[FunctionClass, ...]:
    """All rows of the table, D1 to D12, for functions of `dimension` variables (D9 has only one)."""
    generator = seeded(4_000_000_007)  # none of the seeds that members are drawn with
    return (
        Anything(),
        ReluNetworks(),
        Minimizers(uniform(generator, 20, dimension), 0.1 + 0.8 * uniform(generator, 20)),
        PiecewiseAffine(),
        Monotone(),
        Convex(),
        AffineOnBox(),
        *(Lipschitz(slope) for slope in slopes),
        AffineOnLine(),
        ConstantFunctions(),
        AffineOnBall(),
        MorePictures(10),
    )


def worst_case(rows: Sequence[FunctionClass], dimension: int, points: int = 4000, members: int = 3) -> pd.DataFrame:
    """One row for each class: what can be said at every point x, and what two members do at the worst of them.

    `exact`, `within` (EPSILON) and `nearer` hold at all points that were tried for all members; where they do not, the
    pair at the worst point is the proof. `gap` is how far that pair is apart, measured on the functions themselves;
    `decided` the share of uniformly drawn points where f is surely nearer to one extremum.
    """
    frame = []
    for klass in rows:
        size = 1 if isinstance(klass, AffineOnLine) else dimension
        gaps, decided, exact, within, nearer = [], [], True, True, True
        for seed in range(members):
            _, seen = klass.sample(size, seed)
            x = klass.domain(size).draw(points, seeded(seed))
            x = x[(x[:, None] != seen.knots[0]).any(2).all(1)]
            found = klass.bounds(seen, x)
            exact &= bool(found.exact.all())
            within &= bool(found.within(EPSILON).all())
            nearer &= bool((found.nearer != 0).all()) or seen.low == seen.high
            even = x[: points // 2]
            decided.append(float((klass.bounds(seen, even).nearer != 0).double().mean()))
            pair = klass.pair(seen, x[int(found.width.argmax())])
            gaps.append(float(pair.high(pair.x[None]) - pair.low(pair.x[None])))
        frame.append(
            {
                "row": klass.row,
                "class": klass.name,
                "exact": exact,
                "within": within,
                "nearer": nearer,
                "gap": max(gaps),
                "decided": float(np.mean(decided)) if any(gaps) else 1.0,
                "why": klass.why,
            }
        )
    return pd.DataFrame(frame)


def seen_by(
    pictures: tuple[Tensor, Tensor], images: Tensor, slopes: Sequence[float]
) -> Iterator[tuple[FunctionClass, Extrema]]:
    """Every class with extrema as large as real images: `pictures` (d,), at the minimum and at the maximum.

    Where a class has its extrema elsewhere, they are the nearest ones that it can have. `slopes` are in multiples of
    the least slope; `images` (k, d) are those that the networks of D3 fit.
    """
    low, high = (picture.double() for picture in pictures)
    free = Extrema(low, high)
    corner = (high > low).double()
    black, white = torch.zeros_like(low), torch.ones_like(low)
    labels = 0.1 + 0.8 * uniform(seeded(0), len(images))
    yield Anything(), free
    yield ReluNetworks(), free
    yield Minimizers(images, labels), free
    yield PiecewiseAffine(), free
    yield Monotone(), Extrema(black, white)
    yield Convex(), Extrema(low, high.round())
    yield AffineOnBox(), Extrema(1 - corner, corner)
    for slope in slopes:
        yield Lipschitz(slope / free.distance), free
    yield AffineOnBall(), Extrema(*_opposite(high))


def _opposite(high: Tensor) -> tuple[Tensor, Tensor]:
    step = Ball.RADIUS * (high - MIDDLE) / (high - MIDDLE).norm()
    return MIDDLE - step, MIDDLE + step


def average_case(
    rows: Iterator[tuple[FunctionClass, Extrema]], natural: Tensor, groups: Sequence[str], margin: float = MARGIN
) -> pd.DataFrame:
    """One row for each class: the error that no prediction avoids, on natural images (n, d) instead of the worst point.

    Two functions with the same extrema that differ by |f - g| at x cost every decoder half of that for one of them.
    `worst` is for the image where most is open; `one` the mean over all other images for a pair that was built for the
    first image; `all` for a pair built to lie apart everywhere. Intervals (`_low`, `_high`) are 95 % bootstraps over
    `groups`, the photographs that the images were cut from.
    """
    from featvis.plots import interval

    frame = []
    for klass, seen in rows:
        points = natural.double()
        if isinstance(klass, AffineOnBall):  # images lie far outside of it: draw all of them towards its middle
            farthest = float((points - MIDDLE).norm(dim=1).max())
            points = MIDDLE + (points - MIDDLE) * Ball.RADIUS / farthest
        found: Certificate = klass.bounds(seen, points)
        entry = {"row": klass.row, "class": klass.name, "worst": float(found.error.max())}
        pair = klass.pair(seen, points[0], margin)
        columns: Mapping[str, tuple[Function, Function]] = {
            "one": (pair.low, pair.high),
            "all": klass.spread(seen, points, margin),
        }
        for name, (first, second) in columns.items():
            apart = ((second(points) - first(points)).abs() / 2).numpy()[1:]
            means = pd.Series(apart).groupby(np.asarray(groups)[1:]).mean().to_numpy()
            low, middle, high = interval(means, np.mean) if np.ptp(means) > 0 else (means[0],) * 3
            entry |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        frame.append(entry)
    return pd.DataFrame(frame)
