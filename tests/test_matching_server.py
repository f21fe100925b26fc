"""The experiment's server: every answer is kept once, whatever is sent and whatever breaks."""

from __future__ import annotations

import asyncio
import csv
import importlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import featvis as fv
from featvis.cli import main
from featvis.errors import FeatvisError
from featvis.matching import analysis
from featvis.matching.experiment.store import Refused, Store
from featvis.matching.trials import design
from tests.conftest import ROOT
from tests.test_matching_trials import STIMULI, written

REASON = "THE SERVER IS NOT TESTED: pip install 'featvis[experiment]' httpx"
TestClient = pytest.importorskip("starlette.testclient", reason=REASON, exc_type=ImportError).TestClient
pytest.importorskip("uvicorn", reason=REASON)
httpx = pytest.importorskip("httpx", reason=REASON)
export = importlib.import_module("featvis.matching.experiment.export")
jspsych = importlib.import_module("featvis.matching.experiment.jspsych")
app, operator_token = (
    getattr(importlib.import_module("featvis.matching.experiment.server"), name) for name in ("app", "operator_token")
)
AGREED = {"kind": "consent", "data": {"agreed": True}}


@pytest.fixture
def folder(tmp_path) -> Path:
    written(tmp_path, design(STIMULI, lists=2, repeats=2, seed=5))
    return tmp_path


@pytest.fixture
def served(folder):
    made = app(folder)
    tokens = made.state.store.enrol(3)
    for participant in (1, 2, 3):
        made.state.store.event(participant, AGREED)
    yield TestClient(made), tokens, made.state.store
    made.state.store.close()


def answer(state: dict, position: int, **other: object) -> dict:
    """A sound answer to the trial at this position."""
    given = {
        "id": uuid.uuid4().hex, "position": position, "trial": state["trials"][position]["id"], "match": [2, 0, 1],
        "confidence": 2, "rt": 1234.5, "first": 300.0, "moves": 3, "away": 0, "width": 800,
    }  # fmt: skip
    return {**given, **other}


def state_of(client, token: str) -> dict:
    return client.get(f"/api/{token}/state").json()


def post(client, token: str, given: object, what: str = "answers") -> tuple[int, dict]:
    response = client.post(
        f"/api/{token}/{what}", content=given if isinstance(given, (str, bytes)) else json.dumps(given)
    )
    return response.status_code, response.json()


# ---------------------------------------------------------------- what a participant gets


def test_a_participant_sees_no_answers(served):
    client, tokens, store = served
    state = state_of(client, tokens[0])
    assert state["next"] == 0
    parts = Counter(trial["part"] for trial in state["trials"])
    assert parts == {"practice": 3, "main": 36 + 2}
    for trial in state["trials"]:
        assert set(trial) == {"id", "part", "left", "right"} | ({"answer"} if trial["part"] == "practice" else set())
        for side in ("left", "right"):
            for row in trial[side]:
                for url in row:
                    assert client.get(url).headers["content-type"] == "image/webp"
    text = json.dumps(state)
    assert not any(unit in text for unit in STIMULI.units)
    known = {trial.id for trial in store.design.trials}
    assert not any(trial["id"] in known for trial in state["trials"])  # whose numbers would tell the catch trials
    assert len({trial["id"] for trial in state["trials"]}) == len(state["trials"])
    for path in (
        "/trials.json",
        "/images/../trials.json",
        "/static/store.py",
        "/static/../server.py",
        "/answers.sqlite",
    ):
        assert client.get(path).status_code in (404, 405), path
    assert "script-src 'self'" in client.get(f"/p/{tokens[0]}").headers["content-security-policy"]


def test_participants_get_balanced_blocks_in_their_own_order(served):
    _, _, store = served
    orders = [store.order(i) for i in (1, 2, 3)]
    assert {t.id for t in orders[0]} == {t.id for t in orders[2]} != {t.id for t in orders[1]}
    assert orders[0] != orders[2]
    for order in orders:
        assert [t.part for t in order[:3]] == ["practice"] * 3
        main_trials = [t for t in order if t.part == "main"]
        for block in (main_trials[:18], main_trials[18:]):
            assert len({(t.kind, t.n, t.depth) for t in block}) == 18
    assert store.order(1) == Store(store.folder).order(1)


