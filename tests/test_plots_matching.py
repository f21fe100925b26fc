"""The chapter's figures show the numbers that they are given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import featvis as fv
from featvis import fresh
from featvis import plots_matching as draw
from featvis.matching import analysis, human_data
from featvis.matching.demo import Demo, data_uri
from featvis.matching.observers import answers, chance, perfect
from featvis.matching.simulation import Plan, simulate
from featvis.matching.trials import design
from featvis.shelf import plain
from featvis.widgets import Matching
from tests.browser import mock
from tests.test_matching_trials import STIMULI


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def points(ax) -> list[np.ndarray]:
    return [container[0].get_ydata() for container in ax.containers if hasattr(container, "has_yerr")]


def test_cells_show_every_share_and_guessing():
    table = analysis.participants(simulate(Plan(participants=5, units=4)))
    figure = draw.cells(table)
    for ax, depth in zip(figure.axes, ("early", "middle", "late"), strict=True):
        for shown, kind in zip(points(ax), ("exemplar", "visualization"), strict=True):
            part = table[(table["depth"] == depth) & (table["kind"] == kind)].sort_values("n")
            assert np.allclose(shown, part["share"])
        assert any(np.allclose(line.get_ydata(), 1 / 3) for line in ax.lines)


@pytest.mark.parametrize("by", ["depth", "n"])
def test_machines_have_a_panel_each(by):
    trials = design(STIMULI, lists=2).trials
    who = {"machine: a": perfect, "machine: b": chance(np.random.default_rng(0))}
    table = analysis.machines(answers(who, trials), by=["kind", by])
    figure = draw.machines(table, by)
    assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == list(who)
    assert np.allclose(points(figure.axes[0])[0], 1)
    gaps = analysis.machine_gaps(answers(who, trials)).set_index("observer")
    assert abs(gaps.loc["machine: a", "gap"]) < 1e-6
    assert gaps.loc["machine: b", "low"] < 0 < gaps.loc["machine: b", "high"]
    assert gaps.loc["machine: b", "p"] > 0.05
    assert gaps["p_holm"].tolist() == pytest.approx(analysis.holm(gaps["p"].to_numpy()).tolist())


def test_chance_names_what_is_impossible():
    figure = draw.chance((3, 5))
    assert [[t.get_text() for t in ax.texts].count("impossible") for ax in figure.axes] == [1, 1]
    assert figure.axes[0].texts[0].get_text() == "33.3%"


def test_a_trial_is_drawn_with_its_answer():
    made = design(STIMULI, lists=1)
    one = next(t for t in made.trials if t.n == 3 and t.kind == "visualization" and t.part == "main")
    pictures = {key: torch.rand(3, 8, 8) for side in (one.left, one.right) for row in side for key in row}
    figure = draw.trial(one, pictures)
    assert len(figure.axes) == 3 * 7
    assert f"1 belongs to {'ABC'[one.answer[0]]} ({one.units[one.answer[0]]})" in figure.texts[0].get_text()


def test_power_people_and_polysemy():
    power = pd.DataFrame({"participants": [4, 8], "power": [0.3, 0.6], "low": [0.2, 0.5], "high": [0.4, 0.7]})
    assert np.allclose(points(draw.power(power).axes[0])[0], [0.3, 0.6])
    rows = [("I", kind, 80.0, 4.0, 10) for kind in ("natural", "synthetic", "none")]
    rows += [
        ("II", f"{r} {k}", 70.0, 5.0, 23)
        for r in ("Max-1", "Min-Max-1", "Max-9", "Min-Max-9")
        for k in ("natural", "synthetic")
    ]
    columns = ["experiment", "condition", "percent_correct", "two_sem", "participants"]
    figure = draw.humans(pd.DataFrame(rows, columns=columns))
    assert [ax.get_title() for ax in figure.axes] == ["experiment I (10 people)", "experiment II (23 people)"]
    assert [len(points(ax)) for ax in figure.axes] == [3, 2]
    units = pd.DataFrame(
        {"unit": list("abcd"), "depth": "late", "mixed": [False, False, True, True], "clusters": [1, 2, 2, 3],
         "sources": [3, 4, 5, 6], "exemplar": [0.8, 0.6, 0.5, 0.3], "visualization": [0.9, 0.7, 0.4, 0.2]}
    )  # fmt: skip
    means, lows, highs = ([y.get_ydata()[0] for y in draw.polysemy(units).axes[1].lines[i::3]] for i in range(3))
    assert np.allclose(means, [0.7, 0.8, 0.4, 0.3])
    assert np.allclose(lows, [0.6, 0.7, 0.3, 0.2])  # of two values a bootstrap draws each twice now and then
    assert np.allclose(highs, [0.8, 0.9, 0.5, 0.4])


# ---------------------------------------------------------------- the widget's data


def test_the_widget_knows_exact_odds():
    widget = Matching(mock.matching(4))
    odds = widget.data["at_least"]
    assert odds[0] == pytest.approx(1)
    for total in (1, 4, 12):
        assert odds[total] == pytest.approx(analysis.chance_p(([3] * (total // 3) + [total % 3] + [0] * 4)[:4], 3))
    widget.answers = [{"match": widget.data["trials"][0]["answer"], "rt": 5.0}, {"match": [0, 1, 2], "rt": 6.0}]
    frame = widget.frame()
    assert frame["right"].iloc[0] == "111"
    assert len(analysis.checked(frame)) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["trials"].clear(), "no trial to play"),
        (lambda d: d["trials"][0].update(answer=[0, 0, 1]), "no permutation"),
        (lambda d: d["trials"][0]["machines"].pop("machine: pixels"), "lacks the answer of machine: pixels"),
        (lambda d: d["pictures"].pop("p0"), "1 pictures that are missing"),
    ],
)
def test_the_widget_refuses_what_does_not_fit(change, words):
    data = mock.matching(2)
    change(data)
    with pytest.raises(fv.FeatvisError, match=words):
        Matching(data)


def test_a_demo_survives_the_shelf(tmp_path):
    made = design(STIMULI, lists=1, numbers=(1,), practice=0, catch=0)
    keys = sorted({key for t in made.trials for row in t.right for key in row if "#" in key})
    answered = {t.id: {"machine: perfect": list(t.answer)} for t in made.trials}
    demo = Demo(made.trials, answered, {key: torch.rand(3, 16, 16) for key in keys})
    demo.save(tmp_path)
    again = Demo.load(tmp_path)
    assert demo.difference(again) == ""
    assert again.answers == answered
    assert list(again.synthetic) == keys

    class Natural:
        def image(self, id: str) -> torch.Tensor:
            return torch.zeros(3, 16, 16)

    data = again.widget(Natural())
    assert all(uri.startswith("data:image/webp;base64,") for uri in data["pictures"].values())
    assert data_uri(torch.zeros(3, 16, 16)) in data["pictures"].values()
    text = str(data["trials"])
    assert not any(key in text for key in keys)
    Matching(data)


def test_fresh_knows_plans_and_stimuli(monkeypatch, tmp_path, capsys):
    plan = Plan(participants=7).with_gap(-0.2)
    assert fresh._revive(plain(plan), None, None) == plan
    recipe = {"stimuli": {"units": 3}, "natural": {"source": "photos", "split": "heldout", "n": 20, "size": 32}}
    asked = []
    monkeypatch.setattr(fresh, "gather", lambda *given, **options: asked.append((given, options)) or "stimuli")
    assert fresh._revive(recipe, "subject", "scratch") == "stimuli"
    assert asked[0][0][1].size == 32
    assert asked[0][1]["units"] == 3
    monkeypatch.delenv(human_data.FOLDER, raising=False)
    (tmp_path / "photonet" / "humans-0").mkdir(parents=True)
    (tmp_path / "photonet" / "humans-0" / "entry.json").write_text("{}")
    monkeypatch.setenv("FEATVIS_SHELF", str(tmp_path))
    with pytest.raises(SystemExit, match="the shelf is empty"):
        fresh.main([])
    assert "answers of people" in capsys.readouterr().out
