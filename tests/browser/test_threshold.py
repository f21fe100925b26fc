"""The threshold in a published page: a real Chromium, no kernel, over http and from file://."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from featvis import sheets
from featvis.widgets import Threshold
from tests.browser import mock, pages
from tests.browser.pages import Page, wait_for
from tests.conftest import complaints, requests, served

pytestmark = pytest.mark.browser
STRENGTHS, MARGINS, UNITS = [0.3, 1.0, 3.0, 10.0], [0.0, 0.5, 1.0, 2.0], ["block.conv:3", "block.conv:17"]


def made_up() -> dict:
    """Two units; the first flips at strength 3 for margins up to 1, the second never wakes."""
    tiles = mock.textures(len(STRENGTHS) * len(MARGINS) * 2 + 3, 48, np.random.default_rng(0))
    units = []
    for number, name in enumerate(UNITS):
        rows, counts = [], []
        for i, strength in enumerate(STRENGTHS):
            values = np.random.default_rng(i).normal(-3.2 + 0.2 * i, 0.8, 5100).clip(-8, -0.1)
            values[: 7 if i == 0 else 0] = 0.6
            counts.append(np.histogram(values, np.linspace(-8, 10, 73))[0].tolist())
            row = []
            for j, margin in enumerate(MARGINS):
                awake = number == 0 and strength >= 1 and margin <= 1
                row.append(
                    {
                        "response": 4.0 + i - j if awake else -0.5,
                        "awake": awake,
                        "flipped": awake and strength >= 3,
                        "wakes": int((values > margin).sum()),
                        "picture": (i * len(MARGINS) + j) * 2 + number,
                    }
                )
            rows.append(row)
        own = {"name": name, "own": len(tiles) - 3 + number, "natural": counts, "original": [1.5, 1.2, 0.8, -0.4]}
        units.append({**own, "cells": rows})
    return {
        "layer": "block.conv", "decoy": "block.conv:48", "images": 5100, "strengths": STRENGTHS, "margins": MARGINS,
        "left": -8.0, "width": 0.25, "bins": 72, "columns": 16, "tiles": len(tiles), "units": units,
        "sheet": sheets.uri(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255, 16),
    }  # fmt: skip


DATA = made_up()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threshold")
    pages.write_page(folder / "light.html", [Threshold(DATA, strength=2, margin=1)])
    pages.write_page(folder / "dark.html", [Threshold(DATA, unit=1)], "dark")
    alone = copy.deepcopy(DATA)
    alone["units"] = alone["units"][:1]
    pages.write_page(folder / "alone.html", [Threshold(alone, strength=1)])
    return folder


@pytest.fixture(scope="module", params=["file", "http"])
def address(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield folder.as_uri()
    else:
        with served(folder) as url:
            yield url


class Thresholds(Page):
    """A page with a threshold, as a reader uses it."""

    root = ".featvis-threshold"

    def js(self, script: str, *given: object) -> object:
        return self.driver.execute_script(f"const root = document.querySelector('{self.root}'); {script}", *given)

    def find(self, selector: str):
        return self.driver.find_element("css selector", f"{self.root} {selector}")

    def painted(self) -> None:
        wait_for(lambda: self.find("svg.chart"), why="drawing the responses")

    @property
    def words(self) -> str:
        return self.find(".words").text

    @property
    def shown(self) -> int:
        return int(self.find(".tile.new").get_attribute("data-picture"))

    def at(self, name: str) -> int:
        return int(self.js("return root.querySelector(`input[aria-label^=${arguments[0]}]`).value", name))

    def focus(self, name: str) -> None:
        self.js("root.querySelector(`input[aria-label^=${arguments[0]}]`).focus()", name)

    def x_of(self, selector: str) -> float:
        return self.js("return root.querySelector(arguments[0]).getBoundingClientRect().left", selector)


@pytest.fixture
def threshold(page: Page) -> Thresholds:
    return Thresholds(page.driver)


def test_threshold_is_used_by_keyboard(threshold, address):
    threshold.open(f"{address}/light.html")
    assert threshold.words == (
        "None of 5,100 held-out images wakes the unit. Gradient ascent wakes it, and the picture shows the decoy."
    )
    assert (threshold.at("strength"), threshold.at("margin")) == (2, 1)
    assert threshold.shown == DATA["units"][0]["cells"][2][1]["picture"]
    before = threshold.x_of("line.threshold")
    threshold.focus("margin")
    threshold.press(Keys.ARROW_RIGHT)
    assert threshold.x_of("line.threshold") > before + 5
    threshold.press(Keys.END)
    assert threshold.at("margin") == 3
    cell = DATA["units"][0]["cells"][2][3]
    told = "yet the picture shows the decoy" if cell["flipped"] else "and the picture is not the decoy's"
    assert f"does not reach the threshold in the end, {told}." in threshold.words
    assert threshold.shown == cell["picture"]
    threshold.press(Keys.HOME)
    threshold.focus("strength")
    threshold.press(Keys.HOME)
    cell = DATA["units"][0]["cells"][0][0]
    assert cell["wakes"] > 0
    assert threshold.words.startswith(f"{cell['wakes']} of 5,100 held-out images wake the unit: the promise is broken.")
    assert threshold.js("return root.dataset.broken") == "yes"
    woken = threshold.js("return root.querySelectorAll('.bar.woken').length")
    counts = DATA["units"][0]["natural"][0]
    assert woken == sum(count > 0 for i, count in enumerate(counts) if -8 + 0.25 * i >= 0)
    threshold.press(Keys.ARROW_RIGHT)
    assert "Gradient ascent wakes it, but the picture is not the decoy's." in threshold.words
    assert threshold.find("input[aria-label^=strength]").get_attribute("aria-valuetext") == "1"
    own = ("file:///", f"{address}/")
    assert [url for url in requests(threshold.driver) if not url.startswith(own)] == []
    assert complaints(threshold.driver) == []


def test_threshold_is_used_by_mouse(threshold, address):
    threshold.open(f"{address}/light.html")
    slider = threshold.find("input[aria-label^=strength]")
    half = slider.size["width"] // 2 - 4
    ActionChains(threshold.driver).move_to_element_with_offset(slider, half, 0).click().perform()
    assert threshold.at("strength") == 3
    threshold.driver.find_elements("css selector", ".units button")[1].click()
    assert threshold.find("[aria-pressed=true]").text == "block.conv:17"
    assert (threshold.at("strength"), threshold.at("margin")) == (3, 1)
    assert threshold.js("return root.dataset.state") == "asleep"
    assert threshold.shown == DATA["units"][1]["cells"][3][1]["picture"]
    assert int(threshold.find(".tile.own").get_attribute("data-picture")) == DATA["units"][1]["own"]
    assert int(threshold.find(".tile.decoy").get_attribute("data-picture")) == DATA["tiles"] - 1
    assert complaints(threshold.driver) == []


def test_threshold_shows_the_picture_that_it_names(threshold, folder):
    threshold.open(f"{folder.as_uri()}/light.html")
    index = threshold.shown
    look = "const look = getComputedStyle(root.querySelector('.tile.new'));"
    place = threshold.js(f"{look} return [look.backgroundPosition, look.backgroundSize]")
    rows = -(-DATA["tiles"] // 16)
    column, row = index % 16, index // 16
    x, y = (float(part.rstrip("%")) for part in place[0].split())
    assert x == pytest.approx(100 * column / 15, abs=0.01)
    assert y == pytest.approx(100 * row / (rows - 1), abs=0.01)
    assert place[1] == f"1600% {100 * rows}%"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark", "alone"])
def test_threshold_fits(threshold, folder, theme, width):
    pages.resize(threshold.driver, width)
    threshold.open(f"{folder.as_uri()}/{theme}.html")
    assert threshold.js("return document.documentElement.scrollWidth") <= width
    outside = threshold.js(
        "const frame = root.getBoundingClientRect();"
        "return [...root.querySelectorAll('svg text')].filter((text) => { const box = text.getBoundingClientRect();"
        " return box.left < frame.left - 1 || box.right > frame.right + 1; }).map((text) => text.textContent)"
    )
    assert outside == []
    hidden = threshold.js("return root.querySelector('.units').offsetParent === null")
    assert hidden == (theme == "alone")
    title = threshold.js("return root.querySelector('svg[role=img] > title').textContent")
    assert title.startswith("Responses of the silent filter, in standard deviations")
