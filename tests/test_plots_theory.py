"""The figures of the chapter on extrema show what they were given."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from featvis import plots_theory as plots
from featvis import theory
from featvis.linearity import DECODERS, MEASURES, SOURCES, Linearity
from featvis.plots import INK, VISUALIZATION
from featvis.structured import Structured
from featvis.theory.tables import classes, worst_case
from featvis.theory.twins import Twins

SEEN = theory.Extrema(*torch.tensor([[0.2], [0.75]], dtype=torch.double))


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


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_pairs_show_two_functions_through_the_same_extrema() -> None:
    rows = [theory.ReluNetworks(), theory.Lipschitz(2.5), theory.Anything(), theory.PiecewiseAffine()]
    figure = plots.pairs(rows, [SEEN] * 4, [0.47] * 4)
    for klass, ax in zip(rows, figure.axes, strict=False):
        curves = [line for line in ax.lines if len(line.get_xdata()) > 100]
        assert [to_hex(line.get_color()) for line in curves] == [plots.ONE, plots.OTHER]
        pair = klass.pair(SEEN, torch.tensor([0.47]))
        dots = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
        assert dots[1] - dots[0] == pytest.approx(pair.gap)
        for line in curves:
            at = dict(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True))
            assert (at[0.2], at[0.75]) == (0, 1)
        marks = {line.get_marker(): line.get_xydata().tolist() for line in ax.lines if line.get_marker() in "v^"}
        assert marks == {"v": [[0.2, 0]], "^": [[0.75, 1]]}
        (possible,) = [c for c in ax.collections if c.get_gid() == "possible"]
        assert possible.get_datalim(ax.transData).height == pytest.approx(1)
    assert "D8: Lipschitz, slope 2.5" in words(figure)
    assert not figure.axes[4].axison


def test_pairs_of_two_variables_show_their_levels() -> None:
    box = theory.Extrema(*torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.double))
    ball = theory.Extrema(*torch.tensor([[0.2, 0.1], [0.8, 0.9]], dtype=torch.double))
    rows = [theory.AffineOnBox(), theory.AffineOnBall()]
    figure = plots.pairs(rows, [box, ball], [(0.8, 0.2)] * 2)
    width = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    assert width[0][20, 80] == pytest.approx(0.6)  # row is the second coordinate, column the first
    assert np.isnan(width[1][0, 0])
    assert np.nanmax(width[1]) == 0
    for klass, known, ax in zip(rows, (box, ball), figure.axes, strict=True):
        pair = klass.pair(known, torch.tensor([0.8, 0.2]))
        for levels, member in zip(
            (c for c in ax.collections if hasattr(c, "levels")), (pair.low, pair.high), strict=True
        ):
            for value, path in zip(levels.levels, levels.get_paths(), strict=True):
                points = torch.from_numpy(path.vertices)
                assert torch.allclose(member(points), torch.tensor(value), atol=0.02)
    assert "D11: affine on a Euclidean ball" in words(figure)


def test_certificates_shrink_with_the_slope() -> None:
    seen = theory.Extrema(*torch.tensor([[0.2, 0.3], [0.85, 0.7]], dtype=torch.double))
    figure = plots.certificates(seen, (1, 4))
    sides = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    shares = [(side != 0).mean() for side in sides]
    assert shares[0] > 4 * shares[1] > 0
    assert shares[2] == pytest.approx(0.25, abs=0.02)
    assert sides[0][60, 40] == -1  # row is the second coordinate, column the first
    assert sides[0][140, 170] == 1
    assert np.argwhere(sides[2] == 1).tolist() == [[200, 200]]  # the maximum itself
    assert {f"slope 1 × least\n{shares[0]:.0%} sure", f"convex\n{shares[2]:.0%} sure"} <= set(words(figure))


def test_the_table_has_a_verdict_for_every_class() -> None:
    frame = worst_case(classes(2), 2, points=300, members=1)
    figure = plots.table(frame)
    (ax,) = figure.axes
    boxes = [to_hex(box.get_facecolor()) for box in ax.patches]
    assert len(boxes) == 3 * len(frame)
    sure = int(frame[["exact", "within", "nearer"]].to_numpy().sum())
    assert boxes.count(plots.SURE) == sure == 3 * int(frame["exact"].sum()) + 1  # a gentle slope leaves little open
    written = words(figure)
    assert written.count("yes") == sure
    assert written.count("no") == 3 * len(frame) - sure
    assert set(frame["class"]) <= set(written)
    assert written.count("0.95") == len(frame) - 4
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_twins_stand_at_their_values_between_the_extrema() -> None:
    table = pd.DataFrame(
        {
            "network": ["original", "down", "up"],
            "at_x": [6.0, -9.0, 9.0],
            "at_max": [10.0] * 3,
            "at_min": [-10.0] * 3,
        }
    )
    shown = {"x": picture()} | {
        f"{end} {n}": picture(i) for i, n in enumerate(table["network"]) for end in ("max", "min")
    }
    found = Twins(table, {"label": "fc:1 cat", "x": "cat/1,2,3"}, shown)
    figure = plots.twins(found)
    dots = {to_hex(line.get_color()): line.get_xdata()[0] for line in figure.axes[-1].lines if line.get_marker() == "o"}
    assert dots == pytest.approx({INK: 0.8, plots.ONE: 0.05, plots.OTHER: 0.95})
    images = [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]
    for drawn, name in zip(images, ("x", "max down", "min down", "max up", "min up"), strict=True):
        assert np.allclose(drawn, shown[name].permute(1, 2, 0))
    assert {"activation of fc:1 cat at x, between its extrema", "x: cat"} <= set(words(figure))


def test_averages_show_three_errors_with_their_intervals() -> None:
    numbers = {"worst": 0.5, "one": 0.1, "one_low": 0.05, "one_high": 0.2, "all": 0.4, "all_low": 0.3, "all_high": 0.45}
    frame = pd.DataFrame([{"row": "D2", "class": "ReLU networks", **numbers}, {"row": "D5", "class": "x", **numbers}])
    (ax,) = plots.averages(frame).axes
    assert [line.get_xdata()[0] for line in ax.lines] == [0.5, 0.1, 0.4]
    spans = [c.get_segments()[0][:, 0].tolist() for c in ax.collections]
    assert spans == [[0.05, 0.2], [0.3, 0.45]]
    assert to_hex(ax.lines[2].get_color()) == VISUALIZATION
    assert {"D2 ReLU networks", "worst image"} <= set(words(ax.figure))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


@pytest.fixture
def structured() -> Structured:
    rows = [
        {
            "network": n,
            "domain": d,
            "seed": s,
            "unit": u,
            "accuracy": 0.5,
            "line": 0.1 * u + 0.2 * (d == "ball") + 0.1 * s,
        }
        for n in ("linear", "free")
        for d in ("box", "ball")
        for s in range(2)
        for u in range(5)
    ]
    scatter = pd.DataFrame(
        {"network": "linear", "domain": ["box"] * 3 + ["ball"] * 3, "actual": range(6), "predicted": 1.0}
    )
    shown = {f"linear {d}": torch.stack([picture(), picture(1)]) for d in ("box", "ball")}
    return Structured(pd.DataFrame(rows), scatter, shown)


def test_reading_shows_means_over_units_after_averaging_seeds(structured: Structured) -> None:
    (ax,) = plots.reading(structured).axes
    means = [c[0].get_ydata()[0] for c in ax.containers]
    assert means == pytest.approx([0.25, 0.45, 0.25, 0.45])
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert [len(line.get_ydata()) for line in dots] == [5] * 4
    assert [t.get_text() for t in ax.get_xticklabels()] == ["linear", "free"]
    words(ax.figure)


def test_a_linear_unit_is_shown_on_both_domains(structured: Structured) -> None:
    figure = plots.linear_unit(structured, "fc:1")
    both = [ax.lines for ax in figure.axes if ax.lines]
    assert [points.get_ydata().tolist() for _, points in both] == [[0, 1, 2], [3, 4, 5]]
    assert all(right.get_slope() == 1 and right.get_xy1()[0] == right.get_xy1()[1] for right, _ in both)
    assert "activation of fc:1" in words(figure)


def test_straightness_shows_all_units_and_the_correlation_in_each_layer() -> None:
    rng = np.random.default_rng(0)
    layers = np.repeat(["conv1", "fc"], 20)
    table = pd.DataFrame({"unit": [f"{name}:{i}" for i, name in enumerate(layers)], "layer": layers, "status": "ok"})
    for name in (*MEASURES, *(f"{s} {d}" for s in SOURCES for d in DECODERS)):
        table[name] = rng.random(40) + 5 * (layers == "fc")
    table["visualization look"] = np.where(layers == "fc", 1, -1) * table["bend"]
    table.loc[3, "status"] = "silent"
    figure = plots.straightness(Linearity(table), "bend", "visualization look")
    left, right = figure.axes
    raw = np.asarray(left.collections[0].get_offsets())
    assert len(raw) == 39
    assert raw[:, 0].max() > 5
    dots = next(c for c in right.collections if len(c.get_offsets()) == 2)
    assert np.asarray(dots.get_offsets()).tolist() == [[0, pytest.approx(-1)], [1, pytest.approx(1)]]
    assert [label.get_text() for label in right.get_xticklabels()] == ["conv1", "fc"]
    found = Linearity(table).correlations().set_index(["measure", "success"]).loc["bend", "visualization look"]
    assert right.lines[1].get_ydata()[0] == found["rho"]
    assert f"inside layers: ρ = {found['rho']:.2f} ({found['low']:.2f} to {found['high']:.2f})" in words(figure)


def test_all_figures_are_public_and_say_what_they_show() -> None:
    for name in plots.__all__:
        assert getattr(plots, name).__doc__
