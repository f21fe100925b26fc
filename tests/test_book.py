"""The built book in a real browser: nothing is asked of another host, nothing fails, formulas and widgets are there.

The pages are those of `_build/html` if the book has been built, and always those of a small book built here with
the same configuration; so a broken configuration fails even before the first `make book`.
"""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import ROOT, complaints, requests, served

BUILT = ROOT / "_build" / "html"
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
RELATIONS = {"stylesheet", "preload", "icon", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}


class Loads(HTMLParser):
    """Collects the addresses that a browser fetches by itself, without a click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "link" and RELATIONS & set((values.get("rel") or "").lower().split()):
            self.found.append(values.get("href") or "")
        elif tag in LOADS:
            self.found += [values.get(LOADS[tag]) or "", values.get("srcset") or ""]


def pages(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*.html")) if "_static" not in p.parts and not p.name.startswith("webpack")]


@pytest.fixture(params=["mini", "built"])
def book(request: pytest.FixtureRequest, mini_book: Path) -> Path:
    if request.param == "mini":
        return mini_book
    if not (BUILT / ".done").exists():
        pytest.skip("the whole book has not been built yet")
    return BUILT


def elsewhere(addresses: list[str]) -> list[str]:
    return [a for a in addresses if re.match(r"\s*(https?:)?//", a) and "//127.0.0.1" not in a]


def test_no_page_names_anything_elsewhere_to_load(book: Path) -> None:
    assert len(pages(book)) >= 6
    for page in pages(book):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert elsewhere(loads.found) == [], page.name
    for style in book.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s]+)", style.read_text(encoding="utf-8"))
        assert elsewhere(urls) == [], style.name


def test_the_detector_of_requests_can_fail() -> None:
    loads = Loads()
    loads.feed(
        '<script src="https://a.example/x.js"></script><link rel="stylesheet" href="//b.example/y.css"><a href="https://c">'
    )
    assert elsewhere(loads.found) == ["https://a.example/x.js", "//b.example/y.css"]


def test_formulas_are_drawn_and_the_shelf_is_published(mini_book: Path) -> None:
    chapter = next((mini_book / "notebooks").glob("*.html")).read_text(encoding="utf-8")
    assert chapter.count("<math") == 2
    assert "arg\u2009max" in chapter
    assert 'class="eqno"' in chapter
    assert "MathJax" not in chapter
    assert "require.js" not in chapter
    assert (mini_book / "mini" / "sheet.txt").exists()


class Pictures(HTMLParser):
    """Collects what is said of each figure to those who do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "img" and "_images/" in (values.get("src") or ""):
            self.found.append(values.get("alt") or "")


def test_every_figure_says_in_words_what_it_shows(book: Path) -> None:
    said = 0
    for page in pages(book):
        pictures = Pictures()
        pictures.feed(page.read_text(encoding="utf-8"))
        # Without a text of its own a cell's figure is given the path of its file.
        assert [alt for alt in pictures.found if len(alt) < 20 or "_images/" in alt] == [], page.name
        said += len(pictures.found)
    assert said > 0


class Words(HTMLParser):
    """Collects what is to be read on a page, but for code, formulas and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.within = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.within += tag in OTHER

    def handle_endtag(self, tag: str) -> None:
        self.within -= tag in OTHER

    def handle_data(self, text: str) -> None:
        if not self.within:
            self.found.append(text)


OTHER = {"code", "pre", "script", "style", "math", "title"}


def left_over(page: str) -> list[str]:
    """Formulas that nobody drew: what a cell displays is not looked through for them."""
    words = Words()
    words.feed(page)
    return re.findall(r"\$[^$\n]*\\[a-zA-Z]+", "".join(words.found))


def test_no_formula_is_left_as_it_was_written(book: Path) -> None:
    assert left_over(r"<p>with $\lambda = 3$</p><code>$\alpha$</code>") == [r"$\lambda"]
    for page in pages(book):
        assert left_over(page.read_text(encoding="utf-8")) == [], page.name


def test_only_notebooks_are_offered_to_be_opened_elsewhere(book: Path) -> None:
    links = [re.findall(r'href="(https://colab[^"]*)"', page.read_text(encoding="utf-8")) for page in pages(book)]
    assert any(links)
    assert [link for page in links for link in page if not link.endswith(".ipynb")] == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_pages_open_without_a_request_elsewhere_or_an_error(book: Path, scheme: str, browser) -> None:
    with served(book) as address:
        for page in pages(book):
            where = page.relative_to(book).as_posix()
            requests(browser), complaints(browser)
            browser.get(page.as_uri() if scheme == "file" else f"{address}/{where}")
            time.sleep(0.2)  # a timer in the page would be lost where it leads to another one at once
            asked = [u for u in requests(browser) if not u.startswith(("file:", address))]
            assert asked == [], where
            assert complaints(browser) == [], where


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_widgets_live_without_a_kernel(mini_book: Path, scheme: str, browser) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    page = next((mini_book / "notebooks").glob("*.html"))
    with served(mini_book) as address:
        browser.get(page.as_uri() if scheme == "file" else f"{address}/notebooks/{page.name}")
        button = WebDriverWait(browser, 60).until(lambda b: b.find_element("id", "counter"))
        assert button.text == "count 3"
        browser.execute_script("arguments[0].click()", button)
        assert button.text == "count 4"


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(book: Path, browser) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        for page in pages(book):
            browser.get(page.as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, page.name
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_both_colour_schemes_keep_text_readable(mini_book: Path, mode: str, browser) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    # Without motion: a link's colour fades in for 0.2 s, and a quick look would see it half-way.
    media = {"prefers-color-scheme": mode, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        browser.get((mini_book / "book" / "intro.html").as_uri())
        # Chromium may tell a page of the emulated scheme just after it has loaded, and the theme follows then.
        WebDriverWait(browser, 60).until(
            lambda b: b.execute_script("return document.documentElement.dataset.theme") == mode
        )
        for selector in (
            "article p",
            "article h1",
            "article a",
            ".sd-card .sd-card-text",
            ".sd-card .sd-card-title",
        ):
            text, ground = browser.execute_script(COLOURS, selector)
            assert contrast(text, ground) >= 4.5, selector
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# The colour of a text, and that of the nearest opaque ground behind it.
COLOURS = """
let element = document.querySelector(arguments[0]);
const text = getComputedStyle(element).color;
let ground = "rgba(0, 0, 0, 0)";
while (element && /, 0\\)$/.test(ground)) {
  ground = getComputedStyle(element).backgroundColor;
  element = element.parentElement;
}
return [text, ground];
"""


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours, WCAG 2.1."""

    def luminance(colour: str) -> float:
        channels = [int(float(x)) / 255 for x in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white() -> None:
    assert contrast("rgb(0, 0, 0)", "rgba(255, 255, 255, 1)") == pytest.approx(21)
