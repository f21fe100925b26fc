"""Widgets of the book: one anywidget each, `.py`, `.js` and `.css` side by side."""

from featvis.widgets.adversary import Adversary
from featvis.widgets.explorer import Explorer
from featvis.widgets.knobs import Knobs
from featvis.widgets.matching import Matching
from featvis.widgets.switch import Switch
from featvis.widgets.threshold import Threshold

__all__ = ["Explorer", "Knobs", "Matching", "Switch"]
from featvis.widgets.paths import Paths
from featvis.widgets.switch import Switch

__all__ = ["Explorer", "Knobs", "Paths", "Switch"]
__all__ = ["Explorer", "Knobs", "Switch", "Threshold"]
__all__ = ["Adversary", "Explorer", "Knobs", "Switch"]