def test_rows_stand_in_another_order_for_everybody(served):
    """Whoever always gives the same answer is at chance over participants, as whoever guesses."""
    _, _, store = served
    for participant in (1, 3):  # the same list
        for shown in store.order(participant):
            (made,) = (trial for trial in store.design.trials if trial.id == shown.id)
            assert dict(zip(shown.answer, shown.right, strict=True)) == dict(zip(made.answer, made.right, strict=True))
            assert (shown.left, shown.units) == (made.left, made.units)
    one, three = ({trial.id: trial.answer for trial in store.order(p)} for p in (1, 3))
    assert 0.6 < np.mean([one[id] != three[id] for id in one]) < 1
    hits = [sum(a == b for a, b in enumerate(t.answer)) for p in range(1, 200, 2) for t in store.order(p)[:3]]
    assert np.mean(hits) == pytest.approx(1, abs=0.2)


def test_answers_are_stored_once_and_in_order(served):
    client, tokens, store = served
    state = state_of(client, tokens[0])
    first = answer(state, 0)
    assert post(client, tokens[0], first) == (200, {"stored": True, "repeated": False, "next": 1})
    assert post(client, tokens[0], first) == (200, {"stored": True, "repeated": True, "next": 1})
    assert post(client, tokens[0], {**first, "match": [0, 1, 2]})[0] == 409
    assert post(client, tokens[0], answer(state, 0))[0] == 409
    status, told = post(client, tokens[0], answer(state, 2))
    assert (status, told["next"], told["stored"]) == (409, 1, False)
    assert state_of(client, tokens[0])["next"] == 1
    assert state_of(client, tokens[1])["next"] == 0
    assert len(store.rows()) == 1


def test_nobody_answers_for_somebody_else(served):
    client, tokens, store = served
    first = answer(state_of(client, tokens[0]), 0)
    assert post(client, tokens[0], first)[0] == 200
    other = answer(state_of(client, tokens[1]), 0, id=first["id"])
    assert post(client, tokens[1], other)[0] == 409
    assert post(client, "x" * 32, first)[0] == 404
    assert client.get("/api/unknown/state").status_code == 404
    assert len(set(tokens)) == 3
    assert min(map(len, tokens)) >= 32
    assert [row[0] for row in store.rows()] == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"match": [0, 0, 1]}, {"match": [0, 1]}, {"match": "012"}, {"match": [True, False, 2]}, {"match": [0.0, 1, 2]},
        {"confidence": 0}, {"confidence": 4}, {"confidence": "3"}, {"confidence": True}, {"rt": -1}, {"rt": "fast"},
        {"rt": None}, {"rt": 1e12}, {"rt": 10**400}, {"moves": True}, {"position": -1}, {"position": 10**6},
        {"position": "0"},
        {"id": "short"}, {"id": "<script>alert(1)</script>"}, {"id": 5}, {"extra": 1}, {"trial": "01-005"},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_answers_are_refused_and_leave_nothing(served, change):
    client, tokens, store = served
    status, told = post(client, tokens[0], {**answer(state_of(client, tokens[0]), 0), **change})
    assert status in (409, 422)
    assert told["stored"] is False
    assert len(told["error"]) > 10
    assert store.rows() == []


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "5", '{"rt": NaN}', "[" * 5000, b"\xff\xfe"], ids=repr)
def test_what_is_no_json_object_is_refused(served, body):
    client, tokens, _ = served
    assert post(client, tokens[0], body)[0] == 422


def test_large_requests_are_cut_off(served):
    client, tokens, store = served
    status, told = post(client, tokens[0], json.dumps({"id": "a" * 100_000}))
    assert (status, told["stored"]) == (413, False)
    assert store.rows() == []


# ---------------------------------------------------------------- consent and comments


