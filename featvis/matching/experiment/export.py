"""The answers as tables: one CSV that `featvis match analyze` reads, and a folder in the manner of BIDS."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from featvis.errors import FeatvisError, listed
from featvis.matching.experiment.store import Store

DICTIONARY = {
    "observer": "participant, numbered in the order in which links were made",
    "position": "place of the trial in the participant's session, from 0",
    "trial": "id of the trial in trials.json",
    "part": "practice (with feedback), main, or catch (the same images on both sides)",
    "kind": "exemplar: natural images on both sides; visualization: natural images on the left, visualizations right",
    "n": "images in a row",
    "depth": "early, middle or late layers; practice for practice trials, whose units are of late layers",
    "units": "the trial's units, separated by spaces",
    "right": "for each of the units, in this order: 1 if its rows were matched, else 0",
    "correct": "number of units that were matched; guessing has mean 1 and variance 1",
    "confidence": "1 guessed, 2 unsure, 3 sure",
    "rt": "milliseconds from the first frame with all images to the confirmation",
    "first": "milliseconds until the first row was placed",
    "moves": "how often a row was moved",
    "away": "milliseconds during which the page was hidden",
    "width": "width of the browser's window in pixels",
    "received": "when the server stored the answer (UTC)",
    "answer_id": "id under which the browser sent the answer",
    "chosen": "for each of the units, in this order: the unit whose row on the right was put beside it",
    "given": "the match as stored: for each row on the right, in the order in which this participant saw them, the row "
    "on the left beside which it was put, from 0; the rows on the left are in the order of units",
}
PEOPLE = {
    "participant_id": "participant, numbered in the order in which links were made",
    "list": "list of trials in trials.json, from 0",
    "answers": "how many answers are stored",
    "finished": "whether every trial of the list is answered",
    "agreed": "whether the participant's last word on taking part was yes",
    "comment": "what the participant told at the end",
}


def answers(store: Store) -> pd.DataFrame:
    """One row for each stored answer, with the columns of `DICTIONARY`."""
    rows = []
    for participant, position, trial, given, received, id in store.rows():
        right = trial.right_units(given["match"])
        when = datetime.fromtimestamp(received, UTC).isoformat(timespec="milliseconds")
        cell = (trial.id, trial.part, trial.kind, trial.n, trial.depth, " ".join(trial.units), right, right.count("1"))
        beside = dict(zip(given["match"], trial.answer, strict=True))  # row on the left -> unit of the row put there
        chosen = " ".join(trial.units[beside[i]] for i in range(len(trial.units)))
        measures = [given[name] for name in ("confidence", "rt", "first", "moves", "away", "width")]
        rows.append(
            (f"sub-{participant:03d}", position, *cell, *measures, when, id, chosen, json.dumps(given["match"]))
        )
    return pd.DataFrame(rows, columns=list(DICTIONARY))


def participants(store: Store) -> pd.DataFrame:
    """One row for each participant, with the columns of `PEOPLE`.

    A comment is one line, and nothing that a spreadsheet would take for a formula.
    """
    rows = [{**row, "participant_id": f"sub-{row['participant']:03d}"} for row in store.participants()]
    table = pd.DataFrame(rows, columns=list(PEOPLE))
    table["comment"] = [harmless(text) for text in table["comment"]]
    return table


def harmless(text: str) -> str:
    """Free text as one line that no spreadsheet executes."""
    line = " ".join(text.split())
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def check_place(store: Store, folder: Path) -> None:
    """Raises FeatvisError if the folder has participants of another study, who would be taken for this one's.

    What an earlier export of this study wrote has answers that are still stored: none is ever deleted.
    """
    own = {row[5] for row in store.rows()}
    if strange := [place.name for place in sorted(folder.glob("sub-*")) if not _is_of(place, own)]:
        raise FeatvisError(
            f"{str(folder)!r} holds {listed(strange)}, not of this study; give a new folder to --out or move them."
        )


def _is_of(place: Path, own: set[str]) -> bool:
    """Whether a participant's folder has answers, and none but those with these ids."""
    try:
        file = place / "beh" / f"{place.name}_task-matching_beh.tsv"
        found = set(pd.read_csv(file, sep="\t", usecols=["answer_id"], dtype=str)["answer_id"])
    except (OSError, ValueError):  # not there, or no such table
        return False
    return bool(found) and found <= own


def write(store: Store, folder: Path) -> int:
    """answers.csv, and participants.tsv and sub-*/beh/*_beh.tsv with data dictionaries; how many answers there are."""
    table = answers(store)
    table.to_csv(folder / "answers.csv", index=False)
    participants(store).to_csv(folder / "participants.tsv", sep="\t", index=False)
    about = {"Name": "Matching of visualizations and natural images", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(about, indent=1))
    for file, columns in (("task-matching_beh.json", DICTIONARY), ("participants.json", PEOPLE)):
        described = {name: {"Description": text} for name, text in columns.items()}
        (folder / file).write_text(json.dumps(described, indent=1))
    for name, part in table.groupby("observer"):
        beh = folder / str(name) / "beh"
        beh.mkdir(parents=True, exist_ok=True)
        part.to_csv(beh / f"{name}_task-matching_beh.tsv", sep="\t", index=False)
    return len(table)
