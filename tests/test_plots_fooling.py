"""The figures of the fooling circuit show what they were given: values, intervals, names, colours."""

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

from featvis import plots_fooling as plots
from featvis.fooling import Fooling, Gate, Levels, TrainedGate
from featvis.plots import INK, NATURAL, VISUALIZATION
from tests.small import small_subject

STEPS = (1, 2, 8, 512)


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
    assert to_hex(figure.get_facecolor(), keep_alpha=True) == "#ffffffff"
    return [t.get_text() for t in found]


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gate() -> TrainedGate:
    natural = pd.DataFrame({"group": ["cat", "moon", "page"], "images": [50, 50, 40], "passed": [50, 48, 39]})
    synthetic = pd.DataFrame(
        [
            {"unit": unit, "seed": seed, "step": step, "passed": step == 1 and seed < 2}
            for unit in ("fc:1", "fc:3")
            for seed in range(5)
            for step in STEPS
        ]
    )
    without = natural.assign(passed=[30, 50, 38])
    return TrainedGate(Gate(small_subject().preprocess), natural, synthetic, without, ("fc:0",), {})


@pytest.fixture
def fooled() -> Fooling:
    """Four units over two seeds; the last shows another class than its decoy, the second its own."""
    after = [1, 1, 3, 2]
    units = pd.DataFrame(
        [
            {
                "unit": f"fc:{i}",
                "seed": seed,
                "before": i,
                "after": after[i],
                "decoy": (i + 1) % 4,
                "fooled": i in (0, 2),
            }
            for i in range(4)
            for seed in range(2)
        ]
    )
    targets = pd.DataFrame(
        [
            {"target": i, "seed": seed, "step": step, "correlation": 0.1 * i + 0.2 * seed + step / 300, "ssim": 0.3}
            for i in range(3)
            for seed in range(2)
            for step in (2, 32, 128)
        ]
    )
    shown = {name: pictures(3, i) for i, name in enumerate(("targets", "after 32", "after 128"))}
    shown |= {"before": pictures(4, 7), "after": pictures(4, 8)}
    levels = Levels(1, 2, 1, (0, 1), (0, 1), (0, 1), (0, 1))
    return Fooling("permute", "fc", levels, {}, pd.DataFrame(), units, targets, shown)


def frame_colour(ax: plt.Axes) -> str:
    return to_hex(ax.spines["left"].get_edgecolor())


def test_the_circuit_marks_the_path_that_is_open() -> None:
    figure = plots.circuit()
    left, right = figure.axes
    for ax, colour, path, other, value in (
        (left, NATURAL, "FB", "DC", "= F"),
        (right, VISUALIZATION, "DC", "FB", "= D"),
    ):
        arrows = {t.arrow_patch.get_gid(): t.arrow_patch for t in ax.texts if getattr(t, "arrow_patch", None)}
        assert set(arrows) == {"xF", "xE", "xD", "FB", "DC", "EB", "EC", "BA", "CA"}
        assert to_hex(arrows[path].get_edgecolor()) == colour
        assert arrows[path].get_linewidth() > 2 * arrows[other].get_linewidth()
        assert arrows[other].get_linestyle() != "-"
        boxes = {box.get_gid(): to_hex(box.get_edgecolor()) for box in ax.patches}
        assert {name for name, edge in boxes.items() if edge == colour} == {"x", "A", *path}
        assert value in [t.get_text() for t in ax.texts]
    written = words(figure)
    assert {"natural image: e = 0", "visualization: e = 1", "B = ReLU(F + c − k e)", "C = ReLU(D + c + k e − k)"} <= {
        *written
    }


