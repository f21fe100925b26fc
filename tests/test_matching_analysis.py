"""Observers, exact chance, the mixed model against statsmodels, and simulated studies."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import featvis as fv
from featvis.cli import main
from featvis.matching import analysis, mixed, observers
from featvis.matching.machines import Answers, clusters
from featvis.matching.simulation import Plan, Studies, blank, pooled, simulate, studies
from featvis.matching.trials import design
from tests.test_matching_trials import STIMULI

MADE = design(STIMULI, lists=12, seed=0)


# ---------------------------------------------------------------- chance


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_chance_is_what_counting_all_permutations_gives(k):
    counted = Counter(sum(i == j for i, j in enumerate(p)) for p in itertools.permutations(range(k)))
    table = analysis.chance(k)
    assert table["ways"].tolist() == [counted[c] for c in range(k + 1)]
    assert math.isclose(table["probability"].sum(), 1)
    mean = (table["correct"] * table["probability"]).sum()
    assert math.isclose(mean, 1)
    if k > 1:
        assert math.isclose(((table["correct"] - 1) ** 2 * table["probability"]).sum(), 1)
        assert table["probability"][k - 1] == 0


def test_chance_p_is_exact():
    assert math.isclose(analysis.chance_p([3], 3), 1 / 6)
    assert math.isclose(analysis.chance_p([1], 3), 4 / 6)
    assert math.isclose(analysis.chance_p([3, 3], 3), 1 / 36)
    assert analysis.chance_p([0, 0], [3, 5]) == pytest.approx(1)
    every = list(itertools.permutations(range(3)))
    hits = [sum(i == j for i, j in enumerate(p)) for p in every]
    pairs = [a + b for a in hits for b in hits]
    assert math.isclose(analysis.chance_p([3, 1], 3), np.mean([total >= 4 for total in pairs]))
    with pytest.raises(fv.FeatvisError, match="at least 1"):
        analysis.chance(0)


# ---------------------------------------------------------------- observers


def shares(name: str, observer: observers.Observer) -> pd.Series:
    found = analysis.main_trials(observers.answers({name: observer}, MADE.trials))
    return found["share"]


def test_simple_observers():
    rng = np.random.default_rng(0)
    assert (shares("perfect", observers.perfect) == 1).all()
    guessed = shares("chance", observers.chance(rng))
    assert abs(guessed.mean() - 1 / 3) < 4 / 3 / math.sqrt(len(guessed))
    assert (shares("never", observers.lapsing(observers.perfect, 0, rng)) == 1).all()
    lapsed = shares("half", observers.lapsing(observers.perfect, 0.5, rng))
    assert abs(lapsed.mean() - (0.5 + 0.5 / 3)) < 4 * lapsed.std() / math.sqrt(len(lapsed))
    with pytest.raises(fv.FeatvisError, match="share from 0 to 1"):
        observers.lapsing(observers.perfect, 1.5, rng)


@pytest.mark.parametrize("share", [1 / 3, 0.5, 0.8, 1.0])
def test_a_knowing_observer_reaches_its_share(share):
    rng = np.random.default_rng(1)
    found = np.concatenate([shares("knowing", observers.knowing(share, rng)) for _ in range(10)])
    assert abs(found.mean() - share) <= 4 * found.std() / math.sqrt(len(found)) + 1e-9
    with pytest.raises(fv.FeatvisError, match="goes from"):
        observers.known(1.2, 3)


def test_machines_match_by_likeness():
    rng = np.random.default_rng(0)
    own = {unit: rng.normal(size=20) for unit in STIMULI.units}
    of = {key: unit for unit in STIMULI.units for key in STIMULI.ranked(unit)}
    of |= {f"{unit}#{seed}": unit for unit in STIMULI.units for seed in range(10)}
    clear = {key: own[unit] + 0.3 * rng.normal(size=20) for key, unit in of.items()}
    assert shares("clear", observers.alike(clear)).mean() > 0.95
    noise = {key: rng.normal(size=20) for key in of}
    found = shares("noise", observers.alike(noise))
    assert abs(found.mean() - 1 / 3) < 4 * found.std() / math.sqrt(len(found))


def test_machine_features_are_named_as_machines():
    subject = fv.load("photonet")
    pictures = {f"p{i}": torch.rand(3, 96, 96) for i in range(5)}
    found = observers.machine_features(subject, pictures, fv.load("cifarnet", weights="random"))
    assert len(found) == 4
    assert all(name.startswith("machine: ") for name in found)
    for bank in found.values():
        values = np.stack([bank[key] for key in pictures])
        assert np.isfinite(values).all()
        assert np.abs(values.mean(0)).max() < 1e-3


# ---------------------------------------------------------------- tables


def test_impossible_answers_are_refused():
    good = observers.answers({"perfect": observers.perfect}, MADE.trials[:4])
    with pytest.raises(fv.FeatvisError, match="lacks right"):
        analysis.checked(good.drop(columns="right"))
    for right in ("110", "2", "1111", "x"):
        with pytest.raises(fv.FeatvisError, match="no permutation"):
            analysis.checked(good.assign(right=right))
    assert analysis.checked(good.assign(right="1"))["right"].eq("001").all()  # a spreadsheet dropped the zeros
    for column, value, words in (
        ("kind", "drawing", "the kind drawing; there are exemplar, visualization"),
        ("depth", "deep", "the depth deep; there are early, middle, late, practice"),
        ("part", "warm-up", "the part warm-up; there are practice, main, catch"),
        ("n", 0, "n=0; n is the images in a row"),
        ("n", "three", "n=three; n is the images in a row"),
        ("trial", good["trial"].iloc[0], "perfect has more than one answer to trial"),
    ):
        with pytest.raises(fv.FeatvisError, match=words):
            analysis.checked(good.assign(**{column: value}))


def test_a_study_with_one_depth_and_one_n_has_a_model():
    plan = Plan(6, 9, repeats=2)
    answers = simulate(plan, seed=3)
    part = answers[(answers["depth"] == "late") & (answers["n"] == 3)]
    shares = analysis.checked(part).groupby("kind")["share"].mean()
    gap = shares["visualization"] - shares["exemplar"]
    assert analysis.effects(part)["visualization"]["estimate"] == pytest.approx(gap, abs=0.1)
    assert list(analysis.effects(part).table["term"]) == ["level", "visualization"]
    assert list(analysis.effects(answers).table["term"]) == list(analysis.TERMS)


def test_participants_are_the_sample_not_their_trials():
    rng = np.random.default_rng(0)
    parts = [observers.answers({f"p{i}": observers.knowing(s, rng)}, MADE.trials) for i, s in enumerate((0.4, 0.9))]
    table = analysis.participants(pd.concat(parts), by=["kind"])
    assert table["participants"].tolist() == [2, 2]
    assert (table["high"] - table["low"] > 0.5).all()  # two very different people say little about people
    assert (table["p_chance"] < 0.01).all()
    guesses = pd.concat([observers.answers({f"g{i}": observers.chance(rng)}, MADE.trials) for i in range(4)])
    cells = analysis.participants(guesses)
    assert len(cells) == 18
    assert (cells["p_chance"] > 0.01).all()
    one = analysis.participants(parts[0], by=["kind"])
    assert np.isinf(one["high"]).all()


def test_intervals_over_units_cover_a_mean_over_random_units():
    rng = np.random.default_rng(3)
    inside, runs = 0, 300
    for _ in range(runs):
        value = dict(zip(STIMULI.of("early"), rng.uniform(0, 1, 12), strict=True))
        texts = [" ".join(rng.permutation(list(value))[:3]) for _ in range(60)]
        share = [np.mean([value[u] for u in text.split()]) + rng.normal(0, 0.3) for text in texts]
        low, _, high = analysis.over_units(pd.DataFrame({"units": texts, "share": share}))
        inside += low <= 0.5 <= high
    assert 0.91 < inside / runs < 0.985


def test_by_unit_counts_each_unit():
    found = analysis.by_unit(observers.answers({"perfect": observers.perfect}, MADE.trials))
    assert (found["share"] == 1).all()
    assert found["trials"].sum() == 3 * 12 * 18


# ---------------------------------------------------------------- the mixed model


def test_mixed_model_agrees_with_statsmodels():
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    rng = np.random.default_rng(0)
    n, people, units = 300, 10, 12
    x = np.column_stack([np.ones(n), rng.choice([-0.5, 0.5], n)])
    who = np.eye(people)[rng.integers(people, size=n)]
    shown = sum(np.eye(units)[rng.integers(units, size=n)] for _ in range(3)) / 3
    z = [who, shown, shown * x[:, [1]]]
    y = x @ [0.6, -0.2] + sum(
        part @ rng.normal(0, s, part.shape[1]) for part, s in zip(z, (0.2, 0.4, 0.3), strict=True)
    )
    y = y + rng.normal(0, 0.3, n)
    ours = mixed.fit(y, x, z)
    names = [[[str(i) for i in range(part.shape[1])]] for part in z]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MixedLM(y, x, np.zeros(n), exog_vc=VCSpec(["a", "b", "c"], names, [[part] for part in z])).fit(
            reml=True, method="powell"
        )
    assert np.allclose(ours.log_likelihood, theirs.llf, atol=0.01)
    assert np.allclose(ours.estimate, theirs.fe_params, atol=2e-3)
    assert np.allclose(np.sqrt(np.diag(ours.covariance)), theirs.bse_fe, rtol=0.03)
    assert np.allclose(ours.variances, theirs.vcomp, rtol=0.1, atol=2e-3)
    assert np.isclose(ours.residual, theirs.scale, rtol=0.02)


@pytest.mark.parametrize("p", [[], [0.2], [0.01, 0.04, 0.03], [0.5, 0.9, 0.001, 0.001], [0.04, 0.02, 0.9, 0.02, 1.0]])
def test_holm_agrees_with_statsmodels(p):
    from statsmodels.stats.multitest import multipletests

    expected = multipletests(p, method="holm")[1] if p else []
    assert np.allclose(analysis.holm(np.array(p)), expected)


def test_effects_recover_what_was_planted():
    plan = Plan(participants=60, units=40, repeats=3)
    found = analysis.effects(simulate(plan, seed=1))
    for term, truth in zip(analysis.TERMS, plan.effects, strict=True):
        row = found[term]
        assert abs(row["estimate"] - truth) < 4 * (row["high"] - row["low"]) / 4, term
    assert found["visualization"]["high"] < 0
    assert 0.02 < found.spread["participants"] < 0.09
    assert 0.03 < found.spread["units"] < 0.15
    assert (found.participants, found.units, found.trials) == (60, 120, 60 * 54)
    holm = found.frame()
    assert (holm["p_holm"].iloc[1:] >= holm["p"].iloc[1:]).all()


def test_effects_need_people_and_both_kinds():
    answers = simulate(Plan(participants=2, units=4))
    with pytest.raises(fv.FeatvisError, match="at least 2 participants"):
        analysis.effects(answers[answers["observer"] == "simulated 000"])
    with pytest.raises(fv.FeatvisError, match="both kinds"):
        analysis.effects(answers[answers["kind"] == "exemplar"])


def all_or_nothing(answers: pd.DataFrame, wrong: str = "") -> pd.DataFrame:
    """The same trials, all right but for one kind, which is all wrong."""
    return answers.assign(right=["000" if kind == wrong else "111" for kind in answers["kind"]])


@pytest.mark.parametrize("wrong", ["", "visualization"])
def test_answers_without_variation_have_no_model(wrong):
    answers = all_or_nothing(simulate(Plan(participants=3, units=4)), wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(analysis.NoModel, match="needs answers that vary"):
            analysis.effects(answers)
    answers.loc[answers.index[0], "right"] = "100"
    assert (analysis.effects(answers).table["p"] > 0).all()


# ---------------------------------------------------------------- the command


def analyzed(answers: pd.DataFrame, folder: Path, capsys) -> tuple[dict, str]:
    """The report of `featvis match analyze`, and what it printed."""
    folder.mkdir(exist_ok=True)
    answers.to_csv(folder / "answers.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        main(["match", "analyze", str(folder / "answers.csv"), "--out", str(folder)])
    return json.loads((folder / "report.json").read_text()), capsys.readouterr().out


def test_a_pilot_with_one_participant_has_cells_and_no_model(tmp_path, capsys):
    everybody = simulate(Plan(participants=3, units=4))
    report, _ = analyzed(everybody, tmp_path, capsys)
    assert "no_model" not in report
    assert (tmp_path / "effects.csv").is_file()
    one = everybody[everybody["observer"] == "simulated 000"]
    report, said = analyzed(one, tmp_path, capsys)
    assert (report["participants"], report["units"], report["trials"]) == (1, 12, 18)
    assert report["effects"] is None
    assert len(report["cells"]) == len(pd.read_csv(tmp_path / "cells.csv")) == 18
    assert not (tmp_path / "effects.csv").exists(), "those of the analysis before"
    assert (tmp_path / "cells.png").stat().st_size > 5000
    assert said.splitlines()[-1] == f"no effects: {report['no_model']}"
    assert "at least 2 participants" in report["no_model"]
    assert "exemplar, n = 1, early: " in said


@pytest.mark.parametrize("wrong", ["", "visualization"])
def test_answers_without_variation_are_not_analysed_as_if_certain(wrong, tmp_path, capsys):
    report, said = analyzed(all_or_nothing(simulate(Plan(participants=3, units=4)), wrong), tmp_path, capsys)
    assert report["effects"] is None
    assert "answers that vary" in report["no_model"]
    assert said.count("answers that vary") == 1
    assert {cell["share"] for cell in report["cells"]} == ({0, 1} if wrong else {1})
    assert not (tmp_path / "effects.csv").exists()


def test_answers_without_main_trials_are_refused(tmp_path, capsys):
    answers = simulate(Plan(participants=2, units=4)).assign(part="catch", kind="exemplar", n=1)
    answers.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(SystemExit):
        main(["match", "analyze", str(tmp_path / "a.csv"), "--out", str(tmp_path / "o")])
    assert "has no main trials" in capsys.readouterr().err


def test_catch_trials_are_counted_for_everybody(tmp_path, capsys):
    answers = simulate(Plan(participants=3, units=4))
    caught = answers.groupby("observer").head(2).assign(part="catch", kind="exemplar", n=1, right="111")
    caught["trial"] += "c"
    caught.loc[caught["observer"].eq("simulated 001") & ~caught.duplicated("observer"), "right"] = "100"
    both = pd.concat([answers, caught[caught["observer"] != "simulated 002"]])
    report, said = analyzed(both, tmp_path, capsys)
    rows = (("simulated 000", 2, 2), ("simulated 001", 1, 2), ("simulated 002", 0, 0))
    assert report["catch"] == [dict(zip(("observer", "right", "trials"), row, strict=True)) for row in rows]
    assert "simulated 000: 2 of 2 catch trials right" in said
    assert "simulated 001: 1 of 2 catch trials right" in said
    assert "not all catch trials right: simulated 001 (" in said
    assert (report["participants"], report["trials"]) == (3, 54), "nobody is left out"
    report, said = analyzed(answers, tmp_path, capsys)
    assert report["catch"] == []
    assert "catch" not in said


# ---------------------------------------------------------------- simulated studies


def test_simulated_answers_follow_the_plan():
    plan = Plan(participants=40, units=12, spread=(0, 0, 0, 0))
    answers = analysis.main_trials(simulate(plan, seed=2))
    level, gap = plan.effects[0], plan.effects[1]
    means = answers.groupby("kind")["share"].mean()
    assert abs(means["exemplar"] - (level - gap / 2)) < 0.04
    assert abs(means["visualization"] - (level + gap / 2)) < 0.04
    assert simulate(plan, seed=2).equals(simulate(plan, seed=2))
    assert answers["observer"].str.startswith("simulated").all()
    with pytest.raises(fv.FeatvisError, match="at least 2 participants"):
        Plan(participants=1)


@pytest.mark.slow
def test_intervals_cover_what_was_planted_as_often_as_they_say(tmp_path):
    plan = Plan(participants=12, units=9)
    found = studies(None, plan, n=120, progress=False)
    table = found.frame().set_index("term")
    assert (table["coverage_high"] >= 0.95).all()
    assert (table["coverage"] >= 0.88).all()
    assert (np.abs(table["estimate"] - table["truth"]) < 4 * table["error"]).all()
    none_found = studies(None, plan.with_gap(0.0), n=60, seed=1, progress=False)
    none = none_found.frame().set_index("term")
    assert none.loc["visualization", "power"] < 0.2 < table.loc["visualization", "power"]
    found.save(tmp_path)
    again = Studies.load(tmp_path)
    assert again.plan == plan
    assert found.difference(again) == ""
    both = pooled([found, none_found])
    assert both.frame()["studies"].eq(180).all()


def test_studies_refuse_nothing_to_do():
    with pytest.raises(fv.FeatvisError, match="at least 1"):
        studies(None, Plan(), n=0)


def test_lists_of_a_blank_design_are_dealt_to_participants():
    made = blank(Plan(participants=3, units=6))
    answers = simulate(Plan(participants=3, units=6), made=made)
    for number, part in answers.groupby("observer"):
        own = {t.id for t in made.lists[int(number.split()[1])]}
        assert set(part["trial"]) == own


# ---------------------------------------------------------------- clusters, answers on the shelf


def test_clusters_are_counted_where_there_are_any():
    rng = np.random.default_rng(0)
    for k in (1, 2, 4):
        centres = 12 * rng.normal(size=(k, 30))
        x = centres[np.arange(24) % k] + rng.normal(size=(24, 30))
        assert clusters(x) == k


def test_answers_come_back_with_their_zeros(tmp_path):
    table = observers.answers({"a": observers.chance(np.random.default_rng(0))}, MADE.trials[:20])
    Answers(table).save(tmp_path)
    again = Answers.load(tmp_path)
    assert again.table.equals(table)
    assert Answers(table).difference(again) == ""
    worse = Answers(table.assign(right="000"))
    assert "differs" in worse.difference(Answers(table.assign(right="111")))
