"""The auditor in a published page: a real Chromium, no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from featvis import sheets
from featvis.widgets import Auditor
from tests.browser import pages
from tests.browser.pages import Page, wait_for
from tests.conftest import complaints, requests, served

pytestmark = pytest.mark.browser
CHECKS = ["agreement", "path", "gap", "methods", "weights", "gates", "stability"]


def unit(name: str, first: int, p: list[float | None], together: float | None) -> dict[str, Any]:
    return {"name": name, "p": p, "all": together, "pictures": [first, first + 1, first + 2]}


def case(strength: float, first: int, low: float, same: int) -> dict[str, Any]:
    calm: list[float | None] = [0.4, 0.5, 0.9, 1.0, 0.7, 0.3, None]
    odd: list[float | None] = [low, 0.5, 0.9, 1.0, 0.7, low, None]
    dead: list[float | None] = [None] * 7
    units = [unit("fc:0 cat", first, odd, low), unit("fc:1 dog", first + 3, calm, 0.3)]
    return {
        "strength": strength,
        "same": same,
        "images": 100,
        "units": [*units, unit("fc:2 cow", first + 6, dead, None)],
    }


DATA = {
    "checks": CHECKS,
    "level": 0.05,
    "smallest": 0.001,
    "columns": 8,
    "tiles": 27,
    "sheet": sheets.uri(torch.linspace(0, 1, 27).view(-1, 1, 1, 1).expand(27, 3, 16, 16), 8, 90),
    "attacks": [
        {"name": "slingshot", "strength": "weight", "cases": [case(0.3, 0, 0.2, 99), case(0.7, 9, 0.001, 91)]},
        {"name": "circuit", "strength": "margin", "cases": [case(1.0, 18, 0.01, 98)]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auditor")
    pages.write_page(folder / "light.html", [Auditor(DATA)])
    pages.write_page(folder / "dark.html", [Auditor(DATA, attack=1)], "dark")
    return folder


@pytest.fixture(scope="module", params=["file", "http"])
def address(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield folder.as_uri()
    else:
        with served(folder) as url:
            yield url


class Desk(Page):
    """A page with an auditor, as a reader uses it."""

    root = ".featvis-auditor"

    def js(self, script: str, *given: object) -> Any:
        return self.driver.execute_script(f"const root = document.querySelector('{self.root}'); {script}", *given)

    def find(self, selector: str):
        return self.driver.find_element("css selector", f"{self.root} {selector}")

    def painted(self) -> None:
        wait_for(lambda: self.find(".check"), why="drawing the checks")

    @property
    def words(self) -> str:
        return self.find(".words").text

    @property
    def tiles(self) -> list[str]:
        return self.js("return [...root.querySelectorAll('.picture')].map((p) => p.dataset.tile)")

    @property
    def out(self) -> list[str]:
        return self.js("return [...root.querySelectorAll('.check.out')].map((c) => c.dataset.check)")


@pytest.fixture
def desk(page: Page) -> Desk:
    return Desk(page.driver)


def test_strength_attack_and_unit_move_pictures_and_verdicts(desk, address):
    desk.open(f"{address}/light.html")
    assert desk.out == ["agreement", "gates"]
    assert desk.words.startswith(
        "Stands out (p = .001, all checks together): agreement, gates. On natural images, 91.0%"
    )
    assert desk.tiles == ["9", "10", "11"]
    desk.js("root.querySelector('input').focus()")
    desk.press(Keys.ARROW_LEFT)
    assert desk.out == []
    assert desk.words.startswith("Does not stand out (p = .200")
    assert desk.tiles == ["0", "1", "2"]
    assert desk.find("output").text == "0.3"
    desk.js("root.querySelectorAll('.units button')[1].click()")
    assert desk.tiles == ["3", "4", "5"]
    assert desk.js("return root.dataset.unit") == "fc:1 dog"
    desk.js("root.querySelectorAll('.units button')[2].click()")
    assert "there is nothing to judge" in desk.words
    Select(desk.find("select")).select_by_value("1")
    assert desk.js("return root.dataset.attack") == "circuit"
    assert desk.tiles == ["18", "19", "20"]  # another attack begins with its first unit
    assert not desk.find("input").is_displayed()  # one strength is nothing to choose from
    own = ("file:///", f"{address}/")
    assert [url for url in requests(desk.driver) if not url.startswith(own)] == []
    assert complaints(desk.driver) == []


def test_a_bar_is_as_long_as_its_p_is_small(desk, folder):
    desk.open((folder / "light.html").as_uri())
    measured = "(c) => [c.dataset.check, parseFloat(c.querySelector('i').style.width)]"
    length = dict(desk.js(f"return [...root.querySelectorAll('.check')].map({measured})"))
    assert length["agreement"] == pytest.approx(100, abs=0.1)
    assert length["path"] == pytest.approx(100 * 0.30103 / 3, abs=0.1)
    assert length["methods"] == length["stability"] == 0
    line = desk.js("return parseFloat(root.querySelector('.track b').style.left)")
    assert line == pytest.approx(100 * 1.30103 / 3, abs=0.1)
    last = desk.js("return [...root.querySelectorAll('.check .value')].at(-1).textContent")
    assert last == "not asked"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_juts_out_and_all_words_can_be_read(desk, folder, width, theme):
    pages.resize(desk.driver, width)
    desk.open((folder / f"{theme}.html").as_uri())
    assert desk.js("return document.documentElement.scrollWidth") <= width
    box = desk.js(
        "return [...root.querySelectorAll('figure, .check, .words, button')].map((e) => e.scrollWidth - e.clientWidth)"
    )
    assert max(box) <= 1
