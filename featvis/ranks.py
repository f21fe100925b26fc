"""Rank correlation inside of groups, such as layers: what is left when what differs between groups is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from featvis.errors import FeatvisError

RESAMPLES = 4000


class Related(NamedTuple):
    """A rank correlation inside of groups with its 95% bootstrap interval, and p from permuting inside of groups."""

    low: float
    rho: float
    high: float
    p: float


def within(groups: Sequence[str] | pd.Series, values: pd.Series) -> np.ndarray:
    """Ranks inside each group, scaled to mean 0 and equal spread."""
    ranks = values.groupby(np.asarray(groups)).transform(lambda v: (rankdata(v) - (len(v) + 1) / 2) / len(v))
    return ranks.to_numpy()


def related(groups: Sequence[str] | pd.Series, first: pd.Series, second: pd.Series) -> Related:
    """How two columns go together inside of the groups; all three have one entry for each of n units.

    Everything is nan where a column does not vary inside of any group. Raises FeatvisError for values that are not
    finite.
    """
    if not np.isfinite([first, second]).all():
        raise FeatvisError("some values are not finite; ranks need finite ones.")
    names, x, y = np.asarray(groups), within(groups, first), within(groups, second)
    if not (x.any() and y.any()):
        return Related(np.nan, np.nan, np.nan, np.nan)
    low, high = _bootstrap(names, x, y)
    return Related(low, float(x @ y / np.sqrt((x @ x) * (y @ y))), high, _permuted(names, x, y))


def _bootstrap(groups: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Units are drawn inside of their groups, as ranks are taken there, and centred there again."""
    rng, parts = np.random.default_rng(0), []
    for group in np.unique(groups):
        place = np.flatnonzero(groups == group)
        rows = place[rng.integers(len(place), size=(RESAMPLES, len(place)))]
        parts.append([values[rows] - values[rows].mean(1, keepdims=True) for values in (x, y)])
    a, b = (np.concatenate(columns, 1) for columns in zip(*parts, strict=True))
    found = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _permuted(groups: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided: how often chance, inside of the groups, does as much."""
    rng, places = np.random.default_rng(0), [np.flatnonzero(groups == group) for group in np.unique(groups)]
    observed, count = abs(x @ y), 0
    for _ in range(RESAMPLES):
        shuffled = np.empty_like(y)
        for place in places:
            shuffled[place] = y[rng.permutation(place)]
        count += abs(x @ shuffled) >= observed - 1e-12
    return (count + 1) / (RESAMPLES + 1)
