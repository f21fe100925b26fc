"""Trials of the matching experiment: rows of images on the left, rows on the right, which belong together?

In an *exemplar* trial both sides are natural images: 2 n strong exemplars of each unit, split in halves. In a
*visualization* trial the right side shows n visualizations. No image is on both sides, and no photograph either.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from featvis import sheets
from featvis.errors import FeatvisError, reason
from featvis.images import NaturalImages
from featvis.matching.stimuli import DEPTHS, PRACTICE, STRONGEST, Stimuli

KINDS = ("exemplar", "visualization")
PARTS = ("practice", "main", "catch")
NUMBERS = (1, 3, 5)  # images in a row
FILE = "trials.json"


@dataclass(frozen=True)
class Trial:
    """right[j] belongs to left[answer[j]]; a row is a tuple of keys of images (see `Stimuli.picture`)."""

    id: str
    part: str
    kind: str
    n: int
    depth: str
    units: tuple[str, ...]
    left: tuple[tuple[str, ...], ...]
    right: tuple[tuple[str, ...], ...]
    answer: tuple[int, ...]

    @property
    def repeats(self) -> bool:
        """Whether an image is there more than once, because it excites two of the units."""
        keys = [key for row in (*self.left, *self.right) for key in row]
        return len(set(keys)) < len(keys)

    def right_units(self, given: Sequence[int]) -> str:
        """Which units were matched rightly, in the order of `units`, as "101": given[j] is the row for right[j]."""
        hits = ["0"] * len(self.units)
        for row, true in zip(given, self.answer, strict=True):
            hits[true] = "1" if row == true else "0"
        return "".join(hits)


@dataclass(frozen=True)
class Design:
    """Trials in lists: a participant gets one list, which holds every cell of the design equally often."""

    subject: str
    natural: str
    seed: int
    lists: tuple[tuple[Trial, ...], ...] = field(repr=False)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials of all lists."""
        return tuple(trial for part in self.lists for trial in part)

    def frame(self) -> pd.DataFrame:
        """One row for each trial: list, id, part, kind, n, depth, units."""
        rows = [
            (number, trial.id, trial.part, trial.kind, trial.n, trial.depth, " ".join(trial.units))
            for number, part in enumerate(self.lists)
            for trial in part
        ]
        return pd.DataFrame(rows, columns=["list", "trial", "part", "kind", "n", "depth", "units"])


