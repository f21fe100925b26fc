"""The shelf keeps what is finished, and trusts nothing else."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import featvis as fv
from featvis import fresh
from featvis.shelf import RECIPES, Shelf, kept, plain, shelved, whole
from featvis.visualize import Affine, Fourier, Pixels
from tests.conftest import ROOT
from tests.small import small_images, small_subject


class Number:
    """The smallest result."""

    def __init__(self, value: float):
        self.value = value

    def save(self, folder):
        (folder / "value.txt").write_text(str(self.value))

    @classmethod
    def load(cls, folder):
        return cls(float((folder / "value.txt").read_text()))


@pytest.fixture
def counted():
    calls: list[float] = []

    @shelved(1, Number, free=("progress",))
    def double(subject, value, *, extra=0, progress=True):
        calls.append(value)
        return Number(2 * value + extra)

    double.calls = calls
    yield double
    del RECIPES["double"]


def test_an_argument_that_came_later_leaves_what_is_finished_as_it_is(tmp_path):
    def double(subject, value):
        return Number(2 * value)

    shelf, subject = Shelf(tmp_path), small_subject()
    try:
        assert shelved(1, Number)(double)(subject, 4, shelf=shelf).value == 8
        entry = entry_of(shelf)

        def double(subject, value, more=0):
            return Number(2 * value + more + 100)

        again = shelved(1, Number, later=("more",))(double)
        assert again(subject, 4, shelf=shelf).value == again(subject, 4, more=0, shelf=shelf).value == 8
        assert entry_of(shelf) == entry
        assert again(subject, 4, more=1, shelf=shelf).value == 109
        assert len(list(shelf.entries())) == 2
    finally:
        del RECIPES["double"]


def entry_of(shelf):
    (entry,) = shelf.entries()
    return entry


def test_it_computes_once(tmp_path, counted):
    shelf, subject = Shelf(tmp_path), small_subject()
    assert counted(subject, 4, shelf=shelf).value == 8
    assert counted(subject, 4, progress=False, extra=0, shelf=shelf).value == 8
    assert counted.calls == [4]
    assert counted(subject, 5, shelf=shelf).value == 10
    assert counted(subject, 4, extra=1, shelf=shelf).value == 9
    assert counted(small_subject(1), 4, shelf=shelf).value == 8
    assert counted.calls == [4, 5, 4, 4]
    assert counted(subject, 4).value == 8  # without a shelf nothing is remembered
    assert len(counted.calls) == 5
    assert "4 entries" in repr(shelf)


def test_another_version_is_another_entry(tmp_path, counted):
    shelf, subject = Shelf(tmp_path), small_subject()
    counted(subject, 4, shelf=shelf)
    newer = type(counted.recipe)(counted.recipe.compute, 2, Number, ("progress",))
    shelf.recall(newer, subject, 4)
    assert counted.calls == [4, 4]


def test_rerender_computes_again(tmp_path, counted, monkeypatch):
    shelf, subject = Shelf(tmp_path), small_subject()
    counted(subject, 4, shelf=shelf)
    monkeypatch.setenv("FEATVIS_RERENDER", "1")
    counted(subject, 4, shelf=shelf)
    assert counted.calls == [4, 4]


@pytest.mark.parametrize("damage", ["cut", "changed", "no entry", "half an entry", "another key", "file gone"])
def test_a_damaged_entry_is_computed_again(tmp_path, counted, damage):
    shelf, subject = Shelf(tmp_path), small_subject()
    counted(subject, 4, shelf=shelf)
    entry = entry_of(shelf)
    about = entry / "entry.json"
    if damage == "cut":
        (entry / "value.txt").write_text("")
    elif damage == "changed":
        (entry / "value.txt").write_text("9.0")
    elif damage == "no entry":
        about.unlink()
    elif damage == "half an entry":
        about.write_text(about.read_text()[:40])
    elif damage == "another key":
        about.write_text(json.dumps(json.loads(about.read_text()) | {"fingerprint": "0"}))
    else:
        (entry / "value.txt").unlink()
    assert counted(subject, 4, shelf=shelf).value == 8
    assert counted.calls == [4, 4]
    assert counted(subject, 4, shelf=shelf).value == 8
    assert counted.calls == [4, 4]


def test_a_result_is_found_without_its_images(tmp_path, monkeypatch):
    shelf, subject, natural = Shelf(tmp_path), small_subject(), small_images()
    monkeypatch.setenv("FEATVIS_SHELF", str(tmp_path))
    made = fv.exemplars(subject, natural, ["fc"], k=2, progress=False, shelf=shelf)
    found = kept(fv.exemplars, subject, "photos", k=2)
    assert found is not None
    assert np.array_equal(found.top_values, made.top_values)
    assert kept(fv.exemplars, subject, "photos", k=3) is None
    assert kept(fv.exemplars, subject, "cifar10") is None
    assert kept(fv.exemplars, small_subject(1), "photos") is None
    (entry_of(shelf) / "exemplars.npz").write_bytes(b"cut")
    assert kept(fv.exemplars, subject, "photos") is None


def test_what_comes_with_the_project_is_found_from_any_shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATVIS_SHELF", str(tmp_path))
    assert kept(fv.linearity, fv.load("cifarnet"), "cifar10") is not None
    assert not list(tmp_path.iterdir())


def test_an_empty_shelf_variable_is_none(monkeypatch):
    monkeypatch.setenv("FEATVIS_SHELF", "")
    assert Shelf().root == ROOT / "results"


def test_a_failed_save_leaves_nothing(tmp_path, counted, monkeypatch):
    shelf, subject = Shelf(tmp_path), small_subject()

    def broken(self, folder):
        (folder / "value.txt").write_text("half")
        raise OSError(28, "No space left on device")

    assert counted(subject, 5, shelf=shelf).value == 10
    monkeypatch.setattr(Number, "save", broken)
    with pytest.raises(fv.FeatvisError, match=r"double-.* No space left on device; what .* is intact"):
        counted(subject, 4, shelf=shelf)
    assert [file.name for file in tmp_path.rglob("*.txt")] == ["value.txt"]  # of the finished one
    assert [path.name[:7] for path in (tmp_path / "small").iterdir()] == ["double-"]
    assert counted(subject, 5, shelf=shelf).value == 10
    assert counted.calls == [5, 4]


def test_two_processes_write_the_same_entry(tmp_path):
    """Each puts an entry again and again, in the other's way; what stands there is whole at the end."""
    script = """
import sys
from tests.test_shelf import Number
from featvis.shelf import Shelf, whole
shelf, key = Shelf(sys.argv[1]), {"subject": "small", "function": "double"}
folder = shelf.folder(key)
for i in range(150):
    shelf.put(folder, key, Number(i))
"""  # while the other one replaces it an entry may be missing for a moment: a reader then computes it again
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=300)[1] for process in running] == ["", ""]
    assert [process.returncode for process in running] == [0, 0]
    assert [path.name[:7] for path in (tmp_path / "small").iterdir()] == ["double-"]
    assert Number.load(entry_of(Shelf(tmp_path))).value == 149


