"""What answers say: scores against exact chance, means with intervals, and a trial-level mixed model.

The answers of people and of machines are tables of the same form: one row for each trial, with `right` = "101" where
the first and the third unit were matched rightly. Matches within a trial depend on each other (all but one right is
impossible), so that trials are counted, not matches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from featvis.errors import FeatvisError, listed
from featvis.holm import holm
from featvis.matching import mixed
from featvis.matching.stimuli import DEPTHS, PRACTICE
from featvis.matching.trials import KINDS, PARTS

COLUMNS = ("observer", "trial", "part", "kind", "n", "depth", "units", "right")
LEVEL = 0.95


class NoModel(FeatvisError):
    """Sound answers that are too few, or too much alike, for a mixed model."""


def checked(answers: pd.DataFrame) -> pd.DataFrame:
    """The same table with `k`, `correct` and `share`; raises FeatvisError for what no answers give."""
    if missing := [name for name in COLUMNS if name not in answers]:
        raise FeatvisError(f"the table of answers lacks {listed(missing)}; it needs {listed(COLUMNS)}.")
    if answers.empty:
        raise FeatvisError("the table of answers is empty; at least one answer is needed.")
    found = answers.copy()
    found["right"], found["units"] = found["right"].astype(str), found["units"].astype(str)
    found["k"] = [len(text.split()) for text in found["units"]]
    found["right"] = [right.zfill(k) for right, k in zip(found["right"], found["k"], strict=True)]
    found["correct"] = found["right"].str.count("1")
    bad = (found["right"].str.len() != found["k"]) | ~found["right"].str.fullmatch("[01]+")
    bad |= found["correct"] == found["k"] - 1
    if bad.any():
        row = found[bad].iloc[0]
        raise FeatvisError(
            f"trial {row['trial']} has right={row['right']!r}, which no permutation of {row['k']} gives."
        )
    valid = {"part": PARTS, "kind": KINDS, "depth": (*DEPTHS, PRACTICE)}
    for name, known in valid.items():
        if strange := sorted({str(value) for value in found[name]} - set(known)):
            raise FeatvisError(f"the table of answers has the {name} {listed(strange)}; there are {listed(known)}.")
    n = pd.to_numeric(found["n"], errors="coerce")
    if not bool((n >= 1).all()):
        raise FeatvisError(f"the table of answers has n={found['n'][~(n >= 1)].iloc[0]}; n is the images in a row.")
    twice = found.duplicated(["observer", "trial"])
    if twice.any():
        row = found[twice].iloc[0]
        raise FeatvisError(f"{row['observer']} has more than one answer to trial {row['trial']}; one each counts.")
    found["share"] = found["correct"] / found["k"]
    return found


def main_trials(answers: pd.DataFrame) -> pd.DataFrame:
    """The checked answers without practice and catch trials."""
    found = checked(answers)
    return found[found["part"] == "main"].reset_index(drop=True)


def catch_trials(answers: pd.DataFrame) -> pd.DataFrame:
    """How many catch trials each observer got all right: observer, right, trials; no row where nobody had any."""
    found = checked(answers)
    asked = found["part"] == "catch"
    whole = asked & (found["correct"] == found["k"])
    table = pd.DataFrame({"observer": found["observer"], "right": whole, "trials": asked})
    table = table.groupby("observer", sort=False)[["right", "trials"]].sum().reset_index()
    return table if asked.any() else table.iloc[:0]


def chance(k: int) -> pd.DataFrame:
    """Number of correct matches in a random permutation of k: probability = C(k, c) D(k - c) / k!.

    D(m) are the derangements of m. Mean and variance are 1 for any k > 1; exactly k - 1 is impossible.
    """
    if k < 1:
        raise FeatvisError(f"k={k} units were given; at least 1 is needed.")
    derangements = [1, 0]
    for m in range(2, k + 1):
        derangements.append((m - 1) * (derangements[-1] + derangements[-2]))
    ways = [math.comb(k, c) * derangements[k - c] for c in range(k + 1)]
    return pd.DataFrame({"correct": range(k + 1), "ways": ways, "probability": [w / math.factorial(k) for w in ways]})


def chance_p(correct: Sequence[int], k: Sequence[int] | int) -> float:
    """Exact probability that guessing gets at least as many right in these trials together (one-sided)."""
    sizes = [k] * len(correct) if isinstance(k, int) else list(k)
    total = np.ones(1)
    for size in sizes:
        total = np.convolve(total, chance(size)["probability"].to_numpy())
    return float(min(1.0, total[int(np.sum(correct)) :].sum()))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(low, mean, high): Student's interval for the mean of independent values; infinitely wide for one value."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return -math.inf, float(x.mean()) if len(x) else math.nan, math.inf
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean()), float(x.mean() + half)


def participants(answers: pd.DataFrame, by: Sequence[str] = ("kind", "n", "depth")) -> pd.DataFrame:
    """Share correct in each cell: mean over participants of their own means, Student's interval over participants.

    Also the exact p of the pooled trials against guessing (`p_chance`), Holm-corrected over the cells.
    """
    found = main_trials(answers)
    rows = []
    for cell, part in found.groupby(list(by), sort=False):
        low, mean, high = mean_interval(part.groupby("observer")["share"].mean().tolist())
        p = chance_p(part["correct"].tolist(), part["k"].tolist())
        rows.append((*cell, part["observer"].nunique(), len(part), low, mean, high, (1 / part["k"]).mean(), p))
    names = [*by, "participants", "trials", "low", "share", "high", "chance", "p_chance"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(p_chance=holm(table["p_chance"].to_numpy()))


def machines(answers: pd.DataFrame, by: Sequence[str] = ("kind", "n", "depth")) -> pd.DataFrame:
    """Share correct of each machine observer in each cell, with an interval over units.

    A machine gives the same answer each time, so that units are what is sampled. See `over_units`.
    """
    found = main_trials(answers)
    rows = []
    for cell, part in found.groupby(["observer", *by], sort=False):
        low, share, high = over_units(part)
        rows.append((*cell, len(part), low, share, high, (1 / part["k"]).mean()))
    return pd.DataFrame(rows, columns=["observer", *by, "trials", "low", "share", "high", "chance"])


def over_units(part: pd.DataFrame) -> tuple[float, float, float]:
    """(low, mean, high) of the share in checked answers, over the units that their trials show.

    Trials that share a unit are not independent. With the variances of units, g, and of trials, s, by REML and the
    weights Z (1 / k for each unit of a trial), the mean of n trials has the variance (s n + g |Z'1|^2) / n^2.
    """
    shares, (shown, units) = part["share"].to_numpy(), shown_units(part["units"].tolist())
    mean = float(shares.mean())
    if len(units) < 2 or len(shares) < 3:
        return -math.inf, mean, math.inf
    if np.ptp(shares) == 0:
        return mean, mean, mean
    model = mixed.fit(shares, np.ones((len(shares), 1)), [shown])
    n = len(shares)
    error = math.sqrt(model.residual * n + model.variances[0] * (shown.sum(0) ** 2).sum()) / n
    half = stats.t.ppf((1 + LEVEL) / 2, len(units) - 1) * error
    return mean - half, mean, mean + half


def machine_gaps(answers: pd.DataFrame) -> pd.DataFrame:
    """For each machine the difference between the kinds, visualization minus exemplar: gap, low, high, p, p_holm.

    By a mixed model with units that differ in level and gap; the interval is over units (see `over_units`).
    """
    rows = []
    for observer, part in main_trials(answers).groupby("observer", sort=False):
        shown, units = shown_units(part["units"].tolist())
        x = design_matrix(part)[:, :2]
        model = mixed.fit(part["share"].to_numpy(), x, [shown, shown * x[:, [1]]])
        gap, df = model.estimate[1], len(units) - 1
        error = max(math.sqrt(model.covariance[1, 1]), 1e-6)  # one that is always right has none
        half = stats.t.ppf((1 + LEVEL) / 2, df) * error
        rows.append((observer, gap, gap - half, gap + half, 2 * stats.t.sf(abs(gap) / error, df)))
    table = pd.DataFrame(rows, columns=["observer", "gap", "low", "high", "p"])
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def shown_units(texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Which units each trial shows, as weights (trials, units) of 1 / k, and the units' names."""
    units = sorted({unit for text in texts for unit in text.split()})
    place = {unit: i for i, unit in enumerate(units)}
    shown = np.zeros((len(texts), len(units)))
    for row, text in enumerate(texts):
        for unit in text.split():
            shown[row, place[unit]] = 1 / len(text.split())
    return shown, units


def by_unit(answers: pd.DataFrame) -> pd.DataFrame:
    """How often each unit was matched rightly by each observer: observer, kind, depth, unit, trials, share."""
    found = main_trials(answers)
    rows = [
        (row.observer, row.kind, row.depth, unit, int(hit))
        for row in found.itertuples()
        for unit, hit in zip(str(row.units).split(), str(row.right), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["observer", "kind", "depth", "unit", "hit"])
    groups = table.groupby(["observer", "kind", "depth", "unit"], sort=False)["hit"]
    return groups.agg(trials="size", share="mean").reset_index()


TERMS = ("level", "visualization", "n", "depth", "visualization x n", "visualization x depth")


@dataclass(frozen=True)
class Effects:
    """A fitted model: one row for each of `TERMS`, and the standard deviations of what varies at random.

    `visualization` is the difference between the kinds of trial (visualization minus exemplar), `n` the change with
    each doubling of the images in a row, `depth` with each step deeper. All are in shares of correct matches.
    """

    table: pd.DataFrame = field(repr=False)
    spread: dict[str, float]
    participants: int
    units: int
    trials: int

    def __getitem__(self, term: str) -> pd.Series:
        return self.table[self.table["term"] == term].iloc[0]

    def frame(self) -> pd.DataFrame:
        """One row for each term: estimate, low, high, p, and p after Holm's correction."""
        return self.table


def effects(answers: pd.DataFrame, depths: Sequence[str] = ("early", "middle", "late")) -> Effects:
    """A linear mixed model of the share correct in each trial (see `mixed`).

    Random: participants and units, each in their level and in their difference between the kinds. A trial shows
    several units and has the mean of their effects. Intervals are Student's with the smaller number of participants
    or units, less one, as degrees of freedom, which is careful. Raises NoModel for fewer than two of either, and for
    answers without variation.
    """
    found = main_trials(answers)
    if found.empty:
        raise FeatvisError("the table of answers has no main trials; at least one is needed.")
    people, (shown, units) = sorted(found["observer"].unique()), shown_units(found["units"].tolist())
    if len(people) < 2 or len(units) < 2 or found["kind"].nunique() < 2:
        raise NoModel(
            f"a mixed model needs at least 2 participants, 2 units and both kinds of trial; "
            f"there are {len(people)}, {len(units)} and {found['kind'].nunique()}."
        )
    x = design_matrix(found, depths)
    used: list[int] = []
    for i in range(x.shape[1]):  # with a single n or depth, what goes with it cannot be told from the rest
        if np.linalg.matrix_rank(x[:, [*used, i]]) > len(used):
            used.append(i)
    share = found["share"].to_numpy()
    if np.allclose(x @ np.linalg.lstsq(x, share)[0], share, atol=1e-9):  # all intervals would have no width
        raise NoModel(
            "a mixed model needs answers that vary; here the kind of trial, n and depth alone say how many are right."
        )
    who = np.zeros((len(found), len(people)))
    who[np.arange(len(found)), [people.index(name) for name in found["observer"]]] = 1
    kind = x[:, [1]]
    parts = {"participants": who, "participants' gap": who * kind, "units": shown, "units' gap": shown * kind}
    model = mixed.fit(share, x[:, used], list(parts.values()))
    estimate, error = model.estimate, np.sqrt(np.diag(model.covariance))
    df = min(len(people), len(units)) - 1
    half = stats.t.ppf((1 + LEVEL) / 2, df) * error
    p = 2 * stats.t.sf(np.abs(estimate / error), df)
    table = pd.DataFrame(
        {
            "term": [TERMS[i] for i in used],
            "estimate": estimate,
            "low": estimate - half,
            "high": estimate + half,
            "p": p,
            "p_holm": [math.nan, *holm(p[1:])],
        }
    )
    spread = dict(zip(parts, np.sqrt(model.variances).tolist(), strict=True))
    return Effects(table, spread | {"trials": math.sqrt(model.residual)}, len(people), len(units), len(found))


def design_matrix(answers: pd.DataFrame, depths: Sequence[str] = ("early", "middle", "late")) -> np.ndarray:
    """The columns of `TERMS`, coded so that `level` is the middle of the design: (trials, 6)."""
    kind = np.where(answers["kind"] == "visualization", 0.5, -0.5)
    n = np.log2(answers["n"].to_numpy(float))
    n = n - np.mean(np.unique(n))
    depth = np.array([depths.index(name) for name in answers["depth"]], float)
    depth = depth - (len(depths) - 1) / 2
    return np.column_stack([np.ones(len(kind)), kind, n, depth, kind * n, kind * depth])
