"""The switch: drag a natural image into a visualization and watch the fooling circuit change over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from featvis.errors import FeatvisError

_HERE = Path(__file__).parent
TEXTS = ("name", "natural", "synthetic", "unit", "decoy")
SERIES = ("t", "score", "e", "F", "D", "B", "C", "A")


class Switch(anywidget.AnyWidget):
    """Show what each unit of the fooling circuit does while a natural image turns into a visualization.

    `data` has the circuit's constants `c` and `k`, and `pairs`; for each pair a short `name`, the pictures `natural`
    and `synthetic` (data: URIs), the labels `unit` of F and `decoy` of D, and lists of equal length: the weights `t`
    of the visualization in the mix (ascending from 0 to 1), the gate's `score` (positive: natural) and `e` (0 or 1),
    the activations `F`, `D`, `B`, `C` and `A`. `t` is where the slider stands and `pair` the pair shown; both can be
    set. Nothing is computed in the browser, so that a published page does all that a notebook does. Raises
    FeatvisError for data that do not fit together and for a `t` or a `pair` that is not there.
    """

    _esm = _HERE / "switch.js"
    _css = _HERE / "switch.css"
    data = traitlets.Dict().tag(sync=True)
    t = traitlets.Float(0.0).tag(sync=True)
    pair = traitlets.Int(0).tag(sync=True)

    def __init__(self, data: Mapping[str, Any], *, t: float = 0.0, pair: int = 0):
        if not data.get("pairs"):
            raise FeatvisError("there is no pair of pictures to blend: data['pairs'] is missing or empty.")
        if missing := [name for name in ("c", "k") if name not in data]:
            raise FeatvisError(f"the circuit lacks its constant {' and '.join(missing)}.")
        constants = {name: float(data[name]) for name in ("c", "k")}
        super().__init__(data={**constants, "pairs": [_checked(one) for one in data["pairs"]]}, t=t, pair=pair)

    @traitlets.validate("t")
    def _weight(self, proposal: Any) -> float:
        if not 0 <= proposal["value"] <= 1:
            raise FeatvisError(f"t = {proposal['value']} is no share of the visualization: it goes from 0 to 1.")
        return proposal["value"]

    @traitlets.validate("pair")
    def _known(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < len(self.data["pairs"]):
            raise FeatvisError(
                f"there is no pair {proposal['value']}: there are pairs 0 to {len(self.data['pairs']) - 1}."
            )
        return proposal["value"]


def _checked(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The same pair with plain floats in its lists."""
    name = pair.get("name", "a pair without a name")
    if missing := [key for key in (*TEXTS, *SERIES) if key not in pair]:
        raise FeatvisError(f"{name} lacks {', '.join(missing)}.")
    lists = {key: [float(value) for value in pair[key]] for key in SERIES}
    t = lists["t"]
    for key, values in lists.items():
        if len(values) != len(t):
            raise FeatvisError(f"{name} has {len(t)} blend weights t, but {len(values)} values of {key}.")
        if not all(map(math.isfinite, values)):
            raise FeatvisError(f"{name} has a value of {key} that is not a finite number.")
    if len(t) < 2 or t[0] != 0 or t[-1] != 1 or any(b <= a for a, b in pairwise(t)):
        raise FeatvisError(f"the blend weights t of {name} do not ascend from 0 to 1.")
    if not set(lists["e"]) <= {0.0, 1.0}:
        raise FeatvisError(f"{name} has a value of e that is neither 0 (natural) nor 1 (visualization).")
    return {**{key: str(pair[key]) for key in TEXTS}, **lists}
