"""The value that `path_similarity` returns, its intervals, and what it says about the paper's claim."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featvis.holm import holm

RESAMPLES = 10_000
LEVEL = 0.05
FILE = "paths.npz"
ALIKE = 0.1  # by which normalized similarities may differ whose visualizations were made anew
TEXTS = ("subject", "natural", "same", "groups", "metrics", "layers", "series")
STEPS, MISSING = 30_000, -(2**15)  # how similarities are stored
ARRAYS = ("like", "halves", "shown", "elsewhere", "overlapping", "undefined", "images")


@dataclass(frozen=True)
class PathSimilarity:
    """Mean similarities of pairs of images, by metric (m), layer (l) and group (c, d: classes, or units).

    same         "class" or "exemplars": what makes natural images belong to a group
    like         (m, l, c, d) of natural images of c with natural images of d; same group: without overlapping crops
    halves       (m, l, 2, c, d) of one half of the natural images with the other, and of each half with itself
    shown        (m, series, l, c) of a series' images of c (series 0: visualizations) with natural images of c
    elsewhere    (m, series, l, c) of a series' images of c with natural images of the other groups
    overlapping  (m, l, c) what `like` would be for one group if overlapping crops counted
    undefined    (m, l, kinds) images whose activations are constant; kinds are the two halves, then the series
    images       (c, kinds) how many there are
    """

    subject: str
    natural: str
    same: str
    groups: tuple[str, ...]
    metrics: tuple[str, ...]
    layers: tuple[str, ...]
    series: tuple[str, ...]
    like: np.ndarray = field(repr=False)
    halves: np.ndarray = field(repr=False)
    shown: np.ndarray = field(repr=False)
    elsewhere: np.ndarray = field(repr=False)
    overlapping: np.ndarray = field(repr=False)
    undefined: np.ndarray = field(repr=False)
    images: np.ndarray = field(repr=False)

    @cached_property
    def _weights(self) -> np.ndarray:
        """(1 + resamples, groups): how often each group is drawn; the first row is the sample itself."""
        n = len(self.groups)
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
        return np.concatenate([np.ones((1, n)), drawn])

    def _anchors(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Same and different groups in a matrix (l, c, d), as drawn: (1 + resamples, l) each."""
        same = _mean(np.diagonal(matrix, axis1=1, axis2=2), self._weights)
        return same, _mean_between(matrix, self._weights)

    @cached_property
    def _drawn_anchors(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The anchors in every metric: all series have the same."""
        return [self._anchors(matrix) for matrix in self.like]

    def curves(self, series: str | None = None, metric: str | None = None) -> dict[str, np.ndarray]:
        """Mean similarities as (1 + resamples, l), the estimate first: `fv_same` and `fv_different`, of a series'
        images with natural ones of their own and of the other groups, `nat_same` and `nat_different`.

        Groups are drawn with everything that belongs to them, the same ones for all four.
        """
        m, k = self._which(series, metric)
        same, different = self._drawn_anchors[m]
        own, other = (_mean(values[m, k], self._weights) for values in (self.shown, self.elsewhere))
        return {"fv_same": own, "fv_different": other, "nat_same": same, "nat_different": different}

    def specific(self, series: str | None = None, metric: str | None = None) -> np.ndarray:
        """(fv_same - fv_different) / (nat_same - nat_different), drawn as in `draws`: 0 where a series is as like the
        other groups as its own, however unlike all of them it is."""
        found = self.curves(series, metric)
        same, different = found["nat_same"], found["nat_different"]
        return _scaled(found["fv_same"] - found["fv_different"] + different, same, different)

    def _told_apart(self, metric: str | None) -> np.ndarray:
        """(l,): whether the two anchors can be told apart."""
        same, different = self._drawn_anchors[self._which(None, metric)[0]]
        return quantiles(same - different)[0] > 0

    def draws(self, series: str | None = None, metric: str | None = None) -> np.ndarray:
        """s_norm (1 + resamples, l): the estimate, then its bootstrap over groups.

        Not a number in layers whose anchors cannot be told apart: there is nothing to scale by.
        """
        found = self.curves(series, metric)
        return _scaled(found["fv_same"], found["nat_same"], found["nat_different"])

    def _which(self, series: str | None, metric: str | None) -> tuple[int, int]:
        return self.metrics.index(metric or self.metrics[0]), self.series.index(series or self.series[0])

    def frame(self) -> pd.DataFrame:
        """One row for each metric, series and layer.

        `fv_same` and `fv_different` are mean similarities of the series' images with natural ones of their own and of
        the other groups, `nat_same` and `nat_different` those of natural images; `normalized` is s_norm with its 95%
        interval `ci_low` to `ci_high`, `p` for s_norm <= 0, `p_holm` corrected for the number of layers; `specific`
        (see there) has the interval `specific_low` to `specific_high`. `undefined` counts constant activations of the
        series, `undefined_natural` those of natural images.
        """
        parts = []
        for m, metric in enumerate(self.metrics):
            same, different = (anchor[0] for anchor in self._drawn_anchors[m])
            for k, series in enumerate(self.series):
                draws = self.draws(series, metric)
                low, high = quantiles(draws)
                p = np.where(np.isnan(draws[0]), np.nan, (1 + (draws[1:] <= 0).sum(0)) / len(draws))
                own, other = (mean_known(values[m, k], 1) for values in (self.shown, self.elsewhere))
                specific = self.specific(series, metric)
                ends = quantiles(specific)
                columns = {
                    "metric": metric,
                    "series": series,
                    "layer": self.layers,
                    "depth": np.arange(1, len(self.layers) + 1),
                    "fv_same": own,
                    "nat_same": same,
                    "nat_different": different,
                    "fv_different": other,
                    "normalized": draws[0],
                    "ci_low": low,
                    "ci_high": high,
                    "p": p,
                    "p_holm": holm(p),
                    "specific": specific[0],
                    "specific_low": ends[0],
                    "specific_high": ends[1],
                    "undefined": self.undefined[m, :, 2 + k],
                    "undefined_natural": self.undefined[m, :, :2].sum(1),
                }
                parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def diagnostics(self, metric: str | None = None) -> pd.DataFrame:
        """The check of the check: one half of the natural images is held against the other, as visualizations would be.

        Anchors come from pairs within the halves. `same` compares halves of one group and has to be 1, `different`
        halves of different groups and has to be 0.
        """
        m, _ = self._which(None, metric)
        between, within = self.halves[m, :, 0], self.halves[m, :, 1]
        anchors, crossed = self._anchors(within), self._anchors(between)
        columns: dict[str, Any] = {"layer": self.layers}
        for name, values in zip(("same", "different"), crossed, strict=True):
            draws = _scaled(values, *anchors)
            columns[name] = draws[0]
            columns[f"{name}_low"], columns[f"{name}_high"] = quantiles(draws)
        return pd.DataFrame(columns)

    def parts(
        self,
        series: str | None = None,
        metric: str | None = None,
        *,
        less: str | None = None,
        by_width: bool = False,
    ) -> pd.DataFrame:
        """Mean s_norm over the first two thirds of the layers, over the rest, and their difference, with intervals.

        less      minus that of this series, for the same draws of groups
        by_width  weigh each layer by the width of its scale, nat_same - nat_different: the ratio of the layers' mean
                  differences, not the mean of their ratios, which layers of a narrow scale can dominate
        """
        found = self.curves(series, metric)
        draws, width = self.draws(series, metric), found["nat_same"] - found["nat_different"]
        if less is not None:
            draws = draws - self.draws(less, metric)
        weights = np.where(np.isnan(draws), np.nan, width if by_width else 1.0)
        first = round(2 * len(self.layers) / 3)
        early, late = (
            mean_known((draws * weights)[:, part], 1) / mean_known(weights[:, part], 1)
            for part in (slice(None, first), slice(first, None))
        )
        rows = {"first two thirds": early, "last third": late, "difference": late - early}
        table = [(name, values[0], *quantiles(values)) for name, values in rows.items()]
        return pd.DataFrame(table, columns=["layers", "normalized", "ci_low", "ci_high"])

    def summary(self, series: str | None = None, metric: str | None = None) -> dict[str, Any]:
        """The numbers of `report.json`; lists go by layer, None stands where the anchors cannot be told apart."""
        m, k = self._which(series, metric)
        frame = self.frame()
        frame = frame[(frame["metric"] == self.metrics[m]) & (frame["series"] == self.series[k])]
        check, defined = self.diagnostics(self.metrics[m]), frame["normalized"].notna()
        above = (frame["ci_low"] > 0).to_numpy()
        columns = (
            "normalized",
            "ci_low",
            "ci_high",
            "fv_same",
            "fv_different",
            "nat_same",
            "nat_different",
            "undefined",
            "undefined_natural",
        )
        found = {
            "metric": self.metrics[m],
            "same": self.same,
            "groups": list(self.groups),
            "layers": list(self.layers),
            **{name: frame[name].tolist() for name in columns},
            "layers_at_or_below_zero": int((defined & ~above).sum()),
            "layers_at_or_below_zero_holm": int((defined & ~(frame["p_holm"] <= LEVEL / 2)).sum()),
            "layers_without_anchors": int((~self._told_apart(self.metrics[m])).sum()),
            "leaves_zero": leaves_zero(self.layers, above),
            "parts": self.parts(series, metric).set_index("layers").T.to_dict(),
            "diagnostic_same": check["same"].mean(),
            "diagnostic_different": check["different"].mean(),
            "diagnostic_misses": {name: misses(check, name, true) for name, true in (("same", 1), ("different", 0))},
            "diagnostics": check.drop(columns="layer").to_dict("list"),
        }
        return {name: _plain(value) for name, value in found.items()}

    def difference(self, again: PathSimilarity) -> str:
        """ "" if all normalized similarities are about the same."""
        worst = 0.0
        for metric, series in ((m, s) for m in self.metrics for s in self.series):
            change = np.abs(again.draws(series, metric)[0] - self.draws(series, metric)[0])
            low, high = quantiles(self.draws(series, metric))
            worst = max([worst, *(change - np.maximum(0, (high - low) / 2 - ALIKE))[~np.isnan(change)].tolist()])
        return (
            ""
            if worst <= ALIKE
            else f"a normalized similarity differs by {worst - ALIKE:.2f} more than its interval allows"
        )

    def save(self, folder: Path, file: str = FILE) -> None:
        """Write everything as one npz file into an existing folder; similarities rounded to 1/30,000."""
        about = {name: getattr(self, name) for name in TEXTS}
        packed: dict[str, Any] = {name: _pack(getattr(self, name)) for name in ARRAYS}
        np.savez_compressed(folder / file, about=json.dumps(about), **packed)

    @classmethod
    def load(cls, folder: Path, file: str = FILE) -> PathSimilarity:
        """Read what `save` wrote."""
        with np.load(folder / file, allow_pickle=False) as saved:
            about = json.loads(str(saved["about"]))
            arrays: dict[str, Any] = {name: _unpack(saved[name]) for name in ARRAYS}
        texts: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in about.items()}
        return cls(**texts, **arrays)


def misses(check: pd.DataFrame, name: str, true: float) -> int:
    """In how many layers the interval of `diagnostics` for `name` misses the value that it has to be."""
    return int(((check[f"{name}_low"] > true) | (check[f"{name}_high"] < true)).sum())


def mean_known(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is a number; not a number where nothing is."""
    count = (~np.isnan(values)).sum(axis)
    return np.divide(np.nansum(values, axis), count, out=np.full(count.shape, np.nan), where=count > 0)


def mean_off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The mean of each row of (..., c, c) without its diagonal: (..., c)."""
    return mean_known(np.where(np.eye(matrix.shape[-1], dtype=bool), np.nan, matrix), -1)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over groups, (l, c) with (r, c) -> (r, l); a group without a value has no weight."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (weights @ np.nan_to_num(values).T) / (weights @ known.T)


def _mean_between(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over pairs of different groups, (l, c, c) with (r, c) -> (r, l).

    A group that is drawn twice is no pair with itself: its two copies are the same, not different.
    """
    known = ~np.isnan(matrix) & ~np.eye(matrix.shape[-1], dtype=bool)
    found = []
    with np.errstate(invalid="ignore"):
        for values, pairs in zip(np.where(known, matrix, 0.0), known, strict=True):
            found.append(((weights @ values) * weights).sum(1) / ((weights @ pairs) * weights).sum(1))
    return np.array(found).T


def _scaled(values: np.ndarray, same: np.ndarray, different: np.ndarray) -> np.ndarray:
    apart = same - different
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(quantiles(apart)[0] > 0, (values - different) / apart, np.nan)


def quantiles(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95% percentile interval of draws (1 + resamples, ...), where the estimate is a number."""
    ends = np.full((2, *draws.shape[1:]), np.nan)
    known = ~np.isnan(draws[0])
    some = draws[1:][:, known]
    quantile = np.nanquantile if np.isnan(some).any() else np.quantile  # the former takes many times as long
    ends[:, known] = quantile(some, (LEVEL / 2, 1 - LEVEL / 2), axis=0)
    return ends[0], ends[1]


def leaves_zero(layers: Sequence[str], above: np.ndarray) -> str | None:
    """The first layer from which on the curve stays above 0; None if it does not even in the last."""
    stays = np.logical_and.accumulate(np.asarray(above, bool)[::-1])[::-1]
    return layers[int(stays.argmax())] if stays.any() else None


def _plain(value: Any) -> Any:
    """The same with None for what is not a number, as JSON wants it."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _pack(values: np.ndarray) -> np.ndarray:
    """Similarities, from -1 to 1, as 16 bits; counts as they are."""
    if values.dtype.kind == "i":
        return values.astype(np.int32)
    return np.where(np.isnan(values), MISSING, np.round(np.nan_to_num(values) * STEPS)).astype(np.int16)


def _unpack(packed: np.ndarray) -> np.ndarray:
    return packed if packed.dtype == np.int32 else np.where(packed == MISSING, np.nan, packed / STEPS)
