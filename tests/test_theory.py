"""Every row of the table, for random dimensions, points and seeds: members, the same extrema, the claimed gap."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import featvis as fv
from featvis import theory
from featvis.theory import functions as made
from featvis.theory.average import _interval, average_case, seen_by
from featvis.theory.extrema import as_points
from featvis.theory.tables import classes, verified, worst_case
from tests.small import small_images

POSITIVE = (theory.AffineOnLine(), theory.ConstantFunctions(), theory.AffineOnBall())
quick = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def hopeless(dimension: int) -> list[theory.FunctionClass]:
    """The rows whose bounds are everything, or grow to it."""
    found = [row for row in classes(dimension, slopes=(3.0,)) if row.row not in ("D9", "D10", "D11")]
    return [row for row in found if dimension > 1 or row.row != "D7"]


def point(klass: theory.FunctionClass, dimension: int, seed: int) -> Tensor:
    return klass.domain(dimension).draw(2, torch.Generator().manual_seed(seed + 10_000))[0]


def at(f: made.Function, x: Tensor) -> float:
    return float(f(x[None]))


ROWS = ["D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D12"]
ONE = {"D7": 2}  # the smallest dimension, where it is not 1


@pytest.mark.parametrize("row", ROWS)
@given(dimension=st.integers(1, 12), seed=st.integers(0, 10**6), margin=st.floats(0.01, 0.9))
@quick
def test_two_members_with_the_same_extrema_differ_by_the_gap(row: str, dimension: int, seed: int, margin: float):
    dimension = max(dimension, ONE.get(row, 1))
    (klass,) = [found for found in hopeless(dimension) if found.row == row]
    f, seen = klass.sample(dimension, seed)
    x = point(klass, dimension, seed)
    bounds = klass.bounds(seen, x)
    assert klass.violation(f, seen, seed=seed) == ""
    assert bounds.low - 1e-9 <= at(f, x) <= bounds.high + 1e-9
    pair = klass.pair(seen, x, margin)
    knots, values = seen.knots
    around = 10 ** (-5 * torch.rand(200, 1, dtype=torch.double))
    drawn = klass.domain(dimension).draw(200, torch.Generator().manual_seed(seed))
    near = torch.cat([drawn, *[k + around * (drawn - k) for k in (*knots[:2], x)]])
    others = near[(near[:, None] != knots[:2]).any(2).all(1)]
    for member in (pair.low, pair.high):
        assert klass.violation(member, seen, near=x, seed=seed) == ""
        assert torch.equal(member(knots[:2]), values[:2])  # exactly 0 and 1
        assert torch.allclose(member(knots), values, atol=1e-12, rtol=0)
        assert float(member(others).min()) >= 0
        assert float(member(others).max()) <= 1
    # the extrema are the only ones
    apart = others[((others[:, None] - knots[:2]).abs().amax(2) > 1e-3).all(1)]
    for member in (pair.low, pair.high):
        assert float(member(apart).min()) > 0
        assert float(member(apart).max()) < 1
    width = float(bounds.high - bounds.low)
    assert pair.gap == pytest.approx((1 - margin) * width, abs=1e-9)
    assert at(pair.high, x) - at(pair.low, x) == pytest.approx((1 - margin) * width, abs=1e-8)
    assert at(pair.low, x) == pytest.approx(float(bounds.low) + margin / 2 * width, abs=1e-8)


@pytest.mark.parametrize("row", ["D1", "D2", "D3", "D4", "D5", "D12"])
@given(dimension=st.integers(1, 12), seed=st.integers(0, 10**6))
@quick
def test_of_some_classes_nothing_is_known_anywhere(row: str, dimension: int, seed: int):
    (klass,) = [found for found in hopeless(dimension) if found.row == row]
    _, seen = klass.sample(dimension, seed)
    found = klass.bounds(seen, point(klass, dimension, seed))
    assert (float(found.low), float(found.high), float(found.error)) == (0, 1, 0.5)
    assert found.nearer.tolist() == [0]
    assert klass.pair(seen, point(klass, dimension, seed), 0.02).gap == pytest.approx(0.98)


@pytest.mark.parametrize("klass", POSITIVE, ids=lambda k: k.row)
@given(dimension=st.integers(1, 200), seed=st.integers(0, 10**6))
@quick
def test_positive_rows_recover_the_function(klass: theory.FunctionClass, dimension: int, seed: int):
    dimension = 1 if klass.row == "D9" else dimension
    f, seen = klass.sample(dimension, seed)
    x = klass.domain(dimension).draw(50, torch.Generator().manual_seed(seed))
    found = klass.bounds(seen, x)
    assert torch.allclose(found.prediction, f(x), atol=1e-6, rtol=0)
    assert found.exact.all()
    assert found.within(1e-6).all()
    assert klass.violation(f, seen, seed=seed) == ""
    pair = klass.pair(seen, x[0])
    assert pair.gap == 0
    assert at(pair.low, x[0]) == at(pair.high, x[0]) == pytest.approx(at(f, x[0]), abs=1e-6)


@given(dimension=st.integers(2, 60), seed=st.integers(0, 10**6), scale=st.floats(0.1, 20))
@quick
def test_the_ball_gives_the_weights_away_and_the_box_only_their_signs(dimension: int, seed: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    weights = scale * torch.randn(dimension, dtype=torch.double, generator=generator)

    def raw(y: Tensor) -> Tensor:
        return y @ weights + 3

    ball = theory.Ball(dimension)
    surface = ball.draw(4000, generator)[2000:]
    step = ball.RADIUS * weights / weights.norm()
    high, low = 0.5 + step, 0.5 - step
    assert raw(surface).max() <= raw(high[None]) + 1e-9  # really the maximum
    seen = theory.Extrema(low, high)
    x = ball.draw(20, generator)
    recovered = raw(low[None]) + (raw(high[None]) - raw(low[None])) * theory.AffineOnBall().bounds(seen, x).prediction
    assert torch.allclose(recovered, raw(x), atol=1e-6 * scale)
    other = weights * (0.1 + torch.rand(dimension, dtype=torch.double, generator=generator))  # other sizes, same signs
    corners = [(torch.sign(w) + 1) / 2 for w in (weights, other)]
    assert torch.equal(*corners)


@given(dimension=st.integers(1, 9), seed=st.integers(0, 10**6))
@quick
def test_an_affine_guess_is_0_and_1_at_its_ends_and_constant_across(dimension: int, seed: int):
    start, end, aside = torch.randn(3, dimension, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    f, way = made.Along(start, end), end - start
    aside = aside - (aside @ way) / (way @ way) * way
    found = f(torch.stack([start, end, (start + end) / 2, start + aside, end + aside]))
    assert torch.allclose(found, torch.tensor([0, 1, 0.5, 0, 1], dtype=torch.double), atol=1e-8)


@given(dimension=st.integers(1, 6), seed=st.integers(0, 10**6), slope=st.floats(1.1, 30))
@quick
def test_lipschitz_bounds_hold_for_random_functions_and_are_attained(dimension: int, seed: int, slope: float):
    klass = theory.Lipschitz(slope)
    f, seen = klass.sample(dimension, seed)
    assert klass.violation(f, seen, seed=seed) == ""
    x = klass.domain(dimension).draw(300, torch.Generator().manual_seed(seed))
    found = klass.bounds(seen, x)
    to_max, to_min = (x - seen.at_max).norm(dim=1), (x - seen.at_min).norm(dim=1)
    assert torch.allclose(found.low, (1 - slope * to_max).clamp(min=0), atol=1e-9)
    assert torch.allclose(found.high, (slope * to_min).clamp(max=1), atol=1e-9)
    assert (found.low - 1e-9 <= f(x)).all()
    assert (f(x) <= found.high + 1e-9).all()
    least, greatest = klass.extremal(seen)
    for end, bound in ((least, found.low), (greatest, found.high)):
        assert torch.allclose(end(x), bound, atol=1e-12)
        assert klass.violation(end, seen, seed=seed) == ""
        assert torch.equal(end(seen.knots[0]), seen.knots[1])
    clear = ((to_max - 1 / (2 * slope)).abs() > 1e-6) & ((to_min - 1 / (2 * slope)).abs() > 1e-6)
    expected = (to_max < 1 / (2 * slope)).int() - (to_min < 1 / (2 * slope)).int()
    assert torch.equal(found.nearer[clear], expected[clear])


@given(dimension=st.integers(1, 6), seed=st.integers(0, 10**6))
@quick
def test_more_pictures_narrow_lipschitz_bounds_which_stay_sharp(dimension: int, seed: int):
    klass = theory.Lipschitz(4.0)
    f, seen = klass.sample(dimension, seed)
    x = klass.domain(dimension).draw(60, torch.Generator().manual_seed(seed))
    more = dataclasses.replace(seen, points=x[:5], values=f(x[:5]))
    before, after = klass.bounds(seen, x), klass.bounds(more, x)
    assert (after.width <= before.width + 1e-9).all()
    assert torch.allclose(after.prediction[:5], f(x[:5]))
    assert (after.low - 1e-9 <= f(x)).all()
    assert (f(x) <= after.high + 1e-9).all()
    for end, bound in zip(klass.extremal(more), (after.low, after.high), strict=True):
        assert torch.allclose(end(x), bound, atol=1e-9)
        assert klass.violation(end, more) == ""


@given(dimension=st.integers(1, 8), seed=st.integers(0, 10**6))
@quick
def test_a_convex_function_is_low_in_the_half_of_the_box_around_its_minimum(dimension: int, seed: int):
    klass = theory.Convex()
    _, seen = klass.sample(dimension, seed)
    z = klass.domain(dimension).draw(200, torch.Generator().manual_seed(seed))
    inner, outer = (seen.at_min + share * (z - seen.at_min) for share in (0.49, 1.0))
    assert (klass.bounds(seen, inner).nearer == -1).all()
    assert (klass.bounds(seen, outer).low[(outer != seen.at_max).any(1)] == 0).all()
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.double)[:, None]
    chord = seen.at_min + t * (seen.at_max - seen.at_min)
    assert torch.allclose(klass.bounds(seen, chord).high, t[:, 0])  # the linear interpolation


def test_the_hats_are_nothing_but_linear_layers_and_relus():
    klass = theory.ReluNetworks()
    _, seen = klass.sample(4, 0)
    pair = klass.pair(seen, point(klass, 4, 0))
    y = klass.domain(4).draw(500, torch.Generator().manual_seed(0))
    for member in (pair.low, pair.high):
        dense = member.dense()
        assert [type(layer) for layer in dense] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
        assert torch.allclose(dense(y)[:, 0], member(y), atol=1e-12)


def test_networks_of_least_risk_have_the_same_loss_of_zero():
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(30, 7, dtype=torch.double, generator=generator)
    klass = theory.Minimizers(images, torch.full((30,), 0.3))
    f, seen = klass.sample(7, 0)
    pair = klass.pair(seen, point(klass, 7, 0))
    assert [klass.loss(g) for g in (f, pair.low, pair.high)] == pytest.approx([0, 0, 0], abs=1e-18)
    assert klass.loss(made.Constant(0.5)) == pytest.approx(0.04)
    with pytest.raises(fv.FeatvisError, match="x is a training image"):
        klass.pair(seen, images[3])
    assert float(klass.bounds(seen, images[3]).error) == 0
    with pytest.raises(fv.FeatvisError, match="training image"):
        klass.bounds(theory.Extrema(images[0], seen.at_max), images[1])
    with pytest.raises(fv.FeatvisError, match="outside of"):
        theory.Minimizers(images, torch.ones(30))


# ---------------------------------------------------------------- what is no member is recognized


@pytest.mark.parametrize(
    ("klass", "f", "words"),
    [
        (theory.ReluNetworks(), made.Along(torch.zeros(2).double(), torch.ones(2).double()), "no torch module"),
        (theory.PiecewiseAffine(), lambda y: y.mean(1) ** 2, "is bent on"),
        (theory.Monotone(), lambda y: (y.mean(1) + 0.2 * torch.sin(6.2832 * y[:, 0])).clamp(0, 1), "falls by"),
        (theory.Convex(), lambda y: y.mean(1).sqrt(), "above the line"),
        (theory.AffineOnBox(), lambda y: y.mean(1) ** 2, "off the line"),
        (theory.Lipschitz(1.0), lambda y: y.mean(1) ** 3, "slope of"),
        (theory.Anything(), lambda y: 1.5 * y.mean(1).clamp(max=0.9) * (y != 1).any(1) + (y == 1).all(1), "beyond"),
        (theory.Anything(), lambda y: y.mean(1) * 0.9, "where 1 is seen"),
        (theory.Anything(), lambda y: torch.where(y[:, 0] > 0.7, torch.nan, y.mean(1)), "seen|not finite"),
    ],
)
def test_a_function_outside_of_the_class_is_named(klass, f, words):
    seen = theory.Extrema(torch.zeros(2, dtype=torch.double), torch.ones(2, dtype=torch.double))
    with pytest.raises(fv.FeatvisError, match=words):
        klass.check(f, seen)


def test_a_network_must_be_continuous_and_straight():
    class Step(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return torch.where(y[:, 0] > 0.5, 0.75, 0.25) + 0.25 * (y[:, 0] - 0.5).round()

    class Square(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y[:, 0] ** 2

    for module, words in ((Step(), "jumps"), (Square(), "bent")):
        assert words in theory.ReluNetworks().violation(module, _seen_of(module))


def test_networks_are_checked_as_users_have_them():
    """Outputs (n, 1), single precision, and as many coordinates as an image."""
    klass = theory.ReluNetworks()
    f, seen = klass.sample(3, 0)
    assert klass.violation(f.dense(), seen) == ""
    pixels = 27_648
    pair = klass.pair(klass.sample(pixels, 0)[1], torch.full((pixels,), 0.4, dtype=torch.double))
    assert klass.violation(pair.low, pair.seen, near=pair.x, n=60) == ""
    single = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    weights = {"0.weight": [[1.0], [1.0]], "0.bias": [0.0, -0.5], "2.weight": [[0.4, 1.2]], "2.bias": [0.0]}
    single.load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
    ends = theory.Extrema(torch.zeros(1, dtype=torch.double), torch.ones(1, dtype=torch.double))
    assert klass.violation(single, ends) == ""
    with torch.no_grad():
        single[2].bias += 1e-4
    assert re.search(r"f is (0|1)\.0001\d* where (0|1) is seen", klass.violation(single, ends))
    with pytest.raises(fv.FeatvisError, match=r"shape \(800, 2\) for 800 points; it must give 1 each"):
        klass.violation(
            nn.Linear(1, 2).double(), dataclasses.replace(ends, points=ends.at_max[None] / 2, values=HALF[:1])
        )


def _seen_of(module: nn.Module) -> theory.Extrema:
    low, high = torch.zeros(1, dtype=torch.double), torch.ones(1, dtype=torch.double)
    return theory.Extrema(low, high, float(module(low[None])), float(module(high[None])))


def test_rows_reject_another_slope_and_labels_that_are_missed():
    klass, steep = theory.Lipschitz(2.0), theory.Lipschitz(6.0)
    f, seen = steep.sample(3, 1)
    assert steep.violation(f, seen) == ""
    if theory.least_slope(seen) <= 2:
        assert "slope of" in klass.violation(steep.extremal(seen)[0], seen)
    images = torch.rand(5, 3, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    risk = theory.Minimizers(images, torch.full((5,), 0.3))
    other, seen = theory.ReluNetworks().sample(3, 2)
    assert "misses a training label" in risk.violation(other, seen)


# ---------------------------------------------------------------- bad input is one sentence


CORNERS = theory.Extrema(torch.zeros(2, dtype=torch.double), torch.ones(2, dtype=torch.double))
HALF = torch.full((2,), 0.5, dtype=torch.double)


def _more(x: Tensor, value: float) -> theory.Extrema:
    return dataclasses.replace(CORNERS, points=x[None], values=torch.tensor([value], dtype=torch.double))


@pytest.mark.parametrize(
    ("klass", "seen", "x", "words"),
    [
        (theory.Lipschitz(0.5), CORNERS, HALF, "takes at least 0.7071"),
        (theory.Anything(), CORNERS, HALF + 1, r"\(1.5, 1.5\) lies outside of \[0, 1\]\^2"),
        (theory.Anything(), CORNERS, torch.ones(3), "3 coordinates"),
        (theory.AffineOnBall(), CORNERS, HALF, r"lies outside of the ball"),
        (theory.Monotone(), theory.Extrema(HALF, CORNERS.at_max), HALF, "all zeros"),
        (theory.Convex(), theory.Extrema(CORNERS.at_min, HALF), HALF, "at a corner"),
        (theory.AffineOnBox(), theory.Extrema(HALF, CORNERS.at_max), HALF, "opposite corners"),
        (theory.AffineOnBox(), theory.Extrema(torch.zeros(1), torch.ones(1)), torch.ones(1), "2 dimensions"),
        (theory.AffineOnLine(), CORNERS, HALF, "1 dimension"),
        (theory.AffineOnLine(), theory.Extrema(torch.zeros(1), torch.ones(1) / 2), torch.ones(1), "at the ends"),
        (theory.AffineOnBall(), theory.Extrema(HALF, HALF + 0.1), HALF, "on the surface"),
        (
            theory.AffineOnBall(),
            theory.Extrema(HALF - torch.tensor([0.5, 0]), HALF + torch.tensor([0, 0.5])),
            HALF,
            "opposite to each other",
        ),
        (theory.ConstantFunctions(), CORNERS, HALF, "has one value"),
        (theory.Anything(), dataclasses.replace(CORNERS, high=2.0), HALF, "scale the function"),
        (theory.Anything(), theory.Extrema(HALF, HALF), HALF, "same point"),
        (theory.Monotone(), dataclasses.replace(CORNERS, points=HALF[None], values=torch.ones(1)), HALF, "further"),
        (theory.Anything(), CORNERS, CORNERS.at_max, "one of the pictures"),
        (theory.Anything(), CORNERS, torch.stack([HALF, HALF]), "2 points were given"),
        (theory.MorePictures(1), _more(HALF, 1.5), HALF / 2, "1.5, which does not lie between"),
        (theory.MorePictures(1), _more(HALF, float("nan")), HALF / 2, "nan, which does not lie between"),
        (theory.MorePictures(1), _more(CORNERS.at_max, 0.5), HALF, "at the same point have different values"),
        (theory.MorePictures(1), _more(CORNERS.at_max, 1.0), HALF, "the same picture was given more than once"),
        (theory.Minimizers(torch.rand(2, 3), torch.full((2,), 0.5)), CORNERS, HALF, "have 3 numbers, the extrema 2"),
    ],
)
def test_what_cannot_be_is_one_sentence(klass, seen, x, words):
    with pytest.raises(fv.FeatvisError, match=words) as caught:
        klass.pair(seen, x)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_class_without_members_cannot_be_made():
    for slope in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(fv.FeatvisError, match="a finite number above 0"):
            theory.Lipschitz(slope)
    with pytest.raises(fv.FeatvisError, match="3 training images and 2 labels"):
        theory.Minimizers(torch.rand(3, 4), torch.full((2,), 0.5))
    with pytest.raises(fv.FeatvisError, match="two training images are the same"):
        theory.Minimizers(torch.ones(2, 4), torch.full((2,), 0.5))
    with pytest.raises(fv.FeatvisError, match="outside of"):
        theory.Minimizers(torch.rand(2, 4), torch.tensor([0.5, torch.nan]))
    with pytest.raises(fv.FeatvisError, match="m=-1"):
        theory.MorePictures(-1)
    with pytest.raises(fv.FeatvisError, match=r"shapes \(2,\) and \(3,\)"):
        theory.Extrema(torch.zeros(2), torch.ones(3))
    with pytest.raises(fv.FeatvisError, match=r"shape \(2, 2\) were given with 1 values"):
        theory.Extrema(torch.zeros(2), torch.ones(2), points=torch.rand(2, 2), values=torch.ones(1))


HOPELESS = {"D1": theory.Anything(), "D4": theory.PiecewiseAffine(), "D3": theory.Minimizers}


@pytest.mark.parametrize("klass", HOPELESS.values(), ids=HOPELESS.keys())
def test_more_pictures_change_nothing_for_the_other_hopeless_classes_either(klass):
    generator = torch.Generator().manual_seed(6)
    if klass is theory.Minimizers:
        klass = theory.Minimizers(torch.rand(5, 3, dtype=torch.double, generator=generator), torch.full((5,), 0.3))
    _, seen = klass.sample(3, 1)
    points = torch.rand(6, 3, dtype=torch.double, generator=generator)
    more = dataclasses.replace(seen, points=points, values=torch.linspace(0.1, 0.9, 6, dtype=torch.double))
    x = point(klass, 3, 2)
    pair = klass.pair(more, x, 0.02)
    assert pair.gap == pytest.approx(0.98)
    for member in (pair.low, pair.high):
        assert klass.violation(member, more, near=x) == ""
        assert torch.allclose(member(points), more.values)


def test_a_slope_that_leads_nowhere_has_no_members():
    with pytest.raises(fv.FeatvisError, match="takes at least 1"):
        theory.Lipschitz(0.9).sample(1, 0)
    f, seen = theory.Lipschitz(1.0).sample(1, 0)
    assert sorted([float(seen.at_min), float(seen.at_max)]) == [0, 1]
    assert theory.Lipschitz(1.0).violation(f, seen) == ""


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1])
def test_a_margin_lies_between_0_and_1(margin):
    with pytest.raises(fv.FeatvisError, match="between 0 and 1"):
        theory.Anything().pair(CORNERS, HALF, margin)


def test_certificates_say_in_words_what_is_sure():
    klass = theory.Lipschitz(1.0)
    found = klass.bounds(CORNERS, torch.tensor([0.8, 0.8]))
    assert found.sentence() == (
        "f(x) lies between 0.717 and 1: no guess is sure to be closer than 0.141; surely nearer to the maximum."
    )
    assert klass.bounds(CORNERS, CORNERS.at_min).sentence() == "f(x) is exactly 0."
    with pytest.raises(fv.FeatvisError, match="about 2 points"):
        klass.bounds(CORNERS, torch.rand(2, 2)).sentence()
    assert as_points(HALF, theory.Box(2)).shape == (1, 2)


# ---------------------------------------------------------------- both tables


def test_the_table_is_what_the_statements_say():
    frame = worst_case(classes(3, slopes=(2.0, 20.0)), 3, points=1000, members=2).set_index("row")
    gentle = worst_case([theory.Lipschitz(0.75)], 2).iloc[0]  # a small slope leaves little open, but no side is sure
    assert (gentle["exact"], gentle["within"], gentle["nearer"]) == (False, True, False)
    yes = frame[frame["exact"]]
    assert set(yes.index) == {"D9", "D10", "D11"}
    assert yes[["within", "nearer"]].all(axis=None)
    assert (yes["gap"] == 0).all()
    assert (yes["decided"] == 1).all()
    no = frame[~frame["exact"]]
    assert not no[["within", "nearer"]].any(axis=None)
    assert (no["gap"] > 0.9).all()
    assert set(frame.index) == {f"D{i}" for i in range(1, 13)}
    decided = frame["decided"].to_dict()
    assert [decided[row] for row in ("D1", "D2", "D3", "D4", "D5", "D12")] == [0] * 6
    assert decided["D6"] == pytest.approx(1 / 8, abs=0.04)
    assert decided["D7"] == pytest.approx(2 / 8, abs=0.05)
    steep = frame.loc["D8", "decided"].to_list()
    assert steep[0] > 3 * steep[1]


def test_the_check_counts_members_extrema_and_gaps():
    frame = verified(classes(3), 3, trials=2)
    assert set(frame["members"]) == {"4 of 4"}
    assert (frame[["extrema", "gap"]] < 1e-9).all(axis=None)

    class Wrong(theory.ReluNetworks):
        def _pair(self, seen, x, low, high):
            return super()._pair(seen, x, low, high)[0], made.Constant(0.5)

    (row,) = verified([Wrong()], 3, trials=2).to_dict("records")
    assert row["members"] == "2 of 4"
    assert row["extrema"] == 0.5
    assert row["gap"] > 0.4


def test_on_average_the_bump_vanishes_and_the_plateau_does_not():
    images = small_images(102)
    natural = torch.cat([batch for batch, _, _ in images.batches(64)]).flatten(1)
    groups = [images[i][2].split("/")[0] for i in range(len(images))]
    low, high = torch.rand(2, natural.shape[1], generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    train = torch.rand(6, natural.shape[1], dtype=torch.double, generator=torch.Generator().manual_seed(1))
    frame = average_case(seen_by((low, high), train, (1.0, 3.0)), natural, groups).set_index("row")
    bumps = frame.loc[["D1", "D2", "D3", "D4"]]
    assert (bumps["one"] < 0.02).all()
    assert bumps.loc["D1", "all"] == pytest.approx(0.475)  # half of what a margin of 0.05 leaves
    assert (bumps["all"] > 0.4).all()
    assert (bumps["worst"] == 0.5).all()
    assert frame.loc["D5", "all"] > 0.3
    assert frame.loc["D11", ["worst", "one", "all"]].abs().max() < 1e-9
    alone = average_case(seen_by((low, high), train, (1.0, 3.0)), natural, range(len(groups))).set_index("row")
    assert alone.loc["D7", "all"] == pytest.approx(frame.loc["D7", "all"], rel=0.2)
    widths = [f.loc["D7", "all_high"] - f.loc["D7", "all_low"] for f in (frame, alone)]
    assert widths[0] > 1.3 * widths[1]  # crops of a photograph are alike: it is the photographs that are drawn
    gentle, steep = frame.loc["D8", "all"]
    assert gentle < steep
    assert (frame["all_low"] <= frame["all"]).all()
    assert (frame["all"] <= frame["all_high"]).all()
    assert (frame["all"] <= frame["worst"] + 1e-9).all()
    assert np.isfinite(frame.drop(columns="class").to_numpy(float)).all()


@pytest.mark.parametrize("order", [1, 2, float("inf")])
def test_hats_fill_the_space_between_their_centres_and_no_more(order):
    """Wider ones could overlap and lift a member above its maximum; narrower ones would be right, but not the claim."""
    centres = torch.rand(6, 3, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    nearest = min(float(torch.linalg.vector_norm(a - b, order)) for i, a in enumerate(centres) for b in centres[:i])
    assert 2 * made.spacing(centres, order) == pytest.approx(nearest)
    for klass in (theory.ReluNetworks(), theory.PiecewiseAffine()):
        hats = klass._made(centres, torch.rand(6, dtype=torch.double))
        assert 0.9 < hats.radius / made.spacing(centres, klass.order) < 1


def test_a_convex_spread_leaves_natural_points_to_the_gauge():
    klass, domain = theory.Convex(), theory.Convex().domain(4)
    _, seen = klass.sample(4, seed=3)
    natural = domain.draw(60, torch.Generator().manual_seed(5))[:30]
    low, high = klass.spread(seen, torch.cat([natural, seen.at_max[None]]), margin=0.2)
    assert at(low, seen.at_max) == at(high, seen.at_max) == 1
    gauge = made.Gauge(seen.at_min)(natural)
    torch.testing.assert_close(low(natural), 0.1 * gauge)
    torch.testing.assert_close(high(natural), 0.9 * gauge)


@pytest.mark.parametrize("row", ROWS)
def test_those_who_settle_before_the_point_is_drawn_are_members_too(row: str):
    (klass,) = [found for found in hopeless(5) if found.row == row]
    _, seen = klass.sample(5, seed=2)
    natural = klass.domain(5).draw(40, torch.Generator().manual_seed(8))[:20]
    knots, values = seen.knots
    for margin in (0.05, 0.3):
        for member in klass.spread(seen, natural, margin):
            assert klass.violation(member, seen, near=natural[0], seed=1) == ""
            assert torch.allclose(member(knots), values, atol=1e-12, rtol=0)
            others = natural[(natural[:, None] != knots).any(2).all(1)]
            assert (member(others) > 0).all()
            assert (member(others) < 1).all()


def test_what_the_settled_adversary_wins():
    """Each pair against what its class leaves open on these points."""
    natural = 0.2 + 0.6 * torch.rand(50, 4, dtype=torch.double, generator=torch.Generator().manual_seed(4))
    for klass in (theory.Anything(), theory.ReluNetworks(), theory.PiecewiseAffine()):
        low, high = klass.spread(klass.sample(4, 0)[1], natural, margin=0.2)
        assert float((high(natural) - low(natural)).median()) == pytest.approx(0.8)
    low, high = theory.Monotone().spread(theory.Monotone().sample(4, 0)[1], natural, margin=0.2)
    assert float(low(natural).max()) == pytest.approx(0.1)
    assert float(high(natural).min()) == pytest.approx(0.9)
    slow = theory.Lipschitz(1.5)
    _, seen = slow.sample(4, 0)
    low, high = slow.spread(seen, natural, margin=0.2)
    torch.testing.assert_close(high(natural) - low(natural), 0.8 * slow.bounds(seen, natural).width)
    corner = torch.zeros(4, dtype=torch.double)
    low, high = theory.AffineOnBox().spread(theory.Extrema(corner, 1 - corner), natural, margin=0.2)
    best = max(float((natural[:, i] - natural[:, j]).abs().mean()) for i in range(4) for j in range(4))
    assert float((high(natural) - low(natural)).abs().mean()) == pytest.approx(0.9 * best)


def test_certain_within_epsilon_is_half_of_the_width():
    found = theory.Certificate(torch.tensor([0.2]), torch.tensor([0.8]))
    assert [bool(found.within(epsilon)) for epsilon in (0.29, 0.31)] == [False, True]
    assert float(found.error) == pytest.approx(0.3)


def test_a_slope_is_kept_to_one_percent():
    klass = theory.Lipschitz(1.2)
    corners = theory.Extrema(torch.zeros(2, dtype=torch.double), torch.ones(2, dtype=torch.double))
    for slope, words in ((1.19, ""), (1.21, "slope of 1.21 between two points; 1.2 is allowed")):
        steep = made.Envelope(*corners.knots, slope, 0)
        assert words in klass.violation(steep, corners)
        assert bool(klass.violation(steep, corners)) == bool(words)


def test_the_interval_of_an_average_is_its_bootstrap():
    means = np.arange(20.0)
    low, middle, high = _interval(means)
    error = means.std() / np.sqrt(20)
    assert middle == means.mean()
    assert (low, high) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.25 * error)
