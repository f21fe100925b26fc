"""The matching experiment to play in a page: a dozen trials, scored against guessing and against machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets

from featvis import matching as package
from featvis.errors import FeatvisError
from featvis.matching.analysis import chance

_HERE = Path(package.__file__).parent / "experiment"
INTRO = (
    "A unit of a neural network is excited by some images. Each row shows images that excite one unit. Match the rows "
    "below with the rows above: some show photographs, others pictures that were computed for the unit.",
    "It takes about two minutes. Nothing that you do leaves this page.",
)


class Matching(anywidget.AnyWidget):
    """Play trials by mouse, by tapping or by keyboard; `answers` has what was answered, `frame()` as a table.

    `data` has `trials` (id, kind, n, depth, units, left and right as rows of keys, answer, and `machines`: observer ->
    its answer), `pictures` (key -> data: URI) and the names of the `machines`. Nothing is computed in the browser but
    the score. Raises FeatvisError for data that do not fit together.
    """

    _esm = _HERE / "matching.js"
    _css = _HERE / "matching.css"
    data = traitlets.Dict().tag(sync=True)
    answers: Any = traitlets.List().tag(sync=True)

    def __init__(self, data: Mapping[str, Any]):
        trials, pictures, machines = data.get("trials"), data.get("pictures", {}), list(data.get("machines", ()))
        if not trials:
            raise FeatvisError("there is no trial to play: data['trials'] is missing or empty.")
        for trial in trials:
            k, name = len(trial["left"]), trial["id"]
            if any(sorted(answer) != list(range(k)) for answer in (trial["answer"], *trial["machines"].values())):
                raise FeatvisError(f"trial {name} has an answer that is no permutation of its {k} rows.")
            if missing := set(machines) - set(trial["machines"]):
                raise FeatvisError(f"trial {name} lacks the answer of {', '.join(sorted(missing))}.")
            keys = {key for side in ("left", "right") for row in trial[side] for key in row}
            if lacking := keys - set(pictures):
                raise FeatvisError(f"trial {name} shows {len(lacking)} pictures that are missing.")
        total = np.ones(1)
        for trial in trials:
            total = np.convolve(total, chance(len(trial["left"]))["probability"].to_numpy())
        at_least = total[::-1].cumsum()[::-1]
        given = {"trials": list(trials), "pictures": dict(pictures), "machines": machines}
        super().__init__(data={**given, "at_least": at_least.tolist(), "intro": list(INTRO)})

    def frame(self) -> pd.DataFrame:
        """What was answered so far, in the form that `matching.analysis` reads."""
        rows = []
        for answer, trial in zip(self.answers, self.data["trials"], strict=False):
            hits = ["0"] * len(trial["left"])
            for given, true in zip(answer["match"], trial["answer"], strict=True):
                hits[true] = "1" if given == true else "0"
            cell = [trial[name] for name in ("id", "kind", "n", "depth")]
            rows.append(("you", cell[0], "main", *cell[1:], " ".join(trial["units"]), "".join(hits), answer["rt"]))
        return pd.DataFrame(rows, columns=["observer", "trial", "part", "kind", "n", "depth", "units", "right", "rt"])
