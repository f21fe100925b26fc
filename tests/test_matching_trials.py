"""Trials: balanced, seeded, and no image or photograph on both sides."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import featvis as fv
from featvis.matching import stimuli as stims
from featvis.matching import trials
from featvis.matching.simulation import Plan, blank
from featvis.matching.stimuli import Stimuli
from featvis.matching.trials import design
from tests.small import PREPROCESS, small_images, small_subject


def made_up(units: int = 12, sources: int = 17, seeds: int = 10, spare: int = 3) -> Stimuli:
    """Units of three depths whose exemplars come from the same few photographs, as PhotoNet's do."""
    rng = np.random.default_rng(0)
    names, labels, ids = [], [], []
    for depth in stims.DEPTHS:
        for i in range(units + (spare if depth == "late" else 0)):
            names.append(f"{depth}:{i}")
            labels.append(depth if i < units else stims.PRACTICE)
            ids.append([f"photo{p}/{depth}{i}" for p in rng.permutation(sources)])
    found = np.array(ids)
    of = {str(id): str(id).partition("/")[0] for id in found.ravel()}
    values = np.tile(np.linspace(1, 0.1, found.shape[1]), (len(names), 1))
    pictures = torch.rand(len(names), seeds, 3, 8, 8)
    return Stimuli("made up", "photos", tuple(names), tuple(labels), found, values, of, seeds, lambda: pictures)


STIMULI = made_up()


def keys(trial: trials.Trial, side: str) -> list[str]:
    return [key for row in getattr(trial, side) for key in row]


def photographs(trial: trials.Trial, side: str) -> set[str]:
    return {STIMULI.sources[key] for key in keys(trial, side) if key in STIMULI.sources}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([3, 5]), repeats=st.integers(1, 2))
def test_no_image_and_no_photograph_is_on_both_sides(seed, k, repeats):
    made = design(STIMULI, lists=1, k=k, repeats=repeats, seed=seed)
    for trial in made.trials:
        assert len(set(keys(trial, "left"))) == len(keys(trial, "left"))
        if trial.part == "catch":
            assert set(keys(trial, "left")) == set(keys(trial, "right"))
            continue
        assert not set(keys(trial, "left")) & set(keys(trial, "right"))
        assert not photographs(trial, "left") & photographs(trial, "right")
        for side in (trial.left, trial.right):
            for row in side:
                shown = [STIMULI.sources.get(key, key) for key in row]
                assert len(set(shown)) == len(row) == trial.n
        both = [
            STIMULI.sources[key] for side in ("left", "right") for key in keys(trial, side) if key in STIMULI.sources
        ]
        if len(both) <= 17:
            assert len(set(both)) == len(both), "a photograph is shown twice although there are enough"


def test_rows_belong_to_their_units():
    made = design(STIMULI, lists=3, seed=4)
    for trial in made.trials:
        for unit, row in zip(trial.units, trial.left, strict=True):
            assert set(row) <= set(STIMULI.ranked(unit))
        for row, true in zip(trial.right, trial.answer, strict=True):
            unit = trial.units[true]
            own = set(STIMULI.ranked(unit)) | {f"{unit}#{seed}" for seed in range(10)}
            assert set(row) <= own
        assert sorted(trial.answer) == [0, 1, 2]


def test_design_is_fully_crossed_balanced_and_seeded():
    made = design(STIMULI, lists=4, repeats=1, seed=1)
    frame = made.frame()
    main = frame[frame["part"] == "main"]
    assert (main.groupby(["list", "kind", "n", "depth"]).size() == 1).all()
    assert len(main) == 4 * 18
    for (_, _, depth), part in main.groupby(["kind", "n", "depth"]):
        shown = Counter(unit for text in part["units"] for unit in text.split())
        assert shown == dict.fromkeys(STIMULI.of(depth), 1)  # 4 lists x 3 units = 12 units
    again = design(STIMULI, lists=4, repeats=1, seed=1)
    assert again == made
    assert design(STIMULI, lists=4, repeats=1, seed=2) != made
    practice = frame[frame["part"] == "practice"]
    asked = {unit for text in main["units"] for unit in text.split()}
    assert not asked & {unit for text in practice["units"] for unit in text.split()}
    assert len(set(frame["trial"])) == len(frame)


def test_answers_are_spread_over_all_permutations():
    made = design(STIMULI, lists=40, seed=3)
    counts = Counter(trial.answer for trial in made.trials if trial.part == "main")
    assert len(counts) == 6
    expected = sum(counts.values()) / 6
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 20.5  # chi squared, 5 df, p = .001


def test_strong_exemplars_come_first():
    far = made_up(sources=40)
    made = design(far, lists=2, seed=0)
    for trial in made.trials:
        for unit, row in zip(trial.units, trial.left, strict=True):
            ranks = [far.ranked(unit).index(key) for key in row]
            assert max(ranks) < 24
    single = [t for t in made.trials if t.part == "main" and t.n == 1]
    assert all(far.ranked(u).index(row[0]) < 10 for t in single for u, row in zip(t.units, t.left, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 1}, "valid are 2 to 12"),
        ({"k": 13}, "valid are 2 to 12"),
        ({"numbers": (6,)}, "valid are 1 to 5"),
        ({"numbers": ()}, "valid are 1 to 5"),
        ({"lists": 0}, "at least 1"),
        ({"repeats": 0}, "at least 1"),
    ],
)
def test_designs_that_cannot_be_made(options, words):
    with pytest.raises(fv.FeatvisError, match=words):
        design(STIMULI, **options)


def test_too_few_photographs_are_named():
    few = made_up(sources=9)
    with pytest.raises(fv.FeatvisError, match="too few independent exemplars"):
        design(few, k=3, numbers=(5,), lists=8)


