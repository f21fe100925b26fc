"""Outguess the adversary: a reader guesses f(x) from the extrema, and two functions that both fit answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from featvis.errors import FeatvisError, listed

_HERE = Path(__file__).parent
# As in adversary.js; one variable each, or a way through two.
KINDS = (
    "all", "relu", "trained", "pictures", "piecewise", "monotone", "convex", "box", "lipschitz", "line", "constant",
    "ball",
)  # fmt: skip
LEAST_SLOPE, STEEPEST = 1 / 0.55, 12.0


class Adversary(anywidget.AnyWidget):
    """Guess a function's value at `x` from its extrema, for one of twelve classes of functions.

    `kind` is the class, `x` and `guess` lie in [0, 1], `slope` bounds the Lipschitz class, `width` in (0, 1] is how
    wide hats are, as a share of what their neighbours leave. `answered` shows the adversary's two functions. All can
    be set. The browser computes everything, so that a published page does all that a notebook does. Raises FeatvisError
    for values that are not possible.
    """

    _esm = _HERE / "adversary.js"
    _css = _HERE / "adversary.css"
    kind = traitlets.Unicode("relu").tag(sync=True)
    x = traitlets.Float(0.45).tag(sync=True)
    guess = traitlets.Float(0.5).tag(sync=True)
    slope = traitlets.Float(3.0).tag(sync=True)
    width = traitlets.Float(0.5).tag(sync=True)
    answered = traitlets.Bool(False).tag(sync=True)

    @traitlets.validate("kind")
    def _known(self, proposal: Any) -> str:
        if proposal["value"] not in KINDS:
            raise FeatvisError(f"there is no class {proposal['value']!r}; there are {listed(KINDS)}.")
        return proposal["value"]

    @traitlets.validate("x", "guess")
    def _inside(self, proposal: Any) -> float:
        if not 0 <= proposal["value"] <= 1:
            name = proposal["trait"].name
            raise FeatvisError(f"{name} = {proposal['value']:g} was given; it lies between 0 and 1.")
        return proposal["value"]

    @traitlets.validate("width")
    def _wide(self, proposal: Any) -> float:
        if not 0.02 <= proposal["value"] <= 1:
            raise FeatvisError(f"width = {proposal['value']:g} was given; a hat's width lies between 0.02 and 1.")
        return proposal["value"]

    @traitlets.validate("slope")
    def _possible(self, proposal: Any) -> float:
        if not LEAST_SLOPE - 1e-9 <= proposal["value"] <= STEEPEST:
            raise FeatvisError(
                f"slope = {proposal['value']:.4g} was given; it lies between {LEAST_SLOPE:.4g}, which it takes to get "
                f"from the minimum to the maximum, and {STEEPEST:g}."
            )
        return proposal["value"]
