"""Widgets of the book: one anywidget each, `.py`, `.js` and `.css` side by side."""

from featvis.widgets.adversary import Adversary
from featvis.widgets.auditor import Auditor
from featvis.widgets.explorer import Explorer
from featvis.widgets.knobs import Knobs
from featvis.widgets.matching import Matching
from featvis.widgets.paths import Paths
from featvis.widgets.switch import Switch
from featvis.widgets.threshold import Threshold

__all__ = ["Adversary", "Auditor", "Explorer", "Knobs", "Matching", "Paths", "Switch", "Threshold"]
