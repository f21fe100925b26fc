"""The unit explorer: every unit of a network, its visualizations, exemplars and activations, in one widget.

The same module runs in JupyterLab, where the kernel sends the pictures, and in the published page, where they lie
beside the page and there is no kernel (book/_static/widgets.js).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from featvis.errors import FeatvisError, listed

_HERE = Path(__file__).parent


class Explorer(anywidget.AnyWidget):
    """Show every unit of a subject.

    `data` has the subject's `layers` (for each: `name`, `units`, the sheets `max` and `min`, `labels`, one entry of
    `rows` a unit with activations `a` and `b`, status `s`, exemplars `top` and `bottom`, histogram `hist` from `lo`
    to `hi`, quantiles `q`), the sizes `tile`, `thumb` (pixels) and `columns`, and the exemplars' `thumbs`. A sheet is
    an image file of many tiles. `base` is the sheets' folder as the published page sees it ("" or ending in "/");
    `files` maps a sheet's name to its path, for a live kernel to send. `unit` is the unit shown, and can be set:
    "inception4b:17", or "fc:coins" where a layer has labels. Raises FeatvisError for a unit that is not in `data`.
    """

    _esm = _HERE / "explorer.js"
    _css = _HERE / "explorer.css"
    data = traitlets.Dict().tag(sync=True)
    base = traitlets.Unicode("").tag(sync=True)
    unit = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self, data: Mapping[str, Any], base: str = "", files: Mapping[str, str | Path] | None = None, *, unit: str = ""
    ):
        if not data.get("layers"):
            raise FeatvisError("there is no layer to explore: data['layers'] is missing or empty.")
        for layer in data["layers"]:
            if len(layer["rows"]) != layer["units"]:
                raise FeatvisError(f"{layer['name']} has {layer['units']} units, but {len(layer['rows'])} rows.")
        self.files = {name: Path(path) for name, path in (files or {}).items()}
        super().__init__(data=_finite(data), base=base, unit=unit or f"{data['layers'][0]['name']}:0")
        self.on_msg(self._serve)

    @traitlets.validate("unit")
    def _known(self, proposal: Any) -> str:
        text = proposal["value"]
        name, _, which = text.rpartition(":")
        layers = {layer["name"]: layer for layer in self.data["layers"]}
        if name not in layers:
            raise FeatvisError(f"{text!r} is not in this explorer; its layers are {listed(layers, 40)}.")
        labels, count = layers[name].get("labels") or [], layers[name]["units"]
        if which in labels:
            return f"{name}:{labels.index(which)}"
        if not (which.isdecimal() and int(which) < count):
            raise FeatvisError(f"{text!r} is not in this explorer: {name} has units 0 to {count - 1}.")
        return f"{name}:{int(which)}"

    def _serve(self, _widget: object, content: object, _buffers: object) -> None:
        """Answer {want: sheet} with {sheet} and its bytes, or with {sheet, error} and a sentence."""
        name = content.get("want") if isinstance(content, dict) else None
        if not isinstance(name, str) or name not in self.files:
            self.send({"sheet": str(name), "error": f"{name!r} is not one of this explorer's sheets"})
            return
        try:
            picture = self.files[name].read_bytes()
        except OSError as error:
            self.send({"sheet": name, "error": f"{name} cannot be read: {error.strerror}"})
        else:
            self.send({"sheet": name}, buffers=[picture])


def _finite(value: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON in a page cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
