"""Subjects: names, layers, units, activations, and weights from files that may be anything."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import featvis as fv
from featvis.zoo import fit, read_weights, torchvision_names


class Tiny(nn.Module):
    """(n, 3, 32, 32) -> (n, 3)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.conv1(x)).relu().mean((2, 3)))


PREPROCESS = fv.Preprocess((32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.fixture
def subject() -> fv.Subject:
    torch.manual_seed(0)
    return fv.load(Tiny(), preprocess=PREPROCESS, classes=("ant", "bee", "cow"), device="cpu")


def test_layers_blocks_and_units(subject: fv.Subject) -> None:
    assert subject.layers["conv1.0"] == (4, 15, 15)
    assert list(subject.layers)[-2:] == ["conv2", "fc"]
    assert subject.blocks == ("conv1.0", "conv1.1", "conv2", "fc") or subject.blocks[-2:] == ("conv2", "fc")
    assert subject.units("fc") == ["fc:0", "fc:1", "fc:2"]
    assert str(subject.unit("fc:bee")) == "fc:1"
    assert subject.label("fc:1") == "fc:1 bee"
    assert subject.label("conv2:5") == "conv2:5"
    assert "Subject('tiny'" in repr(subject)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("conv9:3", ["conv9", "did you mean", "conv2", "fc"]),
        ("fc:17", ["fc:17", "0 to 2", "bee"]),
        ("fc:dog", ["fc:dog", "ant"]),
        ("conv2:6", ["conv2:6", "0 to 5"]),
        ("conv2:-1", ["conv2:-1", "0 to 5"]),
        ("conv2", ["'conv2'", "LAYER:INDEX"]),
        ("", ["LAYER:INDEX"]),
    ],
)
def test_a_wrong_unit_gets_a_sentence_with_the_right_ones(subject: fv.Subject, unit: str, words: list[str]) -> None:
    with pytest.raises(fv.FeatvisError) as error:
        subject.unit(unit)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_activations_stream_and_are_the_networks(subject: fv.Subject) -> None:
    images = torch.rand(5, 3, 32, 32)
    batches = list(subject.activations(images, ["conv1.0", "fc"], batch_size=2))
    assert [len(batch["fc"]) for batch in batches] == [2, 2, 1]
    with torch.no_grad():
        inputs = (images - torch.tensor(PREPROCESS.mean).view(3, 1, 1)) / 0.2
        torch.testing.assert_close(torch.cat([b["fc"] for b in batches]), subject.network(inputs))
        torch.testing.assert_close(torch.cat([b["conv1.0"] for b in batches]), subject.network.conv1[0](inputs))
    torch.testing.assert_close(torch.cat(list(subject.logits(images))), torch.cat([b["fc"] for b in batches]))
    assert not any(module._forward_hooks for module in subject.network.modules())


class Rows(nn.Module):
    """Makes rows of its maps by `view`, as many older networks do: that needs channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4 * 15 * 15, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.fc(x.view(x.shape[0], -1))


class Grouped(Rows):
    """Takes channels last from one image, but not from two."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        n, c, h, w = x.shape
        return self.fc(x.view(n * c, h * w).view(n, -1))


