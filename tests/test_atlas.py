"""The atlas, its data for the explorer, the first measures, and every figure."""

from __future__ import annotations

import importlib
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import featvis as fv
from featvis import agreement, sheets
from tests.small import small_images, small_subject


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    subject, natural = small_subject(), small_images()
    shelf = fv.Shelf(tmp_path_factory.mktemp("shelf"))
    return fv.atlas(subject, natural, shelf, layers=["conv2.0", "fc"], steps=4, k=4, progress=False), shelf


def test_everything_comes_from_the_shelf_the_second_time(made, monkeypatch):
    first, shelf = made

    def never(*_given, **_options):
        raise AssertionError("computed again")

    monkeypatch.setattr(importlib.import_module("featvis.visualize.batches"), "ascend", never)
    monkeypatch.setattr(importlib.import_module("featvis.scan").Pass, "add", never)
    again = fv.atlas(
        first.subject, first.natural, fv.Shelf(shelf.root), layers=["conv2.0", "fc"], steps=4, k=4, progress=False
    )
    assert again.explorer() == first.explorer()


def test_the_explorers_data_is_plain_and_points_at_real_sheets(made):
    found, shelf = made
    data = json.loads(json.dumps(found.explorer(), allow_nan=False))
    assert [layer["name"] for layer in data["layers"]] == ["conv2.0", "fc"]
    assert data["layers"][1]["labels"] == ["a", "b", "c", "d"]
    row = data["layers"][1]["rows"][2]
    assert len(row["a"]) == 2
    assert len(row["top"]) == 4
    assert sum(row["hist"]) == len(found.natural)
    thumb, value = row["top"][0]
    id = str(found.exemplars["fc"].top_ids[2, 0])
    assert found.thumbs[thumb] == id
    assert data["thumbs"]["labels"][thumb] == id.split("/")[0]
    assert value == pytest.approx(float(found.exemplars["fc"].top_values[2, 0]), rel=1e-3)
    for name, file in found.files.items():
        assert shelf.root / name == file
        assert Image.open(file).format == "WEBP"
    tile = sheets.read(found.files[data["layers"][1]["max"]["sheet"]], 8, (32, 32))[2 * 2 + 1]
    assert (tile - found.maxima["fc"].images[2, 1]).abs().mean() < 0.1


def test_gaps_compare_with_the_best_natural_image(made):
    found, _ = made
    frame = agreement.gaps(found)
    assert list(frame["unit"]) == found.subject.units("conv2.0") + found.subject.units("fc")
    row = frame[frame.unit == "fc:1"].iloc[0]
    assert row["visualization"] == found.maxima["fc"].activation[1].max()
    assert row["natural"] == pytest.approx(found.exemplars["fc"].top_values[1, 0])
    for exemplars in found.exemplars.values():
        exemplars.quantiles[:] += 10  # as if the zero of all units were elsewhere
    for pictures in found.maxima.values():
        pictures.activation[:] += 10
    try:
        moved = agreement.gaps(found)
    finally:
        for part in (*(e.quantiles for e in found.exemplars.values()), *(p.activation for p in found.maxima.values())):
            part -= 10
    np.testing.assert_allclose(moved["lead"], frame["lead"], atol=1e-4)
    assert not np.allclose(moved["ratio"], frame["ratio"], rtol=1e-2)
    at_least = frame["lead"] >= 1
    assert (at_least == (frame["visualization"] >= frame["natural"])).all()


def test_same_class_counts_what_the_network_says(made):
    found, _ = made
    frame = agreement.same_class(found, k=4)
    i = 5
    unit, layer = frame.loc[i, "unit"], frame.loc[i, "layer"]
    seen = next(found.subject.logits(found.maxima[layer].best()))[i].argmax().item()
    own = [
        next(found.subject.logits(found.natural.image(str(id))[None])).argmax().item()
        for id in found.exemplars[layer].top_ids[i, :4]
    ]
    assert frame.loc[i, "seen"] == seen, unit
    assert frame.loc[i, "expected"] == np.mean([answer == seen for answer in own])


def test_high_frequency_share_on_known_pictures():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    slow = torch.sin(2 * torch.pi * x / 16)
    fast = torch.sin(2 * torch.pi * 12 * y / 32)
    both = torch.stack([slow, fast, slow + fast])[:, None].expand(-1, 3, -1, -1)
    assert np.allclose(agreement.high_frequency_share(both), [0, 1, 0.5], atol=1e-5)


def test_sheets_keep_order_and_size(tmp_path):
    images = torch.arange(37).float().view(37, 1, 1, 1).expand(37, 3, 8, 12) / 64
    sheets.write(tmp_path / "a.webp", images, sheets.LOSSLESS)
    assert torch.allclose(sheets.read(tmp_path / "a.webp", 37, (8, 12)), images, atol=1 / 255)


def test_every_figure_is_drawn(made):
    found, _ = made
    pictures = found.maxima["fc"]
    path = fv.render(found.subject, ["fc:1"], steps=8, snapshots=(1, 2, 8), progress=False)
    frame = agreement.gaps(found).assign(ratio=np.linspace(0.5, 3, 12))
    figures = [
        fv.plots.side_by_side(pictures, found.exemplars["fc"], found.natural, found.subject, ["fc:1", "fc:3"]),
        fv.plots.grid(pictures.best(), list(pictures.units), columns=3),
        fv.plots.ladder({"one": pictures.best()[:2], "two": pictures.best()[2:]}, ["x", "y"]),
        fv.plots.trajectory(path, "fc:1", 0.3),
        fv.plots.gaps(frame),
        fv.plots.by_layer(agreement.same_class(found, 4), {"expected": ("own", "red")}, "share"),
    ]
    for figure in figures:
        figure.canvas.draw()
        texts = [text.get_text() for ax in figure.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
        assert any(texts)
        plt.close(figure)
    assert len(figures[0].axes) == 2 * (2 + 4)


def test_an_interval_holds_the_statistic():
    low, middle, high = fv.plots.interval(np.random.default_rng(0).normal(3, 1, 200), np.mean)
    assert low < middle < high
    assert 0.15 < high - low < 0.45
