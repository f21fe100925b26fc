"""Rank correlation inside of groups, against scipy's and against data whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from featvis.errors import FeatvisError
from featvis.matching.machines import Polysemy
from featvis.ranks import _bootstrap, related, within

RNG = np.random.default_rng(0)


def test_in_one_group_it_is_spearmans() -> None:
    x, y = (pd.Series(RNG.integers(0, 9, 60)) for _ in range(2))  # with ties
    y = y + x
    found = related(["a"] * 60, x, y)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.rho < found.high
    assert found.p < 0.001


def test_what_groups_differ_in_is_no_relation() -> None:
    """Both columns fall with depth and have nothing to do with each other inside of a depth."""
    depth = np.repeat(["early", "middle", "late"], 40)
    level = np.repeat([0.0, 3.0, 6.0], 40)
    x, y = (pd.Series(RNG.normal(level)) for _ in range(2))
    assert spearmanr(x, y).statistic > 0.7
    found = related(depth, x, y)
    assert found.low < 0 < found.high
    assert found.p > 0.05
    assert abs(found.rho) < 0.3


def test_what_does_not_vary_or_is_not_finite_has_no_rank_correlation() -> None:
    flat, steps = pd.Series([1.0, 1.0, 2.0, 2.0]), pd.Series([1.0, 2.0, 3.0, 4.0])
    assert np.isnan(related(["a", "a", "b", "b"], flat, steps)).all()
    with pytest.raises(FeatvisError, match="not finite"):
        related(["a"] * 4, steps, pd.Series([1.0, 2.0, 3.0, np.nan]))


def test_ranks_have_no_mean_in_any_group() -> None:
    groups = ["a", "b", "b", "a", "b"]
    found = within(groups, pd.Series([3.0, 1.0, 1.0, 5.0, 9.0]))
    assert found.tolist() == pytest.approx([-0.25, -1 / 6, -1 / 6, 0.25, 1 / 3])


def test_an_interval_keeps_to_the_layers():
    """Two layers, each with a perfect relation of its own, but the other way round."""
    layers = np.repeat(["a", "b"], 30)
    x = np.tile(np.linspace(-0.5, 0.5, 30), 2)
    assert _bootstrap(layers, x, x) == pytest.approx((1, 1))
    low, high = _bootstrap(layers, x, np.where(layers == "a", x, -x))
    assert -0.5 < low < 0 < high < 0.5
    shifted = np.where(layers == "a", x + 5, x)  # what lies between layers plays no part
    assert _bootstrap(layers, shifted, shifted) == pytest.approx((1, 1))
    assert _bootstrap(layers, shifted, np.where(layers == "a", x, -x)) == pytest.approx((low, high))


def test_meanings_are_related_to_success_inside_of_depths() -> None:
    depth, level = np.repeat(["early", "middle", "late"], 12), np.repeat([0.0, 4.0, 8.0], 12)
    own = RNG.normal(size=36)
    columns = {"clusters": level + own, "visualization": level - own, "exemplar": RNG.normal(size=36)}
    mixtures = pd.DataFrame({"depth": "early", "mixed": True, **dict.fromkeys(columns, 0.0)}, index=range(5))
    table = pd.concat([pd.DataFrame({"depth": depth, "mixed": False} | columns), mixtures], ignore_index=True)
    assert Polysemy(table).relation("clusters").rho == pytest.approx(-1)
    assert abs(Polysemy(table).relation("clusters", "exemplar").rho) < 0.5
