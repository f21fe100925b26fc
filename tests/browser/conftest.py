"""What the browser tests of the widgets share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome

from featvis.widgets import Explorer
from tests.browser import mock, pages


@pytest.fixture
def bounded() -> Iterator[None]:
    """No browser test may hang: after five minutes it fails."""

    def give_up(*_: Any) -> None:
        pytest.fail("this browser test took more than five minutes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Path], Path]:
    folder = tmp_path_factory.mktemp("network")
    data, files = mock.make(folder / "sheets")
    explorer = Explorer(data, base="sheets/")
    pages.write_page(folder / "light.html", [explorer])
    pages.write_page(folder / "dark.html", [explorer], "dark")
    return data, files, folder


@pytest.fixture
def page(browser: Chrome, bounded: None) -> Iterator[pages.Page]:
    pages.resize(browser, 1280)
    yield pages.Page(browser)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
