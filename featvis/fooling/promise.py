"""How silent is silent? Upper bounds for the probability that another natural image wakes a unit.

Everything rests on one number for each image, `beyond`: how far its largest response exceeds the largest of all
calibration images, in standard deviations of those, in the silent unit where that is most. With a margin m the image
wakes a unit if and only if its number is above m.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import beta
from torch import Tensor

from featvis.images import NaturalImages

CONFIDENCE = 0.95
MARGINS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def upper_bound(wakes: float, images: float, confidence: float = CONFIDENCE) -> float:
    """The largest probability that `wakes` among `images` independent images do not contradict.

    One-sided and exact (Clopper and Pearson 1934). Without any wake it is
    1 - (1 - confidence)^(1 / images), about 3 / images for 95%: the rule of three. Neither number need be whole: an
    effective number of images is not.
    """
    return 1.0 if wakes >= images else float(beta.ppf(confidence, wakes + 1, images - wakes))


def beyond(calibration: Tensor, test: Tensor) -> np.ndarray:
    """Largest responses of images (n, units) and (m, units) -> `beyond` of the second (m,)."""
    highest, spread = calibration.amax(0), calibration.std(0).clamp(min=1e-12)
    return ((test - highest) / spread).amax(1).double().cpu().numpy()


def without_its_photograph(
    calibration: Tensor, groups: Sequence[str], test: Tensor, test_groups: Sequence[str]
) -> np.ndarray:
    """`beyond`, each image measured against the calibration images of all other photographs (m,)."""
    found = np.full(len(test), np.nan)
    known, asked = np.asarray(groups), np.asarray(test_groups)
    for group in np.unique(asked):
        mine = asked == group
        found[mine] = beyond(calibration[known != group], test[mine])
    return found


def photographs(natural: NaturalImages, ids: Sequence[str]) -> list[str]:
    """What each image was cut from: the embedded photograph, or itself."""
    crops = natural.recipe["source"] == "photos"
    return [id.split("/")[0] for id in ids] if crops else list(ids)


def effective_number(values: np.ndarray, groups: Sequence[str]) -> float:
    """How many independent images would carry as much information on the mean of `values` (Kish's design effect).

    n / (1 + (n0 - 1) rho) with the intraclass correlation rho of a one-way analysis of variance and n0 its mean group
    size. One image a group: n.
    """
    table = (
        pd.DataFrame({"value": values, "group": list(groups)}).groupby("group")["value"].agg(["size", "mean", "var"])
    )
    n, k = int(table["size"].sum()), len(table)
    if k == n or k < 2:
        return float(n if k == n else 1)
    between = float((table["size"] * (table["mean"] - np.mean(values)) ** 2).sum() / (k - 1))
    within = float(((table["size"] - 1) * table["var"].fillna(0)).sum() / (n - k))
    mean_size = (n - float((table["size"] ** 2).sum()) / n) / (k - 1)
    rho = (between - within) / (between + (mean_size - 1) * within) if between > 0 else 0.0
    return n / (1 + (mean_size - 1) * max(0.0, rho))


def sweep(
    values: np.ndarray, groups: Sequence[str], margins: Sequence[float] = MARGINS, confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """One row for each margin: `wakes` among the images, `woken` photographs, and upper bounds for the probability of a
    wake: `bound` (images are independent), `effective_bound` (as many as `effective_number` says), `photograph_bound`
    (photographs are, and the question is whether any image of another one would wake a unit).
    """
    n, names = len(values), np.asarray(groups)
    effective, count = effective_number(values, groups), len(np.unique(names))
    rows = []
    for margin in margins:
        awake = values > margin
        wakes, woken = int(awake.sum()), len(np.unique(names[awake]))
        rows.append(
            {
                "margin": margin,
                "wakes": wakes,
                "woken": woken,
                "bound": upper_bound(wakes, n, confidence),
                "effective_bound": upper_bound(wakes * effective / n, effective, confidence),
                "photograph_bound": upper_bound(woken, count, confidence),
            }
        )
    return pd.DataFrame(rows)
