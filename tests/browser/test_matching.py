"""The matching experiment in a real browser: the widget in a page, a session with the server, jsPsych."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from featvis.matching.experiment import jspsych
from featvis.matching.trials import design
from featvis.widgets import Matching
from tests.browser import mock, pages
from tests.browser.pages import Page, wait_for
from tests.conftest import ROOT, complaints, requests, served
from tests.test_matching_trials import STIMULI, written

pytestmark = pytest.mark.browser
DATA = mock.matching()
MODULES = Path(os.environ.get("FEATVIS_NODE_MODULES", ROOT / "node_modules"))


def package(name: str) -> Path:
    """A package of the npm registry; the test is skipped, loudly, where it is not installed."""
    if not (MODULES / name / "package.json").is_file():
        pytest.skip(f"{name.upper()} IS NOT INSTALLED: npm install --no-save {name}, or set FEATVIS_NODE_MODULES")
    return MODULES / name


class Player(Page):
    """Somebody who plays trials."""

    root = ".featvis-match"

    def js(self, script: str, *given: object):
        return self.driver.execute_script(f"const root = document.querySelector('{self.root}'); {script}", *given)

    def find(self, selector: str):
        return self.driver.find_element("css selector", f"{self.root} {selector}")

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", f"{self.root} {selector}")

    def painted(self) -> None:
        wait_for(lambda: self.js("return root.querySelector('.go, .page')"), why="showing the first page")

    def ready(self) -> str:
        """The trial on the screen, once its images are there."""
        shown = "return root.querySelector('.trial[data-ready]')?.dataset.trial"  # at once, or the next trial may come
        return wait_for(lambda: self.js(shown), why="showing a trial")

    @property
    def said(self) -> str:
        return self.find(".say").text

    @property
    def placed(self) -> list[str]:
        return self.js("return [...root.querySelectorAll('.slot')].map((s) => s.querySelector('b')?.textContent ?? '')")

    def go(self) -> None:
        button = self.find(".go")
        wait_for(button.is_enabled, why="the button to be enabled")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def by_keyboard(self, match: list[int], sure: int = 2) -> None:
        """match[j] is the slot of card j; not a single click."""
        for card, slot in enumerate(match):
            self.press(str(card + 1), "abcde"[slot])
        for _ in range(20):
            if self.js("return document.activeElement.type === 'radio'"):
                break
            self.press(Keys.TAB)
        self.press(Keys.SPACE, *[Keys.ARROW_RIGHT] * (sure - 1))
        self.press(Keys.TAB, Keys.ENTER)

    def by_mouse(self, match: list[int], sure: int = 2) -> None:
        for card, slot in enumerate(match):
            source = next(p for p in self.all(".waiting .place") if p.text.strip() == str(card + 1))
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(".waiting"))
            target = self.all(".slot")[slot]
            ActionChains(self.driver).drag_and_drop(source, target).perform()
        self.all(".sure label")[sure - 1].click()
        self.go()

    def by_taps(self, match: list[int], sure: int = 2) -> None:
        for card, slot in enumerate(match):
            for place in (
                next(p for p in self.all(".waiting .place") if p.text.strip() == str(card + 1)),
                self.all(".slot")[slot],
            ):
                self.tap(place)
        self.tap(self.all(".sure label")[sure - 1])
        self.tap(self.find(".go"))

    def tap(self, element) -> None:
        """A finger on the element, as the browser's own input."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        box = self.driver.execute_script(
            "const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]", element
        )
        point = {"x": box[0], "y": box[1]}
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        time.sleep(0.05)

    def serious(self) -> list[str]:
        """What axe-core finds in the page and calls serious or critical."""
        self.driver.execute_script((package("axe-core") / "axe.min.js").read_text())
        found = self.driver.execute_async_script("const done = arguments[0]; axe.run().then((r) => done(r.violations))")
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.fixture
def player(page: Page) -> Iterator[Player]:
    yield Player(page.driver)
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


