"""Outguessing the adversary in a published page: a real Chromium, no kernel; its bounds are those of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from featvis import theory
from featvis.widgets import Adversary
from featvis.widgets.adversary import KINDS, LEAST_SLOPE
from tests.browser import pages
from tests.browser.pages import Page, wait_for
from tests.conftest import complaints, requests, served

pytestmark = pytest.mark.browser


def known(at_min: float, at_max: float) -> theory.Extrema:
    return theory.Extrema(*torch.tensor([[at_min], [at_max]], dtype=torch.double))


ROWS = {
    "all": (theory.Anything(), known(0.2, 0.75)),
    "relu": (theory.ReluNetworks(), known(0.2, 0.75)),
    "piecewise": (theory.PiecewiseAffine(), known(0.2, 0.75)),
    "monotone": (theory.Monotone(), known(0, 1)),
    "convex": (theory.Convex(), known(0.35, 1)),
    "lipschitz": (theory.Lipschitz(3.0), known(0.2, 0.75)),
    "line": (theory.AffineOnLine(), known(0, 1)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adversary")
    pages.write_page(folder / "light.html", [Adversary()])
    pages.write_page(folder / "dark.html", [Adversary(kind="lipschitz", answered=True)], "dark")
    return folder


@pytest.fixture(scope="module", params=["file", "http"])
def address(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield folder.as_uri()
    else:
        with served(folder) as url:
            yield url


class Opponent(Page):
    """A page with an adversary, as a reader uses it."""

    root = ".featvis-adversary"

    def js(self, script: str, *given: object) -> object:
        return self.driver.execute_script(f"const root = document.querySelector('{self.root}'); {script}", *given)

    def find(self, selector: str):
        return self.driver.find_element("css selector", f"{self.root} {selector}")

    def painted(self) -> None:
        wait_for(lambda: self.find("svg polygon"), why="drawing what is possible")

    @property
    def words(self) -> str:
        return self.find(".words").text

    def choose(self, kind: str) -> None:
        Select(self.find("select")).select_by_value(kind)

    def set(self, trait: str, value: float) -> None:
        self.js(
            f"const i = root.querySelector('[data-trait={trait}]'); i.value = arguments[0]; "
            "i.dispatchEvent(new Event('input'))",
            value,
        )

    @property
    def state(self) -> tuple[list[float], list[float]]:
        """The bounds at x, and what both functions give there."""
        data = self.js("return [root.dataset.bounds, root.dataset.low, root.dataset.high]")
        return [float(v) for v in data[0].split(",")], [float(v) for v in data[1:]]


@pytest.fixture
def opponent(page: Page) -> Opponent:
    return Opponent(page.driver)


def test_a_reader_guesses_by_keyboard_and_the_adversary_answers(opponent, address):
    opponent.open(f"{address}/light.html")
    assert opponent.words == "Your guess: f(x) = 0.50. The adversary has two functions ready."
    assert opponent.js("return root.querySelectorAll('polyline').length") == 0
    opponent.js("root.querySelector('[data-trait=guess]').focus()")
    opponent.press(*[Keys.ARROW_RIGHT] * 10)
    assert opponent.find("[data-trait=guess]").get_attribute("aria-valuetext") == "0.60"
    opponent.js("root.querySelector('button').focus()")
    opponent.press(Keys.ENTER)
    wait_for(lambda: opponent.js("return root.querySelectorAll('polyline').length") == 2, why="the answer")
    assert "one gives 0.03, the other 0.97; for one of them you are off by 0.57." in opponent.words
    assert "no guess is safe by less than 0.50" in opponent.words
    assert opponent.find("button").get_attribute("aria-pressed") == "true"
    own = ("file:///", f"{address}/")
    assert [url for url in requests(opponent.driver) if not url.startswith(own)] == []
    assert complaints(opponent.driver) == []


def test_the_plot_is_dragged(opponent, folder):
    opponent.open(f"{folder.as_uri()}/light.html")
    plot = opponent.find("svg")
    opponent.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(opponent.driver).move_to_element(plot).click_and_hold().move_by_offset(60, -60).release().perform()
    x, guess = (float(opponent.find(f"[data-trait={name}]").get_attribute("value")) for name in ("x", "guess"))
    assert 0.55 < x < 0.75
    assert guess > 0.6
    assert f"f(x) = {guess:.2f}" in opponent.words


def test_the_browser_computes_what_the_package_computes(opponent, folder):
    opponent.open(f"{folder.as_uri()}/light.html")
    for kind, (klass, seen) in ROWS.items():
        opponent.choose(kind)
        for x in (0.12, 0.47, 0.6, 0.93):
            opponent.set("x", x)
            bounds, values = opponent.state
            at = torch.tensor([x], dtype=torch.double)
            found = klass.bounds(seen, at)
            assert bounds == pytest.approx([float(found.low), float(found.high)], abs=1e-9), (kind, x)
            pair = klass.pair(seen, at, 0.05)
            expected = [float(f(at[None])) for f in (pair.low, pair.high)]
            assert values == pytest.approx(expected, abs=1e-9), (kind, x)


def test_both_functions_keep_all_that_is_seen(opponent, folder):
    """The curves that are drawn pass through the extrema and stay between them, for every class and point."""
    opponent.open(f"{folder.as_uri()}/dark.html")
    for kind in KINDS:
        opponent.choose(kind)
        for x in (0.0, 0.2, 0.31, 0.5, 0.74, 1.0):
            opponent.set("x", x)
            found = opponent.js(
                "const dots = [...root.querySelectorAll('circle.seen, circle.trained')].map((c) =>"
                " [Number(c.getAttribute('cx')), Number(c.getAttribute('cy'))]);"
                "const lines = [...root.querySelectorAll('polyline')].map((l) =>"
                " l.getAttribute('points').split(' ').map((p) => p.split(',').map(Number)));"
                "const band = root.querySelector('polygon').getAttribute('points');"
                "return [lines, dots, band.includes('NaN'),"
                " Math.min(...dots.map((d) => d[1])), Math.max(...dots.map((d) => d[1]))]"
            )
            lines, dots, broken, top, floor = found
            assert not broken
            assert len(lines) == 2
            for line in lines:
                heights = [y for _, y in line]
                assert min(heights) >= top - 0.1, (kind, x)
                assert max(heights) <= floor + 0.1, (kind, x)
                for at, value in dots:
                    if kind != "all":  # its extrema are single points, drawn as dots
                        assert min(abs(u - at) + abs(v - value) for u, v in line) < 0.3, (kind, x)
    assert complaints(opponent.driver) == []


def test_the_certified_region_grows_as_the_slope_falls(opponent, folder):
    opponent.open(f"{folder.as_uri()}/dark.html")
    shares = []
    for slope in (12.0, 6.0, 3.0, LEAST_SLOPE):
        opponent.set("slope", slope)
        shares.append(float(opponent.find("svg").get_attribute("data-sure")))
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(2 / 12, abs=0.02)
    assert shares[2] == pytest.approx(2 / 3, abs=0.02)
    opponent.choose("relu")
    assert float(opponent.find("svg").get_attribute("data-sure")) == 0
    assert not opponent.find("[data-trait=slope]").is_displayed()
    assert opponent.find("[data-trait=width]").is_displayed()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_keeps_its_texts_inside(opponent, folder, theme, width):
    pages.resize(opponent.driver, width)
    opponent.open(f"{folder.as_uri()}/{theme}.html")
    assert opponent.js("return document.documentElement.scrollWidth") <= width
    for kind in KINDS:
        opponent.choose(kind)
        outside = opponent.js(
            "const frame = root.querySelector('svg').getBoundingClientRect();"
            "return [...root.querySelectorAll('svg text')].filter((text) => { const box = text.getBoundingClientRect();"
            " return box.left < frame.left - 1 || box.right > frame.right + 4 || box.bottom > frame.bottom + 1; })"
            ".map((text) => text.textContent)"
        )
        assert outside == [], kind
