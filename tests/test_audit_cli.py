"""`featvis audit` as a reader calls it, with networks of their own and with what cannot work."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from featvis.cli import main
from tests.small import Small, small_images

OWN = "tests.test_audit_cli"


def build() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def no_network() -> str:
    return "a network"


def needs_more(size: int) -> nn.Module:
    return nn.Conv2d(size, size, 1)


class Stubborn(nn.Module):
    """Takes nothing but 64 x 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 64 * 64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photographs' crops, and one broken file."""
    folder = tmp_path_factory.mktemp("photographs")
    natural = small_images(60)
    for index in range(60):
        image, label, _ = natural[index]
        (folder / f"class{label % 3}").mkdir(exist_ok=True)
        pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"class{label % 3}" / f"{index}.png")
    (folder / "class0" / "broken.png").write_bytes(b"no image")
    return folder


def run(*arguments: str | Path) -> None:
    main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_network_of_ones_own_is_audited(tmp_path, folder, capsys):
    out = tmp_path / "audited"
    run("audit", f"{OWN}:build", "--size", "32", "--images", folder, "--units", "6", "--quiet", "--out", out)
    printed = capsys.readouterr()
    report = json.loads((out / "report.json").read_text())
    assert report["subject"] == "build"
    assert report["images"] == 60
    assert len(report["units"]) == 6
    assert "broken.png" in report["left_out"][0]
    assert "1 files were left out" in printed.err
    assert report["verdict"] in printed.out
    assert "Take its p-values as scores" in printed.out
    assert "could not be asked" not in report["checks"][0]["finding"]
    text = (out / "report.html").read_text()
    assert text.count("<article") == 6
    assert {"units.csv", "checks.csv", "pictures"} <= {file.name for file in out.iterdir()}
    assert len(list((out / "pictures").glob("*-fourier-0.png"))) == 6
    assert not list(out.glob(".*"))


def test_weights_of_a_network_of_ones_own_are_read(tmp_path, folder):
    torch.manual_seed(5)
    save_file(Small().state_dict(), tmp_path / "mine.safetensors")
    common = ("--size", "32", "--images", folder, "--units", "4", "--layers", "conv2", "--quiet")
    run("audit", f"{OWN}:build", *common, "--weights", tmp_path / "mine.safetensors", "--out", tmp_path / "a")
    run("audit", f"{OWN}:build", *common, "--out", tmp_path / "b")
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert first["fingerprint"] != second["fingerprint"]
    assert all(row["unit"].startswith("conv2:") for row in first["units"])


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch harmed",))


def test_code_in_a_pickle_is_never_executed(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"fc.weight": Harmful()}))
    torch.save({"fc.weight": Harmful()}, tmp_path / "worse.pth")
    for name in ("evil.pth", "worse.pth"):
        common = ("--size", "32", "--images", folder, "--weights", tmp_path / name, "--out", tmp_path / "out")
        error = refused(capsys, "audit", f"{OWN}:build", *common)
        assert "is never executed" in error or "is not a whole weights file" in error
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("subject", "options", "words"),
    [
        ("no.such.module:build", (), "cannot be imported"),
        (f"{OWN}:nothing", (), "cannot be imported"),
        (f"{OWN}:no_network", (), "built a str; it must give an nn.Module"),
        (f"{OWN}:needs_more", (), "could not build a network without arguments"),
        (f"{OWN}:Stubborn", ("--size", "32"), "cannot take an image of 32 x 32 pixels"),
        (f"{OWN}:build", ("--size", "32", "--layers", "conv9"), "no layer 'conv9'"),
        (f"{OWN}:build", ("--size", "32", "--units", "2"), "needs 3"),
        (f"{OWN}:build", ("--size", "32", "--device", "cuda:7"), "device 'cuda:7' cannot be used here"),
        (f"{OWN}:build", ("--size", "32", "--device", "toaster"), "device 'toaster' cannot be used here"),
        (f"{OWN}:build", ("--size", "32", "--natural", "20"), "20 natural images are too few"),
        ("photonet", ("--size", "32"), "photonet knows its preprocessing"),
        ("fotonet", (), "there is no subject 'fotonet'"),
    ],
)
def test_what_cannot_work_is_one_sentence(subject, options, words, folder, tmp_path, capsys):
    out = tmp_path / "out"
    error = refused(capsys, "audit", subject, "--images", folder, *options, "--out", out)
    assert words in error
    assert len(error.strip().splitlines()) <= 2  # a broken file may be named, too
    assert not (out / "report.json").exists()


def test_a_folder_of_mostly_broken_files_is_refused(tmp_path, folder, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for index, file in enumerate(sorted(folder.rglob("[0-9]*.png"))):
        (broken / file.name).write_bytes(file.read_bytes() if index % 3 else b"no image")
    error = refused(capsys, "audit", f"{OWN}:build", "--size", "32", "--images", broken, "--out", tmp_path / "out")
    assert "20 of 60 files" in error
    assert "up to 20%" in error


def test_no_images_at_all_is_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    common = ("--size", "32", "--out", tmp_path / "out")
    assert "has no usable image" in refused(capsys, "audit", f"{OWN}:build", "--images", tmp_path / "empty", *common)
    assert "give --images FOLDER" in refused(capsys, "audit", f"{OWN}:build", *common)
