"""The commands as a user meets them: files, a report, one sentence for a mistake."""

from __future__ import annotations

import importlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featvis.cli import main


def run(*arguments: str) -> None:
    main([*arguments])


def failed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "natural"
    made.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (120, 130, 3), dtype=np.uint8)).save(made / f"{i}.png")
    (made / "broken.png").write_text("text")
    return made


def test_subjects_are_listed(capsys):
    run("subjects")
    out = capsys.readouterr().out
    assert "photonet" in out
    assert "googlenet" in out
    run("subjects", "photonet")
    out = capsys.readouterr().out
    assert "inception4b " in out
    assert "128 units" in out


def test_render_writes_pictures_and_a_report(tmp_path, folder, capsys):
    out = tmp_path / "out"
    units = ("fc:coins", "inception4b:17", "fc:12")
    run("render", "photonet", *units, "--steps", "3", "--seeds", "2", "--images", str(folder), "--out", str(out))
    report = json.loads((out / "report.json").read_text())
    assert [(row["unit"], row["seed"]) for row in report["units"]] == [
        ("fc:12", 0), ("fc:12", 1), ("inception4b:17", 0), ("inception4b:17", 1),
    ]  # fmt: skip
    for row in report["units"]:
        assert Image.open(out / row["image"]).size == (96, 96)
        assert isinstance(row["activation"], float)
        assert isinstance(row["best_natural_activation"], float)
        assert row["steps"] == 3
        assert row["status"] == "ok"
    assert report["images"]["count"] == 4
    assert "broken.png" in report["images"]["left_out"][0]
    assert "1 files were left out" in capsys.readouterr().err
    assert not list(out.glob(".unfinished*"))


def test_minimize_and_size(tmp_path, folder):
    run("render", "photonet", "fc:1", "--steps", "2", "--minimize", "--size", "64", "--quiet", "--images", str(folder),
        "--out", str(tmp_path / "o"))  # fmt: skip
    (row,) = json.loads((tmp_path / "o" / "report.json").read_text())["units"]
    assert row["image"].endswith("-min.png")
    assert Image.open(tmp_path / "o" / row["image"]).size == (64, 64)


def test_a_network_without_images_has_no_natural_activation(tmp_path):
    run("render", "mobilenet_v3_small", "features.0.0:1", "--weights", "random", "--steps", "1", "--size", "32",
        "--quiet", "--out", str(tmp_path))  # fmt: skip
    (row,) = json.loads((tmp_path / "report.json").read_text())["units"]
    assert row["best_natural_activation"] is None


def test_exemplars_writes_pictures_and_a_report(tmp_path, folder):
    run("exemplars", "photonet", "fc:cat", "--k", "3", "--images", str(folder), "--out", str(tmp_path / "o"))
    (row,) = json.loads((tmp_path / "o" / "report.json").read_text())["units"]
    assert row["unit"] == "fc:1"
    assert len(row["images"]) == len(row["activations"]) == 3
    assert row["activations"] == sorted(row["activations"], reverse=True)
    assert Image.open(tmp_path / "o" / row["images"][0]).size == (96, 96)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["render", "photonet", "inception9z:3"], "photonet has no layer 'inception9z'"),
        (["render", "photonet", "fc:17"], "fc has units 0 to 16"),
        (["render", "photonet", "fc"], "a unit is written LAYER:INDEX"),
        (["render", "fotonet", "fc:1"], "there is no subject 'fotonet'"),
        (["render", "photonet", "fc:1", "--steps", "0"], "steps=0 was given; at least 1"),
        (["render", "photonet", "fc:1", "--seeds", "0"], "no seed"),
        (["render", "photonet", "fc:1", "--size", "3"], "size=3 was given"),
        (["render", "photonet", "fc:1", "--parameterization", "oil"], "there is no parameterization 'oil'"),
        (["render", "photonet", "fc:1", "--precision", "fp8"], "valid are fp32, bf16"),
        (["render", "photonet", "fc:1", "--weights", "none.pth"], "there is no weights file 'none.pth'"),
        (["exemplars", "photonet", "fc:1", "--images", "nowhere"], "'nowhere' is no folder of images"),
        (["exemplars", "photonet", "fc:1", "--k", "0"], "k=0 exemplars"),
        (["exemplars", "mobilenet_v3_small", "classifier.3:1", "--weights", "random"], "give --images FOLDER"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 17, "heldout": 17, "all": 17})
    line = failed(capsys, *arguments, "--quiet", "--out", str(tmp_path / "out"))
    assert words in line
    assert line.startswith("featvis: ")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_weights_with_code_are_never_executed(tmp_path, capsys):
    evidence = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return (open, (str(evidence), "w"))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Attack()))
    line = failed(capsys, "subjects", "photonet", "--weights", str(tmp_path / "w.pth"))
    assert "never executed" in line or "not a whole weights file" in line
    assert not evidence.exists()


def test_out_must_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = failed(capsys, "render", "photonet", "fc:1", "--steps", "1", "--quiet", "--out", str(tmp_path / "file"))
    assert "is a file; give a folder" in line


def test_an_interrupt_leaves_nothing_half_written(tmp_path, capsys, monkeypatch):
    def interrupted(*_given, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 17, "heldout": 17, "all": 17})
    monkeypatch.setattr(importlib.import_module("featvis.exemplars"), "exemplars", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["render", "photonet", "fc:1", "--steps", "1", "--quiet", "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert list(tmp_path.iterdir()) == []
