"""The auditor: choose an attack and its strength, and see pictures and every check's verdict move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from featvis.errors import FeatvisError

_HERE = Path(__file__).parent
NEEDED = ("checks", "level", "smallest", "sheet", "columns", "tiles", "attacks")
ATTACK = ("name", "strength", "cases")
CASE = ("strength", "same", "images", "units")
UNIT = ("name", "p", "all", "pictures")


class Auditor(anywidget.AnyWidget):
    """Show what an audit says of attacked units, attack by attack and strength by strength.

    `data` has the names of the `checks`, the `level` below which a p-value stands out and the `smallest` that there can
    be, a `sheet` (a data: URI) with `tiles` pictures in rows of `columns`, and `attacks`: each with a `name`, what
    `strength` means, and `cases`, each with a `strength`, how many of `images` natural images get the `same` answer as
    before, and `units`: a `name`, a `p` for each check (None where a check is blind), `all` checks together, and the
    `pictures` before, after, and of the exemplar, by their number on the sheet. `attack`, `strength` and `unit` say
    what is shown, by position, and can be set. Raises FeatvisError for data that do not fit together and for positions
    that are not there.
    """

    _esm = _HERE / "auditor.js"
    _css = _HERE / "auditor.css"
    data = traitlets.Dict().tag(sync=True)
    attack = traitlets.Int(0).tag(sync=True)
    strength = traitlets.Int(0).tag(sync=True)
    unit = traitlets.Int(0).tag(sync=True)

    def __init__(self, data: Mapping[str, Any], *, attack: int = 0, strength: int | None = None, unit: int = 0):
        checked = _checked(data)
        if not 0 <= attack < len(checked["attacks"]):
            raise FeatvisError(f"there is no attack {attack}: there are 0 to {len(checked['attacks']) - 1}.")
        last = len(checked["attacks"][attack]["cases"]) - 1
        super().__init__(data=checked, attack=attack, strength=last if strength is None else strength, unit=unit)

    @traitlets.validate("attack", "strength", "unit")
    def _known(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        attacks = self.data["attacks"]
        # The number of strengths and units may differ between attacks: the browser keeps to what there is.
        most = {
            "attack": len(attacks),
            "strength": max(len(one["cases"]) for one in attacks),
            "unit": max(len(case["units"]) for one in attacks for case in one["cases"]),
        }[name]
        if not 0 <= value < most:
            raise FeatvisError(f"there is no {name} {value}: there are 0 to {most - 1}.")
        return value


def _checked(data: Mapping[str, Any]) -> dict[str, Any]:
    _has(data, NEEDED, "the data")
    if not data["attacks"]:
        raise FeatvisError("there is no attack to show: data['attacks'] is empty.")
    for one in data["attacks"]:
        _has(one, ATTACK, "an attack")
        if not one["cases"]:
            raise FeatvisError(f"{one['name']} has no case to show.")
        for case in one["cases"]:
            _has(case, CASE, f"a case of {one['name']}")
            if not case["units"]:
                raise FeatvisError(f"a case of {one['name']} has no unit to show.")
            for unit in case["units"]:
                _has(unit, UNIT, f"a unit of {one['name']}")
                _check_unit(unit, data)
    return dict(data)


def _check_unit(unit: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    values = [*unit["p"], unit["all"]]
    if len(unit["p"]) != len(data["checks"]) or not all(v is None or (math.isfinite(v) and 0 < v <= 1) for v in values):
        raise FeatvisError(f"{unit['name']} does not have one p-value in (0, 1], or None, for each check.")
    if len(unit["pictures"]) != 3 or not all(0 <= place < data["tiles"] for place in unit["pictures"]):
        raise FeatvisError(f"{unit['name']} does not have three pictures on the sheet.")


def _has(part: Mapping[str, Any], keys: tuple[str, ...], what: str) -> None:
    if missing := [key for key in keys if key not in part]:
        raise FeatvisError(f"{what} lacks {', '.join(missing)}.")
