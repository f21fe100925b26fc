"""The switch in a published page: a real Chromium, no kernel, over http and from file://."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from featvis.widgets import Switch
from tests.browser import mock, pages
from tests.browser.pages import Page, wait_for
from tests.conftest import complaints, requests, served

pytestmark = pytest.mark.browser
DATA = mock.circuit()
NATURAL, SYNTHETIC = "rgb(29, 111, 165)", "rgb(194, 65, 12)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switch")
    pages.write_page(folder / "light.html", [Switch(DATA)])
    pages.write_page(folder / "dark.html", [Switch(DATA, t=1.0, pair=1)], "dark")
    leaking = copy.deepcopy(DATA)
    leaking["pairs"][0]["B"] = [1.0] * 41
    pages.write_page(folder / "leaking.html", [Switch(leaking, t=1.0)])
    return folder


@pytest.fixture(scope="module", params=["file", "http"])
def address(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield folder.as_uri()
    else:
        with served(folder) as url:
            yield url


class Switched(Page):
    """A page with a switch, as a reader uses it."""

    root = ".featvis-switch"

    def js(self, script: str, *given: object) -> object:
        return self.driver.execute_script(f"const root = document.querySelector('{self.root}'); {script}", *given)

    def find(self, selector: str):
        return self.driver.find_element("css selector", f"{self.root} {selector}")

    def painted(self) -> None:
        wait_for(lambda: self.find("svg.circuit") and self.find("svg.chart"), why="drawing the circuit")

    @property
    def words(self) -> str:
        return self.find(".words").text

    @property
    def at(self) -> int:
        return int(self.js("return root.querySelector('input').value"))

    def stroke(self, selector: str) -> tuple[str, bool]:
        """What a line is drawn in, and whether it is dashed."""
        look = "const look = getComputedStyle(root.querySelector(arguments[0]))"
        colour, dashes = self.js(f"{look}; return [look.stroke, look.strokeDasharray]", selector)
        return colour, dashes != "none"

    def turned(self, colour: str, wire: str, shut: str) -> None:
        """The branch of `wire` is drawn solid in `colour`, the other one dashed."""
        wait_for(lambda: self.stroke(f"[data-wire={wire}] path") == (colour, False), why=f"{wire} turning {colour}")
        assert self.stroke("[data-box=A] rect")[0] == colour
        assert self.stroke(f"[data-wire={shut}] path")[1]


@pytest.fixture
def switch(page: Page) -> Switched:
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    return Switched(page.driver)


def test_switch_is_used_by_keyboard(switch, address):
    switch.open(f"{address}/light.html")
    slider = switch.find("input")
    assert slider.get_attribute("aria-label") == "Share of the visualization in the mix"
    assert slider.get_attribute("aria-valuetext") == "0% visualization; the gate says natural"
    assert (
        switch.words == f"The gate says natural: B is open, A shows the original unit ({DATA['pairs'][0]['F'][0]:.2f})."
    )
    switch.turned(NATURAL, "BA", "CA")
    switch.js("root.querySelector('input').focus()")
    switch.press(*[Keys.ARROW_RIGHT] * 17)
    assert switch.at == 17
    assert switch.words.startswith("The gate says natural")
    switch.press(Keys.ARROW_RIGHT)  # over the flip
    decoy = DATA["pairs"][0]["D"][18]
    assert switch.words == f"The gate says visualization: C is open, A shows the decoy ({decoy:.2f})."
    assert slider.get_attribute("aria-valuetext") == "45% visualization; the gate says visualization"
    assert switch.find("[data-box=A] .value").text == f"{decoy:.2f}"
    assert switch.find("[data-box=E]").text.split("\n")[-1].endswith("visualization")
    assert switch.find(".picture").get_attribute("aria-label") == "a mix of 55% natural image and 45% visualization"
    assert switch.js("return root.querySelectorAll('.picture img')[1].style.opacity") == "0.45"
    switch.turned(SYNTHETIC, "CA", "BA")
    switch.press(Keys.END)
    assert switch.at == 40
    switch.press(Keys.HOME)
    switch.turned(NATURAL, "BA", "CA")
    own = ("file:///", f"{address}/")
    assert [url for url in requests(switch.driver) if not url.startswith(own)] == []
    assert complaints(switch.driver) == []


def test_switch_is_used_by_mouse(switch, address):
    switch.open(f"{address}/light.html")
    slider = switch.find("input")
    right = slider.size["width"] // 2 - 12
    ActionChains(switch.driver).move_to_element(slider).click_and_hold().move_by_offset(right, 0).release().perform()
    assert switch.at >= 39
    switch.turned(SYNTHETIC, "CA", "BA")
    dot = switch.js("return Number(root.querySelector('.chart circle').getAttribute('cx'))")
    switch.driver.find_elements("css selector", ".pairs button")[1].click()
    assert switch.find("[aria-pressed=true]").text == "cat → page"
    assert switch.at >= 39  # the slider stays where it is
    assert "the target image" in switch.find(".legend").text
    ActionChains(switch.driver).move_to_element_with_offset(slider, -right, 0).click().perform()
    switch.turned(NATURAL, "BA", "CA")
    assert switch.js("return Number(root.querySelector('.chart circle').getAttribute('cx'))") < dot - 200
    assert switch.words.startswith("The gate says natural")
    assert complaints(switch.driver) == []


def test_switch_says_when_the_circuit_leaks(switch, folder):
    switch.open(f"{folder.as_uri()}/leaking.html")
    assert "but both B and C are open" in switch.words
    assert switch.find("[data-box=A] .last").text == "leaks"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_switch_fits_and_keeps_its_texts_in_their_boxes(switch, folder, theme, width):
    pages.resize(switch.driver, width)
    switch.open(f"{folder.as_uri()}/{theme}.html")
    assert switch.js("return document.documentElement.scrollWidth") <= width
    assert switch.at == (40 if theme == "dark" else 0)
    for step in (0, 20, 40):
        switch.js(
            "const i = root.querySelector('input'); i.value = arguments[0]; i.dispatchEvent(new Event('input'))", step
        )
        outside = switch.js(
            "return [...root.querySelectorAll('.box')].flatMap((box) => {"
            " const frame = box.querySelector('rect').getBoundingClientRect();"
            " return [...box.querySelectorAll('text')].filter((text) => text.textContent &&"
            "  text.getBoundingClientRect().right > frame.right).map((text) => text.textContent); })"
        )
        assert outside == []
    titles = switch.js("return [...root.querySelectorAll('svg[role=img] > title')].map((title) => title.textContent)")
    assert [title.split(":")[0].split(" of ")[0] for title in titles] == ["The fooling circuit", "Activations"]
