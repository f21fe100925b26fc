"""The answers of an experiment on disk: an append-only SQLite file that has an answer before anybody says so."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featvis.errors import FeatvisError, listed, reason
from featvis.matching import trials
from featvis.matching.trials import Trial

FILE = "answers.sqlite"
TEXTS = "texts.json"
EVENTS = {"consent": ("agreed", bool), "comment": ("text", str)}
LONGEST = 2000  # characters of a comment
MOST_EVENTS = 20  # of a kind, that a participant may send
TOLD = "SELECT data FROM events WHERE participant = ? AND kind = ? ORDER BY id"
NUMBERS = {"rt": 1e9, "first": 1e9, "away": 1e9, "moves": 1e6, "width": 1e6}  # fields of an answer and their largest
VALID: dict[type, tuple[str, Callable[[Any], bool]]] = {  # of each text of a study, by what the package's own is
    str: ("a text", lambda value: isinstance(value, str)),
    list: ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(part, str) for part in value)),
    int: ("a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
}

SCHEMA = """
CREATE TABLE IF NOT EXISTS study (trials TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS participants (
  id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, list INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
  id TEXT PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participants, position INTEGER NOT NULL,
  trial TEXT NOT NULL, given TEXT NOT NULL, received REAL NOT NULL, UNIQUE (participant, position));
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participants, kind TEXT NOT NULL,
  data TEXT NOT NULL, received REAL NOT NULL);
