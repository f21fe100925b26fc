"""Pages with widgets in them, as a built book has them, and a reader who uses them."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ipywidgets import Widget
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.keys import Keys

from tests.conftest import complaints, requests

HOST = Path(__file__).parents[2] / "book" / "_static" / "widgets.js"
STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"

PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="{theme}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>A chapter</title>
<link rel="icon" href="data:,">
<style>html {{ --pst-color-background: #fff }}
html[data-theme=dark] {{ --pst-color-background: #14181e; color: #ced6dd }}
body {{ max-width: 46rem; margin: 1rem auto; padding: 0 1rem; background: var(--pst-color-background); }}
</style></head>
<body><p>Before the widget.</p>{views}<p>After the widget.</p>
<script type="{state_type}">{state}</script>
<script src="widgets.js"></script>
</body></html>
"""


def _script(content: Any) -> str:
    # What myst-nb does to a script's content, and nothing more: a widget's source must survive exactly this.
    return json.dumps(content).replace("</script>", r"<\/script>")


def write_page(path: Path, widgets: list[Widget], theme: str = "light") -> Path:
    """A page that holds `widgets` and their state in the form that nbclient saves and myst-nb writes."""
    state = Widget.get_manager_state(widgets=widgets)
    views = [{"version_major": 2, "version_minor": 0, "model_id": widget.model_id} for widget in widgets]
    html = PAGE.format(
        theme=theme,
        views="".join(f'<div class="output"><script type="{VIEW}">{_script(view)}</script></div>' for view in views),
        state_type=STATE,
        state=_script(state),
    )
    path.write_text(html, encoding="utf-8")
    shutil.copy(HOST, path.parent / "widgets.js")
    return path


def resize(driver: Chrome, width: int, height: int = 900) -> None:
    """Set the viewport; a window cannot be made as narrow as a phone."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait_for(what: Callable[[], Any], seconds: float = 20, why: str = "") -> Any:
    """What `what` returns as soon as that is true; anything that it raises counts as not yet."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            last = what()
            if last:
                return last
        except Exception as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"{why or 'this'} did not happen within {seconds} s; last seen: {last!r}")


class Page:
    """A page with an explorer, as a reader uses it."""

    def __init__(self, driver: Chrome):
        self.driver = driver

    def open(self, url: str) -> Page:
        self.driver.get("about:blank")  # a change of the hash alone would not load the page anew
        requests(self.driver)
        complaints(self.driver)
        self.driver.get(url)
        self.painted()
        return self

    def js(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(f"const root = document.querySelector('.featvis-explorer'); {script}", *given)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", f".featvis-explorer {selector}")

    def painted(self) -> None:
        wait_for(lambda: self.js("return root.querySelector('.grid').dataset.sheet"), why="painting the grid")
        wait_for(
            lambda: self.js("return [...root.querySelectorAll('.detail .picture')].every((p) => 'ready' in p.dataset)"),
            why="painting the chosen unit",
        )

    @property
    def unit(self) -> str:
        return self.js("return root.querySelector('.detail').dataset.unit")

    @property
    def hash(self) -> str:
        return self.js("return location.hash")

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def type_over(self, text: str) -> None:
        """Replace what the focused field holds."""
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(text).perform()

    def natural_width(self, selector: str) -> int:
        """The width of the image file behind an element's background, loaded once more by the browser itself."""
        return self.driver.execute_async_script(
            """const [selector, done] = arguments, image = new Image();
            const style = getComputedStyle(document.querySelector(`.featvis-explorer ${selector}`));
            image.onload = () => done(image.naturalWidth);
            image.onerror = () => done(0);
            image.src = style.backgroundImage.slice(5, -2);""",
            selector,
        )

    def shows(self, selector: str, sheet: Path, index: int, columns: int, side: int) -> float:
        """Mean difference (0 to 255) between what the screen shows and tile `index` of a sheet."""
        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        seen = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB").resize((48, 48), Image.Resampling.BOX)
        x, y = index % columns * side, index // columns * side
        tile = Image.open(sheet).convert("RGB").crop((x, y, x + side, y + side)).resize((48, 48), Image.Resampling.BOX)
        inner = (slice(4, 44), slice(4, 44))  # the corners are round
        return float(np.abs(np.asarray(seen, float)[inner] - np.asarray(tile, float)[inner]).mean())