def test_free_text_is_data_and_never_a_formula_or_markup(served):
    client, tokens, store = served
    texts = ["<script>alert(1)</script>", '=HYPERLINK("http://x")', "+1", "-1", "@x", 'line\none\ttab, "quoted"', ""]
    for text in texts:
        given = {"kind": "comment", "data": {"text": text}}
        assert client.post(f"/api/{tokens[0]}/events", json=given).status_code == 200
    assert state_of(client, tokens[0])["commented"] is True
    comment = store.participants()[0]["comment"]
    assert texts[0] in comment
    for text in texts[1:5]:
        assert export.harmless(text).startswith("'")
    assert "\n" not in export.harmless(texts[5])
    for wrong in (
        {"kind": "comment", "data": {"text": "x" * 2001}}, {"kind": "comment", "data": {"text": 5}},
        {"kind": "other", "data": {}}, {"kind": "comment"}, [], {"kind": "consent", "data": {"agreed": "yes"}},
        {"kind": [], "data": {}}, {"kind": "comment", "data": {"text": "\ud800"}},
    ):  # fmt: skip
        assert post(client, tokens[0], json.dumps(wrong), "events")[0] == 422
    given = {"kind": "comment", "data": {"text": texts[-1]}}
    assert client.post(f"/api/{tokens[0]}/events", json=given).status_code == 200  # sent again: it counts once
    assert store.participants()[0]["comment"] == comment
    many = [{"kind": "comment", "data": {"text": str(i)}} for i in range(20)]
    assert {post(client, tokens[0], one, "events")[0] for one in many} == {200, 429}


def test_a_cut_short_operator_s_token_opens_nothing(folder):
    (folder / "operator.txt").write_text("")
    with pytest.raises(FeatvisError, match="holds 0 characters"):
        operator_token(folder)
    (folder / "operator.txt").unlink()
    token = operator_token(folder)
    assert len(token) >= 32
    assert (folder / "operator.txt").stat().st_mode & 0o777 == 0o600
    assert operator_token(folder) == token


def test_nothing_is_stored_without_consent(folder):
    store = Store(folder)
    (token,) = store.enrol(1)
    client = TestClient(app(folder))
    first = answer(state_of(client, token), 0)
    assert state_of(client, token)["consented"] is False
    assert post(client, token, first)[0] == 403
    for agreed, status in ((False, 403), (True, 200), (False, 403)):  # the last word counts
        client.post(f"/api/{token}/events", json={"kind": "consent", "data": {"agreed": agreed}})
        assert state_of(client, token)["consented"] is agreed
        assert store.participants()[0]["agreed"] is agreed
        assert post(client, token, first)[0] == status
    assert len(store.rows()) == 1
    store.close()
    (folder / "texts.json").write_text(json.dumps({"consent": []}))  # consent was asked for elsewhere
    store = Store(folder)
    assert store.answer(1, answer(store.state(1), 1))["stored"]
    store.close()


def test_names_of_images_cannot_be_computed(tmp_path):
    made = design(STIMULI, lists=2, repeats=2, seed=5)
    names = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        written(folder, made)
        names.append({file.name for file in (folder / "images").iterdir()})
    assert not names[0] & names[1]
    written(tmp_path / "one", made)
    left = {file.name for file in (tmp_path / "one" / "images").iterdir()}
    assert len(left) == len(names[0])
    assert not left & names[0]


# ---------------------------------------------------------------- the operator


def test_results_need_the_operator_s_token(served):
    client, tokens, store = served
    post(client, tokens[0], answer(state_of(client, tokens[0]), 0))
    file = store.folder / "operator.txt"
    assert file.stat().st_mode & 0o077 == 0
    assert (store.folder / "answers.sqlite").stat().st_mode & 0o077 == 0
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {tokens[0]}"}):
        assert client.get("/operator/answers.csv", headers=given).status_code == 401
    key = {"Authorization": f"Bearer {file.read_text().strip()}"}
    rows = list(csv.DictReader(io.StringIO(client.get("/operator/answers.csv", headers=key).text)))
    assert len(rows) == 1
    assert set(rows[0]) == set(export.DICTIONARY)
    assert tokens[0] not in client.get("/operator/participants.csv", headers=key).text
    assert client.get("/operator/other.csv", headers=key).status_code == 404


