"""CIFAR-10 in a folder or from torchvision, and CifarNet: its layers, its recipe, its committed weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featvis as fv
from featvis import cifar, cli, fresh
from featvis.networks import cifarnet

AT_HAND = cifar.at_hand()
needs_weights = pytest.mark.skipif(not cifarnet.WEIGHTS.is_file(), reason="CIFARNET HAS NO WEIGHTS YET: nothing tested")
needs_cifar10 = pytest.mark.skipif(not AT_HAND, reason=f"CIFAR-10 IS NOT AT HAND: set {cifar.FOLDER} to test with it")


def pictures(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three test and four training images of each class, as PNG so that pixels can be compared."""
    for part, n in (("train", 4), ("test", 3)):
        for label, name in enumerate(cifar.CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for i, pixels in enumerate(pictures(label, n)):
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i:04}.png")
    monkeypatch.setenv(cifar.FOLDER, str(tmp_path))
    return tmp_path


@pytest.fixture
def batches(tmp_path, monkeypatch) -> Path:
    """What torchvision keeps, with ten images a file."""
    root = tmp_path / "tv"
    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    data_set = cifar.torchvision.datasets.CIFAR10
    for number, (name, _) in enumerate([*data_set.train_list, *data_set.test_list]):
        rows = pictures(number, 10).transpose(0, 3, 1, 2).reshape(10, -1)
        (base / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(10))}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar.CLASSES)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setenv(cifar.FOLDER, str(root))
    return root


def test_a_folder_of_files(folder):
    heldout = fv.natural_images("cifar10", size=32)
    assert (heldout.name, len(heldout), heldout.classes) == ("cifar10-test", 30, cifar.CLASSES)
    image, label, id = heldout[7]
    assert (label, id) == (2, "bird/0001.png")
    expected = torch.from_numpy(pictures(2, 3)[1]).permute(2, 0, 1) / 255
    assert torch.equal(image, expected)  # nothing cropped, nothing resampled
    assert torch.equal(heldout.image(id), image)
    assert len(fv.natural_images("cifar10", split="train", size=32)) == 40
    assert fv.natural_images("cifar10", split="test", size=32).fingerprint == heldout.fingerprint
    few = fv.natural_images("cifar10", n=3, size=32)
    assert [cifar.CLASSES.index(id.split("/")[0]) for _, _, [id] in few.batches(1)] == [few[i][1] for i in range(3)]


def test_the_fingerprint_does_not_say_where_the_folder_is(folder, tmp_path_factory, monkeypatch):
    before = fv.natural_images("cifar10").fingerprint
    moved = tmp_path_factory.mktemp("elsewhere") / "pictures"
    folder.rename(moved)
    monkeypatch.setenv(cifar.FOLDER, str(moved))
    assert fv.natural_images("cifar10").fingerprint == before


def test_torchvisions_copy(batches):
    heldout = fv.natural_images("cifar10", size=32)
    assert (heldout.name, len(heldout), heldout.classes) == ("cifar10-test", 10, cifar.CLASSES)
    assert torch.equal(heldout[3][0], torch.from_numpy(pictures(5, 10)[3]).permute(2, 0, 1) / 255)
    assert heldout[3][1:] == (3, "3")
    assert len(fv.natural_images("cifar10", split="train", n=20, size=32)) == 20
    assert cifar.cifar10().origin == "torchvision's CIFAR10"
    before = heldout.fingerprint
    batches.rename(batches.with_name("moved"))
    assert cifar.cifar10(folder=batches.with_name("moved")).fingerprint == before


@pytest.mark.parametrize("options", [{"split": "train", "n": 11, "size": 32}, {"n": None, "size": 64}, {"size": 20}])
def test_a_recipe_makes_the_same_stream_again(folder, options):
    natural = fv.natural_images("cifar10", **options)
    (folder / "test" / "cat" / "0000.png").touch()
    recipe = json.loads(json.dumps(natural.recipe))
    fingerprint = recipe.pop("fingerprint")
    again = fv.natural_images(**recipe)
    assert again.fingerprint == fingerprint == natural.fingerprint
    (images, labels, ids), (images2, labels2, ids2) = next(natural.batches(50)), next(again.batches(50))
    assert ids == ids2
    assert torch.equal(images, images2)
    assert torch.equal(labels, labels2)
    assert images.shape[2:] == (natural.size, natural.size)
    assert 0 <= images.min() <= images.max() <= 1


