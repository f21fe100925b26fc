"""Two images on their way through the network: where do they agree?"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from featvis.errors import FeatvisError

_HERE = Path(__file__).parent


class Paths(anywidget.AnyWidget):
    """Pick a class and two images, and see layer by layer how alike their activations are, with some of the maps.

    `data` comes from `featvis.path_pairs`: the `layers` and, for each of `classes`, its `images` (a `label`, a `kind`
    and a data: URI `src`), the lists `same` and `different` (natural images, by layer), `similarity` ([i][j] a list by
    layer), and `maps` by layer: `height`, `width`, `channels`, `alike` ([i][j] a list by channel) and `values`, all
    images' and channels' maps as base64 of bytes. `group`, `first`, `second` and `layer` are what is shown; all can be
    set. Nothing is computed in the browser, so that a published page does all that a notebook does. Raises
    FeatvisError for data that do not fit together, and for a choice that is not there.
    """

    _esm = _HERE / "paths.js"
    _css = _HERE / "paths.css"
    data = traitlets.Dict().tag(sync=True)
    group = traitlets.Int(0).tag(sync=True)
    first = traitlets.Int(0).tag(sync=True)
    second = traitlets.Int(1).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)

    def __init__(self, data: Mapping[str, Any], **shown: int):
        if not data.get("classes") or not data.get("layers"):
            raise FeatvisError("there is nothing to compare: data['classes'] or data['layers'] is missing or empty.")
        for one in data["classes"]:
            _check(one, data["layers"], len(data["classes"][0]["images"]))
        super().__init__(data=dict(data), **shown)

    @traitlets.validate("group", "first", "second", "layer")
    def _known(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        sizes = {"group": len(self.data["classes"]), "layer": len(self.data["layers"])}
        size = sizes.get(name, len(self.data["classes"][0]["images"]))
        if not 0 <= value < size:
            raise FeatvisError(f"there is no {name} {value}: valid are 0 to {size - 1}.")
        return value


def _check(one: Mapping[str, Any], layers: list[str], images: int) -> None:
    name = one.get("name", "a class without a name")
    parts = ("images", "same", "different", "similarity", "maps")
    if missing := [part for part in parts if part not in one]:
        raise FeatvisError(f"{name} lacks {', '.join(missing)}.")
    if len(one["images"]) != images or images < 2:
        raise FeatvisError(f"{name} has {len(one['images'])} images; every class needs the same number, at least 2.")
    curves = [one["same"], one["different"], *(curve for row in one["similarity"] for curve in row)]
    if {len(curve) for curve in curves} | {len(one["maps"])} != {len(layers)}:
        raise FeatvisError(f"{name} has curves or maps of another length than the {len(layers)} layers.")
    if not all(value is None or math.isfinite(value) for curve in curves for value in curve):
        raise FeatvisError(f"{name} has a similarity that is not a finite number.")
    for layer, maps in zip(layers, one["maps"], strict=True):
        size = images * len(maps["channels"]) * maps["height"] * maps["width"]
        if len(base64.b64decode(maps["values"])) != size:
            raise FeatvisError(f"the maps of {name} in {layer} do not have {size} values.")