def test_exports_are_tidy_and_read_by_the_analysis(served, tmp_path, capsys):
    client, tokens, store = served
    for token in tokens[:2]:
        state = state_of(client, token)
        for position in range(len(state["trials"])):
            match = np.random.default_rng(position).permutation(3).tolist()
            assert post(client, token, answer(state, position, match=match))[0] == 200
    out = tmp_path / "out"
    main(["match", "export", str(store.folder), "--out", str(out)])
    table = pd.read_csv(out / "answers.csv", dtype={"right": str})
    assert len(table) == 2 * 41
    by_id = {f"sub-{p:03d}": {t.id: t for t in store.order(p)} for p in (1, 2)}
    stored = {(row[0], row[1]): row for row in store.rows()}
    for row in table.itertuples():
        trial = by_id[row.observer][row.trial]
        given = stored[int(row.observer[4:]), row.position][3]["match"]
        assert row.right.count("1") == row.correct == sum(a == b for a, b in zip(given, trial.answer, strict=True))
        assert json.loads(row.given) == given
        units, chosen = row.units.split(), row.chosen.split()
        assert "".join("01"[a == b] for a, b in zip(units, chosen, strict=True)) == row.right
        shown = [trial.units[i] for i in trial.answer]  # on the right, from top to bottom
        assert [shown[given.index(i)] for i in range(len(units))] == chosen
    described = json.loads((out / "task-matching_beh.json").read_text())
    assert "order in which this participant saw them" in described["given"]["Description"]
    assert "practice for practice trials" in described["depth"]["Description"]
    for name in ("sub-001", "sub-002"):
        beh = pd.read_csv(out / name / "beh" / f"{name}_task-matching_beh.tsv", sep="\t")
        assert list(beh.columns) == list(described)
    people = pd.read_csv(out / "participants.tsv", sep="\t")
    assert people["finished"].tolist() == [True, True, False]
    assert people["participant_id"].tolist() == ["sub-001", "sub-002", "sub-003"]
    assert list(people) == list(json.loads((out / "participants.json").read_text()))
    assert people.columns[0] == "participant_id"  # as BIDS wants it
    main(["match", "analyze", str(out / "answers.csv"), "--out", str(tmp_path / "analysis")])
    report = json.loads((tmp_path / "analysis" / "report.json").read_text())
    assert report["participants"] == 2
    assert (tmp_path / "analysis" / "cells.png").stat().st_size > 5000
    assert "visualization:" in capsys.readouterr().out


def test_an_export_does_not_mix_studies(served, tmp_path, capsys):
    client, tokens, store = served
    post(client, tokens[0], answer(state_of(client, tokens[0]), 0))
    out = tmp_path / "tables"
    command = ["match", "export", str(store.folder), "--out", str(out)]
    main(command)
    post(client, tokens[1], answer(state_of(client, tokens[1]), 0))
    main(command)  # of the same study: what is there grows
    assert sorted(place.name for place in out.glob("sub-*")) == ["sub-001", "sub-002"]
    file = out / "sub-002" / "beh" / "sub-002_task-matching_beh.tsv"
    before = (out / "answers.csv").read_text()
    table = pd.read_csv(file, sep="\t", dtype=str)
    for strange in (table.assign(answer_id="f" * 32), table.drop(columns="answer_id"), table.iloc[:0]):
        strange.to_csv(file, sep="\t", index=False)
        with pytest.raises(SystemExit):
            main(command)
        assert "holds sub-002, not of this study; give a new folder" in capsys.readouterr().err
        assert (out / "answers.csv").read_text() == before
    (out / "sub-002").rename(out / "sub-077")
    with pytest.raises(SystemExit):
        main(command)
    assert "holds sub-077, not of this study" in capsys.readouterr().err


def test_a_study_without_links_says_how_to_get_them(folder, monkeypatch, capsys):
    server = importlib.import_module("featvis.matching.experiment.server")
    monkeypatch.setattr(server.uvicorn, "run", lambda *_, **__: None)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = ["match", "serve", str(folder), "--port", port]
    main(command)
    first, second = capsys.readouterr().out.splitlines()
    assert "no participants' links" in first
    assert "--participants 20" in first
    assert second.startswith("results:")
    main([*command, "--participants", "2"])
    assert "no participants' links" not in capsys.readouterr().out
    main(command)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in lines] == ["sub-001", "sub-002", "results"]


# ---------------------------------------------------------------- faults


def test_a_full_disk_refuses_and_loses_nothing(served):
    client, tokens, store = served
    state = state_of(client, tokens[0])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    acknowledged = []
    for position in range(41):
        given = answer(state, position)
        status, told = post(client, tokens[0], given)
        if status != 200:
            break
        acknowledged.append(given["id"])
    assert (status, told["stored"]) == (503, False)
    assert "full" in told["error"]
    assert [row[5] for row in store.rows()] == acknowledged
    store._db.execute("PRAGMA max_page_count = 100000")
    assert post(client, tokens[0], given)[0] == 200  # the same answer again, once there is room
    assert len(store.rows()) == len(acknowledged) + 1


