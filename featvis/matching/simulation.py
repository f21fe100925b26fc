"""Studies that were never run: planted effects, to see whether the analysis finds them and how many people it takes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from tqdm.auto import tqdm

from featvis.errors import FeatvisError
from featvis.matching.analysis import TERMS, design_matrix, effects
from featvis.matching.observers import knowing
from featvis.matching.stimuli import DEPTHS, SEEDS, STRONGEST, Stimuli
from featvis.matching.trials import Design, Trial, design
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject

GZIP = {"method": "gzip", "mtime": 0}  # the same bytes for the same table


@dataclass(frozen=True)
class Plan:
    """A study and what is true in it, in shares of correct matches.

    `effects` are those of `analysis.TERMS`; `spread` the standard deviations, over participants and over units, of
    their level and of their difference between the kinds of trial. `units` units a depth, `k` in a trial, `repeats`
    trials a cell and participant.
    """

    participants: int = 20
    units: int = 12
    k: int = 3
    repeats: int = 1
    effects: tuple[float, ...] = (0.66, -0.15, 0.02, -0.01, -0.02, -0.03)
    spread: tuple[float, ...] = (0.05, 0.04, 0.08, 0.06)

    def __post_init__(self) -> None:
        if self.participants < 2 or self.units < self.k:
            raise FeatvisError(
                f"a study needs at least 2 participants and {self.k} units a depth; "
                f"{self.participants} and {self.units} were given."
            )

    def with_gap(self, gap: float) -> Plan:
        """The same study with this difference of shares between visualization and exemplar trials."""
        if not -1 <= gap <= 1:
            raise FeatvisError(f"a gap of {gap:g} was given; it is a difference of shares, from -1 to 1.")
        return replace(self, effects=(self.effects[0], gap, *self.effects[2:]))


def blank(plan: Plan, seed: int = 0) -> Design:
    """The plan's trials without any image behind them, in four lists."""
    units = tuple(f"{depth}:{i}" for depth in DEPTHS for i in range(plan.units))
    ids = np.array([[f"{unit}/{i}" for i in range(STRONGEST)] for unit in units])
    own = {str(id): str(id) for id in ids.ravel()}
    labels = tuple(unit.partition(":")[0] for unit in units)
    nothing = Stimuli("", "", units, labels, ids, np.ones(ids.shape), own, SEEDS, lambda: torch.empty(0))
    return design(nothing, lists=min(plan.participants, 4), k=plan.k, repeats=plan.repeats, catch=0, seed=seed)


def simulate(plan: Plan, seed: int = 0, made: Design | None = None) -> pd.DataFrame:
    """The answers of simulated observers; nobody has given them."""
    rng = np.random.default_rng([seed, 7])
    made = blank(plan, seed) if made is None else made
    names = sorted({unit for trial in made.trials for unit in trial.units})
    people = rng.normal(0, 1, (plan.participants, 2)) * plan.spread[:2]
    of_unit = dict(zip(names, rng.normal(0, 1, (len(names), 2)) * plan.spread[2:], strict=True))
    everything = made.frame()
    cells = everything[everything["part"] == "main"]
    fixed = dict(zip(cells["trial"], design_matrix(cells) @ np.array(plan.effects), strict=True))
    rows = []
    for number, own in enumerate(people):

        def share(trial: Trial, own: np.ndarray = own) -> float:
            kind = 0.5 if trial.kind == "visualization" else -0.5
            level, gap = own + np.mean([of_unit[unit] for unit in trial.units], 0)
            return float(np.clip(fixed[trial.id] + level + kind * gap, 1 / len(trial.units), 1))

        observer = knowing(share, rng)
        for t in made.lists[number % len(made.lists)]:
            if t.part == "main":
                right = t.right_units(observer(t))
                rows.append((f"simulated {number:03d}", t.id, t.part, t.kind, t.n, t.depth, " ".join(t.units), right))
    return pd.DataFrame(rows, columns=["observer", "trial", "part", "kind", "n", "depth", "units", "right"])


@dataclass(frozen=True)
class Studies:
    """Many simulated studies of one plan, each analysed: study, term, truth, estimate, low, high, p."""

    plan: Plan
    table: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """One row for each term: truth, mean estimate, coverage of the 95% intervals and of zero, with intervals.

        `coverage` is the share of studies whose interval holds the truth, `power` that of those whose interval
        excludes zero; both with exact binomial intervals over studies.
        """
        rows = []
        for term, part in self.table.groupby("term", sort=False):
            covers = int(((part["low"] <= part["truth"]) & (part["truth"] <= part["high"])).sum())
            finds = int(((part["low"] > 0) | (part["high"] < 0)).sum())
            n = len(part)
            (low, high), (least, most) = (binomtest(x, n).proportion_ci() for x in (covers, finds))
            mean, error = part["estimate"].mean(), part["estimate"].std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
            rows.append((term, part["truth"].iloc[0], mean, error, covers / n, low, high, finds / n, least, most, n))
        names = ["term", "truth", "estimate", "error", "coverage", "coverage_low", "coverage_high"]
        return pd.DataFrame(rows, columns=[*names, "power", "power_low", "power_high", "studies"])

    def difference(self, again: Studies) -> str:
        """ "" if coverage and power are about the same."""
        old, new = (s.frame()[["coverage", "power"]].to_numpy().ravel().tolist() for s in (self, again))
        return shares_differ(old, new, allowed=0.15)

    def save(self, folder: Path) -> None:
        self.table.to_csv(folder / "studies.csv.gz", index=False, float_format="%.5g", compression=GZIP)
        (folder / "plan.json").write_text(json.dumps(asdict(self.plan)))

    @classmethod
    def load(cls, folder: Path) -> Studies:
        plan = json.loads((folder / "plan.json").read_text())
        plan |= {name: tuple(plan[name]) for name in ("effects", "spread")}
        return cls(Plan(**plan), pd.read_csv(folder / "studies.csv.gz"))


def pooled(parts: Sequence[Studies]) -> Studies:
    """Studies of one plan that were simulated in parts, together."""
    tables = [part.table.assign(study=part.table["study"] + 10_000 * i) for i, part in enumerate(parts)]
    return Studies(parts[0].plan, pd.concat(tables, ignore_index=True))


@shelved(1, Studies)
def studies(subject: Subject, plan: Plan, *, n: int = 200, seed: int = 0, progress: bool = True) -> Studies:
    """Simulate and analyse `n` studies; participants, units and trials are drawn anew each time.

    `subject` only names the shelf: no network takes part.
    """
    if n < 1:
        raise FeatvisError(f"n={n} studies were asked for; at least 1 is needed.")
    parts = []
    truth = dict(zip(TERMS, plan.effects, strict=True))
    for number in tqdm(range(n), desc="studies", unit="study", disable=not progress, leave=False):
        found = effects(simulate(plan, seed=1000 * seed + number)).frame()
        parts.append(found.assign(study=number, truth=found["term"].map(truth)))
    return Studies(
        plan, pd.concat(parts, ignore_index=True)[["study", "term", "truth", "estimate", "low", "high", "p"]]
    )