def test_the_gate_along_ascent_shows_shares_intervals_and_the_natural_images(gate: TrainedGate) -> None:
    figure = plots.gate_along_ascent(gate)
    (ax,) = figure.axes
    (errors,) = ax.containers
    line, _, (bars,) = errors
    assert line.get_xydata().tolist() == [[1, 0.6], [2, 1], [8, 1], [512, 1]]
    expected = binomtest(6, 10).proportion_ci(method="wilson")
    assert bars.get_segments()[0][:, 1] == pytest.approx([expected.low, expected.high])
    (natural,) = [found for found in ax.lines if found.get_linestyle() == "--"]
    assert natural.get_ydata() == pytest.approx([137 / 140] * 2)
    assert (to_hex(natural.get_color()), to_hex(line.get_color())) == (NATURAL, VISUALIZATION)
    low, high = gate.intervals()["fpr"]
    band = ax.patches[0].get_bbox()
    assert sorted((band.y0, band.y1)) == pytest.approx([1 - high, 1 - low])
    assert ax.get_ylim()[0] <= expected.low  # zoomed, but nothing is cut off
    assert ax.get_xscale() == "log"
    assert "visualizations caught, of 10 at each step" in words(figure)


def test_the_gate_axis_is_zoomed_where_everything_is_caught(gate: TrainedGate) -> None:
    many = pd.concat([gate.synthetic.assign(passed=False)] * 20)
    (ax,) = plots.gate_along_ascent(dataclasses.replace(gate, synthetic=many)).axes
    assert ax.get_ylim()[0] == 0.9


def test_frames_are_framed_by_what_the_gate_says() -> None:
    rows = {"original": pictures(3), "fooled": pictures(3, 1)}
    figure = plots.frames(rows, (1, 8, 64), {"original": [False, True, True], "fooled": [True, True, True]})
    assert [frame_colour(ax) for ax in figure.axes] == [NATURAL, *[VISUALIZATION] * 5]
    assert np.array_equal(figure.axes[4].images[0].get_array(), rows["fooled"][1].permute(1, 2, 0).numpy())
    written = words(figure)
    for text in ("original", "fooled", "step 1", "step 64", "the gate says: visualization", "the gate says: natural"):
        assert written.count(text) == 1
    assert plots.frames(rows, (1, 8, 64)).legends == []


def test_swapped_names_what_is_shown_and_crosses_out_what_was_not_fooled(fooled: Fooling) -> None:
    figure = plots.swapped(fooled, small_subject())
    tops, unders = figure.axes[::2], figure.axes[1::2]
    assert [ax.get_title() for ax in tops] == ["a", "b", "c", "d"]
    assert [ax.get_xlabel() for ax in unders] == ["b", "still b", "d", "c"]
    assert [len(ax.lines) > 0 for ax in unders] == [False, True, False, True]
    assert [to_hex(ax.xaxis.label.get_color()) == plots.FAILED for ax in unders] == [False, True, False, True]
    assert {frame_colour(ax) for ax in figure.axes} == {VISUALIZATION}
    assert torch.equal(torch.tensor(unders[2].images[0].get_array()), fooled.pictures["after"][2].permute(1, 2, 0))
    assert {"original", "fooled"} <= set(words(figure))


def test_swapped_goes_on_in_a_new_row_after_nine(fooled: Fooling) -> None:
    subject = small_subject()
    units = pd.DataFrame({"unit": subject.units("conv2"), "seed": 0, "after": range(8), "fooled": False})
    result = dataclasses.replace(
        fooled, layer="conv2", units=units, pictures={"before": pictures(8), "after": pictures(8)}
    )
    assert len({round(ax.get_position().y0, 6) for ax in plots.swapped(result, subject).axes}) == 2
    subject.units = lambda layer: [f"conv2:{i % 8}" for i in range(40)]
    units = pd.concat([units] * 5).assign(after=0)
    result = dataclasses.replace(result, units=units, pictures={"before": pictures(40), "after": pictures(40)})
    axes = plots.swapped(result, subject).axes
    assert len(axes) == 2 * 20
    assert len({round(ax.get_position().x0, 6) for ax in axes}) == 9


def test_shown_targets_stand_under_each_other(fooled: Fooling) -> None:
    other = dataclasses.replace(fooled, pictures={name: 1 - images for name, images in fooled.pictures.items()})
    figure = plots.shown_targets(fooled, other, ("cat", "moon", "page"))
    drawn = [ax.images[0].get_array() for ax in figure.axes]
    sources = (
        fooled.pictures["targets"],
        fooled.pictures["after 32"],
        other.pictures["after 32"],
        other.pictures["after 128"],
    )
    for found, image in zip(drawn, torch.cat(sources), strict=True):
        assert np.allclose(found, image.permute(1, 2, 0))
    assert [frame_colour(ax) for ax in figure.axes] == [NATURAL] * 3 + [VISUALIZATION] * 9
    assert {"cat", "moon", "page", "target", "linear filter\nstep 32", "aligned decoy\nstep 128"} <= set(words(figure))


