"""The answers of people: what the authors report comes out of their data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import featvis as fv
from featvis.cli import main
from featvis.matching import human_data
from tests.conftest import ROOT

PLACES = [os.environ.get(human_data.FOLDER, ""), ROOT.parent / "shared" / "data" / "borowski2021"]
DATA = next((Path(p) for p in PLACES if p and (Path(p) / human_data.FILES["I"][0]).is_file()), None)
needs_data = pytest.mark.skipif(
    DATA is None, reason=f"THE ANSWERS OF PEOPLE ARE NOT AT HAND: set {human_data.FOLDER} to the authors' folder"
)


@pytest.fixture(scope="module")
def found() -> human_data.Humans:
    return human_data.recomputed(human_data.load(DATA))


@needs_data
@pytest.mark.parametrize(
    ("experiment", "condition", "percent", "two_sem", "people"),
    [
        ("I", "synthetic", 82.0, 4.3, 10),
        ("I", "natural", 92.2, 1.8, 10),
        ("I", "none", 43.1, 6.1, 10),
        ("II", "Max-1 synthetic", 65.2, 5.4, 23),
        ("II", "Max-1 natural", 73.0, 4.2, 23),
        ("II", "Max-9 synthetic", 66.7, 3.7, 23),
        ("II", "Min-Max-9 natural", 90.9, 3.4, 23),
    ],
)
def test_conditions_come_out_as_published(found, experiment, condition, percent, two_sem, people):
    row = found.row(experiment, condition)
    assert (round(row["percent_correct"], 1), round(row["two_sem"], 1), row["participants"]) == (
        percent,
        two_sem,
        people,
    )


@needs_data
def test_counts_are_those_of_the_paper():
    trials = human_data.load(DATA)
    assert trials.groupby("experiment").size().to_dict() == {"I": 1350, "II": 3680}
    assert trials.groupby("experiment")["participant"].nunique().to_dict() == {"I": 10, "II": 23}
    assert trials[trials["experiment"] == "I"]["unit"].nunique() == 45


@needs_data
def test_references_and_depth(found):
    gaps = found.references.set_index(["experiment", "references"])
    assert round(gaps.loc[("II", "Max-1"), "gap"], 1) == 7.8
    assert round(gaps.loc[("II", "Min-Max-9"), "gap"], 1) == 19.1
    terms = found.interactions.set_index(["experiment", "term"])
    nine = terms.loc[("II", "synthetic x nine")]
    assert nine["high"] < 0
    assert round(nine["log_odds"], 1) == -0.6
    assert terms.loc[("II", "synthetic x depth"), "high"] < 0
    assert terms.loc[("I", "synthetic x depth"), "low"] < 0 < terms.loc[("I", "synthetic x depth"), "high"]
    depths = found.depths.set_index(["experiment", "depth"])["gap"].round(1)
    assert depths["I"].to_dict() == {"early": 10.0, "middle": 12.4, "late": 5.0}
    layers = found.layers.set_index(["experiment", "layer"])["gap"].round(1)
    assert layers["II"].to_dict() == {"3a": 6.5, "4a": 8.2, "4c": 14.4, "4e": 14.1, "5b": 18.2}


def test_interactions_over_units_find_what_was_planted():
    """The gap is 0, 2 or 4 twelfths by layer, and 2 or 4 more with nine references; units differ in both."""
    rng = np.random.default_rng(0)
    rows = []
    for depth, layer in enumerate(("3a", "4c", "5b")):
        for unit in range(4):
            own = rng.choice([-1, 1])
            for references in ("Max-1", "Max-9"):
                nine = (2 + 2 * (unit % 2)) * references.endswith("9")
                for kind, right in (("synthetic", 3), ("natural", 3 + 2 * depth + nine + own)):
                    cell = layer, f"{layer}/{unit}", kind, references
                    rows += [(*cell, person, int(person < right)) for person in range(12)]
    names = ["layer", "unit", "kind", "references", "participant", "correct"]
    trials = pd.DataFrame(rows, columns=names).assign(experiment="II")
    terms = human_data.over_units(trials).set_index("term")
    assert terms.loc["nine", ["points", "units"]].tolist() == [pytest.approx(100 * 3 / 12), 12]
    half = stats.t.ppf(0.975, 11) * np.std([2, 4] * 6, ddof=1) / np.sqrt(12) * 100 / 12
    assert terms.loc["nine", ["low", "high"]].tolist() == pytest.approx([25 - half, 25 + half])
    gap = trials.groupby(["layer", "unit", "kind"])["correct"].mean().unstack().eval("natural - synthetic") * 100
    depths = np.repeat([0.0, 4 / 8, 1.0], 4)  # 4c is the fifth of nine layers
    slope = np.polyfit(depths, gap.to_numpy(), 1)[0]
    assert terms.loc["depth", "points"] == pytest.approx(slope)
    assert terms.loc["depth", "low"] < slope < terms.loc["depth", "high"]
    assert terms.loc["depth", "low"] > 0


@needs_data
def test_depth_is_not_shown_over_units(found):
    units = found.units.set_index(["experiment", "term"])
    assert units["units"].to_dict() == {("I", "depth"): 45, ("II", "depth"): 20, ("II", "nine"): 20}
    assert units.loc[("II", "nine"), "low"] > 0
    assert units.loc[("II", "depth"), "low"] < 0 < units.loc[("II", "depth"), "high"]


@needs_data
def test_command_writes_table_and_report(tmp_path, capsys):
    main(["match", "humans", "--data", str(DATA), "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {(row["experiment"], row["condition"]): row for row in report["rows"]}
    assert round(rows["I", "natural"]["percent_correct"], 1) == 92.2
    assert set(report["rows"][0]) == {"experiment", "condition", "percent_correct", "two_sem", "participants"}
    assert "not matching" in report["task"]
    assert "82.0 +- 4.3" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "out" / "table.csv")) == 11


@needs_data
def test_changed_files_are_refused(tmp_path):
    for name, _ in human_data.FILES.values():
        (tmp_path / name).write_bytes((DATA / name).read_bytes() + b"\n")
    with pytest.raises(fv.FeatvisError, match="SHA-256 differs"):
        human_data.load(tmp_path)


@needs_data
def test_tables_survive_the_shelf(found, tmp_path):
    found.save(tmp_path)
    again = human_data.Humans.load(tmp_path)
    assert found.difference(again) == ""
    other = human_data.Humans(
        *(again.table.assign(percent_correct=50.0), *(getattr(again, n) for n in human_data.PARTS[1:]))
    )
    assert "differs" in found.difference(other)


def test_missing_files_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["match", "humans", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "lacks experiment_I_main" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_fetched_says_what_to_do(monkeypatch):
    pooch = pytest.importorskip("pooch")

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.delenv(human_data.FOLDER, raising=False)
    with pytest.raises(fv.FeatvisError, match=r"could not be fetched .*no route to host.*--data FOLDER"):
        human_data.load()


def test_fetched_files_are_checked_by_their_sum(monkeypatch, tmp_path):
    pooch = pytest.importorskip("pooch")
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url, known_hash))
        (tmp_path / fname).write_text("something else")
        return str(tmp_path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.delenv(human_data.FOLDER, raising=False)
    with pytest.raises(fv.FeatvisError, match="SHA-256 differs"):
        human_data.load()
    assert asked[0][0].startswith("https://raw.githubusercontent.com/bethgelab/testing_visualizations/")
    assert asked[0][1] == "sha256:" + human_data.FILES["I"][1]


def test_two_standard_errors_are_over_participants():
    part = pd.DataFrame({"participant": [0] * 4 + [1] * 4, "correct": [1, 1, 1, 1, 0, 0, 1, 1]})
    mean, error, people = human_data.two_sem(part)
    assert (mean, people) == (75.0, 2)
    assert np.isclose(error, 2 * np.std([100, 50], ddof=1) / np.sqrt(2))
