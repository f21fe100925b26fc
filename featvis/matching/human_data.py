"""Answers of real people: Borowski et al. 2021, recomputed from their public data.

Their task is not matching but a choice between two: given references of a unit, which of two natural images excites
it more? Chance is one half. Nothing of the data is part of this project.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from featvis.errors import FeatvisError, reason
from featvis.holm import holm
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject

FOLDER = "FEATVIS_BOROWSKI2021"  # names a folder with the two files
FILES = {
    "I": (
        "experiment_I_main_practice_catch_repeated_trials_preprocessed.csv",
        "4841ff802318084d6065e6451cf245fd2cf9443dcce7368f30533ec2cc229fce",
    ),
    "II": (
        "experiment_II_main_practice_catch_trials_preprocessed.csv",
        "115486853b4587908e4f91b669a592a9e852db9cbd14fb4ffe1d1320cbdeb5ca",
    ),
}
COMMIT = "3f9e5638aaa6df3b58b622122356bfcd83235619"
SOURCE = f"https://raw.githubusercontent.com/bethgelab/testing_visualizations/{COMMIT}/data_from_human_experiments/"
NEEDED = ("subject_id", "instr_type", "trial_type", "catch_trial", "layer", "kernel_size", "channel", "correct")
KINDS = {"natural": "natural", "optimized": "synthetic", "none_pre": "none", "none_post": "none"}
LAYERS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")  # layer_0 ... layer_8
DEPTHS = {"early": LAYERS[:2], "middle": LAYERS[2:7], "late": LAYERS[7:]}  # the three stages of Inception-V1


def at_hand() -> bool:
    """Whether the environment names a folder with the data."""
    folder = os.environ.get(FOLDER)
    return folder is not None and all((Path(folder) / name).is_file() for name, _ in FILES.values())


def load(folder: str | Path | None = None) -> pd.DataFrame:
    """The main trials of both experiments: experiment, participant, kind, references, layer, unit, correct.

    From `folder`, or the one that FEATVIS_BOROWSKI2021 names, or else from the authors' public repository (once, by
    pooch). Files with other contents than the authors published are refused, with one sentence.
    """
    folder = folder if folder is not None else os.environ.get(FOLDER)
    parts = []
    for experiment, (name, digest) in FILES.items():
        file = _fetched(name, digest) if folder is None else Path(folder) / name
        if not file.is_file():
            raise FeatvisError(
                f"{str(folder)!r} lacks {name}; it should hold {' and '.join(n for n, _ in FILES.values())}."
            )
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise FeatvisError(f"{str(file)!r} is not the file that the authors published: its SHA-256 differs.")
        parts.append(_tidy(experiment, pd.read_csv(file, low_memory=False)))
    return pd.concat(parts, ignore_index=True)


def _fetched(name: str, digest: str) -> Path:
    import pooch

    try:
        return Path(pooch.retrieve(SOURCE + name, f"sha256:{digest}", fname=name, path=pooch.os_cache("featvis")))
    except Exception as error:  # whatever the network does
        where = f"give a folder that holds it (--data FOLDER, or {FOLDER})"
        raise FeatvisError(
            f"{name} could not be fetched from the authors' repository ({reason(error)}); {where}."
        ) from error


def _tidy(experiment: str, raw: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in NEEDED if name not in raw]:
        raise FeatvisError(f"the file of experiment {experiment} lacks the columns {', '.join(missing)}.")
    main = raw[(raw["trial_type"] == "main") & ~raw["catch_trial"].astype(bool)]
    layer = main["layer"].str.removeprefix("layer_").astype(int)
    references = main["condition_name"] if experiment == "II" else pd.Series("Min-Max-9", main.index)
    return pd.DataFrame(
        {
            "experiment": experiment,
            "participant": main["subject_id"].astype(int),
            "kind": main["instr_type"].map(KINDS),
            "references": references.str.strip(),
            "layer": [LAYERS[i] for i in layer],
            "unit": main["layer"] + "/" + main["kernel_size"].astype(str) + "/" + main["channel"],
            "correct": main["correct"].astype(bool).astype(int),
        }
    ).reset_index(drop=True)


def two_sem(part: pd.DataFrame) -> tuple[float, float, int]:
    """Percent correct: mean over participants and twice its standard error; and how many participants."""
    means = 100 * part.groupby("participant")["correct"].mean()
    return float(means.mean()), float(2 * means.std(ddof=1) / np.sqrt(len(means))), len(means)


def table(trials: pd.DataFrame) -> pd.DataFrame:
    """experiment, condition, percent_correct, two_sem, participants: every condition of both experiments."""
    rows = []
    for experiment, kinds in ("I", ("synthetic", "natural", "none")), ("II", ("synthetic", "natural")):
        part = trials[trials["experiment"] == experiment]
        for references in part["references"].unique():
            for kind in kinds:
                cell = part[(part["references"] == references) & (part["kind"] == kind)]
                name = kind if experiment == "I" else f"{references} {kind}"
                rows.append((experiment, name, *two_sem(cell)))
    order = pd.DataFrame(rows, columns=["experiment", "condition", "percent_correct", "two_sem", "participants"])
    return order.sort_values(["experiment", "condition"], kind="stable").reset_index(drop=True)


def gaps(trials: pd.DataFrame, group: str) -> pd.DataFrame:
    """Natural minus synthetic, in percentage points, for each value of `group`: paired over participants.

    `low` and `high` from a bootstrap over participants; `p` one-sided by Wilcoxon's signed-rank test, Holm-corrected
    within each experiment.
    """
    rows = []
    for experiment, part in trials.groupby("experiment"):
        for value in sorted(set(part[group]), key=_order):
            cell = part[(part[group] == value) & (part["kind"] != "none")]
            means = 100 * cell.groupby(["participant", "kind"])["correct"].mean().unstack()
            gap = (means["natural"] - means["synthetic"]).to_numpy()
            low, high = _bootstrap(gap, np.mean)
            p = stats.wilcoxon(gap, alternative="greater", zero_method="wilcox").pvalue if np.any(gap) else 1.0
            rows.append((experiment, value, float(gap.mean()), low, high, float(p), len(gap)))
    found = pd.DataFrame(rows, columns=["experiment", group, "gap", "low", "high", "p", "participants"])
    corrected = found.groupby("experiment")["p"].transform(lambda p: holm(p.to_numpy()))
    return found.assign(p_holm=corrected)


def _order(value: str) -> int:
    """Layers, depths and references in their own order."""
    return [*LAYERS, *DEPTHS, "Max-1", "Min-Max-1", "Max-9", "Min-Max-9"].index(value)


def _bootstrap(values: np.ndarray, statistic: Callable) -> tuple[float, float]:
    found = stats.bootstrap((values,), statistic, method="percentile", n_resamples=4000, random_state=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def interactions(trials: pd.DataFrame) -> pd.DataFrame:
    """Does the gap grow with references and depth? Binomial GEE, participants as clusters, in log-odds.

    `synthetic x nine` (experiment II only): nine references instead of one; `synthetic x depth`: from the first layer
    to the last. Negative: visualizations help less, relative to natural images. Few participants make these intervals
    too narrow, so the covariance is bias-reduced (Mancl & DeRouen 2001).
    """
    import statsmodels.api as sm

    rows = []
    for experiment, part in trials[trials["kind"] != "none"].groupby("experiment"):
        synthetic = (part["kind"] == "synthetic").to_numpy(float) - 0.5
        depth = np.array([LAYERS.index(layer) for layer in part["layer"]]) / (len(LAYERS) - 1) - 0.5
        columns = {
            "level": np.ones(len(part)),
            "synthetic": synthetic,
            "depth": depth,
            "synthetic x depth": synthetic * depth,
        }
        if experiment == "II":
            nine = part["references"].str.endswith("9").to_numpy(float) - 0.5
            both = part["references"].str.startswith("Min").to_numpy(float) - 0.5
            columns |= {"nine": nine, "min and max": both, "synthetic x nine": synthetic * nine}
        x = pd.DataFrame(columns)
        model = sm.GEE(
            part["correct"].to_numpy(), x, groups=part["participant"].to_numpy(),
            family=sm.families.Binomial(), cov_struct=sm.cov_struct.Exchangeable(),
        )  # fmt: skip
        fit = model.fit(cov_type="bias_reduced")
        bounds = np.asarray(fit.conf_int())
        for i, term in enumerate(columns):
            rows.append((experiment, term, float(fit.params.iloc[i]), *bounds[i].tolist(), float(fit.pvalues.iloc[i])))
    return pd.DataFrame(rows, columns=["experiment", "term", "log_odds", "low", "high", "p"])


def over_units(trials: pd.DataFrame) -> pd.DataFrame:
    """Do both interactions hold for other units, too? The gap of each unit, natural minus synthetic, in points.

    `nine` (experiment II only): the mean, over units, of how much larger the gap is with nine references than with one;
    `depth`: the slope of the gap, from the first layer to the last. Student's intervals, with units as the sample.
    """
    rows = []
    for experiment, part in trials[trials["kind"] != "none"].groupby("experiment"):
        shares = 100 * part.groupby(["layer", "unit", "kind"])["correct"].mean().unstack()
        gap = shares["natural"] - shares["synthetic"]
        depth = gap.index.get_level_values("layer").map(LAYERS.index).to_numpy() / (len(LAYERS) - 1)
        line = stats.linregress(depth, gap)
        half = stats.t.ppf(0.975, len(gap) - 2) * line.stderr
        rows.append((experiment, "depth", line.slope, line.slope - half, line.slope + half, line.pvalue, len(gap)))
        if experiment == "II":
            nine = part.assign(nine=part["references"].str.endswith("9"))
            cells = 100 * nine.groupby(["unit", "nine", "kind"])["correct"].mean().unstack()
            change = (cells["natural"] - cells["synthetic"]).unstack().pipe(lambda g: g[True] - g[False])
            test = stats.ttest_1samp(change, 0)
            low, high = test.confidence_interval()
            rows.append((experiment, "nine", change.mean(), low, high, test.pvalue, len(change)))
    return pd.DataFrame(rows, columns=["experiment", "term", "points", "low", "high", "p", "units"])


@dataclass(frozen=True)
class Humans:
    """Tables recomputed from the authors' data: conditions, gaps by references, layer and depth, interactions.

    `units` has the interactions once more, with units as the sample (see `over_units`).
    """

    table: pd.DataFrame = field(repr=False)
    references: pd.DataFrame = field(repr=False)
    layers: pd.DataFrame = field(repr=False)
    depths: pd.DataFrame = field(repr=False)
    interactions: pd.DataFrame = field(repr=False)
    units: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """One row for each condition: experiment, condition, percent_correct, two_sem, participants."""
        return self.table

    def row(self, experiment: str, condition: str) -> pd.Series:
        """One condition."""
        found = self.table[(self.table["experiment"] == experiment) & (self.table["condition"] == condition)]
        return found.iloc[0]

    def difference(self, again: Humans) -> str:
        """ "" if all conditions come out the same."""
        return shares_differ(self.table["percent_correct"] / 100, again.table["percent_correct"] / 100, allowed=1e-6)

    def save(self, folder: Path) -> None:
        for name in PARTS:
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False)

    @classmethod
    def load(cls, folder: Path) -> Humans:
        return cls(*(pd.read_csv(folder / f"{name}.csv") for name in PARTS))


PARTS = ("table", "references", "layers", "depths", "interactions", "units")


@shelved(2, Humans, free=("data",))
def humans(subject: Subject, *, data: str | Path | None = None) -> Humans:
    """Everything that the chapter says about the authors' data; `subject` only names the shelf. See `load`."""
    return recomputed(load(data))


def recomputed(trials: pd.DataFrame) -> Humans:
    """All tables of the main trials (see `load`)."""
    depth = {layer: name for name, layers in DEPTHS.items() for layer in layers}
    trials = trials.assign(depth=trials["layer"].map(depth))
    references, layers, depths = (gaps(trials, group) for group in ("references", "layer", "depth"))
    return Humans(table(trials), references, layers, depths, interactions(trials), over_units(trials))


def report(found: Humans) -> str:
    """`report.json`: a list `rows` with one entry for each condition."""
    rows: Sequence[dict] = found.table.to_dict("records")
    return json.dumps({"task": "two-alternative forced choice, not matching", "chance": 50, "rows": rows}, indent=1)
