"""How well machine observers match, and whether it depends on how many things a unit responds to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from featvis.images import NaturalImages
from featvis.matching.analysis import by_unit
from featvis.matching.observers import Observer, alike, answers, machine_features
from featvis.matching.simulation import GZIP
from featvis.matching.stimuli import DEPTHS, Stimuli, mixtures, rank, source_of
from featvis.matching.trials import KINDS, Design, design
from featvis.ranks import Related, related
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.zoo import load, trained

MOST_CLUSTERS = 12
SEPARATE = 0.15  # silhouette from which several clusters are believed


@dataclass(frozen=True)
class Answers:
    """The answers of machine observers, in the form that `analysis` reads."""

    table: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """One row for each observer and trial."""
        return self.table

    def difference(self, again: Answers) -> str:
        """ "" if every observer is right about as often."""
        parts = [
            a.table.assign(share=a.table["right"].str.count("1") / a.table["right"].str.len()) for a in (self, again)
        ]
        old, new = (part.groupby(["observer", "kind"])["share"].mean() for part in parts)
        both = old.index.intersection(new.index)  # another network may take part on one machine only
        return shares_differ(old[both], new[both])

    def save(self, folder: Path) -> None:
        self.table.to_csv(folder / "answers.csv.gz", index=False, compression=GZIP)

    @classmethod
    def load(cls, folder: Path) -> Answers:
        return cls(pd.read_csv(folder / "answers.csv.gz", dtype={"right": str}))


def other_network(subject: Subject) -> Subject | None:
    """The other one of the two embedded networks, if it is trained."""
    other = "photonet" if subject.name == "cifarnet" else "cifarnet"
    return load(other) if trained(other) else None


def observers(
    subject: Subject, natural: NaturalImages, made: Design, stimuli: Stimuli, another: Subject | None = None
) -> dict[str, Observer]:
    """The machine observers of these trials; `another` network takes part with its features."""
    keys = sorted({key for t in made.trials for side in (t.left, t.right) for row in side for key in row})
    pictures = {key: stimuli.picture(key, natural) for key in keys}
    return {name: alike(bank) for name, bank in machine_features(subject, pictures, another).items()}


@shelved(2, Answers)
def machine_answers(
    subject: Subject,
    natural: NaturalImages,
    stimuli: Stimuli,
    *,
    another: Subject | None = None,
    lists: int = 48,
    k: int = 3,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    progress: bool = True,
) -> Answers:
    """All trials of `lists` lists, answered by every machine observer (see `observers`)."""
    made = design(stimuli, lists=lists, k=k, kinds=kinds, practice=0, catch=0, seed=seed)
    return Answers(answers(observers(subject, natural, made, stimuli, another), made.trials))


def clusters(features: np.ndarray) -> int:
    """How many groups the rows (m, d) fall into: k-means with the best mean silhouette among 2 to 12, or else one.

    One group is assumed unless the silhouette reaches 0.15 (Rousseeuw 1987 calls less than 0.25 no structure).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    best = (SEPARATE, 1)
    for k in range(2, min(MOST_CLUSTERS, len(features) - 1) + 1):
        labels = KMeans(k, n_init=5, random_state=0).fit_predict(features)
        if len(set(labels)) == k:
            best = max(best, (float(silhouette_score(features, labels)), k))
    return best[1]


@dataclass(frozen=True)
class Polysemy:
    """One row for each unit and each mixture of two: `mixed`, `clusters`, and shares matched rightly by a machine.

    unit, depth, mixed, clusters, sources (photographs among its exemplars), exemplar, visualization (shares)
    """

    table: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def relation(self, by: str = "clusters", share: str = "visualization") -> Related:
        """Rank correlation over units that are not mixed, inside of depths: both columns change with depth."""
        part = self.table[~self.table["mixed"]]
        return related(part["depth"], part[by], part[share])

    def difference(self, again: Polysemy) -> str:
        """ "" if shares are about the same on average."""
        columns = ["exemplar", "visualization"]
        old, new = (p.table.groupby("mixed")[columns].mean().to_numpy().ravel().tolist() for p in (self, again))
        return shares_differ(old, new, allowed=0.1)

    def save(self, folder: Path) -> None:
        self.table.to_csv(folder / "units.csv", index=False, float_format="%.4f")

    @classmethod
    def load(cls, folder: Path) -> Polysemy:
        return cls(pd.read_csv(folder / "units.csv"))


@shelved(1, Polysemy)
def polysemy(
    subject: Subject,
    natural: NaturalImages,
    stimuli: Stimuli,
    *,
    lists: int = 24,
    seed: int = 0,
    progress: bool = True,
) -> Polysemy:
    """Count the clusters among each unit's exemplars, and match units and mixtures by the subject's late features."""
    mixed = mixtures(subject, natural, stimuli, progress=progress)
    single = [unit for depth in DEPTHS for unit in stimuli.of(depth)]
    rows = []
    for some, is_mixed in ((stimuli, False), (mixed, True)):
        made = design(some, lists=lists, practice=0, catch=0, seed=seed)
        late = {name: one for name, one in observers(subject, natural, made, some).items() if "late" in name}
        found = by_unit(answers(late, made.trials))
        shares = found.pivot_table(index="unit", columns="kind", values="share")
        names = list(some.units) if is_mixed else single
        counts = _counted(subject, natural, names, progress)
        for name in names:
            depth = some.depths[some.units.index(name)]
            rows.append((name, depth, is_mixed, *counts[name], *shares.loc[name, ["exemplar", "visualization"]]))
    columns = ["unit", "depth", "mixed", "clusters", "sources", "exemplar", "visualization"]
    return Polysemy(pd.DataFrame(rows, columns=columns))


def _counted(
    subject: Subject, natural: NaturalImages, units: Sequence[str], progress: bool
) -> dict[str, tuple[int, int]]:
    """For each unit: clusters among its strongest images, by the subject's late features, and their sources."""
    best = rank(subject, natural, units, alone=False, progress=progress).ids
    keys = sorted({str(id) for id in best.ravel()})
    late = next(
        bank
        for name, bank in machine_features(subject, {key: natural.image(key) for key in keys}).items()
        if "late" in name
    )
    return {
        unit: (clusters(np.stack([late[str(id)] for id in row])), len({source_of(natural, str(id)) for id in row}))
        for unit, row in zip(units, best, strict=True)
    }
