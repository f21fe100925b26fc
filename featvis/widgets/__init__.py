"""Widgets of the book: one anywidget each, `.py`, `.js` and `.css` side by side."""

from featvis.widgets.adversary import Adversary
from featvis.widgets.explorer import Explorer
from featvis.widgets.knobs import Knobs
from featvis.widgets.switch import Switch

__all__ = ["Adversary", "Explorer", "Knobs", "Switch"]
