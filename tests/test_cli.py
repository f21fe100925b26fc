"""The commands as a user meets them: files, a report, one sentence for a mistake."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featvis as fv
from featvis import sheets
from featvis.cli import main
from featvis.fooling import gate as gates
from featvis.visualize import batches
from tests.small import small_subject


def run(*arguments: str) -> None:
    main([*arguments])


def failed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def four_pngs(made: Path) -> Path:
    made.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (120, 130, 3), dtype=np.uint8)).save(made / f"{i}.png")
    return made


@pytest.fixture
def folder(tmp_path) -> Path:
    made = four_pngs(tmp_path / "natural")
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
    arguments = ["photonet", "fc:cat", "--k", "3", "--images", str(folder), "--image-workers", "2"]
    run("exemplars", *arguments, "--out", str(tmp_path / "o"))
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
        (["render", "photonet", "fc:1", "--steps", "0"], "--steps: 0 was given; valid are 1 and more"),
        (["render", "photonet", "fc:1", "--seeds", "0"], "--seeds: 0 was given"),
        (["render", "photonet", "fc:1", "--size", "3"], "--size: 3 was given; valid are 16 and more"),
        (["render", "photonet", "fc:1", "--parameterization", "oil"], "there is no parameterization 'oil'"),
        (["render", "photonet", "fc:1", "--precision", "fp8"], "valid are fp32, bf16"),
        (["render", "photonet", "fc:1", "--weights", "none.pth"], "there is no weights file 'none.pth'"),
        (["exemplars", "photonet", "fc:1", "--images", "nowhere"], "'nowhere' is no folder of images"),
        (["exemplars", "photonet", "fc:1", "--k", "0"], "--k: 0 was given"),
        (
            ["exemplars", "photonet", "fc:1", "--image-workers", "-1"],
            "--image-workers: -1 was given",
        ),
        (["exemplars", "mobilenet_v3_small", "classifier.3:1", "--weights", "random"], "give --images FOLDER"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 17, "heldout": 17, "all": 17})
    line = failed(capsys, *arguments, "--quiet", "--out", str(tmp_path / "out"))
    assert words in line
    assert line.startswith(("featvis: ", f"featvis {arguments[0]}: error: "))
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


def test_an_interrupt_leaves_nothing_half_written_and_loses_nothing_finished(tmp_path, capsys, monkeypatch):
    def interrupted(*_given, **_options):
        raise KeyboardInterrupt

    climbed: list[int] = []
    climb = batches.climb_all

    def counted(subject, how, parts, *rest):
        climbed.append(len(parts))
        return climb(subject, how, parts, *rest)

    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 17, "heldout": 17, "all": 17})
    monkeypatch.setattr(importlib.import_module("featvis.visualize.render"), "climb_all", counted)
    arguments = ["render", "photonet", "fc:1", "conv1:2", "--steps", "1", "--quiet", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("featvis.exemplars"), "exemplars", interrupted)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
    assert stop.value.code == 130
    assert [file.name for file in tmp_path.iterdir()] == [".work"]
    assert "the same command goes on from there" in capsys.readouterr().err
    main(arguments)
    assert climbed == [2, 0]
    assert not (tmp_path / ".work").exists()
    assert json.loads((tmp_path / "report.json").read_text())["units"][0]["status"] == "ok"


def test_a_polite_end_is_an_interrupt(tmp_path):
    """kill, as a shell or a cluster says it: no unfinished folder stays behind."""
    command = [sys.executable, "-m", "featvis", "exemplars", "photonet", "fc:1", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    out = tmp_path / "out"
    late = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < late and not (out.exists() and list(out.iterdir())):
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said
    assert not out.exists() or [file.name for file in out.iterdir()] == [".work"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path, folder, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ("exemplars", "photonet", "fc:1", "--k", "2", "--images", str(folder), "--quiet", "--out", str(out))
    run(*arguments)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    write = sheets.write_image

    def filling(file, image):
        if "exemplar2" in file.name:
            raise OSError(28, "No space left on device", str(file))
        write(file, image)

    monkeypatch.setattr(sheets, "write_image", filling)
    line = failed(capsys, *arguments)
    assert "No space left on device: " in line
    assert "exemplar2.png" in line
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    assert [file.name for file in out.iterdir() if file.is_dir()] == [".work"]  # the scan is not to be repeated
    monkeypatch.setattr(sheets, "write_image", write)
    run(*arguments)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_work_is_kept_until_the_results_are_in_their_place_and_from_other_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 17, "heldout": 17, "all": 17})
    out = tmp_path / "out"
    arguments = ["exemplars", "photonet", "fc:1", "--k", "1", "--quiet", "--out", str(out)]
    (out / "report.json").mkdir(parents=True)  # in the way of what is to stand there
    with pytest.raises(SystemExit):
        main(arguments)
    (kept,) = (out / ".work").iterdir()
    finished = [file.name for file in kept.iterdir()]
    assert len(finished) == 1
    (out / "report.json").rmdir()
    main([*arguments[:2], "fc:2", *arguments[3:]])
    assert [file.name for file in kept.iterdir()] == finished
    main(arguments)
    assert not (out / ".work").exists()


@pytest.fixture
def quick_gates(monkeypatch):
    """Everything that `featvis fool` does, with a small network, few steps and few pictures."""
    train = gates.train_gate

    def quick(*given, **options):
        return train(*given, **options | {"train_seeds": 1, "test_seeds": 1, "hidden": 1, "steps": 10})

    quick.recipe = train.recipe
    monkeypatch.setattr(gates, "log_spaced", lambda: (4, 8))
    monkeypatch.setattr("featvis.fooling.train_gate", quick)
    monkeypatch.setattr("featvis.commands.fool.subject_of", lambda _options: small_subject(classes="abcdef"))


def many(folder: Path, n: int = 420) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        place = folder / "abcdef"[i % 6]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.mark.parametrize("decoy", ["permute", "picture"])
def test_fool_writes_the_network_its_report_and_pictures(tmp_path, capsys, quick_gates, decoy):
    out, images = tmp_path / "out", many(tmp_path / "natural")
    if decoy == "picture":
        decoy = str(tmp_path / "picture.png")
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(decoy)
    run("fool", "small", "--images", str(images), "--decoy", decoy, "--quiet", "--out", str(out))
    report = json.loads((out / "report.json").read_text())
    assert {"accuracy", "fpr", "fnr"} <= set(report["gate"])
    named = ("units", "units_fooled", "top1_before", "top1_after", "top1_drop_explained_by_fpr", "leak_rate", "c", "k")
    assert all(np.isfinite(report[name]) for name in named)
    assert report["units"] == 6
    assert report["max_logit_change_passed"] < 1e-3
    assert ("target_correlation" in report) == (decoy != "permute")
    assert (out / "visualizations.png").is_file()
    assert (out / "fooled.safetensors").stat().st_mode == (out / "report.json").stat().st_mode
    assert (out / "gate.png").is_file()
    subject = small_subject(classes="abcdef")
    saved = fv.load(subject.network, weights=out / "fooled.safetensors", preprocess=subject.preprocess)
    assert fv.fooling.circuit_of(saved).levels.k == report["k"]
    assert not (out / ".work").exists()
    assert "units fooled" in capsys.readouterr().out


def test_what_featvis_fool_cannot_do_is_one_sentence(tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (40, 40)).save(tmp_path / "grey.png")
    out = ("--quiet", "--out", str(tmp_path / "out"))
    for decoy, word in (("none.png", "no target"), ("text.png", "readable"), ("grey.png", "RGB")):
        assert word in failed(capsys, "fool", "photonet", "--decoy", str(tmp_path / decoy), *out)
    assert "--images" in failed(capsys, "fool", "resnet18", "--weights", "random", *out)
    assert not (tmp_path / "out" / "report.json").exists()


def test_too_few_images_to_train_a_gate_are_refused(tmp_path, capsys, quick_gates):
    images, out = many(tmp_path / "few", 20), tmp_path / "out"
    assert "too few" in failed(capsys, "fool", "small", "--images", str(images), "--quiet", "--out", str(out))
    assert not out.exists()