def test_a_read_only_database_refuses_and_loses_nothing(served):
    client, tokens, store = served
    state = state_of(client, tokens[0])
    assert post(client, tokens[0], answer(state, 0))[0] == 200
    store._db.execute("PRAGMA query_only = ON")
    status, told = post(client, tokens[0], answer(state, 1))
    assert (status, told["stored"]) == (503, False)
    assert "readonly" in told["error"]
    store._db.execute("PRAGMA query_only = OFF")
    assert post(client, tokens[0], answer(state, 1))[0] == 200


def test_what_is_stored_is_never_changed(served):
    client, tokens, store = served
    post(client, tokens[0], answer(state_of(client, tokens[0]), 0))
    other = sqlite3.connect(store.folder / "answers.sqlite")
    for statement in ("UPDATE answers SET given = '{}'", "DELETE FROM answers", "UPDATE participants SET token = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            other.execute(statement)
    other.close()


def test_answers_do_not_go_to_other_trials(folder):
    Store(folder).close()
    about = json.loads((folder / "trials.json").read_text())
    about["subject"] = "another"
    (folder / "trials.json").write_text(json.dumps(about))
    with pytest.raises(fv.FeatvisError, match="not the one that the answers"):
        Store(folder)


def test_a_damaged_database_is_named(folder):
    (folder / "answers.sqlite").write_text("this is no database, and long enough to be looked at as one" * 20)
    with pytest.raises(fv.FeatvisError, match="cannot be used"):
        Store(folder)


def test_texts_of_a_study_are_its_own(folder):
    (folder / "texts.json").write_text(json.dumps({"title": "Our study", "consent": ["Text of our board."]}))
    store = Store(folder)
    assert store.texts["title"] == "Our study"
    assert store.texts["consent"] == ["Text of our board."]
    assert store.texts["rest"] > 0
    store.close()
    for wrong in ("{", "[]", '{"consent": "not a list"}'):
        (folder / "texts.json").write_text(wrong)
        with pytest.raises(fv.FeatvisError, match=r"texts\.json"):
            Store(folder)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"consnt": ["Text of our board."]}, "has the unknown 'consnt'; valid are title, consent, instruction"),
        ({"rest": -5}, "has rest = -5; valid is a whole number, 0 or more"),
        ({"rest": 2.5}, "has rest = 2.5; valid is a whole number"),
        ({"rest": True}, "has rest = true; valid is a whole number"),
        ({"consent": "not a list"}, "valid is a list of texts"),
        ({"consent": [5]}, "valid is a list of texts"),
        ({"title": None}, "has title = null; valid is a text"),
    ],
    ids=str,
)
def test_a_slip_in_the_texts_is_said_and_no_other_text_shown(texts, words, folder, tmp_path, capsys):
    (folder / "texts.json").write_text(json.dumps(texts))
    study, out = str(folder), str(tmp_path / "out")
    for arguments in (
        ["serve", study], ["export", study, "--as", "jspsych", "--out", out], ["generate", "--quiet", "--out", study],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["match", *arguments])
        assert words in capsys.readouterr().err


def test_enrolling_goes_on_and_deals_lists(folder):
    store = Store(folder)
    tokens = store.enrol(3)
    assert store.enrol(5)[:3] == tokens
    assert [row["list"] for row in store.participants()] == [0, 1, 0, 1, 0]
    with pytest.raises(Refused):
        store.participant("")
    store.close()


# ---------------------------------------------------------------- a real process


