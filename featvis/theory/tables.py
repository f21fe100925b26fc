"""The table of the chapter, from the classes themselves: what can be said at every point, and the worst of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from featvis.theory.base import FunctionClass, seeded, uniform
from featvis.theory.certain import AffineOnBall, AffineOnLine, ConstantFunctions
from featvis.theory.hats import Anything, Minimizers, MorePictures, PiecewiseAffine, ReluNetworks
from featvis.theory.lipschitz import Lipschitz
from featvis.theory.shapes import AffineOnBox, Convex, Monotone

EPSILON = 0.4  # any below one half would do, but for Lipschitz functions


def classes(dimension: int, slopes: Sequence[float] = (0.75, 1.5, 10.0)) -> tuple[FunctionClass, ...]:
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


def verified(rows: Sequence[FunctionClass], dimension: int, trials: int = 10) -> pd.DataFrame:
    """One row for each class: its pairs at random points, checked.

    `members`: how many of the 2 `trials` functions nothing speaks against; `extrema`: the largest difference between
    what is seen and what they give there; `gap`: the largest between the claimed gap and the one that is measured.
    """
    frame = []
    for klass in rows:
        size = 1 if isinstance(klass, AffineOnLine) else dimension
        members, extrema, gap = 0, 0.0, 0.0
        for seed in range(trials):
            _, seen = klass.sample(size, seed)
            x = klass.domain(size).draw(2, seeded(seed + 1000))[0]  # anywhere inside
            pair = klass.pair(seen, x)
            knots, values = seen.knots
            for member in (pair.low, pair.high):
                members += not klass.violation(member, seen, near=x, seed=seed)
                extrema = max(extrema, float((member(knots) - values).abs().max()))
            measured = float(pair.high(pair.x[None]) - pair.low(pair.x[None]))
            gap = max(gap, abs(measured - pair.gap))
        found = {"members": f"{members} of {2 * trials}", "extrema": extrema, "gap": gap}
        frame.append({"row": klass.row, "class": klass.name, **found})
    return pd.DataFrame(frame)