class Contiguous(Rows):
    """Takes any image, but not weights with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.contiguous()).relu()
        return self.fc(x.view(x.shape[0], -1))


@pytest.mark.parametrize("kind", [Rows, Grouped, Contiguous])
def test_images_come_channels_last_where_the_network_takes_them_so(subject: fv.Subject, kind: type[nn.Module]) -> None:
    assert subject.memory_format == torch.channels_last
    assert subject.prepared(torch.rand(2, 3, 32, 32)).is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    network = kind()
    old = fv.load(network, preprocess=PREPROCESS, classes=("ant", "bee", "cow"), device="cpu")
    assert old.memory_format == torch.contiguous_format
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        expected = network(PREPROCESS(images))
    torch.testing.assert_close(torch.cat(list(old.logits(images))), expected)
    torch.testing.assert_close(next(old.activations(images, ["fc"]))["fc"], expected)
    pictures = fv.render(old, ["conv:1", "fc:0"], steps=8, progress=False)
    assert (pictures.activation[:, 0] > pictures.curve[:, 0, 0]).all()


def test_activations_before_gradients_do_no_harm(subject: fv.Subject) -> None:
    # Constants made in inference mode must not end up in a backward pass.
    next(subject.activations(torch.rand(1, 3, 32, 32), ["fc"]))
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert torch.autograd.grad(subject.preprocess(x).sum(), x)[0].isfinite().all()


def test_fingerprint_knows_weights_and_preprocessing(subject: fv.Subject) -> None:
    torch.manual_seed(0)
    same = fv.load(Tiny(), preprocess=PREPROCESS, classes=("ant", "bee", "cow"), device="cpu")
    assert same.fingerprint == subject.fingerprint
    other = fv.load(Tiny(), preprocess=PREPROCESS, classes=("ant", "bee", "cow"), device="cpu")
    preprocess = fv.Preprocess((32, 32))
    third = fv.load(subject.network, preprocess=preprocess, classes=("ant", "bee", "cow"), device="cpu")
    assert len({subject.fingerprint, other.fingerprint, third.fingerprint}) == 3


def message(call, *arguments, **options) -> str:
    with pytest.raises(fv.FeatvisError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_names_and_missing_preprocessing() -> None:
    assert "googelnet" in message(fv.load, "googelnet")
    assert "preprocess" in message(fv.load, Tiny())
    assert "2 class names" in message(fv.load, Tiny(), preprocess=PREPROCESS, classes=("ant", "bee"))
    assert {"googlenet", "resnet50", "vit_b_16"} <= set(torchvision_names())


def test_a_size_that_the_network_cannot_take() -> None:
    assert "2 x 2" in message(fv.load, Tiny(), preprocess=fv.Preprocess((2, 2)))


def test_torchvision_subjects_bring_size_normalization_and_classes() -> None:
    subject = fv.load("resnet18", weights="random", device="cpu")
    assert subject.preprocess == fv.Preprocess((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert subject.label("fc:1") == "fc:1 goldfish"
    assert subject.blocks[0] == "conv1"
    assert subject.blocks[-1] == "fc"
    assert subject.fingerprint == fv.load("resnet18", weights="random", device="cpu").fingerprint


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back_from_a_file(subject: fv.Subject, tmp_path: Path, suffix: str) -> None:
    file, state = tmp_path / f"weights{suffix}", subject.network.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    loaded = fv.load(Tiny(), file, preprocess=PREPROCESS, classes=("ant", "bee", "cow"), device="cpu")
    assert loaded.fingerprint == subject.fingerprint


class Malicious:
    """Unpickling this writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("way", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_in_a_weights_file_is_never_executed(tmp_path: Path, way: str, suffix: str) -> None:
    bad, proof = tmp_path / f"bad{suffix}", tmp_path / "executed"
    state = {"fc.weight": Malicious(proof)}
    torch.save(state, bad) if way == "torch" else bad.write_bytes(pickle.dumps(state))
    assert bad.name in message(read_weights, bad)
    assert not proof.exists()
    with bad.open("rb") as file:  # the trap works where nobody takes care
        torch.load(file, weights_only=False) if way == "torch" else pickle.load(file)
    assert proof.exists()


def test_damaged_and_foreign_weights(subject: fv.Subject, tmp_path: Path) -> None:
    state = subject.network.state_dict()
    for name, save in (("w.safetensors", save_file), ("w.pth", torch.save)):
        whole, cut_short, empty = tmp_path / name, tmp_path / f"short-{name}", tmp_path / f"empty-{name}"
        save(state, whole)
        cut_short.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        empty.touch()
        for file in (cut_short, empty):
            assert file.name in message(read_weights, file)
    assert "no weights file" in message(read_weights, tmp_path / "nowhere.pth")
    assert "no weights file" in message(read_weights, tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "state dict" in message(read_weights, tmp_path / "list.pth")
    text = message(fit, Tiny(), {"fc.weight": torch.zeros(9, 9), "head.bias": torch.zeros(1)}, "w.pth")
    assert all(word in text for word in ("w.pth", "Tiny", "missing", "head.bias", "fc.weight (9, 9) for (3, 6)"))
    before = {key: value.clone() for key, value in subject.network.state_dict().items()}
    message(fit, subject.network, {**state, "fc.weight": torch.zeros(9, 9)}, "w.pth")
    assert all(torch.equal(before[key], value) for key, value in subject.network.state_dict().items())


def test_photonet_refuses_weights_of_another_network(subject: fv.Subject, tmp_path: Path) -> None:
    save_file(subject.network.state_dict(), tmp_path / "tiny.safetensors")
    assert "PhotoNet" in message(fv.load, "photonet", weights=tmp_path / "tiny.safetensors")


def test_downloaded_weights_are_held_against_their_checksum(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "googlenet-1378be20.pth"
    file.write_bytes(b"cut short")
    text = message(fv.load, "googlenet")
    assert all(word in text for word in (file.name, "not 1378be20", "https://download.pytorch.org/models/"))
    file.unlink()

    def another(url: str, *_given, **_options) -> None:
        raise RuntimeError('invalid hash value (expected "1378be20", got "00")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", another)
    assert all(word in message(fv.load, "googlenet") for word in ("invalid hash value", "by other means", file.name))


def test_torchvision_s_downloader_checks_a_file_before_it_is_used(tmp_path: Path, monkeypatch) -> None:
    """The real downloader, on a file of this machine: what does not match is refused, and nothing of it stays."""
    source = tmp_path / "googlenet-1378be20.pth"
    source.write_bytes(b"not these weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    entry = fv.zoo.torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    download = torch.hub.download_url_to_file
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda _url, *given, **options: download(source.as_uri(), *given, **options)
    )
    assert 'expected "1378be20"' in message(fv.load, "googlenet")
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
    assert entry.url.endswith(source.name)