def test_a_broken_file_is_named(folder):
    (folder / "test" / "cat" / "0001.png").write_bytes(b"no image")
    natural = fv.natural_images("cifar10")
    assert len(natural) == 29
    assert "0001.png" in natural.skipped[0]
    assert fv.natural_images("cifar10", n=natural.recipe["n"]).fingerprint == natural.fingerprint


def test_no_cifar10_is_one_sentence(tmp_path, monkeypatch):
    def offline(*_given, **_options):
        raise OSError("no route to host")

    monkeypatch.setenv(cifar.FOLDER, str(tmp_path))
    with pytest.raises(
        fv.FeatvisError, match=r"^there is no CIFAR-10 \('.*' holds none\); set FEATVIS_CIFAR10 to [^.]*"
    ):
        fv.natural_images("cifar10")
    assert not cifar.at_hand()
    monkeypatch.delenv(cifar.FOLDER)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(fv.FeatvisError, match=r"could not be downloaded: no route to host\); set FEATVIS_CIFAR10"):
        fv.natural_images("cifar10")
    with pytest.raises(fv.FeatvisError, match="no split 'val'; there are train, heldout, test"):
        fv.natural_images("cifar10", split="val")
    with pytest.raises(fv.FeatvisError, match="n=0 images"):
        fv.natural_images("cifar10", n=0)
    (tmp_path / "test" / "unicorn").mkdir(parents=True)
    Image.fromarray(pictures(0, 1)[0]).save(tmp_path / "test" / "unicorn" / "0.png")
    with pytest.raises(fv.FeatvisError, match="holds the classes unicorn; there should be airplane"):
        cifar.cifar10(folder=tmp_path)


@pytest.mark.parametrize(
    ("subject", "images", "name"),
    [("cifarnet", None, "cifar10-test"), ("photonet", "cifar10", "cifar10-test"), ("cifarnet", "photos", "photos-all")],
)
def test_the_commands_images(folder, monkeypatch, subject, images, name):
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 17, "heldout": 17, "all": 17})
    arguments = ["exemplars", subject, "fc:1", "--weights", "random", "--k", "1", "--quiet", "--out", str(folder / "o")]
    cli.main([*arguments, *([] if images is None else ["--images", images])])
    assert json.loads((folder / "o" / "report.json").read_text())["images"]["source"] == name