def test_right_units_follow_the_order_of_units():
    trial = next(t for t in design(STIMULI, lists=1).trials if t.answer == (1, 2, 0))
    assert trial.right_units((1, 2, 0)) == "111"
    assert trial.right_units((1, 0, 2)) == "010"  # only the row of unit 1 got its own
    assert trial.right_units((0, 1, 2)) == "000"


# ---------------------------------------------------------------- the small network


@pytest.fixture(scope="module")
def real():
    subject, natural = small_subject(), small_images(340)
    return subject, natural


def test_exemplars_are_the_strongest_of_their_photograph(real):
    subject, natural = real
    units = ["conv1:1", "conv2:3", "fc:a", "conv2:1+conv2:3"]
    found = stims.rank(subject, natural, units, progress=False)
    images = torch.stack([natural[i][0] for i in range(len(natural))])
    ids = [natural[i][2] for i in range(len(natural))]
    maps = next(subject.activations([images], ["conv1", "conv2"]))
    columns = {"conv1:1": maps["conv1"].mean((2, 3))[:, 1], "conv2:3": maps["conv2"].mean((2, 3))[:, 3]}
    one = maps["conv2"].mean((2, 3))[:, 1]
    columns["conv2:1+conv2:3"] = one / one.max() + columns["conv2:3"] / columns["conv2:3"].max()
    for unit, values in columns.items():
        row = units.index(unit)
        best: dict[str, float] = {}
        for id, value in zip(ids, values.tolist(), strict=True):
            photograph = id.split("/")[0]
            best[photograph] = max(best.get(photograph, -9.0), value)
        expected = sorted(best.values(), reverse=True)
        assert np.allclose(found.values[row], expected[: found.values.shape[1]], atol=1e-5)
        assert len({id.split("/")[0] for id in found.ids[row]}) == len(found.ids[row]) == 17
    several = stims.rank(subject, natural, ["conv1:1"], alone=False, progress=False)
    assert several.ids.shape == (1, 24)
    assert not any(natural.overlap(a, b) for i, a in enumerate(several.ids[0]) for b in several.ids[0][:i])


def test_units_are_drawn_awake_and_from_their_depth(real, monkeypatch):
    subject, natural = real
    monkeypatch.setattr(stims, "depths", lambda _: {"early": ("conv1",), "middle": ("conv2",), "late": ("conv2",)})
    found = stims.gather(subject, natural, units=3, seeds=2, steps=2, spare=1, progress=False)
    assert [len(found.of(depth)) for depth in (*stims.DEPTHS, stims.PRACTICE)] == [3, 3, 3, 1]
    assert all(unit.startswith("conv1") for unit in found.of("early"))
    assert (found.values[:, 0] > 0).all()
    assert found.synthetic.shape == (10, 2, 3, 32, 32)
    assert (found.strength() <= 1).all()
    with pytest.raises(fv.FeatvisError, match="are ever active"):
        stims.gather(subject, natural, units=8, spare=1, progress=False)


def test_depths_leave_the_logits_out():
    parts = stims.depths(fv.load("photonet"))
    assert [name for part in parts.values() for name in part] == list(fv.load("photonet").blocks[:-1])
    with pytest.raises(fv.FeatvisError, match="three depths need at least 3"):
        stims.depths(fv.Subject("flat", nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), PREPROCESS, "abcd", "cpu"))
    with pytest.raises(fv.FeatvisError, match="there are 32"):
        stims.draw(fv.load("photonet"), ("conv1",), 33)


# ---------------------------------------------------------------- on disk


def written(folder, made=None):
    made = design(STIMULI, lists=2, seed=5) if made is None else made

    class Natural:
        def image(self, id: str) -> torch.Tensor:
            return torch.full((3, 8, 8), 0.5)

    trials.write(made, STIMULI, Natural(), folder)
    return made


def test_a_folder_of_trials_comes_back_and_its_names_give_nothing_away(tmp_path):
    made = written(tmp_path)
    again, files = trials.read(tmp_path)
    assert again == made
    for key, name in files.items():
        assert Image.open(tmp_path / "images" / name).size == (8, 8)
        assert not any(part in name for part in key.replace("#", ":").split(":") if len(part) > 3)
    assert len(set(files.values())) == len(files)


def test_broken_folders_are_refused_with_one_sentence(tmp_path):
    with pytest.raises(fv.FeatvisError, match=r"holds no trials\.json"):
        trials.read(tmp_path)
    written(tmp_path)
    file = tmp_path / "trials.json"
    about = json.loads(file.read_text())
    image = next((tmp_path / "images").iterdir())
    image.rename(tmp_path / "elsewhere")
    with pytest.raises(fv.FeatvisError, match="lacks 1 of its images"):
        trials.read(tmp_path)
    (tmp_path / "elsewhere").rename(image)
    for change in (
        lambda a: a["lists"][0][0].update(answer=[0, 0, 1]),
        lambda a: a["lists"][0][0].update(part="other"),
        lambda a: a["lists"][0][0]["left"][0].append("one too many"),
        lambda a: a["lists"][1].append(a["lists"][0][0]),
        lambda a: a.pop("images"),
        lambda a: a.update(lists=[]),
    ):
        other = json.loads(json.dumps(about))
        change(other)
        file.write_text(json.dumps(other))
        with pytest.raises(fv.FeatvisError, match="not a file of trials"):
            trials.read(tmp_path)
    file.write_text("{")
    with pytest.raises(fv.FeatvisError, match="not a file of trials"):
        trials.read(tmp_path)


def test_a_blank_design_has_the_plan_s_units():
    made = blank(Plan(participants=5, units=4))
    assert len(made.lists) == 4
    assert len({unit for trial in made.trials for unit in trial.units}) == 12
