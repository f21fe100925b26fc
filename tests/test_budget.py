"""The quick budget: less is computed, and the shelf and the page say so."""

from __future__ import annotations

import json

import pytest

import featvis as fv
from featvis import budget, controls, fooling, fresh
from featvis.notice import notices
from featvis.shelf import RECIPES, Shelf, kept
from tests.conftest import ROOT
from tests.small import small_images, small_subject


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv(budget.BUDGET, budget.QUICK)


def test_the_full_budget_lowers_nothing_and_leaves_the_keys_as_they_are(monkeypatch):
    monkeypatch.setenv(budget.BUDGET, "")
    key = RECIPES["render"].key(small_subject(), ["fc:0"], steps=512, seeds=9, snapshots=(1, 512))
    assert "budget" not in key
    assert (key["arguments"]["steps"], key["arguments"]["seeds"], key["arguments"]["snapshots"]) == (512, 9, [1, 512])
    assert (budget.most(99, 3), budget.within((1, 999)), budget.some(["a"] * 99)) == (99, (1, 999), ["a"] * 99)


def test_every_entry_of_the_project_was_made_with_the_full_budget():
    entries = list((ROOT / "results").glob("*/*/entry.json"))
    assert len(entries) > 50
    assert [entry for entry in entries if "budget" in json.loads(entry.read_text())] == []


def test_what_was_asked_for_is_lowered_and_the_key_says_what_was_computed(tmp_path, quick):
    shelf, subject = Shelf(tmp_path), small_subject()
    made = fv.render(subject, ["fc:0"], steps=512, seeds=9, snapshots=(1, 4, 512), progress=False, shelf=shelf)
    assert (made.steps, len(made.seeds), set(made.snapshots)) == (budget.STEPS, budget.SEEDS, {1, 4})
    (entry,) = shelf.entries()
    key = json.loads((entry / "entry.json").read_text())
    assert key["budget"] == budget.QUICK
    assert (key["arguments"]["steps"], key["arguments"]["snapshots"]) == (budget.STEPS, [1, 4])
    again = fv.render(subject, ["fc:0"], steps=600, seeds=10, snapshots=(1, 4), progress=False, shelf=shelf)
    assert len(list(shelf.entries())) == 1, "both ask for more than there is, so they ask for the same"
    assert again.activation == pytest.approx(made.activation)
    assert fv.render(subject, ["fc:0"], steps=3, progress=False).steps == 3, "less than the cap stays"


def test_seeds_that_are_named_lose_their_end(quick):
    made = fv.render(small_subject(), ["fc:0"], steps=2, seeds=range(100, 120), progress=False)
    assert made.seeds == tuple(range(100, 100 + budget.SEEDS))


def test_units_stay_and_natural_images_are_fewer(quick):
    assert budget.lowered({"units": ["a"] * 99, "leave_out": True}) == {"units": ["a"] * 99, "leave_out": False}
    assert len(fv.natural_images("photos", n=5000)) == budget.IMAGES
    assert len(fv.natural_images("photos", n=3)) == 3
    train, test = fv.images.train_and_test("photos")
    assert (len(train), len(test)) == (budget.IMAGES, budget.IMAGES)
    assert budget.IMAGES >= fooling.gate.FEWEST, "a gate can be trained"
    assert budget.some([f"u{i}" for i in range(1000)], 4) == ["u0", "u250", "u500", "u750"]


def test_the_atlas_holds_the_first_units_and_all_examples(tmp_path, quick):
    subject = small_subject()
    found = fv.atlas(subject, small_images(), Shelf(tmp_path), progress=False)
    for layer in subject.blocks[:-1]:
        assert found.maxima[layer].units == tuple(subject.units(layer)[: budget.UNITS])
    assert set(subject.examples()) <= set(found.maxima[subject.blocks[-1]].units)
    for layer in found.explorer()["layers"]:
        assert layer["units"] == len(layer["rows"]) == len(layer["labels"] or layer["rows"])


def test_no_full_budget_takes_a_quick_result(tmp_path, monkeypatch):
    shelf, subject, natural = Shelf(tmp_path), small_subject(), small_images()
    monkeypatch.setenv("FEATVIS_SHELF", str(tmp_path))
    monkeypatch.setenv(budget.BUDGET, budget.QUICK)
    ways = {"steps": 2, "seeds": 1, "per_class": 4, "progress": False, "shelf": shelf}
    controls.rendered_paths(subject, natural, subject.units(subject.blocks[1])[:4], **ways)
    assert kept(controls.rendered_paths, subject, "photos") is not None
    with budget.full():
        assert kept(controls.rendered_paths, subject, "photos") is None
        assert not budget.quick()
    assert budget.quick()


def test_a_quick_result_is_made_afresh_with_the_quick_budget(tmp_path, monkeypatch):
    subject = fv.load("photonet", device="cpu")
    made, again = Shelf(tmp_path / "made"), Shelf(tmp_path / "again")
    with budget.under(budget.QUICK):
        fv.render(subject, ["fc:0"], steps=512, progress=False, shelf=made)
    (entry,) = made.entries()
    monkeypatch.delenv(budget.BUDGET, raising=False)
    assert fresh.compare(entry, made, again) == ""
    (other,) = again.entries()
    assert other.name == entry.name, "the same key, so the same budget"


def test_an_unknown_budget_is_named(monkeypatch):
    monkeypatch.setenv(budget.BUDGET, "cheap")
    with pytest.raises(fv.FeatvisError, match="no budget 'cheap'; leave FEATVIS_BUDGET empty, or set it to quick"):
        budget.quick()


def test_a_page_says_what_it_is(monkeypatch):
    monkeypatch.delenv(budget.BUDGET, raising=False)
    photonet = fv.load("photonet", device="cpu")
    assert notices(photonet) == []
    ((_, title, _),) = notices(fv.load("photonet", weights="random", device="cpu"))
    assert title == "This page is about other weights of photonet"
    assert [title for _, title, _ in notices(small_subject())] == [f"This page is about {small_subject().name}"]
    monkeypatch.setenv(budget.BUDGET, budget.QUICK)
    ((_, title, text),) = notices(photonet)
    assert "quick budget" in title
    assert f"{budget.IMAGES} natural images" in text


def test_the_published_shelf_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setenv("FEATVIS_SHELF", str(tmp_path))
    assert fv.shelf.published().root == ROOT / "results"
    assert Shelf().root == tmp_path
    monkeypatch.chdir(tmp_path)
    assert fv.shelf.published().root == ROOT / "results"  # wherever a reader works
    monkeypatch.setattr(fv.shelf, "_own_root", lambda: None)  # as in a package that was installed
    assert fv.shelf.published().root == tmp_path


@pytest.mark.parametrize(
    ("name", "examples", "late"),
    [
        ("photonet", (1, 2, 12, 14, 16), "inception5b.branch2.1"),
        ("cifarnet", (0, 2, 4, 6, 8), "layer4.0.conv2"),
        ("resnet18", (0, 200, 400, 600, 800), "layer4.1.conv2"),
    ],
)
def test_a_subject_says_what_to_show(name, examples, late):
    subject = fv.load(name, weights="random", device="cpu")
    assert subject.examples() == [f"fc:{i}" for i in examples]
    assert subject.late_convolution == late


def test_a_network_without_a_square_convolution_says_so():
    with pytest.raises(fv.FeatvisError, match="vit_b_16 has no convolution of 3 x 3"):
        _ = fv.load("vit_b_16", weights="random", device="cpu").late_convolution
