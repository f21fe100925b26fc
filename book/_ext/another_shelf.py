"""Publish the shelf that FEATVIS_SHELF names beside the pages, whose widgets show its sheets of images."""

from __future__ import annotations

import os
from typing import Any

from sphinx.application import Sphinx

SHELF = "FEATVIS_SHELF"


def publish(app: Sphinx) -> None:
    if os.environ.get(SHELF):
        app.config.html_extra_path = [*app.config.html_extra_path, os.path.abspath(os.environ[SHELF])]


def setup(app: Sphinx) -> dict[str, Any]:
    # Not earlier: Sphinx drops folders that do not exist, and a new shelf is made by the chapters.
    app.connect("builder-inited", publish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
