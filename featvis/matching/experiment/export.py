"""The answers as tables: one CSV that `featvis match analyze` reads, and a folder in the manner of BIDS."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from featvis.matching.experiment.store import Store

DICTIONARY = {
    "observer": "participant, numbered in the order in which links were made",
    "position": "place of the trial in the participant's session, from 0",
    "trial": "id of the trial in trials.json",
    "part": "practice (with feedback), main, or catch (the same images on both sides)",
    "kind": "exemplar: natural images on both sides; visualization: natural images on the left, visualizations right",
    "n": "images in a row",
    "depth": "early, middle or late layers; practice units are late",
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
}


def answers(store: Store) -> pd.DataFrame:
    """One row for each stored answer, with the columns of `DICTIONARY`."""
    rows = []
    for participant, position, trial, given, received, id in store.rows():
        right = trial.right_units(given["match"])
        when = datetime.fromtimestamp(received, UTC).isoformat(timespec="milliseconds")
        cell = (trial.id, trial.part, trial.kind, trial.n, trial.depth, " ".join(trial.units), right, right.count("1"))
        measures = [given[name] for name in ("confidence", "rt", "first", "moves", "away", "width")]
        rows.append((f"sub-{participant:03d}", position, *cell, *measures, when, id))
    return pd.DataFrame(rows, columns=list(DICTIONARY))


def participants(store: Store) -> pd.DataFrame:
    """One row for each participant. A comment is one line, and nothing that a spreadsheet would take for a formula."""
    columns = ["participant", "list", "answers", "finished", "agreed", "comment"]
    table = pd.DataFrame(store.participants(), columns=columns)
    table["participant"] = [f"sub-{number:03d}" for number in table["participant"]]
    table["comment"] = [harmless(text) for text in table["comment"]]
    return table


def harmless(text: str) -> str:
    """Free text as one line that no spreadsheet executes."""
    line = " ".join(text.split())
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def write(store: Store, folder: Path) -> int:
    """answers.csv, and participants.tsv and sub-*/beh/*_beh.tsv with data dictionaries; how many answers there are."""
    table = answers(store)
    table.to_csv(folder / "answers.csv", index=False)
    participants(store).to_csv(folder / "participants.tsv", sep="\t", index=False)
    about = {"Name": "Matching of visualizations and natural images", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(about, indent=1))
    described = {name: {"Description": text} for name, text in DICTIONARY.items()}
    (folder / "task-matching_beh.json").write_text(json.dumps(described, indent=1))
    for name, part in table.groupby("observer"):
        beh = folder / str(name) / "beh"
        beh.mkdir(parents=True, exist_ok=True)
        part.to_csv(beh / f"{name}_task-matching_beh.tsv", sep="\t", index=False)
    return len(table)
