"""Natural images on average instead of the worst point: which statements lose their force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featvis.images import NaturalImages
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.theory.base import MARGIN, FunctionClass, seeded, uniform
from featvis.theory.certain import AffineOnBall
from featvis.theory.extrema import MIDDLE, Ball, Extrema
from featvis.theory.functions import Function
from featvis.theory.hats import Anything, Minimizers, PiecewiseAffine, ReluNetworks
from featvis.theory.lipschitz import Lipschitz
from featvis.theory.shapes import AffineOnBox, Convex, Monotone
from featvis.visualize.render import render

SLOPES = (1.0, 1.25, 2.0)  # in multiples of the least one


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
        klass = Lipschitz(slope / free.distance)
        klass.name = f"Lipschitz, {slope:g} × least slope"
        yield klass, free
    yield AffineOnBall(), Extrema(*_opposite(high))


def _opposite(high: Tensor) -> tuple[Tensor, Tensor]:
    step = Ball.RADIUS * (high - MIDDLE) / (high - MIDDLE).norm()
    return MIDDLE - step, MIDDLE + step


def average_case(
    rows: Iterable[tuple[FunctionClass, Extrema]], natural: Tensor, groups: Sequence[int], margin: float = MARGIN
) -> pd.DataFrame:
    """One row for each class: the error that no prediction avoids, on natural images (n, d) instead of the worst point.

    Two functions with the same extrema that differ by |f - g| at x cost every decoder half of that for one of them.
    `worst` is for the image where most is open; `one` the mean for a pair that was built for the first image; `all` for
    a pair built to lie apart everywhere. Pairs are built with the first half of the images and measured on the second.
    Intervals (`_low`, `_high`) are 95% bootstraps over `groups`, the photographs that the images were cut from.
    """
    frame, half = [], len(natural) // 2
    for klass, seen in rows:
        points = natural.double()
        if isinstance(klass, AffineOnBall):  # images lie far outside of it: draw all of them towards its middle
            farthest = float((points - MIDDLE).norm(dim=1).max())
            points = MIDDLE + (points - MIDDLE) * Ball.RADIUS / farthest
        found = klass.bounds(seen, points)
        entry = {"row": klass.row, "class": klass.name, "worst": float(found.error.max())}
        pair = klass.pair(seen, points[0], margin)
        columns: Mapping[str, tuple[Function, Function]] = {
            "one": (pair.low, pair.high),
            "all": klass.spread(seen, points[:half], margin),
        }
        for name, (first, second) in columns.items():
            apart = ((second(points[half:]) - first(points[half:])).abs() / 2).numpy()
            means = pd.Series(apart).groupby(np.asarray(groups)[half:]).mean().to_numpy()
            low, middle, high = _interval(means) if np.ptp(means) > 0 else (means[0],) * 3
            entry |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        frame.append(entry)
    return pd.DataFrame(frame)


def _interval(means: np.ndarray) -> tuple[float, float, float]:
    """(low, mean, high): a 95% bootstrap over groups."""
    rows = np.random.default_rng(0).integers(len(means), size=(4000, len(means)))
    low, high = np.quantile(means[rows].mean(1), [0.025, 0.975])
    return float(low), float(means.mean()), float(high)


@dataclass(frozen=True)
class Average:
    """What `average_case` found."""

    table: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        return self.table

    def difference(self, again: Average) -> str:
        """ "" if the errors are about the same."""
        old, new = (a.table[["worst", "one", "all"]].to_numpy().ravel().tolist() for a in (self, again))
        return shares_differ(old, new)

    def save(self, folder: Path) -> None:
        self.table.to_csv(folder / "average.csv", index=False)

    @classmethod
    def load(cls, folder: Path) -> Average:
        return cls(pd.read_csv(folder / "average.csv"))


@shelved(1, Average)
def average(
    subject: Subject,
    train: NaturalImages,
    test: NaturalImages,
    unit: str,
    *,
    steps: int = 128,
    progress: bool = True,
) -> Average:
    """The second table, for extrema as they are found for one unit of a real network.

    The networks of D3 fit the images of `train`; the error is measured on those of `test`, whose classes (photographs)
    are the groups of the bootstrap.
    """
    ends = [render(subject, unit, steps=steps, minimize=minimize, progress=progress) for minimize in (True, False)]
    low, high = (drawn.images[0, 0].flatten() for drawn in ends)
    images, labels = (torch.cat(parts) for parts in zip(*(b[:2] for b in test.batches(256)), strict=True))
    fitted = torch.cat([batch for batch, _, _ in train.batches(256)]).flatten(1).double()
    rows = seen_by((low, high), fitted, SLOPES)
    return Average(average_case(rows, images.flatten(1), labels.tolist()))