""" + "".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_{what} BEFORE {what} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} are never changed'); END;\n"
    for table in ("participants", "answers", "events")
    for what in ("UPDATE", "DELETE")
)


class Refused(Exception):
    """What a participant sent cannot be stored: an HTTP status, a sentence, and the position expected next."""

    def __init__(self, status: int, sentence: str, next: int | None = None):
        super().__init__(sentence)
        self.status, self.next = status, next


class Store:
    """One experiment: its trials, its participants and their answers. Safe to use from many threads."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.design, self.files = trials.read(self.folder)
        self.texts = read_texts(self.folder / TEXTS)
        self._lock = threading.Lock()
        self._orders: dict[int, tuple[Trial, ...]] = {}
        try:
            self._db = sqlite3.connect(self.folder / FILE, check_same_thread=False, isolation_level=None, timeout=20)
            os.chmod(self.folder / FILE, 0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a commit returns when the answer is on the disk
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(SCHEMA)
            digest = hashlib.sha256((self.folder / trials.FILE).read_bytes()).hexdigest()
            known = self._db.execute("SELECT trials FROM study").fetchone()
            if known is None:
                self._db.execute("INSERT INTO study VALUES (?)", (digest,))
        except sqlite3.Error as error:
            raise FeatvisError(f"{str(self.folder / FILE)!r} cannot be used: {reason(error)}.") from error
        if known and known[0] != digest:
            raise FeatvisError(f"{trials.FILE} is not the one that the answers in {FILE} belong to.")
        # Numbers would tell which trials are catch trials; nobody but the server knows what these are made from.
        self.names = {
            trial.id: hashlib.sha256(f"{digest} {trial.id}".encode()).hexdigest()[:16] for trial in self.design.trials
        }

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction at a time; what could not be written is as if never sent, and said so with status 503."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise Refused(503, f"The answer could not be stored ({reason(error)}).") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # ------------------------------------------------------------ participants

    def enrol(self, count: int) -> list[str]:
        """Make participants until there are `count`; the tokens of all. Lists are dealt out in turn."""
        with self._writing() as db:
            for number in range(db.execute("SELECT count(*) FROM participants").fetchone()[0], count):
                row = (number + 1, secrets.token_urlsafe(24), number % len(self.design.lists), time.time())
                db.execute("INSERT INTO participants VALUES (?, ?, ?, ?)", row)
        return [token for (token,) in self._read("SELECT token FROM participants ORDER BY id")]

    def participant(self, token: str) -> int:
        """Whose token this is; raises Refused (404) if nobody's."""
        rows = self._read("SELECT id FROM participants WHERE token = ?", token)
        if not rows:
            raise Refused(404, "This link is not valid.")
        return int(rows[0][0])

    def order(self, participant: int) -> tuple[Trial, ...]:
        """The participant's trials in the participant's own order, and so the rows on the right.

        If all saw the same rows in the same place, those who always answer alike would not score at chance on average.
        """
        if participant not in self._orders:
            part = self.design.lists[(participant - 1) % len(self.design.lists)]
            rng = np.random.default_rng([self.design.seed, participant, 1])
            order = ordered(part, [self.design.seed, participant])
            self._orders[participant] = tuple(shuffled(trial, rng) for trial in order)
        return self._orders[participant]

    def state(self, participant: int) -> dict[str, Any]:
        """What the page needs: texts, the trials without their answers (but for practice), and where to go on."""
        return {
            **self.texts,
            "next": self._next(participant),
            "consented": self._agreed(self._told(participant, "consent")),
            "commented": bool(self._told(participant, "comment")),
            "trials": [{**public(t, self.files), "id": self.names[t.id]} for t in self.order(participant)],
        }

    # ------------------------------------------------------------ answers

    def answer(self, participant: int, given: Any) -> dict[str, Any]:
        """Store an answer; sent again with the same id it is stored once. Raises Refused for anything else, and for
        an answer of somebody who has not agreed to take part, or does not any more."""
        order = self.order(participant)
        id, position, text = checked(given, order, self.names)
        with self._writing() as db:
            told = db.execute(TOLD, (participant, "consent")).fetchall()
            if self.texts["consent"] and not self._agreed([data for (data,) in told]):
                raise Refused(403, "Answers are stored only after consent to take part.")
            next = db.execute("SELECT count(*) FROM answers WHERE participant = ?", (participant,)).fetchone()[0]
            known = db.execute("SELECT participant, given FROM answers WHERE id = ?", (id,)).fetchone()
            if known:
                if known != (participant, text):
                    raise Refused(409, "Another answer has this id.")
                return {"stored": True, "repeated": True, "next": next}
            if position != next:
                raise Refused(409, f"Trial {next} comes next, not {position}.", next)
            row = (id, participant, position, order[position].id, text, time.time())
            db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
        return {"stored": True, "repeated": False, "next": next + 1}

    def event(self, participant: int, given: Any) -> dict[str, Any]:
        """Store consent or a comment."""
        kind = given.get("kind") if isinstance(given, dict) else None
        if not isinstance(kind, str) or kind not in EVENTS or set(given) != {"kind", "data"}:
            raise Refused(422, "An event is a kind (consent or comment) with its data.")
        name, type_ = EVENTS[kind]
        data = given["data"]
        if not isinstance(data, dict) or set(data) != {name} or not isinstance(data[name], type_):
            raise Refused(422, f"A {kind} has {name} and nothing else.")
        if isinstance(data[name], str) and len(data[name]) > LONGEST:
            raise Refused(422, f"A comment has at most {LONGEST} characters.")
        if isinstance(data[name], str) and not _is_text(data[name]):
            raise Refused(422, "A comment is text that can be written as UTF-8.")
        with self._writing() as db:
            row = (participant, kind, json.dumps(data), time.time())
            before = [data for (data,) in db.execute(TOLD, row[:2])]
            if before[-1:] == [row[2]]:
                return {"stored": True}  # sent again, because the reply was lost
            if len(before) >= MOST_EVENTS:
                raise Refused(429, f"A participant has at most {MOST_EVENTS} events of a kind.")
            db.execute("INSERT INTO events (participant, kind, data, received) VALUES (?, ?, ?, ?)", row)
        return {"stored": True}

    def rows(self) -> list[tuple[int, int, Trial, dict[str, Any], float, str]]:
        """Every stored answer: participant, position, trial as the participant saw it, what was given, when, id."""
        found = self._read("SELECT participant, position, given, received, id FROM answers ORDER BY 1, 2")
        return [(p, at, self.order(p)[at], json.loads(given), when, id) for p, at, given, when, id in found]

    def participants(self) -> list[dict[str, Any]]:
        """Every participant: number, list, how many answers, consent, comments."""
        rows = []
        for number, part in self._read("SELECT id, list FROM participants ORDER BY id"):
            comments = [json.loads(data)["text"] for data in self._told(number, "comment")]
            answered = self._next(number)
            rows.append(
                {
                    "participant": number,
                    "list": part,
                    "answers": answered,
                    "finished": answered == len(self.order(number)),
                    "agreed": self._agreed(self._told(number, "consent")),
                    "comment": " / ".join(text for text in comments if text),
                }
            )
        return rows

    def _next(self, participant: int) -> int:
        return int(self._read("SELECT count(*) FROM answers WHERE participant = ?", participant)[0][0])

    def _told(self, participant: int, kind: str) -> list[str]:
        """The data of a participant's events of a kind, the latest last."""
        return [data for (data,) in self._read(TOLD, participant, kind)]

    @staticmethod
    def _agreed(told: list[str]) -> bool:
        """Whether the last word was yes."""
        return bool(told) and bool(json.loads(told[-1])["agreed"])

    def _read(self, query: str, *values: Any) -> list[tuple]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise Refused(503, f"The answers cannot be read ({reason(error)}).") from error


def ordered(part: tuple[Trial, ...], seed: Any) -> tuple[Trial, ...]:
    """One participant's order: practice first, then block by block, catch trials anywhere among them."""
    rng = np.random.default_rng(seed)
    main = [trial for trial in part if trial.part == "main"]
    size = len({(trial.kind, trial.n, trial.depth) for trial in main}) or 1
    blocks = [main[i : i + size] for i in range(0, len(main), size)]
    order = [block[i] for block in blocks for i in rng.permutation(len(block))]
    for trial in part:
        if trial.part == "catch":
            order.insert(int(rng.integers(1, len(order) + 1)), trial)
    return (*(trial for trial in part if trial.part == "practice"), *order)


def shuffled(trial: Trial, rng: np.random.Generator) -> Trial:
    """The same trial with its rows on the right in another order."""
    order = rng.permutation(len(trial.right)).tolist()
    return replace(trial, right=tuple(trial.right[i] for i in order), answer=tuple(trial.answer[i] for i in order))


def public(trial: Trial, files: dict[str, str], base: str = "/images/") -> dict[str, Any]:
    """A trial as a participant may know it: addresses of images; no units, and no answer but in practice."""
    sides = {side: [[base + files[key] for key in row] for row in getattr(trial, side)] for side in ("left", "right")}
    practice = {"answer": list(trial.answer)} if trial.part == "practice" else {}
    return {"id": trial.id, "part": "practice" if practice else "main", **sides, **practice}


def checked(given: Any, order: tuple[Trial, ...], names: dict[str, str]) -> tuple[str, int, str]:
    """(id, position, the rest as JSON) of a sound answer; raises Refused (422) that says what is wrong.

    `names` are what participants know the trials by.
    """
    wanted = {"id", "position", "trial", "match", "confidence", *NUMBERS}
    if not isinstance(given, dict) or set(given) != wanted:
        raise Refused(422, f"An answer has {', '.join(sorted(wanted))} and nothing else.")
    id, position, match = given["id"], given["position"], given["match"]
    if not isinstance(id, str) or not re.fullmatch(r"[A-Za-z0-9-]{16,64}", id):
        raise Refused(422, "The id of an answer is 16 to 64 letters, digits and hyphens.")
    if type(position) is not int or not 0 <= position < len(order):
        raise Refused(422, f"The position is a number from 0 to {len(order) - 1}.")
    trial = order[position]
    if given["trial"] != names[trial.id]:
        raise Refused(409, "This is not the trial at this position.")
    k = len(trial.units)
    if not isinstance(match, list) or any(type(i) is not int for i in match) or sorted(match) != list(range(k)):
        raise Refused(422, f"The match is a permutation of 0 to {k - 1}.")
    if type(given["confidence"]) is not int or not 1 <= given["confidence"] <= 3:
        raise Refused(422, "The confidence is 1, 2 or 3.")
    for name, most in NUMBERS.items():
        value = given[name]
        if type(value) not in (int, float) or not 0 <= value <= most:  # which no infinity and no nan is
            raise Refused(422, f"{name} is a number from 0 to {most:g}.")
    rest = {name: given[name] for name in ("match", "confidence", *NUMBERS)}
    return id, position, json.dumps(rest)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no table could be written with
        return False
    return True


def read_texts(file: Path) -> dict[str, Any]:
    """The texts of a study: those beside its trials, or else the package's. Raises FeatvisError for what no page shows,
    so that nobody is asked for consent with other words than the study's because of a slip."""
    default = json.loads((Path(__file__).parent / TEXTS).read_text(encoding="utf-8"))
    if not file.is_file():
        return default
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FeatvisError(f"{str(file)!r} is not JSON: {reason(error)}.") from error
    if not isinstance(given, dict):
        raise FeatvisError(f"{str(file)!r} does not hold texts by their names; valid are {listed(default)}.")
    if unknown := [repr(name) for name in given if name not in default]:
        raise FeatvisError(f"{str(file)!r} has the unknown {listed(unknown)}; valid are {listed(default)}.")
    for name, value in given.items():
        valid, sound = VALID[type(default[name])]
        if not sound(value):
            raise FeatvisError(f"{str(file)!r} has {name} = {json.dumps(value)}; valid is {valid}.")
    return default | given