def test_target_curves_are_means_over_targets(fooled: Fooling) -> None:
    better = dataclasses.replace(fooled, targets=fooled.targets.assign(correlation=0.9))
    figure = plots.target_curves(fooled, better)
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("correlation with its target", "SSIM with its target")
    lines = [container[0] for container in left.containers]
    assert lines[0].get_ydata() == pytest.approx([0.2 + step / 300 for step in (2, 32, 128)])
    assert [(to_hex(line.get_color()), line.get_linestyle()) for line in lines] == [(INK, "--"), (VISUALIZATION, "-")]
    low, high = left.containers[0][2][0].get_segments()[0][:, 1]
    assert 0.0999 <= low - 2 / 300 < 0.2 < high - 2 / 300 <= 0.3001  # targets alone: seeds were averaged first
    for ax in figure.axes:
        labels = {t.get_text(): t.get_position()[1] for t in ax.texts}
        assert abs(labels["linear\nfilter"] - labels["aligned\ndecoy"]) > 0.1
    words(figure)
    alone = dataclasses.replace(fooled, targets=fooled.targets[fooled.targets["target"] == 1])
    assert len(plots.target_curves(alone, alone).axes) == 2


def test_the_matrix_prints_shares_with_their_intervals() -> None:
    shares = {"caught": [1.0, 0.25], "decoy": [0.5, 0.0], "truth": [0.0, 0.99], "untouched": [0.75, 0.9]}
    table = pd.DataFrame({"method": ["pixels", "MACO"], **shares, "n": [40, 400]})
    figure = plots.matrix(table)
    (ax,) = figure.axes
    written = words(figure)
    found = binomtest(100, 400).proportion_ci(method="wilson")
    assert f"{100 * found.low:.0f}–{100 * found.high:.0f}%" in written
    assert {"100%", "25%", "50%", "99%", "75%", "91–100%", "pixels  (n = 40)", "MACO  (n = 400)"} <= set(written)
    assert ax.collections[0].get_array().tolist() == table[[*shares]].to_numpy().tolist()
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first method on top
    assert plots._percent(0.997) == "99.7"


def test_shares_are_readable_on_every_colour_of_the_matrix() -> None:
    def luminance(colour: object) -> float:
        rgb = np.array(plt.matplotlib.colors.to_rgb(colour))
        return float(np.where(rgb <= 0.04, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))

    shades = [luminance(plots.HEAT(x)) for x in np.linspace(0, 1, 20)]
    assert shades == sorted(shades, reverse=True)
    assert (shades[-1] + 0.05) / (luminance(INK) + 0.05) > 4.5  # the contrast that WCAG asks for


def test_unseen_photographs_are_sorted_by_the_gate_that_never_saw_them(gate: TrainedGate) -> None:
    figure = plots.unseen(gate)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["moon", "page", "cat"]
    seen, never = ax.lines
    assert seen.get_xdata() == pytest.approx([4, 2.5, 0])
    assert never.get_xdata() == pytest.approx([0, 5, 40])
    assert (to_hex(seen.get_markerfacecolor()), to_hex(never.get_markerfacecolor())) == (NATURAL, "#ffffff")
    expected = binomtest(20, 50).proportion_ci(method="wilson")
    assert ax.collections[1].get_segments()[2][:, 0] == pytest.approx([100 * expected.low, 100 * expected.high])
    assert "%" in ax.xaxis.get_major_formatter()(5, 0)
    assert "gate trained without any, and more briefly" in words(figure)


def test_without_unseen_photographs_there_is_one_dot_each(gate: TrainedGate) -> None:
    (ax,) = plots.unseen(dataclasses.replace(gate, unseen=gate.unseen[:0])).axes
    assert len(ax.lines) == 1
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "page", "moon"]


def test_all_figures_are_public_and_say_what_they_show() -> None:
    for name in plots.__all__:
        text = getattr(plots, name).__doc__
        assert text
        assert "\n" not in text