def design(
    stimuli: Stimuli,
    *,
    lists: int = 4,
    k: int = 3,
    kinds: Sequence[str] = KINDS,
    numbers: Sequence[int] = NUMBERS,
    repeats: int = 1,
    practice: int = 3,
    catch: int = 2,
    seed: int = 0,
) -> Design:
    """Kinds x n x depths, fully crossed: in each of `lists`, `repeats` trials of `k` units for every cell.

    In each cell every unit is asked about equally often over the lists (plus or minus one). Practice trials use units
    of their own; catch trials show the same images on both sides. Raises FeatvisError for what cannot be made.
    """
    for name, value in (("lists", lists), ("repeats", repeats)):
        if value < 1:
            raise FeatvisError(f"{name}={value} was given; at least 1 is needed.")
    small = min(len(stimuli.of(depth)) for depth in DEPTHS)
    if not 2 <= k <= small:
        raise FeatvisError(f"k={k} units in a trial were asked for; valid are 2 to {small}, the units of a depth.")
    most = min(stimuli.seeds, STRONGEST // 2)
    if not numbers or min(numbers) < 1 or max(numbers) > most:
        raise FeatvisError(f"n={list(numbers)} images in a row were asked for; valid are 1 to {most}.")
    rng = np.random.default_rng(seed)
    decks: dict[tuple[str, int, str], Iterator[tuple[str, ...]]] = {
        (kind, n, depth): _deck(stimuli.of(depth), k, rng) for kind in kinds for n in numbers for depth in DEPTHS
    }
    spare = stimuli.of(PRACTICE)
    made: list[tuple[Trial, ...]] = []
    for number in range(lists):
        names = (f"{number:02d}-{i:03d}" for i in itertools.count())
        part = []
        for i in range(practice if len(spare) >= 2 else 0):
            kind, n = kinds[i % len(kinds)], numbers[min(1, len(numbers) - 1)]
            units = tuple(rng.permutation(spare)[:k].tolist())
            part.append(_trial(next(names), "practice", kind, n, PRACTICE, units, stimuli, rng))
        for _ in range(repeats):
            for (kind, n, depth), deck in decks.items():
                part.append(_trial(next(names), "main", kind, n, depth, next(deck), stimuli, rng))
        for i in range(catch):
            depth = DEPTHS[i % 3]
            units = tuple(rng.permutation(stimuli.of(depth))[:k].tolist())
            part.append(_trial(next(names), "catch", "exemplar", numbers[0], depth, units, stimuli, rng))
        made.append(tuple(part))
    return Design(stimuli.subject, stimuli.natural, seed, tuple(made))


def _deck(units: Sequence[str], k: int, rng: np.random.Generator) -> Iterator[tuple[str, ...]]:
    """Endless hands of k different units; every unit is dealt once before any is dealt again."""
    left: list[str] = []
    while True:
        hand = left[:k]
        left = left[k:]
        if len(hand) < k:
            fresh = rng.permutation(units).tolist()
            more = [unit for unit in fresh if unit not in hand][: k - len(hand)]
            left = [unit for unit in fresh if unit not in more]
            hand += more
        yield tuple(hand)


def _trial(
    id: str,
    part: str,
    kind: str,
    n: int,
    depth: str,
    units: tuple[str, ...],
    stimuli: Stimuli,
    rng: np.random.Generator,
) -> Trial:
    sides = _naturals(units, n, 2 if kind == "exemplar" and part != "catch" else 1, stimuli, rng)
    left = sides[0]
    if part == "catch":
        other = left
    elif kind == "exemplar":
        other = sides[1]
    else:
        seeds = range(stimuli.seeds)
        other = [tuple(f"{unit}#{seed}" for seed in rng.permutation(seeds)[:n].tolist()) for unit in units]
    answer = rng.permutation(len(units)).tolist()
    right = tuple(other[row] for row in answer)
    return Trial(id, part, kind, n, depth, units, tuple(left), right, tuple(answer))


def _naturals(
    units: Sequence[str], n: int, sides: int, stimuli: Stimuli, rng: np.random.Generator
) -> list[list[tuple[str, ...]]]:
    """For each side and unit a row of n exemplars: at random among its ten strongest, weaker ones only where need be.

    Where there are enough photographs, each is shown at most once in the trial. Where there are not, they are dealt
    out to the sides first: one may then be seen in several rows, but on one side only and once in a row. So that
    both sides are alike, the pools have the same size.
    """
    images = {unit: {stimuli.sources[id]: id for id in stimuli.ranked(unit)} for unit in units}
    cost = {
        unit: {source: rng.random() if i < STRONGEST else i for i, source in enumerate(images[unit])} for unit in units
    }
    sources = sorted({source for unit in units for source in images[unit]})
    slots = [(side, unit) for side in range(sides) for unit in units for _ in range(n)]
    rows: dict[tuple[int, str], list[str]] = {(side, unit): [] for side, unit in slots}
    dear = 1e6
    if len(slots) <= len(sources):
        table = np.array([[cost[unit].get(source, dear) for source in sources] for _, unit in slots])
        for slot, column in zip(*linear_sum_assignment(table), strict=True):
            side, unit = slots[slot]
            if table[slot, column] < dear:
                rows[side, unit].append(images[unit][sources[column]])
    if any(len(row) < n for row in rows.values()):
        mixed = rng.permutation(sources).tolist()
        size = len(mixed) // sides
        for side, unit in rows:
            pool = [source for source in mixed[side * size : (side + 1) * size] if source in images[unit]]
            pool.sort(key=cost[unit].__getitem__)
            rows[side, unit] = [images[unit][source] for source in pool[:n]]
    if short := [str(unit) for (_, unit), row in rows.items() if len(row) < n]:
        raise FeatvisError(f"{short[0]} has too few independent exemplars for rows of {n} on {sides} sides.")
    return [[tuple(rng.permutation(rows[side, unit]).tolist()) for unit in units] for side in range(sides)]


def scored(answers: pd.DataFrame, made: Design) -> pd.DataFrame:
    """Answers with `observer`, `trial` and `match` (as JSON), as jsPsych keeps them, in the form of `analysis`."""
    known = {trial.id: trial for trial in made.trials}
    rows = []
    try:
        for row in answers.to_dict("records"):
            t, match = known[str(row["trial"])], json.loads(row["match"])
            right = t.right_units([int(i) for i in match])
            rows.append((row["observer"], t.id, t.part, t.kind, t.n, t.depth, " ".join(t.units), right))
    except (KeyError, ValueError, TypeError) as error:
        raise FeatvisError(f"an answer does not belong to these trials: {reason(error)}.") from error
    names = ["observer", "trial", "part", "kind", "n", "depth", "units", "right"]
    return answers.drop(columns=[name for name in names if name in answers]).join(pd.DataFrame(rows, columns=names))


def file_of(key: str, secret: str) -> str:
    """The name of an image's file, which gives nothing away to those who do not know the secret."""
    return hashlib.sha256(f"{secret} {key}".encode()).hexdigest()[:16] + ".webp"


def write(made: Design, stimuli: Stimuli, natural: NaturalImages, folder: Path) -> None:
    """`trials.json` and the image files below `images/`, into an existing folder.

    The file holds the answers: a server must keep it to itself. Names of image files come from a secret that is thrown
    away, because who can compute them can tell which unit an image belongs to.
    """
    (folder / "images").mkdir(exist_ok=True)
    for old in (folder / "images").glob("*.webp"):  # of another design, or of names that nobody uses any more
        old.unlink()
    secret = secrets.token_hex(16)
    keys = sorted({key for trial in made.trials for side in (trial.left, trial.right) for row in side for key in row})
    for key in keys:
        picture = stimuli.picture(key, natural)
        sheets.write(folder / "images" / file_of(key, secret), picture[None], 80, columns=1)
    about = {
        "format": 1,
        "subject": made.subject,
        "natural": made.natural,
        "seed": made.seed,
        "images": {key: file_of(key, secret) for key in keys},
        "lists": [[asdict(trial) for trial in part] for part in made.lists],
    }
    (folder / FILE).write_text(json.dumps(about, indent=1))


def read(folder: Path) -> tuple[Design, dict[str, str]]:
    """What `write` wrote: the design, and the file of each image. Raises FeatvisError if it is not whole."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise FeatvisError(f"{str(folder)!r} holds no {FILE}; `featvis match generate --out FOLDER` makes one.")
    try:
        about = json.loads(file.read_text())
        lists = tuple(tuple(revived(trial) for trial in part) for part in about["lists"])
        files = {str(key): str(name) for key, name in about["images"].items()}
        made = Design(str(about["subject"]), str(about["natural"]), int(about["seed"]), lists)
        names = [trial.id for trial in made.trials]
        if not names or len(set(names)) != len(names):
            raise ValueError("its trials' ids are not unique")
        used = {key for trial in made.trials for side in (trial.left, trial.right) for row in side for key in row}
        missing = [key for key in used if not (file.parent / "images" / files[key]).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatvisError(f"{str(file)!r} is not a file of trials: {reason(error)}.") from error
    if missing:
        raise FeatvisError(f"{str(folder)!r} lacks {len(missing)} of its images, such as {files[missing[0]]}.")
    return made, files


def revived(given: dict[str, Any]) -> Trial:
    """A trial from its fields as JSON; raises ValueError if they do not fit together."""
    rows = {side: tuple(tuple(map(str, row)) for row in given[side]) for side in ("left", "right")}
    answer, units = tuple(int(i) for i in given["answer"]), tuple(map(str, given["units"]))
    trial = Trial(
        str(given["id"]),
        str(given["part"]),
        str(given["kind"]),
        int(given["n"]),
        str(given["depth"]),
        units,
        rows["left"],
        rows["right"],
        answer,
    )
    k = len(units)
    sound = sorted(answer) == list(range(k)) and len(trial.left) == len(trial.right) == k and trial.part in PARTS
    if not sound or any(len(row) != trial.n for side in rows.values() for row in side):
        raise ValueError(f"trial {trial.id} does not fit together")
    return trial
