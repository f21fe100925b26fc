"""Holm's correction, for all who test several hypotheses at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values (n,) corrected for their number (Holm 1979), as (n,); not-a-number is no hypothesis and stays one.

    statsmodels has it too, but collects garbage for a second in each call.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]
    found = np.full(len(p), np.nan)
    found[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return found
