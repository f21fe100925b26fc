"""The widgets in JupyterLab, with a living kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from tests.browser import pages
from tests.browser.pages import wait_for
from tests.conftest import ROOT

pytestmark = pytest.mark.browser

NOTEBOOK = """
import json, pathlib
from featvis.widgets import Explorer, Knobs
from tests.browser.fakes import SUBJECT, FakeRender
here = pathlib.Path({folder!r})
explorer = Explorer(json.loads((here / "data.json").read_text()), files={{p.name: p for p in here.glob("*.webp")}})
explorer.observe(lambda change: (here / "unit.txt").write_text(change.new), "unit")
explorer
"""
KNOBS = """
knobs = Knobs(SUBJECT, render=FakeRender(0.02), steps=2000)
knobs.observe(lambda change: (here / "message.txt").write_text(change.new), "message")
knobs
"""
SWITCH = """
from featvis.widgets import Switch
from tests.browser.mock import circuit
switch = Switch(circuit())
switch.observe(lambda change: (here / "t.txt").write_text(str(change.new)), "t")
switch
"""
PROSE = """
```{exercise}
:label: ex-one
What is asked?
```

```{solution} ex-one
:class: dropdown
What is told.
```
"""


@pytest.fixture(scope="module")
def lab(network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab of its own, on a free port; yields the address of its one notebook, and the data's folder."""
    pytest.importorskip("jupyterlab")
    data, files, _ = network
    home = tmp_path_factory.mktemp("lab")
    folder = next(iter(files.values())).parent
    (folder / "data.json").write_text(json.dumps(data))
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in (NOTEBOOK.format(folder=str(folder)), KNOBS, SWITCH)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, home / "widgets.ipynb")
    prose = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(PROSE)], metadata={"kernelspec": kernel})
    nbformat.write(prose, home / "prose.ipynb")
    settings = home / "config" / "labconfig"
    settings.mkdir(parents=True)
    silenced = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (settings / "page_config.json").write_text(json.dumps(silenced))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={home}", "--IdentityProvider.token=reader",
    ]  # fmt: skip
    with open(home / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home)
    try:
        status = f"http://127.0.0.1:{port}/api/status?token=reader"
        wait_for(lambda: urllib.request.urlopen(status, timeout=2).status == 200, 120, "starting JupyterLab")
        yield f"http://127.0.0.1:{port}/lab/tree/widgets.ipynb?token=reader", folder
    finally:
        server.terminate()
        server.wait(20)


def run_all(driver: Chrome, url: str) -> None:
    """Open the notebook and choose Run All Cells from the menu."""
    driver.get(url)

    def click(selector: str, text: str = "") -> bool:
        [found] = [e for e in driver.find_elements("css selector", selector) if text in e.text and e.is_displayed()]
        found.click()
        return True

    wait_for(lambda: click(".jp-Notebook .jp-CodeCell:first-child .cm-content"), 60, "opening the notebook")
    wait_for(lambda: driver.find_element("css selector", "[data-status=idle]"), 60, "starting a kernel")
    wait_for(lambda: click(".lm-MenuBar-item", "Run"), why="opening the Run menu")
    wait_for(lambda: click(".lm-Menu-item[data-command='runmenu:run-all']"), why="choosing Run All Cells")


def test_explorer_knobs_and_switch_live_in_jupyterlab(page, lab):
    url, folder = lab
    driver = page.driver
    pages.resize(driver, 1280, 1000)
    run_all(driver, url)

    def kernel(name: str) -> str:
        """What the kernel wrote when a trait changed."""
        return (folder / f"{name}.txt").read_text()

    wait_for(lambda: page.find(".grid"), 60, "the explorer's output")
    page.painted()
    assert page.js("return getComputedStyle(root.querySelector('.grid i')).backgroundImage").startswith('url("blob:')
    for selector in (".grid i", ".big .picture", ".top .picture"):
        assert page.natural_width(selector) > 0, selector  # the sheets came over the comm
    page.find("[data-layer='5']").click()
    page.painted()
    page.find(".grid [data-unit='17']").click()
    wait_for(lambda: kernel("unit") == "inception4b:17", why="the kernel's hearing of the click")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait_for(lambda: kernel("unit") == "inception4b:19", why="the kernel's hearing of the arrow keys")
    page.press("m")
    page.painted()
    assert page.js("return root.querySelector('.grid').dataset.sheet") == "min-inception4b.webp"
    assert driver.find_elements("css selector", ".jp-MarkdownCell") == []  # "m" went to the widget alone
    assert "#" not in driver.current_url

    knobs = wait_for(lambda: driver.find_element("css selector", ".featvis-knobs"), 30, "the knobs' output")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", knobs)

    def find(selector: str) -> Any:
        return knobs.find_element("css selector", selector)

    slider = find("fieldset input[type=range]")
    slider.click()
    before = int(slider.get_attribute("value"))
    page.press(Keys.ARROW_RIGHT)
    assert int(slider.get_attribute("value")) == before + 1
    find(".run").click()
    wait_for(lambda: int(find("canvas").get_attribute("data-step")) > 100, 30, "frames")
    assert "left" in find(".clock").text
    assert len(find("polyline").get_attribute("points").split()) > 3
    find(".stop").click()
    wait_for(lambda: kernel("message").startswith("Stopped at step"), why="the kernel's stopping")
    wait_for(lambda: find(".message").text.startswith("Stopped at step"), why="the reader's hearing of it")
    find("input[type=text]").click()
    page.type_over("fc:unicorn")
    page.press(Keys.ENTER)
    wait_for(lambda: find(".message").text == "'fc:unicorn' names no unit.", why="an error in one sentence")

    switch = wait_for(lambda: driver.find_element("css selector", ".featvis-switch"), 30, "the switch's output")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", switch)
    driver.execute_script("arguments[0].querySelector('input').focus()", switch)
    page.press(Keys.END)
    wait_for(lambda: float(kernel("t")) == 1, why="the kernel's hearing of the slider")
    wait_for(lambda: "The gate says visualization" in switch.text, why="the words below the diagram")


def test_an_exercise_looks_as_on_the_page_and_hides_its_solution(page, lab):
    url, _ = lab
    driver = page.driver
    driver.get(url.replace("widgets.ipynb", "prose.ipynb"))
    told = wait_for(lambda: driver.find_element("css selector", ".jp-MarkdownCell details"), 60, "the solution's fold")
    shown = driver.find_element("css selector", ".jp-MarkdownCell").text
    assert "What is asked?" in shown
    assert not any(raw in shown for raw in ("What is told.", "```", ":label:"))
    told.find_element("css selector", "summary").click()
    wait_for(lambda: "What is told." in driver.find_element("css selector", ".jp-MarkdownCell").text, why="unfolding")
