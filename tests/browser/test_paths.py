"""The widget of paths in a published page: a real Chromium, no kernel, over http and from file://."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from featvis.errors import FeatvisError
from featvis.widgets import Paths
from tests.browser import mock, pages
from tests.browser.pages import Page, wait_for
from tests.conftest import complaints, requests, served

LAYERS = ["conv1", "block2", "block3", "fc"]


def made(classes: int = 3, images: int = 4) -> dict[str, Any]:
    """Classes whose pairs (i, j) of images have similarity 0.1 * |i - j| less than 1, falling by 0.05 a layer."""
    rng = np.random.default_rng(0)
    kinds = ["natural", "natural", "synthetic", "damaged"]
    found = []
    for c in range(classes):
        looks = mock.textures(images, 48, rng)
        alike = [[[1 - 0.1 * abs(i - j) - 0.05 * k for k in range(4)] for j in range(images)] for i in range(images)]
        maps = []
        for height, width, channels in ((6, 6, [4, 1]), (4, 4, [7, 2]), (4, 4, [0, 3]), (1, 9, [0])):
            values = rng.integers(0, 256, (images, len(channels), height, width), dtype=np.uint8)
            values[:, :, 0, 0] = 40 * np.arange(images)[:, None]  # the first field says which image it is
            pair = [[[0.5] * len(channels) for _ in range(images)] for _ in range(images)]
            text = base64.b64encode(values.tobytes()).decode()
            maps.append({"height": height, "width": width, "channels": channels, "alike": pair, "values": text})
        found.append(
            {
                "name": ["cat", "moon", "page"][c],
                "images": [
                    {"label": f"image {i}", "kind": kinds[i], "src": mock._uri(looks[i])} for i in range(images)
                ],
                "same": [0.5, 0.6, 0.7, 0.8],
                "different": [0.1, 0.1, 0.05 * c, 0.0],
                "similarity": alike,
                "maps": maps,
            }
        )
    found[0]["similarity"][0][3][1] = None  # a constant activation
    return {"layers": LAYERS, "classes": found}


DATA = made()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    pages.write_page(folder / "light.html", [Paths(DATA, second=2)])
    pages.write_page(folder / "dark.html", [Paths(DATA, group=1, first=1, second=3, layer=3)], "dark")
    return folder


@pytest.fixture(scope="module", params=["file", "http"])
def address(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield folder.as_uri()
    else:
        with served(folder) as url:
            yield url


class Walked(Page):
    """A page with the widget, as a reader uses it."""

    def js(self, script: str, *given: object) -> Any:
        return self.driver.execute_script(f"const root = document.querySelector('.featvis-paths'); {script}", *given)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", f".featvis-paths {selector}")

    def painted(self) -> None:
        wait_for(lambda: self.find("svg polyline.pair") and self.find(".maps canvas"), why="drawing the paths")

    @property
    def words(self) -> str:
        return self.find(".words").text

    def first_fields(self) -> list[int]:
        """The red of the upper left field of every map."""
        field = "(c) => c.getContext('2d').getImageData(0, 0, 1, 1).data[0]"
        return self.js(f"return [...root.querySelectorAll('canvas')].map({field})")

    def points(self) -> list[tuple[float, float]]:
        """Where the curve of the two images has its points."""
        pairs = self.js("return root.querySelector('polyline.pair').getAttribute('points')").split()
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in pairs)]


@pytest.fixture
def paths(page: Page) -> Walked:
    return Walked(page.driver)


def red(image: int) -> int:
    return round(255 * min(1, 0.07 + 1.25 * 40 * image / 255))


@pytest.mark.browser
def test_paths_are_walked_by_keyboard(paths, address):
    paths.open(f"{address}/light.html")
    assert paths.words == (
        "conv1: ρ = 0.80; natural images of this class have 0.50, of different classes 0.10; on the scale from 0 "
        "(different classes) to 1 (this class) the pair is at 1.75."
    )
    slider = paths.find("input")
    assert slider.get_attribute("aria-label") == "Layer"
    paths.js("root.querySelector('input').focus()")
    paths.press(Keys.ARROW_RIGHT)
    assert slider.get_attribute("aria-valuetext") == "block2"
    assert paths.words.startswith("block2: ρ = 0.75; natural images of this class have 0.60")
    paths.press(Keys.END)
    assert paths.words.startswith("fc: ρ = 0.65")
    assert len(paths.js("return [...root.querySelectorAll('canvas')]")) == 2
    assert "All logits" in paths.find(".about").text
    paths.press(Keys.HOME)
    assert len(paths.js("return [...root.querySelectorAll('canvas')]")) == 4
    own = ("file:///", f"{address}/")
    assert [url for url in requests(paths.driver) if not url.startswith(own)] == []
    assert complaints(paths.driver) == []


@pytest.mark.browser
def test_maps_and_pictures_are_of_the_images_chosen(paths, address):
    paths.open(f"{address}/light.html")
    np.testing.assert_allclose(paths.first_fields(), [red(0), red(2), red(0), red(2)], atol=1)
    paths.driver.find_elements("css selector", ".slot:nth-child(2) .thumb")[3].click()
    np.testing.assert_allclose(paths.first_fields(), [red(0), red(3), red(0), red(3)], atol=1)
    assert paths.find(".slot:nth-child(2)").get_attribute("class") == "slot damaged"
    assert paths.find(".slot:nth-child(2) .large img").get_attribute("src") == DATA["classes"][0]["images"][3]["src"]
    assert paths.find(".slot:nth-child(2) [aria-pressed=true]").get_attribute("aria-label") == "image 3"
    fields = paths.driver.find_elements("css selector", ".featvis-paths .field")
    fields[1].click()
    assert paths.words.startswith("block2: ρ = undefined")
    assert "scale" not in paths.words
    assert len(paths.points()) == 3
    paths.driver.find_elements("css selector", ".slot:nth-child(2) .thumb")[0].click()
    assert "one image twice" in paths.words
    paths.driver.find_elements("css selector", ".classes button")[2].click()
    assert paths.find(".classes [aria-pressed=true]").text == "page"
    assert paths.find(".large img").get_attribute("src") == DATA["classes"][2]["images"][0]["src"]
    assert complaints(paths.driver) == []


@pytest.mark.browser
def test_points_lie_where_the_numbers_say(paths, folder):
    paths.open(f"{folder.as_uri()}/light.html")
    points = paths.points()
    rules = paths.js("return [...root.querySelectorAll('.rule')].map((r) => Number(r.getAttribute('y1')))")
    texts = paths.js("return [...root.querySelectorAll('.rule + text')].map((t) => t.textContent)")
    ticks = [float(text.replace("−", "-")) for text in texts]
    slope, base = np.polyfit(ticks, rules, 1)
    for (_, y), value in zip(points, [0.8, 0.75, 0.7, 0.65], strict=True):
        assert y == pytest.approx(base + slope * value, abs=0.6)
    assert np.diff([x for x, _ in points]) == pytest.approx([points[1][0] - points[0][0]] * 3, abs=0.2)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_widget_fits(paths, folder, theme, width):
    pages.resize(paths.driver, width)
    paths.open(f"{folder.as_uri()}/{theme}.html")
    assert paths.js("return document.documentElement.scrollWidth") <= width
    sides = "(b) => Math.min(b.getBoundingClientRect().width, b.getBoundingClientRect().height)"
    assert min(paths.js(f"return [...root.querySelectorAll('button')].map({sides})")) >= 24
    assert paths.words.startswith("fc" if theme == "dark" else "conv1")
    shown = "const look = getComputedStyle(root); return [look.color, look.backgroundColor]"
    ink, paper = paths.js(shown)
    assert ink == ("rgb(230, 237, 243)" if theme == "dark" else "rgb(31, 35, 40)")
    assert paper != "rgba(0, 0, 0, 0)"


# ---------------------------------------------------------------- the Python side


def test_choices_and_data_are_checked():
    widget = Paths(DATA, group=2, first=1, second=3, layer=2)
    assert (widget.group, widget.first, widget.second, widget.layer) == (2, 1, 3, 2)
    for name, valid in (("group", "0 to 2"), ("first", "0 to 3"), ("second", "0 to 3"), ("layer", "0 to 3")):
        with pytest.raises(FeatvisError, match=f"there is no {name} 7: valid are {valid}"):
            setattr(widget, name, 7)
    with pytest.raises(FeatvisError, match="nothing to compare"):
        Paths({"layers": [], "classes": []})

    def broken(match: str, **change: Any) -> None:
        data = made()
        data["classes"][1] |= change
        with pytest.raises(FeatvisError, match=match):
            Paths(data)

    broken("moon has curves or maps of another length", same=[0.1, 0.2])
    broken("moon has a similarity that is not a finite number", different=[0.1, 0.2, float("inf"), 0.1])
    broken("moon has 1 images; every class needs the same number", images=DATA["classes"][1]["images"][:1])
    broken(
        "the maps of moon in conv1 do not have 288 values",
        maps=[{**m, "values": ""} for m in DATA["classes"][1]["maps"]],
    )
    data = made()
    del data["classes"][2]["maps"]
    with pytest.raises(FeatvisError, match="page lacks maps"):
        Paths(data)