class Process:
    """`featvis match serve` in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, participants: int):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder, self.participants = folder, participants
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "featvis", "match", "serve", str(self.folder), "--port", str(self.port),
                   "--participants", str(self.participants)]  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        self.links, seen = [], []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            seen.append(line)
            if line.startswith("sub-"):
                self.links.append(line.split()[1])
            if line.startswith("results:"):
                break
        else:
            raise AssertionError("".join(seen))
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server does not listen")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
def test_a_hundred_participants_at_once_lose_nothing(tmp_path, record_property):
    people, trials = 100, 41
    written(tmp_path, design(STIMULI, lists=4, repeats=2, seed=5))
    server = Process(tmp_path, people)
    times: list[float] = []
    acknowledged: list[tuple[str, str, int]] = []
    again: list[str] = []

    async def participate(client, token: str) -> None:
        state = (await client.get(f"{server.url}/api/{token}/state")).json()
        assert (await client.post(f"{server.url}/api/{token}/events", json=AGREED)).status_code == 200
        for position in range(trials):
            given = answer(state, position)
            begin = time.perf_counter()
            for _ in range(20):  # as the page does: a broken connection is tried again, under the same id
                try:
                    response = await client.post(f"{server.url}/api/{token}/answers", json=given)
                    break
                except httpx.TransportError:
                    again.append(given["id"])
            times.append(time.perf_counter() - begin)
            assert response.status_code == 200, response.text
            acknowledged.append((token, given["id"], position))

    async def everybody() -> float:
        limits = httpx.Limits(max_connections=people)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            begin = time.perf_counter()
            await asyncio.gather(*(participate(client, link.rsplit("/", 1)[1]) for link in server.links))
            return time.perf_counter() - begin

    try:
        took = asyncio.run(everybody())
    finally:
        server.kill()
    store = Store(tmp_path)
    rows = store.rows()
    tokens = store.enrol(people)
    stored = Counter((tokens[row[0] - 1], row[5], row[1]) for row in rows)
    store.close()
    assert stored == Counter(acknowledged)
    assert len(rows) == people * trials
    assert max(stored.values()) == 1
    figures = f"{len(rows) / took:.0f} answers per second, 99th percentile {1000 * np.quantile(times, 0.99):.0f} ms"
    figures += f", {len(again)} sent again"
    print(f"\n{people} participants x {trials} trials: {figures}")
    record_property("load", figures)


def test_a_killed_server_has_every_answer_that_it_acknowledged(tmp_path):
    written(tmp_path, design(STIMULI, lists=1, repeats=2, seed=5))
    server = Process(tmp_path, 1)
    token = server.links[0].rsplit("/", 1)[1]
    acknowledged: list[str] = []
    try:
        with httpx.Client(timeout=30) as client:
            state = client.get(f"{server.url}/api/{token}/state").json()
            assert client.post(f"{server.url}/api/{token}/events", json=AGREED).status_code == 200
            for position in range(20):
                given = answer(state, position)
                victim = server.process
                if position in (5, 13):  # the answer may or may not arrive before the server dies
                    killer = threading.Timer(0.001, victim.send_signal, [signal.SIGKILL])
                    killer.start()
                for _ in range(50):
                    try:
                        response = client.post(f"{server.url}/api/{token}/answers", json=given)
                        break
                    except httpx.HTTPError:
                        if server.process.poll() is not None:
                            server.start()
                        time.sleep(0.05)
                assert response.status_code == 200
                acknowledged.append(given["id"])
                if position in (5, 13):
                    killer.join()
                    victim.wait(10)
                    if server.process is victim:
                        server.start()
    finally:
        server.kill()
    assert server.links[0].endswith(token)
    store = Store(tmp_path)
    assert [row[5] for row in store.rows()] == acknowledged
    store.close()


# ---------------------------------------------------------------- jsPsych and the commands


def test_jspsych_export_holds_no_answers(folder, tmp_path):
    out = tmp_path / "hosted"
    out.mkdir()
    assert jspsych.export(folder, out) == 2
    study = (out / "study.json").read_text()
    assert not any(unit in study for unit in STIMULI.units)
    for part in json.loads(study)["lists"]:
        for trial in part:
            assert ("answer" in trial) == (trial["part"] == "practice")
            assert all((out / url).is_file() for side in ("left", "right") for row in trial[side] for url in row)
    with pytest.raises(fv.FeatvisError, match="lists 0 to 1"):
        jspsych.export(folder, out, only=2)
    with pytest.raises(fv.FeatvisError, match="is not the package jspsych"):
        jspsych.export(folder, out, package=tmp_path)


def test_an_export_without_jspsych_says_what_is_missing(folder, tmp_path, capsys):
    out, package = tmp_path / "hosted", tmp_path / "package"
    command = ["match", "export", str(folder), "--as", "jspsych", "--out", str(out)]
    main(command)
    said = capsys.readouterr().out
    assert "the package jspsych is missing: copy its dist/index.browser.min.js to jspsych/index.browser.min.js" in said
    assert "or give --jspsych" in said
    (package / "dist").mkdir(parents=True)
    (package / "dist" / "index.browser.min.js").write_text("")
    main([*command, "--jspsych", str(package)])
    assert "missing" not in capsys.readouterr().out
    main(command)  # it is there from before
    assert "missing" not in capsys.readouterr().out
    sentence = (out / "README.txt").read_text().partition("copy its")[2].partition(",")[0]
    assert sentence in (out / "jspsych-study.js").read_text()


def test_answers_from_jspsych_are_scored(folder, tmp_path):
    made = written(folder, design(STIMULI, lists=2, repeats=2, seed=5))
    rows = [
        {"observer": name, "trial": t.id, "match": json.dumps(t.answer), "rt": 1.0, "trial_type": "matching"}
        for name, part in zip(("a", "b"), made.lists, strict=True)
        for t in part
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "got.csv", index=False)
    main(["match", "analyze", str(tmp_path / "got.csv"), "--trials", str(folder), "--out", str(tmp_path / "out")])
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert (cells["share"] == 1).all()
    pd.DataFrame(rows).assign(trial="99-999").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(SystemExit):
        main(["match", "analyze", str(tmp_path / "bad.csv"), "--trials", str(folder), "--out", str(tmp_path / "out2")])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "nowhere"], "holds no trials.json"),
        (["serve", "nowhere", "--port", "0"], "valid are 1 to 65535"),
        (["export", "nowhere", "--out", "o"], "holds no answers"),
        (["export", "nowhere", "--as", "jspsych", "--out", "o"], "holds no trials.json"),
        (["analyze", "nowhere.csv", "--out", "o"], "give a table of answers, which `featvis match export`"),
        (["simulate", "--participants", "1", "--out", "o"], "at least 2 participants"),
        (
            ["generate", "--units", "1", "--out", "o"],
            "--per-trial 3 needs as many units of each depth, but --units 1 was given; give 3 or more to --units.",
        ),
        (
            ["generate", "--units", "3", "--per-trial", "5", "--out", "o"],
            "but --units 3 was given; give 5 or more to --units, or 2 to 3 to --per-trial.",
        ),
        (["generate", "--per-trial", "1", "--out", "o"], "1 was given; valid are 2 to 5"),
        (["generate", "--per-trial", "6", "--out", "o"], "6 was given; valid are 2 to 5"),
        (["export", "nowhere", "--as", "jspsych", "--list", "-1", "--out", "o"], "valid are 0 and more"),
        (["generate", "--subject", "googlenet", "--weights", "random", "--out", "o"], "give --images FOLDER"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["match", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_simulate_writes_answers_that_analyze_reads(tmp_path, capsys):
    out = tmp_path / "simulated"
    main(["match", "simulate", "--participants", "6", "--units", "6", "--studies", "3", "--quiet", "--out", str(out)])
    report = json.loads((out / "report.json").read_text())
    assert report["simulated"] is True
    assert {row["term"] for row in report["terms"]} == set(analysis.TERMS)
    main(["match", "analyze", str(out / "answers.csv"), "--out", str(tmp_path / "analysis")])
    assert "coverage" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_with_answers_is_not_made_anew(tmp_path, capsys):
    (tmp_path / "answers.sqlite").write_bytes(b"kept")
    (tmp_path / "trials.json").write_text("kept")
    with pytest.raises(SystemExit) as stop:
        main(["match", "generate", "--quiet", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "a study that has answers" in capsys.readouterr().err
    assert (tmp_path / "trials.json").read_text() == "kept"


def test_generate_makes_a_study_that_can_be_served(tmp_path, capsys):
    out = tmp_path / "study"
    main(
        [
            "match",
            "generate",
            "--units",
            "3",
            "--steps",
            "2",
            "--lists",
            "2",
            "--repeats",
            "1",
            "--quiet",
            "--out",
            str(out),
        ]
    )
    store = Store(out)
    assert store.texts == json.loads((out / "texts.json").read_text())
    assert len(store.design.lists) == 2
    report, said = json.loads((out / "report.json").read_text()), capsys.readouterr().out
    assert report["units"].keys() == {"early", "middle", "late", "practice"}
    for kind, told in report["trials_with_an_image_twice"].items():
        trials = [t for part in store.design.lists for t in part if (t.kind, t.part) == (kind, "main")]
        images = [[key for row in (*t.left, *t.right) for key in row] for t in trials]
        assert told == {"trials": sum(max(map(keys.count, keys)) > 1 for keys in images), "of": len(trials)}
        assert f"{told['trials']} of {told['of']} {kind} trials" in said or not told["trials"]
    assert not list(out.glob(".*"))
    store.close()
