"""The figures of path similarity show what they were given, and the data of its widget are of the images they name."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import featvis as fv
from featvis import plots_similarity as plots
from featvis.path_pairs import path_pairs
from featvis.path_result import PathSimilarity, quantiles
from featvis.plots import NATURAL, VISUALIZATION
from featvis.similarity import pairwise
from featvis.widgets import Paths
from tests.small import small_images, small_subject

LAYERS = ("conv1", "conv2", "block3", "block4", "block5", "fc")
KINDS = {"visualizations": "shown", "elsewhere": "natural", "noise": "damaged"}


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def result() -> PathSimilarity:
    rng = np.random.default_rng(0)
    classes, n, k, m = 5, len(LAYERS), 3, 2
    like = rng.normal(0.1, 0.02, (m, n, classes, classes)) + 0.5 * np.eye(classes)
    shown = np.stack([np.full((m, n, classes), v) for v in (0.2, 0.6, 0.1)], 1) + rng.normal(
        0, 0.05, (m, k, n, classes)
    )
    shown[:, 0, 4:] += 0.3
    counts, images = np.zeros((m, n, 2 + k), int), np.ones((classes, 2 + k), int)
    return PathSimilarity(
        "s", "n", "class", tuple("abcde"), ("spearman", "cosine"), LAYERS, tuple(KINDS), like,
        np.stack([like, like], 2), shown, shown * 0 + 0.1, np.zeros((m, n, classes)), counts, images,
    )  # fmt: skip


def words(figure: Figure) -> list[str]:
    """All that is written in a figure, the smallest of it at least 8 points."""
    figure.canvas.draw()
    found = [t for t in figure.findobj(plt.Text) if t.get_visible() and t.get_text().strip()]
    assert min(t.get_fontsize() for t in found) >= 8
    assert figure.get_figwidth() <= plots.WIDTH + 0.01
    assert to_hex(figure.get_facecolor(), keep_alpha=True) == "#ffffffff"
    return [t.get_text() for t in found]


def test_the_main_figure_has_three_curves_and_their_ratio(result):
    figure = plots.paths(result)
    said = words(figure)
    assert {"natural, same class", "visualizations, same class", "natural, different classes"} <= set(said)
    assert set(LAYERS) <= set(said)
    above, below = figure.axes
    curves = {line.get_label(): line.get_ydata() for line in above.lines}
    frame = result.frame().query("metric == 'spearman' and series == 'visualizations'")
    np.testing.assert_allclose(curves["natural, same class"], frame["nat_same"])
    np.testing.assert_allclose(curves["visualizations, same class"], frame["fv_same"])
    np.testing.assert_allclose(curves["natural, different classes"], frame["nat_different"])
    (curve,) = (line for line in below.lines if line.get_label() == "visualizations")
    np.testing.assert_allclose(curve.get_ydata(), frame["normalized"])
    assert curve.get_color() == VISUALIZATION
    band = below.collections[0].get_paths()[0].vertices
    low, high = quantiles(result.draws())
    assert band[:, 1].min() == pytest.approx(low.min())
    assert band[:, 1].max() == pytest.approx(high.max())
    (end,) = (line for line in below.lines if line.get_linestyle() == ":")
    assert end.get_xdata()[0] == 3.5  # four of six layers are two thirds


def test_other_metrics_and_halves_have_their_own_curves(result):
    figure = plots.metrics(result)
    words(figure)
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(curves["cosine"], result.draws(metric="cosine")[0])
    assert not np.allclose(curves["cosine"], curves["Spearman's ρ"])
    figure = plots.diagnostics(result)
    assert {"halves of the same classes", "halves of different classes"} <= set(words(figure))
    low, high = figure.axes[0].get_ylim()
    assert low < 1 < high


def test_controls_stand_on_one_axis_in_the_colour_of_their_kind(result):
    figure = plots.controls(result, KINDS)
    assert set(KINDS) <= set(words(figure))
    (ax,) = figure.axes
    open_points = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"]
    for point, name in zip(open_points, KINDS, strict=True):
        expected = result.parts(name).set_index("layers").loc["first two thirds", "normalized"]
        assert point.get_xdata()[0] == pytest.approx(expected)
        assert point.get_color() == plots.COLOURS[KINDS[name]]
    assert ax.get_yticklabels()[1].get_color() == NATURAL
    figure = plots.controls(result, KINDS, more={"silenced": (result, "noise")})
    assert "silenced" in words(figure)
    (ax,) = figure.axes
    *_, point = (line for line in ax.lines if line.get_marker() == "o")
    assert point.get_xdata()[0] == pytest.approx(
        result.parts("noise").set_index("layers").loc["last third", "normalized"]
    )
    assert point.get_ydata()[0] == pytest.approx(len(KINDS) + 0.14)
    figure = plots.control_curves(result, KINDS)
    assert set(KINDS) <= set(words(figure))
    panel = figure.axes[2]
    np.testing.assert_allclose(panel.lines[-1].get_ydata(), result.draws("noise")[0])
    np.testing.assert_allclose(panel.lines[-2].get_ydata(), result.draws()[0])


def test_several_results_share_an_axis(result):
    figure = plots.compared({"one": (result, "visualizations"), "other": (result, "elsewhere")})
    assert {"one", "other"} <= set(words(figure))
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(curves["other"], result.draws("elsewhere")[0])


def test_a_layer_without_anchors_leaves_a_gap(result):
    flat = result.like.copy()
    flat[:, 2] = 0.1
    gone = PathSimilarity(**{**{n: getattr(result, n) for n in result.__dataclass_fields__}, "like": flat})
    words(plots.paths(gone))
    (curve,) = (line for line in plt.gcf().axes[1].lines if line.get_label() == "visualizations")
    assert np.isnan(curve.get_ydata()).tolist() == [False, False, True, False, False, False]


def test_many_layers_are_named_now_and_then(result):
    wide = {n: getattr(result, n) for n in result.__dataclass_fields__}
    for name, axis in (
        ("like", 1),
        ("halves", 1),
        ("overlapping", 1),
        ("undefined", 1),
        ("shown", 2),
        ("elsewhere", 2),
    ):
        wide[name] = np.repeat(wide[name], 10, axis)
    wide["layers"] = tuple(f"l{i}" for i in range(60))
    said = words(plots.paths(PathSimilarity(**wide)))
    assert "l0" in said
    assert "l1" not in said
    wide["layers"] = tuple(f"l{i // 6}" + (f".{i % 6}" if i % 6 else "") for i in range(60))
    said = words(plots.paths(PathSimilarity(**wide)))
    assert {f"l{i}" for i in range(10)} <= set(said)
    assert not any("." in text for text in said if text.startswith("l"))


def test_examples_are_shown_with_what_the_network_sees():
    pictures = {name: torch.full((2, 3, 16, 16), 0.2 * i) for i, name in enumerate(KINDS)}
    figure = plots.examples(pictures, {"visualizations": 0.5, "elsewhere": 1.0, "noise": 0.041}, KINDS)
    assert {"visualizations\n50%", "elsewhere\n100%", "noise\n4%"} <= set(words(figure))
    shown = [float(ax.images[0].get_array().mean()) for ax in figure.axes]
    assert shown == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4], abs=1e-6)
    assert to_hex(figure.axes[2].spines["top"].get_edgecolor()) == NATURAL


def test_the_widgets_data_are_of_the_images_that_they_name():
    natural = small_images(17 * 13)
    network = small_subject(classes="abcdefghijklmnopq").network
    subject = fv.Subject("small", network, fv.Preprocess((32, 32)), natural.classes, "cpu")
    pictures = fv.render(subject, subject.units("fc"), steps=1, progress=False)
    found = fv.path_similarity(subject, pictures, natural, per_class=4, progress=False)
    data = path_pairs(subject, pictures, natural, found, [1, 16])
    assert [one["name"] for one in data["classes"]] == ["cat", "flower"]
    assert data["classes"][1]["images"][-1]["label"] == "natural, astronaut"
    Paths(data)  # which checks sizes and lengths
    cat = data["classes"][0]
    assert cat["same"] == pytest.approx(found.like[0, :, 1, 1], abs=1e-3)
    assert cat["different"][0] == pytest.approx(np.delete(found.like[0, 0, 1], 1).mean(), abs=1e-3)
    first = natural.image(fv.paths.class_images(subject, natural, pictures.units, 12)[1][0])
    pair = torch.stack([first, pictures.images[1, 0]])
    for k, layer in enumerate(found.layers):
        maps = next(subject.activations([pair], [layer]))[layer]
        expected = float(pairwise(maps.flatten(1))[0, 1])
        assert cat["similarity"][0][2][k] == pytest.approx(expected, abs=1e-3)
    maps = cat["maps"][0]
    channel = maps["channels"][0]
    own = next(subject.activations([pair], [found.layers[0]]))[found.layers[0]][:, channel]
    assert maps["alike"][0][2][0] == pytest.approx(float(pairwise(own.flatten(1))[0, 1]), abs=1e-3)
    values = np.frombuffer(base64.b64decode(maps["values"]), np.uint8)
    values = values.reshape(6, len(maps["channels"]), maps["height"], maps["width"]).astype(float)
    small = torch.nn.functional.adaptive_avg_pool2d(own[0][None], (maps["height"], maps["width"]))[0]
    assert np.corrcoef(values[0, 0].ravel(), small.numpy().ravel())[0, 1] > 0.99
