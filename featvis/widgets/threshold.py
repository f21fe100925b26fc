"""The threshold: move the decoy's strength and the margin, and see who wakes and what the visualization becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from featvis.errors import FeatvisError

_HERE = Path(__file__).parent
NEEDED = (
    "layer",
    "decoy",
    "images",
    "strengths",
    "margins",
    "left",
    "width",
    "bins",
    "sheet",
    "columns",
    "tiles",
    "units",
)
UNIT = ("name", "own", "natural", "original", "cells")
CELL = ("response", "awake", "flipped", "wakes", "picture")


class Threshold(anywidget.AnyWidget):
    """Show the responses of a silent filter and its visualization for every strength and margin of a grid.

    `data` has the names `layer` and `decoy`, the number of held-out `images`, the ascending lists `strengths` and
    `margins`, the histograms' first edge `left`, their `width` and number of `bins`; a `sheet` (a data: URI) with
    `tiles` pictures in rows of `columns`, the last of them the decoy; and `units`: each with a `name`, the picture
    `own`, for every strength a histogram `natural` of held-out images and the response `original` of the unit's own
    visualization, and `cells[strength][margin]`: the `response` to the new visualization, whether the unit is `awake`
    there and `flipped`, how many images it `wakes` on, its `picture`. `unit`, `strength` and `margin` say what is
    shown, by position, and can be set. Nothing is computed in the browser. Raises FeatvisError for data that do not fit
    together and for positions that are not there.
    """

    _esm = _HERE / "threshold.js"
    _css = _HERE / "threshold.css"
    data = traitlets.Dict().tag(sync=True)
    unit = traitlets.Int(0).tag(sync=True)
    strength = traitlets.Int(0).tag(sync=True)
    margin = traitlets.Int(0).tag(sync=True)

    def __init__(self, data: Mapping[str, Any], *, unit: int = 0, strength: int = 0, margin: int = 0):
        super().__init__(data=_checked(data), unit=unit, strength=strength, margin=margin)

    @traitlets.validate("unit", "strength", "margin")
    def _known(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        count = len(self.data[f"{name}s"])
        if not 0 <= value < count:
            raise FeatvisError(f"there is no {name} {value}: there are 0 to {count - 1}.")
        return value


def _checked(data: Mapping[str, Any]) -> dict[str, Any]:
    if missing := [key for key in NEEDED if key not in data]:
        raise FeatvisError(f"the grid lacks {', '.join(missing)}.")
    for key in ("strengths", "margins"):
        values = data[key]
        if not values or list(values) != sorted(set(values)) or not all(map(math.isfinite, values)):
            raise FeatvisError(f"the {key} do not ascend; they are finite numbers, each given once.")
    if not data["units"]:
        raise FeatvisError("there is no unit to show: data['units'] is empty.")
    for one in data["units"]:
        name = one.get("name", "a unit without a name")
        if missing := [key for key in UNIT if key not in one]:
            raise FeatvisError(f"{name} lacks {', '.join(missing)}.")
        rows = [len(one[key]) for key in ("natural", "original", "cells")]
        if rows != [len(data["strengths"])] * 3 or any(len(row) != len(data["margins"]) for row in one["cells"]):
            raise FeatvisError(f"{name} does not have one cell for each strength and margin.")
        if any(len(counts) != data["bins"] for counts in one["natural"]):
            raise FeatvisError(f"{name} has a histogram that does not have {data['bins']} bins.")
        for cell in (cell for row in one["cells"] for cell in row):
            if missing := [key for key in CELL if key not in cell]:
                raise FeatvisError(f"a cell of {name} lacks {', '.join(missing)}.")
            if not (math.isfinite(cell["response"]) and 0 <= cell["picture"] < data["tiles"]):
                raise FeatvisError(f"a cell of {name} has no finite response or no picture on the sheet.")
    return dict(data)
