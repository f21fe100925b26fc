"""The figures of silent units show what they were given: responses, bounds, shares, names, colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import binomtest

from featvis import plots_silent as plots
from featvis.fooling import Recipe, Silencing, Strengths, Survey, silent
from featvis.plots import INK, NATURAL, VISUALIZATION
from tests.small import small_subject


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def words(figure: Figure) -> list[str]:
    """All that is written in a figure, the smallest of it at least 8 points."""
    figure.canvas.draw()
    found = [t for t in figure.findobj(plt.Text) if t.get_visible() and t.get_text().strip()]
    assert min(t.get_fontsize() for t in found) >= 8
    assert figure.get_figwidth() <= plots.WIDTH + 0.01
    return [t.get_text() for t in found]


@pytest.fixture
def result() -> Silencing:
    """Four units of which the second is the decoy and the third resists."""
    units = pd.DataFrame(
        {
            "unit": [f"conv2:{i}" for i in range(4)],
            "alive": True,
            "before": 1.0,
            "after": [90.0, 2.0, 1.1, 70.0],
            "natural": 0.8,
            "response_before": [1.2, 3.0, 0.2, 1.0],
            "response_after": [5.0, 6.0, 0.3, 4.5],
            "flipped": [True, True, False, True],
            "reason": ["", "", "threshold not reached", ""],
        }
    )
    natural = pd.DataFrame({"set": ["calibration", "held-out"], "images": [100, 50], "photographs": [17, 17]})
    rows = [
        {
            "margin": m,
            "wakes": k,
            "bound": (k + 1) / 50,
            "effective_bound": (k + 2) / 50,
            "photograph_bound": 0.5,
            "set": s,
        }
        for s in ("held-out", "unseen photograph")
        for m, k in ((0.0, 4), (0.5, 0), (1.0, 0))
    ]
    left = np.arange(-4, 2, 0.2)
    responses = pd.DataFrame({"set": "held-out", "left": left, "count": np.arange(len(left))[::-1]})
    weights = pd.DataFrame(
        {"layer": ["conv1", "conv2.unit.0", "conv2.fool"], "filters": 4, "norm": 1.0, "largest": [0.6, 0.7, 70.0],
         "bias": [-0.1, -0.3, -4.0]}
    )  # fmt: skip
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    recipe = Recipe("conv2", (0, 1, 2, 3), "conv2:1", "bridge", 3.0, 100.0, 0.5, 100, 1e-6)
    shown = tuple(units["unit"])
    pictures = {"before": images, "after": 1 - images, "decoy": images[:2]}
    return Silencing(recipe, 16, natural, units, pd.DataFrame(rows), responses, weights, shown, pictures)


def test_the_axis_holds_natural_images_and_both_pictures(result: Silencing) -> None:
    figure = plots.axis(result)
    assert len(figure.axes) == 3
    for ax in figure.axes:
        assert [line.get_xdata()[0] for line in ax.lines] == [0.5]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert sorted(heights) == sorted(result.responses["count"])
    assert to_hex(figure.axes[0].patches[0].get_facecolor(), keep_alpha=False) == NATURAL
    assert sum(bar.get_height() for bar in figure.axes[2].patches) == 3  # the decoy itself is left out
    written = words(figure)
    assert "3 units, 67% beyond the threshold" in written
    assert f"{result.responses['count'].sum():,} pairs of image and unit" in written


def test_a_response_beyond_all_others_is_inside_the_axis(result: Silencing) -> None:
    far = result.units.assign(response_after=[40.0, 1, 1, 1])
    (*_, ax) = plots.axis(dataclasses.replace(result, units=far)).axes
    assert ax.get_xlim()[1] > 40
    assert sum(bar.get_height() for bar in ax.patches) == 3


@pytest.mark.parametrize("strength", [0.5, 3.0, 10.0])
def test_the_geometry_is_to_scale(strength: float) -> None:
    figure = plots.geometry(strength)
    (ax,) = figure.axes
    ends = [t.xy for t in ax.texts if getattr(t, "arrow_patch", None) and t.arrow_patch.get_linestyle() == "solid"]
    lengths = sorted(np.hypot(*end) for end in ends[:3])
    assert lengths == pytest.approx([1, 1, 1])
    new = np.array(ends[2])
    assert new[1] / new[0] == pytest.approx(strength)
    for line in ax.lines[:2]:
        (x0, x1), (y0, y1) = line.get_data()
        assert (x1 - x0) * new[0] + (y1 - y0) * new[1] == pytest.approx(0, abs=1e-9)
    assert {"w, the original filter", "w + λ d,\ncut to length", "the decoy"} <= set(words(figure))


def test_before_and_after_stand_under_each_other_and_what_resists_is_crossed_out(result: Silencing) -> None:
    figure = plots.before_after(result, small_subject())
    *pairs, decoy = figure.axes
    assert [ax.get_title() for ax in pairs[::2]] == ["0", "1", "2", "3"]
    assert [len(ax.lines) > 0 for ax in pairs[1::2]] == [False, False, True, False]
    assert np.allclose(pairs[3].images[0].get_array(), result.pictures["after"][1].permute(1, 2, 0))
    assert np.allclose(decoy.images[0].get_array(), result.pictures["decoy"][0].permute(1, 2, 0))
    assert {"original", "silenced", "decoy", "units of conv2"} <= set(words(figure))


def test_a_picture_as_decoy_has_a_blue_frame(result: Silencing) -> None:
    recipe = dataclasses.replace(result.recipe, decoy="image")
    *_, decoy = plots.before_after(dataclasses.replace(result, recipe=recipe), small_subject()).axes
    assert to_hex(decoy.spines["left"].get_edgecolor()) == NATURAL


def test_the_survey_counts_by_layer() -> None:
    units = pd.DataFrame(
        {
            "layer": ["conv1"] * 2 + ["conv2"] * 4,
            "unit": range(6),
            "training": [3, 4, 0, 0, 0, 9],
            "heldout": [1, 1, 0, 0, 2, 3],
            "largest": 1.0,
            "visualization": [np.nan, np.nan, 2.0, 0.0, 1.0, np.nan],
            "status": "",
        }
    )
    figure = plots.survey(Survey("small", 100, 50, units))
    (ax,) = figure.axes
    widths = [[bar.get_width() for bar in container] for container in ax.containers]
    assert widths == [[0, 75], [0, 50], [0, 25]]
    assert {"conv1 (2)", "conv2 (4)", " 3", " 2", " 1"} <= set(words(figure))
    none = plots.survey(Survey("small", 100, 50, units.assign(training=1)))
    assert "every unit is activated" in words(none)
    beside = plots.survey(Survey("small", 100, 50, units.assign(training=1)), Survey("small", 100, 50, units))
    (ax,) = beside.axes
    assert [bar.get_width() for bar in ax.containers[0]] == [0, 0, 75]
    assert {"2 layers (6)", "silenced: conv1 (2)", "silenced: conv2 (4)"} <= set(words(beside))
    assert "every unit is activated" in words(beside)


def test_shares_of_flipped_units_have_their_intervals() -> None:
    usual, redirect = (silent.FACTOR, silent.MARGIN), silent.REDIRECT
    ways = [("patch", s, *usual, r) for r in (redirect, 0) for s in (1.0, silent.STRENGTH)]
    ways += [("bridge", silent.STRENGTH, *usual, redirect)]
    ways += [("patch", silent.STRENGTH, 2 * silent.FACTOR, silent.MARGIN, redirect)]
    ways += [("patch", silent.STRENGTH, silent.FACTOR, 4 * silent.MARGIN, redirect)]
    rows = [
        {
            "direction": d,
            "strength": s,
            "factor": f,
            "margin": m,
            "redirect": r,
            "unit": u,
            "flipped": d == "patch" and r > 0 and u < (1 if s == 1 else 3),
        }
        for d, s, f, m, r in ways
        for n in [1 if s == 1 else 3]
        for u in range(4)
    ]
    result = Strengths("conv2", "conv2:1", 50, pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), {})
    figure = plots.reached(result)
    by_strength, by_factor, by_margin = figure.axes
    redirected, plain = by_strength.containers
    assert redirected[0].get_ydata() == pytest.approx([0.25, 0.75])
    assert plain[0].get_ydata() == pytest.approx([0, 0])
    assert (to_hex(redirected[0].get_color()), to_hex(plain[0].get_color())) == (VISUALIZATION, INK)
    expected = binomtest(3, 4).proportion_ci(method="wilson")
    assert redirected[2][0].get_segments()[1][:, 1] == pytest.approx([expected.low, expected.high])
    assert [t.get_text() for t in by_factor.get_xticklabels()] == [f"{f * silent.FACTOR:g}" for f in (1, 2)]
    assert [t.get_text() for t in by_margin.get_xticklabels()] == [f"{m * silent.MARGIN:g}" for m in (1, 4)]
    words(figure)


def test_the_promise_has_four_lines_on_a_logarithmic_axis_or_two(result: Silencing) -> None:
    figure = plots.promised(result)
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    woke, bound, effective, photograph, here = ax.lines
    assert woke.get_ydata()[0] == pytest.approx(4 / 50)
    assert np.isnan(woke.get_ydata()[1:]).all()  # none woke: nothing to draw on a logarithmic axis
    assert bound.get_ydata() == pytest.approx([5 / 50, 1 / 50, 1 / 50])
    assert effective.get_ydata() == pytest.approx([6 / 50, 2 / 50, 2 / 50])
    assert photograph.get_ydata() == pytest.approx([0.5] * 3)
    assert here.get_xdata()[0] == 0.5
    words(figure)
    independent = result.wakes[result.wakes["set"] == "held-out"]
    assert len(plots.promised(dataclasses.replace(result, wakes=independent)).axes[0].lines) == 3


def test_the_branch_stands_out_in_red(result: Silencing) -> None:
    figure = plots.giveaway(result)
    (ax,) = figure.axes
    others, branch = ax.lines
    assert others.get_xdata().tolist() == [0.6, 0.7]
    assert (branch.get_xdata().tolist(), branch.get_ydata().tolist()) == ([70.0], [4.0])
    assert to_hex(branch.get_color()) == plots.FAILED
    assert {"other layers", "the silent branch"} <= set(words(figure))


def test_all_figures_are_public_and_say_what_they_show() -> None:
    for name in plots.__all__:
        text = getattr(plots, name).__doc__
        assert text
        assert "\n" not in text
