"""What else may go wrong on the command line: files that are not what they seem, networks of a reader's own."""

from __future__ import annotations

import importlib
import json
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import featvis as fv
from featvis.cli import main
from featvis.networks import photonet
from tests.test_cli import failed, four_pngs

OWN = """
import torch
from tests.small import Small

def build(): return Small()
def leave(): raise SystemExit(3)
class Typed(Small):
    def forward(self, x): raise TypeError("no such thing")
class Bare(torch.nn.Module):
    def forward(self, x): return x
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """The module of a reader, in the folder that the command is called from."""
    (tmp_path / "reader_net.py").write_text(OWN)
    (tmp_path / "reader_bad.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "reader_net"


@pytest.fixture
def folder(tmp_path) -> Path:
    made = four_pngs(tmp_path / "natural")
    whole = (made / "3.png").read_bytes()
    (made / "cut.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    return made


def test_exemplars_are_never_made_up(folder, tmp_path, capsys):
    out = tmp_path / "out"
    line = failed(
        capsys, "exemplars", "photonet", "fc:1", "--k", "5", "--images", str(folder), "--quiet", "--out", str(out)
    )
    assert "only 4 of 5 images" in line
    assert "cut.png" in line
    assert not out.exists()
    main(["exemplars", "photonet", "fc:1", "--k", "4", "--images", str(folder), "--quiet", "--out", str(out)])
    assert "cut.png" in capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert len(set(report["units"][0]["ids"])) == 4
    assert report["recipe"] == {"k": 4}


def test_sixteen_bits_and_transparency_are_read_as_they_look(tmp_path):
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "eight.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    clear = np.zeros((64, 64, 4), np.uint8)
    clear[..., 0] = 255  # red that nobody sees
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((64, 64), np.float32)).save(tmp_path / "fractions.tif")
    images = fv.natural_images(tmp_path, size=64)
    torch.testing.assert_close(images.image("sixteen.png"), images.image("eight.png"), atol=1 / 255, rtol=0)
    assert images.image("clear.png").min() == 1
    assert [line for line in images.skipped if "fractions.tif" in line]
    assert len(images) == 3


def test_activations_that_are_not_finite_are_one_sentence(folder, tmp_path, capsys):
    state = load_file(photonet.WEIGHTS)
    state["fc.bias"][3] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    line = failed(
        capsys, "exemplars", "photonet", "fc:3", "--weights", str(tmp_path / "nan.safetensors"),
        "--images", str(folder), "--k", "2", "--quiet", "--out", str(tmp_path / "o"),
    )  # fmt: skip
    assert "no finite number" in line


def test_a_network_of_ones_own_has_layers_pictures_and_exemplars(own, folder, tmp_path, capsys):
    main(["subjects", f"{own}:build", "--input-size", "32"])
    assert "conv2" in capsys.readouterr().out
    given = [f"{own}:build", "fc:1", "--input-size", "32", "--mean", "0.5", "0.5", "0.5", "--quiet"]
    main(["render", *given, "--steps", "2", "--images", "none", "--out", str(tmp_path / "r")])
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["units"][0]["best_natural_activation"] is None
    assert report["recipe"]["size"] == [32, 32]
    main(["exemplars", *given, "--k", "2", "--images", str(folder), "--out", str(tmp_path / "e")])
    assert len(json.loads((tmp_path / "e" / "report.json").read_text())["units"][0]["images"]) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reader_net:leave", "could not build a network"),
        ("reader_bad:build", "cannot be imported"),
        ("./reader_net.py:build", "cannot be imported"),
        ("reader_net:Typed", "cannot take an image of 224 x 224 pixels: no such thing"),
        ("reader_net:Bare", "no layer with a tensor output"),
    ],
)
def test_a_network_of_ones_own_that_fails_is_one_sentence(own, name, words, capsys):
    assert words in failed(capsys, "subjects", name)


@pytest.mark.parametrize(
    ("option", "value"), [("--std", ("0", "0", "0")), ("--std", ("nan", "1", "1")), ("--mean", ("inf", "0", "0"))]
)
def test_a_preprocessing_has_to_be_finite(own, option, value, capsys):
    assert "valid are finite ones" in failed(capsys, "subjects", f"{own}:build", option, *value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["audit", "photonet", "--seed", "-1", "--out", "o"], "valid are 0 and more"),
        (["audit", "photonet", "--natural", "0", "--out", "o"], "valid are 1 and more"),
        (["match", "generate", "--units", "-1", "--out", "o"], "valid are 1 and more"),
        (["match", "simulate", "--gap", "5", "--out", "o"], "from -1 to 1"),
        (["match", "serve", "m", "--port", "99999"], "valid are 1 to 65535"),
        (["similarity", "photonet", "--units", "fc:1", "fc:2", "--out", "o"], "at least 3 units"),
        (["subjects", "photonet", "--input-size", "32"], "--input-size is for a network of your own"),
        (["subjects", "googlenet", "--weights", "IMAGENET1K_V9"], "or one of IMAGENET1K_V1, random"),
    ],
)
def test_a_mistake_is_said_before_the_long_work(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 170, "heldout": 1020, "all": 170})
    assert words in failed(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_taken_port_gives_nobody_a_link(tmp_path, monkeypatch, capsys):
    server = importlib.import_module("featvis.matching.experiment.server")
    monkeypatch.setattr(server, "app", lambda _folder: None)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(fv.FeatvisError, match="nobody can listen"):
        server.serve(tmp_path, 3, "127.0.0.1", taken.getsockname()[1])
    assert capsys.readouterr().out == ""


def test_one_simulated_study_is_json(tmp_path, capsys):
    main(["match", "simulate", "--studies", "1", "--participants", "8", "--quiet", "--out", str(tmp_path)])
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["terms"]
    assert "nan" not in capsys.readouterr().out


def test_no_answers_are_one_sentence(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("observer,trial,part,kind,n,depth,units,right\n")
    line = failed(capsys, "match", "analyze", str(tmp_path / "a.csv"), "--out", str(tmp_path / "o"))
    assert "is empty" in line


def test_keys_of_weights_are_names(tmp_path, capsys):
    torch.save({1: torch.zeros(2)}, tmp_path / "w.pth")
    assert "holds no state dict" in failed(capsys, "subjects", "photonet", "--weights", str(tmp_path / "w.pth"))
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)  # and no data
    line = failed(capsys, "subjects", "photonet", "--weights", str(tmp_path / "w.safetensors"))
    assert "not a whole safetensors file" in line


def test_squeezenet_ends_in_maps_of_one_pixel():
    assert fv.load("squeezenet1_1", weights="random").layers["classifier"] == (1000, 1, 1)


def test_what_nobody_thought_of_is_one_sentence_and_status_one(monkeypatch, capsys):
    def broken(_options):
        raise IndexError("list index out of range")

    monkeypatch.setattr("featvis.commands.subjects.subject_of", broken)
    with pytest.raises(SystemExit) as stop:
        main(["subjects", "photonet"])
    assert stop.value.code == 1
    assert "unexpected IndexError: list index out of range" in capsys.readouterr().err
    monkeypatch.setenv("FEATVIS_TRACEBACK", "1")
    with pytest.raises(IndexError):
        main(["subjects", "photonet"])


def test_an_interrupt_promises_nothing_that_another_command_kept(tmp_path, monkeypatch, capsys):
    def interrupted(_options):
        raise KeyboardInterrupt

    (tmp_path / ".work" / "another").mkdir(parents=True)
    monkeypatch.setattr("featvis.commands.audit.subject_of", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["audit", "photonet", "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert "nothing half-written was left" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("featvis ")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_torchscript_archive_is_named_as_such(tmp_path, capsys):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "scripted.pt"))
    line = failed(capsys, "subjects", "photonet", "--weights", str(tmp_path / "scripted.pt"))
    assert "is a TorchScript archive" in line
    assert "state_dict()" in line
    assert "arbitrary code" not in line
