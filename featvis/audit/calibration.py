"""What a score means: its place among the scores of honest networks.

Three steps, from one unit's scores to one p-value that holds for all checks together.

1. The tail of a score is the share of honest units of the same kind (logits, hidden units) that score as high. Beyond
   the highest honest score it goes on falling as an exponential, whose scale is the mean excess of the highest tenth or
   the deviation of all, whichever is larger: this only orders units.
2. A check's tail is the smallest of its scores' tails times their number; a unit's is the smallest of its checks'.
3. p-values are ranks: how many honest units have a tail as small, each held against the *other* honest networks only. A
   check's adjusted p-value ranks its tail among the honest units' smallest tails of all checks (the single step of
   Westfall and Young 1993), so that 5% of honest units, not of their checks, come out below 0.05.

How many units may stand out is judged by a beta-binomial distribution whose two moments are those of honest networks:
units of one network are alike. A whole network is judged by the mean of -log10 of its units' tails, check by check,
against the same mean of each honest network: a t prediction interval for one more network, corrected for the number of
checks by Holm.

All this supposes that the network is of the kind that the honest ones are, and its units a sample like theirs.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy.stats import betabinom
from scipy.stats import t as student

from featvis.audit.checks import CHECKS, SCORES
from featvis.errors import FeatvisError, listed
from featvis.holm import holm

TABLE = "honest.csv"
LEVEL = 0.05
TAIL = 0.1  # of the honest scores, to which the exponential is fitted
FEWEST = 2  # networks
MOST = 3.0  # beyond which -log10 of a tail says no more about a whole network


@dataclass(frozen=True)
class Calibration:
    """Scores of honest networks: a row for each unit, with `network`, `kind`, and `SCORES`."""

    table: pd.DataFrame = field(repr=False)

    def __post_init__(self) -> None:
        missing = [name for name in ("network", "kind", *SCORES) if name not in self.table]
        if missing:
            raise FeatvisError(f"the calibration has no column {listed(missing)}; it was made for other checks.")
        if self.table["network"].nunique() < FEWEST:
            raise FeatvisError(f"the calibration has fewer than {FEWEST} honest networks.")

    @classmethod
    def read(cls) -> Calibration:
        """The table that comes with the package."""
        return cls(pd.read_csv(io.BytesIO(_table())))

    @property
    def networks(self) -> list[str]:
        """The honest networks."""
        return list(dict.fromkeys(self.table["network"]))

    def without(self, network: str) -> Calibration:
        """The same without one network."""
        return Calibration(self.table[self.table["network"] != network])

    def tails(self, scores: pd.DataFrame) -> pd.DataFrame:
        """(units, checks) the tail of each check, by the first two steps; not a number where a check has no score."""
        found = pd.DataFrame(index=scores.index)
        for check in CHECKS:
            every = np.stack([self._tail(scores, name) for name in check.scores])
            count = (~np.isnan(every)).sum(0)
            least = np.where(count > 0, np.nanmin(np.where(np.isnan(every), np.inf, every), 0), np.nan)
            found[check.name] = np.minimum(1, least * count)
        return found

    def _tail(self, scores: pd.DataFrame, name: str) -> np.ndarray:
        found = np.full(len(scores), np.nan)
        for kind in scores["kind"].unique():
            own = self.table.loc[self.table["kind"] == kind, name]
            honest = np.sort((own if own.notna().any() else self.table[name]).dropna().to_numpy(float))
            here = (scores["kind"] == kind).to_numpy()
            values = scores.loc[here, name].to_numpy(float)
            if len(honest):
                found[here] = np.where(np.isnan(values), np.nan, _tails(honest, values))
        return found

    @cached_property
    def honest(self) -> pd.DataFrame:
        """The tails of the honest units, each network held against the others, with its name as `network`."""
        parts = []
        for network in self.networks:
            own = self.table[self.table["network"] == network]
            parts.append(self.without(network).tails(own).assign(network=network))
        return pd.concat(parts)

    @cached_property
    def outstanding(self) -> pd.DataFrame:
        """One row for each honest network: how many `found` of its `units` stand out, held against the others."""
        least, rows = self.honest.drop(columns="network").min(axis=1), []
        for network in self.networks:
            own = (self.honest["network"] == network).to_numpy()
            p = _rank(np.sort(least[~own].dropna().to_numpy()), least[own].dropna().to_numpy())
            rows.append({"network": network, "found": int((p <= LEVEL).sum()), "units": len(p)})
        return pd.DataFrame(rows)

    def excess(self, p: Sequence[float] | np.ndarray) -> float:
        """The probability that as many units of an honest network, or more, have p <= 0.05 as of these."""
        values = np.asarray(p, float)
        values = values[~np.isnan(values)]
        shares = self.outstanding["found"] / self.outstanding["units"]
        mean = max(float(self.outstanding["found"].sum() / self.outstanding["units"].sum()), LEVEL)
        # The variance of shares is m (1 - m) (1 + (n - 1) rho) / n: solved for rho, the correlation within a network.
        n, free = float(self.outstanding["units"].mean()), mean * (1 - mean)
        rho = min(max((float(shares.var()) / free - 1 / n) / (1 - 1 / n), 1e-6), 0.99)
        a, b = (share * (1 - rho) / rho for share in (mean, 1 - mean))
        return float(betabinom.sf((values <= LEVEL).sum() - 1, len(values), a, b))

    def units(self, scores: pd.DataFrame) -> pd.DataFrame:
        """One row for each unit: `unit`, `p` (all checks together), and for each check `p CHECK`, adjusted for all."""
        names = [check.name for check in CHECKS]
        tails = self.tails(scores)
        least = np.sort(self.honest[names].min(axis=1).dropna().to_numpy())
        found = pd.DataFrame({"unit": scores["unit"], "p": _rank(least, tails.min(axis=1).to_numpy())})
        for name in names:
            found[f"p {name}"] = _rank(least, tails[name].to_numpy())
        return found

    def checks(self, scores: pd.DataFrame) -> pd.DataFrame:
        """One row for each check: `check`, `score` (deviations from honest networks), `p_value`, `p_holm`."""
        tails = _weight(self.tails(scores))
        by_network = _weight(self.honest.drop(columns="network")).groupby(self.honest["network"]).mean()
        rows = []
        for check in CHECKS:
            honest = by_network[check.name].dropna().to_numpy()
            own, n = tails[check.name].mean(), len(honest)
            # A few networks may agree by chance, but not by more than as many units, each for itself, would let them.
            least = np.log10(np.e) / np.sqrt(max(tails[check.name].notna().sum(), 1))
            spread = max(honest.std(ddof=1), least) * np.sqrt(1 + 1 / n) if n > 2 else np.nan
            score = (own - honest.mean()) / spread
            rows.append({"check": check.name, "score": score, "p_value": student.sf(score, n - 1) if n > 2 else np.nan})
        frame = pd.DataFrame(rows)
        return frame.assign(p_holm=holm(frame["p_value"].to_numpy()))


@lru_cache(maxsize=1)
def _table() -> bytes:
    return files("featvis.audit").joinpath(TABLE).read_bytes()


def version() -> int:
    """A number for the table that comes with the package: with another one p-values mean something else."""
    return zlib.crc32(_table())


def _tails(honest: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of sorted honest scores (n,) that are as high, one added to both; an exponential beyond the last."""
    n = len(honest)
    above = n - np.searchsorted(honest, values, side="left")
    found = (1 + above) / (n + 1)
    finite = honest[np.isfinite(honest)]
    if len(finite):
        start = np.quantile(finite, 1 - TAIL)
        # Units of one network score alike: a few networks' highest tenth may lie closer together than networks do.
        scale = max(float((finite[finite >= start] - start).mean()), float(finite.std()), 1e-9)
        with np.errstate(over="ignore"):
            falling = TAIL * np.exp(-(values - start) / scale)
        found = np.where(above == 0, np.minimum(found, falling), found)
    return np.maximum(found, 1e-12)


def _rank(honest: np.ndarray, values: np.ndarray) -> np.ndarray:
    """p-values: the rank of each value among sorted honest ones, the smallest first."""
    p = (1 + np.searchsorted(honest, values, side="right")) / (len(honest) + 1)
    return np.where(np.isnan(values), np.nan, p)


def _weight(tails: pd.DataFrame) -> pd.DataFrame:
    return tails.apply(np.log10).mul(-1).clip(upper=MOST)