def test_fresh_says_that_it_skips(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(cifar.FOLDER, str(tmp_path / "nothing"))
    entries = [tmp_path / "cifarnet" / "render-0", tmp_path / "photonet" / "render-1"]
    for entry in entries:
        entry.mkdir(parents=True)
        (entry / "entry.json").write_text("{}")
    monkeypatch.setenv("FEATVIS_SHELF", str(tmp_path))
    monkeypatch.setattr(fresh, "compare", lambda *_: "")
    fresh.main(["--scratch", str(tmp_path / "scratch")])
    out = capsys.readouterr().out
    assert "skipping 1 entries of cifarnet: CIFAR-10 is not at hand (FEATVIS_CIFAR10" in out
    assert "photonet/render-1: agrees" in out
    assert "cifarnet/render-0" not in out


@pytest.fixture(scope="module")
def untrained() -> fv.Subject:
    return fv.load("cifarnet", weights="random", device="cpu")


def test_layer_names_are_resnets(untrained):
    resnet = fv.load("resnet18", weights="random", device="cpu")
    left_out = ("layer1", "layer4.1")
    assert untrained.blocks == tuple(name for name in resnet.blocks if not name.startswith(left_out))
    modules, theirs = ({n for n, _ in s.network.named_modules()} for s in (untrained, resnet))
    assert {name for name in modules if "relu" not in name} <= theirs
    assert untrained.classes == cifar.CLASSES
    assert untrained.layers["layer4.0"] == (224, 4, 4)
    assert sum(p.numel() for p in untrained.network.parameters()) <= 1_500_000  # 16-bit weights of 3 MB


@pytest.mark.parametrize("layer", ["conv1", "layer2.0.relu1", "layer3.1", "layer4.0.downsample.1", "fc"])
def test_every_layer_can_be_cut(untrained, layer):
    images = torch.rand(3, 3, 32, 32)
    cut = untrained.until(layer)
    assert cut.traced
    [hooked] = untrained.activations(images, [layer])
    torch.testing.assert_close(cut(untrained.preprocess(images))[layer], hooked[layer], rtol=1e-4, atol=1e-4)


def test_augmented_images_are_shifted_and_mirrored():
    images, no = torch.rand(40, 3, 32, 32), torch.zeros(40, dtype=torch.bool)
    moved = cifarnet.augment(images, no, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, cifarnet.augment(images, no, torch.Generator().manual_seed(0)))
    shifts = range(-cifarnet.SHIFT, cifarnet.SHIFT + 1)
    for image, new in zip(images, moved, strict=True):  # what is not at the edge is the image, moved
        inner = new[:, 4:-4, 4:-4]
        assert any(torch.equal(inner, image[:, 4 + y : 28 + y, 4 + x : 28 + x]) for y in shifts for x in shifts)
    mirrored = cifarnet.augment(images.flip(3), ~no, torch.Generator().manual_seed(0))
    assert torch.equal(mirrored, moved)
    windows = cifarnet.augment(images, no, torch.Generator().manual_seed(0), 20)
    assert windows.shape == (40, 3, 20, 20)
    for image, new in zip(images, windows, strict=True):
        places = image.unfold(1, 12, 1).unfold(2, 12, 1)
        assert (places == new[:, None, None, 4:-4, 4:-4]).all((0, 3, 4)).any()


def test_the_recipe_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(cifarnet, "BATCH", 8)
    pixels, labels = torch.from_numpy(pictures(0, 20)).permute(0, 3, 1, 2), torch.arange(20) % 10

    def trained(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network, preprocess = cifarnet.CifarNet(), fv.Preprocess((32, 32))
        return cifarnet.train(network, preprocess, pixels, labels, 3, tmp_path / name).state_dict()

    whole = trained("a.checkpoint")
    augment, calls = cifarnet.augment, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 4:  # in the second of three epochs
            raise KeyboardInterrupt
        return augment(*given)

    monkeypatch.setattr(cifarnet, "augment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained("b.checkpoint")
    again = trained("b.checkpoint")
    assert len(calls) == 8  # the first epoch's two steps are not repeated
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_the_command_writes_weights_and_card(folder, capsys):
    out = folder / "net.safetensors"
    threads = torch.get_num_threads()
    cifarnet.main(["--epochs", "1", "--data", str(folder), "--out", str(out), "--threads", str(threads)])
    card = json.loads(capsys.readouterr().out)
    assert card["epochs"] == 1
    assert card["test_images"] == 30
    assert card["data"] == "JPEG copy in a folder"
    assert set(card["by_class"]) == set(cifar.CLASSES)
    assert cifarnet.read_card(out) == card
    assert out.stat().st_size <= 3_000_000
    assert not list(out.parent.glob("*.checkpoint*"))
    subject = fv.load("cifarnet", weights=out, device="cpu")
    again = cifarnet.accuracy(subject.network, subject.preprocess, fv.natural_images("cifar10", size=32))
    assert again["accuracy"] == card["accuracy"]


@needs_weights
def test_the_committed_weights_are_small_and_good():
    card = cifarnet.card()
    assert cifarnet.WEIGHTS.stat().st_size <= 3_000_000
    assert card["test_images"] == 10_000
    assert card["accuracy"] >= 0.9
    assert card["ci_low"] < card["accuracy"] < card["ci_high"]
    network = fv.load("cifarnet", device="cpu").network
    assert card["parameters"] == sum(p.numel() for p in network.parameters())


@needs_weights
@needs_cifar10
def test_the_committed_weights_do_what_their_card_says():
    subject = fv.load("cifarnet", device="cpu")
    again = cifarnet.accuracy(subject.network, subject.preprocess, fv.natural_images("cifar10", n=1500, size=32))
    # The sample's error, and what JPEG takes from a network trained on the originals (or the other way round).
    assert abs(again["accuracy"] - cifarnet.card()["accuracy"]) < 0.03


@needs_cifar10
def test_cifar10_is_whole():
    assert len(fv.natural_images("cifar10", split="test")) == 10_000