# ---------------------------------------------------------------- the widget in a page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matching")
    for theme in ("light", "dark"):
        pages.write_page(folder / f"{theme}.html", [Matching(DATA)], theme)
    return folder


@pytest.fixture(scope="module", params=["file", "http"])
def address(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield folder.as_uri()
    else:
        with served(folder) as url:
            yield url


def test_a_reader_plays_by_keyboard_alone(player, address):
    player.open(f"{address}/light.html")
    player.js("root.querySelector('.go').focus()")
    player.press(Keys.ENTER)
    for trial in DATA["trials"]:
        assert player.ready() == trial["id"]
        player.by_keyboard(trial["answer"])
    wait_for(lambda: "How did you do?" in player.find("h3").text, why="the score")
    assert "You matched 12 of 12 rows rightly" in player.find(".page").text
    rows = [row.text.split("\n") for row in player.all("tbody tr")]
    cells = {row[0].split("  ")[0]: row for row in rows}
    assert sum("6 of 6" in " ".join(row) for row in rows) == 2  # the reader and the machine that knows colours
    assert any("Guessing" in name for name in cells)
    assert [row for row in rows if row[0].startswith("machine")]
    wide = player.js("return [...root.querySelectorAll('.you .fill')].map((f) => f.getBoundingClientRect().width)")
    guess = player.js("return [...root.querySelectorAll('.guess .fill')].map((f) => f.getBoundingClientRect().width)")
    assert [round(3 * g) for g in guess] == [round(w) for w in wide]
    own = ("file:///", f"{address}/")
    assert [url for url in requests(player.driver) if not url.startswith(own)] == []
    assert complaints(player.driver) == []
    player.press(Keys.ENTER) if player.js("return document.activeElement.matches('.go')") else player.go()
    assert "two minutes" in player.find(".page").text


def test_a_reader_plays_by_mouse(player, address):
    player.open(f"{address}/light.html")
    player.go()
    player.ready()
    first = player.all(".waiting .place")[0]
    ActionChains(player.driver).drag_and_drop(first, player.all(".slot")[2]).perform()
    assert player.placed == ["", "", "1"]
    assert player.said == "Row 1 is beside row C."
    second = player.all(".waiting .place")[1]
    ActionChains(player.driver).drag_and_drop(second, player.all(".slot")[2]).perform()  # it takes the other's place
    assert player.placed == ["", "", "2"]
    assert [p.text.strip() for p in player.all(".waiting .place")] == ["", "1", "3"]
    ActionChains(player.driver).drag_and_drop(player.all(".slot")[2], player.find("h3")).perform()
    assert player.placed == ["", "", "2"], "dropped where there is no place"
    assert not player.all(".ghost")
    player.all(".slot")[0].click()
    assert player.said == "Choose one of the rows below first."
    player.all(".slot")[2].click()
    assert player.all(".slot")[2].get_attribute("aria-pressed") == "true"
    player.all(".slot")[1].click()
    assert player.placed == ["", "2", ""]
    assert not player.find(".go").is_enabled()
    for card, slot in ((1, 0), (2, 2)):
        player.all(".waiting .place")[card].click()
        player.all(".slot")[slot].click()
    assert player.placed == ["1", "2", "3"]
    assert not player.find(".go").is_enabled(), "not before it is said how sure"
    player.all(".sure label")[0].click()
    player.go()
    wait_for(lambda: player.ready() == "t1", why="the second trial")
    assert complaints(player.driver) == []


def test_a_reader_plays_on_a_phone(player, folder):
    pages.resize(player.driver, 390)
    player.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    player.open(f"{folder.as_uri()}/light.html")
    player.tap(player.find(".go"))
    player.ready()
    hint = "Put each of these under the row that shows the same thing to the network: tap it, then tap its place."
    assert player.find(".hint").text == hint
    player.tap(player.all(".waiting .place")[0])
    player.tap(player.all(".slot")[1])
    assert player.said == "Row 1 is under row B."
    assert player.all(".slot")[0].get_attribute("aria-label") == "Place under row A: empty"
    for place in (player.all(".slot")[1], player.all(".waiting .place")[0]):  # and back
        player.tap(place)
    for trial in DATA["trials"]:
        assert player.ready() == trial["id"]
        assert player.js("return document.documentElement.scrollWidth") <= 390
        sizes = player.js("return [...root.querySelectorAll('.place.full, .sure label')].map((e) => e.clientHeight)")
        assert min(sizes) >= 44
        player.by_taps(trial["answer"])
    assert "12 of 12" in wait_for(lambda: player.find(".score ~ p, .page p").text, why="the score")


def test_what_is_said_of_a_picked_row_is_true(player, folder):
    player.open(f"{folder.as_uri()}/light.html")
    player.go()
    player.ready()
    assert "beside the row" in player.find(".hint").text
    assert "or press its number and then a letter" in player.find(".hint").text
    picked = "return [...root.querySelectorAll('[aria-pressed=true]')].length"
    player.press("2")
    assert player.said.startswith("Row 2 is picked")
    player.press(Keys.ESCAPE)
    assert (player.said, player.js(picked)) == ("No row is picked.", 0)
    for _ in range(2):
        player.all(".waiting .place")[1].click()
    assert (player.said, player.js(picked)) == ("No row is picked.", 0)
    player.press("2", "a", "2")
    assert player.said.startswith("Row 2 is picked")
    player.press("a")  # where it is
    assert (player.said, player.js(picked)) == ("No row is picked.", 0)
    player.press("2")
    ActionChains(player.driver).drag_and_drop(player.all(".slot")[0], player.find("h3")).perform()
    assert (player.said, player.js(picked)) == ("No row is picked.", 0)
    assert player.placed == ["2", "", ""]
    player.press("2", "c", Keys.ESCAPE)
    assert player.said == "Row 2 is beside row C."


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_widget_has_no_serious_barrier(player, folder, theme):
    package("axe-core")
    player.open(f"{folder.as_uri()}/{theme}.html")
    assert player.serious() == []
    player.go()
    for trial in DATA["trials"]:
        player.ready()
        player.press("1")
        assert player.serious() == []
        player.press("a")
        player.by_keyboard(trial["answer"])
    wait_for(lambda: player.all(".score"), why="the score")
    assert player.serious() == []


def test_images_have_one_size_on_both_sides(player, folder):
    player.open(f"{folder.as_uri()}/light.html")
    player.go()
    for trial in DATA["trials"][:2]:
        player.ready()
        sizes = player.js(
            "return [...root.querySelectorAll('img')].map((i) => Math.round(i.getBoundingClientRect().width))"
        )
        assert len(sizes) == 6 * trial["n"]
        assert max(sizes) - min(sizes) <= 1
        player.by_keyboard(trial["answer"])


# ---------------------------------------------------------------- a session with the server


@pytest.fixture
def study(tmp_path):
    server_tests = pytest.importorskip("tests.test_matching_server")
    made = written(tmp_path, design(STIMULI, lists=1, numbers=(1,), repeats=1, practice=2, catch=1, seed=5))
    server = server_tests.Process(tmp_path, 2)
    yield made, server, server_tests
    server.kill()


def test_a_session_survives_a_reload_and_a_killed_server(player, study, tmp_path):
    from featvis.matching.experiment.store import Store

    _, server, _ = study
    store = Store(tmp_path)
    by_id = {store.names[trial.id]: trial for trial in store.order(1)}
    store.close()
    driver = player.driver
    driver.get(server.links[0])
    wait_for(lambda: "take part" in player.find("h3").text, why="asking for consent")
    player.go()
    wait_for(lambda: "What to do" in player.find("h3").text, why="the instruction")
    assert "You have done" not in player.find(".page").text
    player.go()
    given: dict[str, list[int]] = {}
    for position in range(9):
        trial = wait_for(lambda seen=frozenset(given): (t := player.ready()) not in seen and t, why="another trial")
        match = [(position + j) % 3 for j in range(3)]
        given[trial] = match
        if position == 4:  # in the middle of a trial
            player.press("1", "b")
            driver.refresh()
            wait_for(lambda: "What to do" in player.find("h3").text, why="taking up the session")
            assert "You have done 2 of 7 trials; you go on where you stopped." in player.find(".page").text
            player.go()
            assert player.ready() == trial
        if position == 6:
            server.kill()
        (player.by_keyboard if position % 2 else player.by_mouse)(match)
        if by_id[trial].part == "practice":
            hits = sum(a == b for a, b in zip(match, by_id[trial].answer, strict=True))
            assert player.said.startswith("All right" if hits == 3 else f"{hits} of 3 right")
            player.go()
        if position == 1:
            wait_for(lambda: "was the practice" in player.find("h3").text, why="the end of the practice")
            player.go()
        if position == 6:
            wait_for(lambda: "trying again" in driver.find_element("id", "status").text, why="noticing the loss")
            if position == 6:
                driver.refresh()  # the browser breaks down, too, with an answer that nobody has stored
            server.start()
            driver.get(server.links[0])
            wait_for(lambda: "What to do" in player.find("h3").text, why="taking up the session again")
            player.go()
    wait_for(lambda: player.all("textarea"), why="asking for a comment")
    player.find("textarea").send_keys("<b>=1+1</b>")
    player.go()
    for why in ("the end", "the end, again"):
        wait_for(lambda: "Thank you" in player.find("h3").text, why=why)
        assert "feature visualizations" in player.find(".page").text
        assert player.find(".page").text.endswith("Everything is saved. You can close this page.")
        assert player.find(".page").text.count("Thank you") == 1
        driver.refresh()
    store = Store(tmp_path)
    rows = store.rows()
    assert [row[1] for row in rows] == list(range(9))
    assert {store.names[row[2].id]: row[3]["match"] for row in rows} == given
    assert all(row[3]["rt"] > 0 and row[3]["first"] <= row[3]["rt"] for row in rows)
    assert store.participants()[0]["comment"] == "<b>=1+1</b>"
    store.close()


def test_nothing_can_be_changed_while_an_answer_is_on_its_way(player, study, tmp_path):
    from featvis.matching.experiment.store import Store

    _, server, _ = study
    player.driver.get(server.links[0])
    for title in ("take part", "What to do"):
        wait_for(lambda title=title: title in player.find("h3").text, why=title)
        player.go()
    seen: list[str] = []
    for position in range(3):  # the third is the first one without feedback
        seen.append(wait_for(lambda: (t := player.ready()) not in seen and t, why="another trial"))
        if position == 2:
            server.kill()
        player.by_keyboard([2, 0, 1])
        if position < 2:
            wait_for(lambda: player.find(".go").text == "Go on", why="feedback")
        if position == 1:
            server.kill()
        if position < 2:
            player.go()
        if position == 0:
            continue
        wait_for(lambda: "trying again" in player.driver.find_element("id", "status").text, why="noticing the loss")
        assert player.all(".place:not(:disabled), .go:not(:disabled)") == []
        assert not any(e.is_enabled() for e in player.all(".sure input"))
        player.press("1", "a", Keys.ENTER)
        ActionChains(player.driver).drag_and_drop(player.all(".slot")[0], player.all(".slot")[1]).perform()
        player.all(".slot")[1].click()
        player.all(".sure label")[2].click()
        assert player.placed == ["2", "3", "1"]
        server.start()
        if position == 1:
            wait_for(lambda: "was the practice" in player.find("h3").text, why="the end of the practice")
            player.driver.refresh()  # or another window
            wait_for(lambda: "What to do" in player.find("h3").text, why="taking up the session")
            assert "You have done 2 of 2 practice trials; you go on" in player.find(".page").text
            player.go()
    wait_for(lambda: player.ready() not in seen, why="the next trial")
    store = Store(tmp_path)
    assert [(row[3]["match"], row[3]["confidence"]) for row in store.rows()] == [([2, 0, 1], 2)] * 3
    store.close()


def test_refusing_and_wrong_links_are_told(player, study):
    _, server, _ = study
    player.driver.get(server.links[1])
    wait_for(lambda: "take part" in player.find("h3").text, why="asking for consent")
    player.all("button")[1].click()
    wait_for(lambda: "Only your refusal was recorded" in player.find(".page").text, why="accepting the refusal")
    player.driver.get(f"{server.url}/p/unknown")
    wait_for(lambda: "not valid" in player.find("h3").text, why="refusing the link")


def test_the_session_has_no_serious_barrier(player, study):
    package("axe-core")
    _, server, _ = study
    player.driver.get(server.links[1])
    # Scripts of the page may only come from the server; the check itself is brought in by the browser's driver.
    wait_for(lambda: "take part" in player.find("h3").text, why="asking for consent")
    assert player.serious() == []
    player.go()
    wait_for(lambda: "What to do" in player.find("h3").text, why="the instruction")
    assert player.serious() == []
    player.go()
    player.ready()
    assert player.serious() == []
    player.by_keyboard([0, 1, 2])
    wait_for(lambda: player.all(".right, .wrong"), why="feedback")
    assert player.serious() == []


# ---------------------------------------------------------------- jsPsych


def test_an_export_without_jspsych_is_no_blank_page(player, tmp_path):
    source, out = tmp_path / "study", tmp_path / "hosted"
    source.mkdir()
    out.mkdir()
    written(source, design(STIMULI, lists=1, numbers=(1,), practice=1, catch=1, seed=5))
    jspsych.export(source, out)
    with served(out) as url:
        player.driver.get(f"{url}/index.html")
        shown = "return document.getElementById('study')?.textContent.trim()"
        said = wait_for(lambda: player.driver.execute_script(shown), why="saying what is missing")
        assert "the package jspsych is missing: copy its dist/index.browser.min.js to jspsych/" in said
        complaints(player.driver)


def test_the_export_runs_in_jspsych(player, tmp_path):
    source, out = tmp_path / "study", tmp_path / "hosted"
    source.mkdir()
    out.mkdir()
    made = written(source, design(STIMULI, lists=1, numbers=(1,), practice=1, catch=1, seed=5))
    jspsych.export(source, out, package("jspsych"))
    given = {}
    with served(out) as url:
        complaints(player.driver)
        player.driver.get(f"{url}/index.html?list=0")
        for title in ("take part", "What to do"):
            wait_for(lambda title=title: title in player.find("h3").text, why=title)
            player.go()
        for position in range(8):
            trial = wait_for(lambda seen=frozenset(given): (t := player.ready()) not in seen and t, why="another trial")
            given[trial] = [(position + j) % 3 for j in range(3)]
            player.by_keyboard(given[trial])
            if position == 0:
                wait_for(lambda: player.find(".go").text == "Go on", why="feedback")
                player.go()
        wait_for(lambda: "Thank you" in player.find("h3").text, why="the end")
        kept = json.loads(player.driver.execute_script("return localStorage.getItem('featvis-matching')"))
        player.go()
        wait_for(lambda: player.driver.find_elements("css selector", "a[download]"), why="the file of answers")
        text = player.driver.execute_async_script(
            "const done = arguments[0], file = document.querySelector('a[download]').href;"
            "fetch(file).then((r) => r.text()).then(done)"
        )
        assert complaints(player.driver) == []
    rows = [row for row in kept if row["trial_type"] == "matching"]
    assert {row["trial"]: row["match"] for row in rows} == given
    (tmp_path / "answers.csv").write_text(text)
    import pandas as pd

    from featvis.matching.analysis import checked
    from featvis.matching.trials import scored

    table = checked(scored(pd.read_csv(tmp_path / "answers.csv"), made))
    assert len(table) == 8
    by_id = {trial.id: trial for trial in made.trials}
    for row in table.itertuples():
        assert row.correct == sum(a == b for a, b in zip(given[row.trial], by_id[row.trial].answer, strict=True))
