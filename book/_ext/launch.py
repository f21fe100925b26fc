"""No buttons to Colab and Binder on pages that are written in Markdown: both open notebooks only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def without_launch_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    if Path(app.env.doc2path(pagename)).suffix == ".md":
        buttons = context.get("header_buttons", [])
        buttons[:] = [button for button in buttons if button.get("label") != "launch-buttons"]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", without_launch_buttons, priority=502)  # the theme adds them at 501
    return {"parallel_read_safe": True, "parallel_write_safe": True}
