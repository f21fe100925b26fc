"""What several test files share: a browser that can reach nothing but this machine, and a small built book."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A Chromium for which every host but 127.0.0.1 does not exist; logs its console and its requests."""
    if not (BROWSER and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(180)  # a busy machine is slow, not broken
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over http on a free port of this machine, as a URL without a last slash."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def requests(driver) -> list[str]:
    """Every address that the browser asked for since the last call, data and blob addresses left out."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = (m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return [url for url in asked if not url.startswith(("data:", "blob:", "about:", "chrome:"))]


def complaints(driver) -> list[str]:
    """Errors on the console since the last call. From file:// Chromium refuses icon fonts, which the theme survives."""
    entries = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return [e["message"] for e in entries if not ("file:///" in e["message"] and "/fontawesome/" in e["message"])]


def build(source: Path) -> Path:
    """Build the book in `source` as `make book` does; its folder of pages. Fails with the whole output."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", ".", "--toc", "book/_toc.yml", "-nW", "--keep-going"]
    path = os.pathsep.join([str(program.parent), os.environ.get("PATH", "")])  # where the notebooks' kernel is
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (source / "_build" / "html" / "index.html").exists()
    return source / "_build" / "html"


MINI = r"""# A small chapter

## A formula

$$ x^\star = \arg\max_{x \in X} f(x) $$ (eq-mini)

It is {eq}`eq-mini`, by {cite:t}`olah2017`, with $\hat{x} \le 1$ in a {term}`unit`.

## A widget
"""
COUNTER = """import anywidget
import traitlets


class Counter(anywidget.AnyWidget):
    _esm = '''export default { render({ model, el }) {
      const button = document.createElement("button");
      button.id = "counter";
      const show = () => { button.textContent = `count ${model.get("count")}`; };
      button.addEventListener("click", () => { model.set("count", model.get("count") + 1); model.save_changes(); });
      model.on("change:count", show);
      show();
      el.append(button);
    } };'''
    count = traitlets.Int(3).tag(sync=True)


Counter()"""


@pytest.fixture(scope="session")
def mini_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book with one tiny chapter in place of the real ones: its own configuration, pages, style and scripts."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("jupyter_book")
    source = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "book", source / "book")
    for name in ("_config.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    (source / "book" / "model_card.md").write_text("# The card\n\n## At a glance\n\nHere without its figures.\n")
    (source / "book" / "scaling.md").write_text("# How far?\n\n## At a glance\n\nHere without its figures.\n")
    (source / "results" / "mini").mkdir(parents=True)
    (source / "results" / "mini" / "sheet.txt").write_text("published beside the pages")
    chapter = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(MINI), nbformat.v4.new_code_cell(COUNTER)],
        metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    )
    toc = (source / "book" / "_toc.yml").read_text()
    for line in toc.splitlines():
        if "notebooks/" in line:
            path = source / (line.split("file:")[1].strip() + ".ipynb")
            path.parent.mkdir(exist_ok=True)
            text = nbformat.writes(chapter).replace("eq-mini", f"eq-{path.stem}")
            path.write_text(text)
    return build(source)


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "chromium" in str(r.longrepr)]
    if skipped:
        terminalreporter.section("BROWSER TESTS SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests did not run: chromium and chromedriver are not installed.")