def test_arguments_are_written_as_json():
    assert plain((1, "a", None, [2.5])) == [1, "a", None, [2.5]]
    assert plain(Pixels())["type"] == "Pixels"
    assert plain(small_images())["n"] == 51
    with pytest.raises(fv.FeatvisError, match="depends on a Tensor cannot be put on the shelf"):
        plain(torch.zeros(2))


def test_pictures_survive_the_shelf(tmp_path):
    shelf, subject = Shelf(tmp_path), small_subject()
    options = {"steps": 6, "seeds": 2, "snapshots": (1, 6), "progress": False}
    made = fv.render(subject, ["fc:1", "conv1.0:2"], **options, shelf=shelf)
    back = fv.render(subject, ["fc:1", "conv1.0:2"], **options, shelf=shelf)
    assert back.units == made.units
    assert np.array_equal(back.activation, made.activation)
    assert np.array_equal(back.status, made.status)
    assert sorted(back.snapshots) == [1, 6]
    assert (back.images - made.images).abs().mean() < 0.05  # WebP loses a little
    assert (back.frame() == made.frame()).all().all()


def test_a_parameterization_and_a_transform_can_be_revived():
    for value in (Fourier(decorrelate=False), Pixels(), Affine(jitter=(3.0, 1.0))):
        assert fresh._revive(json.loads(json.dumps(plain(value))), None, None) == value
    natural = small_images()
    assert fresh._revive(plain(natural), None, None).fingerprint == natural.fingerprint


def test_the_committed_shelf_is_whole():
    shelf = Shelf()
    entries = list(shelf.entries())
    assert entries
    for entry in entries:
        about = json.loads((entry / "entry.json").read_text())
        key = {name: value for name, value in about.items() if name != "files"}
        assert whole(entry, key), entry
        assert shelf.folder(key) == entry
        recipe = fresh.RECIPES.get(key["function"])  # `featvis.fresh` knows how to make it again
        assert recipe is not None, entry
        assert recipe.version == key["version"], entry
    assert sum(file.stat().st_size for file in shelf.root.rglob("*") if file.is_file()) <= 15 * 2**20


def test_a_random_entry_comes_out_the_same(tmp_path, capsys):
    """Two units of a random entry, another one in every run; the seed is printed."""
    seed = random.randrange(10**6)
    quick = ["--functions", "render", "exemplars", "thumbs"]  # a gate takes minutes: `make fresh` has them all
    arguments = [*quick, "--sample", "1", "--units", "2", "--seed", str(seed), "--scratch", str(tmp_path)]
    try:
        fresh.main(arguments)
    finally:
        print(capsys.readouterr().out)


def test_fresh_compares_an_entry_of_one_unit(tmp_path, monkeypatch):
    subject = small_subject()
    shelf = Shelf(tmp_path / "shelf")
    monkeypatch.setattr(fresh, "load", lambda name: subject)
    fv.render(subject, subject.units("fc")[0], steps=3, progress=False, shelf=shelf)
    assert fresh.compare(entry_of(shelf), shelf, Shelf(tmp_path / "some"), 2) == ""


def test_fresh_sees_a_difference(tmp_path, monkeypatch):
    subject = small_subject()
    shelf, scratch = Shelf(tmp_path / "shelf"), Shelf(tmp_path / "scratch")
    monkeypatch.setattr(fresh, "load", lambda name: subject)
    pictures = fv.render(subject, subject.units("fc"), steps=30, progress=False, shelf=shelf)
    entry = entry_of(shelf)
    assert fresh.compare(entry, shelf, scratch) == ""
    assert fresh.compare(entry, shelf, Shelf(tmp_path / "some"), 2) == ""
    key = {name: value for name, value in json.loads((entry / "entry.json").read_text()).items() if name != "files"}
    object.__setattr__(pictures, "activation", pictures.activation * 1.2)
    shelf.put(entry, key, pictures)
    assert "activations differ by" in fresh.compare(entry, shelf, scratch)
    subject_other = small_subject(1)
    monkeypatch.setattr(fresh, "load", lambda name: subject_other)
    assert "other weights" in fresh.compare(entry, shelf, scratch)
