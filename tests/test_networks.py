"""PhotoNet: layer names, the committed weights against fresh held-out crops, a recipe that resumes."""

from __future__ import annotations

import json

import pytest
import torch

import featvis as fv
from featvis.networks import photonet, training


def test_layer_names_are_googlenets():
    google = fv.load("googlenet", weights="random", device="cpu")
    subject = fv.load("photonet", device="cpu")
    assert subject.blocks == google.blocks
    assert "inception5a.branch2.1" in subject.layers
    assert photonet.WEIGHTS.stat().st_size < 3_000_000


def test_the_committed_weights_do_what_their_card_says():
    subject, card = fv.load("photonet"), photonet.card()
    assert card["heldout_crops"] >= 5000
    assert card["ci_low"] < card["accuracy"] < card["ci_high"]
    again = photonet.accuracy(subject.network, subject.preprocess, fv.natural_images("photos", n=850))
    assert abs(again["accuracy"] - card["accuracy"]) < 0.03
    assert card["parameters"] == sum(p.numel() for p in subject.network.parameters())


def test_hardly_a_channel_is_dead():
    subject = fv.load("photonet")
    images = torch.cat([batch for batch, _, _ in fv.natural_images("photos", n=510).batches(64)])
    layers = [layer for layer in subject.blocks if layer != "fc"]
    alive = {layer: torch.zeros(subject.channels(layer), dtype=torch.bool) for layer in layers}
    for found in subject.activations(images, layers):
        for layer in layers:
            alive[layer] |= (found[layer] > 0).any(3).any(2).any(0)
    dead = sum(int((~flags).sum()) for flags in alive.values())
    assert dead <= 0.02 * sum(len(flags) for flags in alive.values())


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_smoothing_is_the_mean_of_nine_pixels(mode):
    images = torch.rand(2, 3, 9, 12)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode=mode)
    torch.testing.assert_close(training.smoothed(images, mode), torch.nn.functional.avg_pool2d(padded, 3, 1))


def test_augmented_images_stay_images():
    images = torch.rand(8, 3, 32, 32)
    moved = training.augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert 0 <= moved.min() <= moved.max() <= 1
    assert torch.equal(moved, training.augment(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(moved, training.augment(images, torch.Generator().manual_seed(1)))


def test_adversarial_images_are_near_and_worse():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5))
    images, labels = torch.rand(32, 3, 16, 16) * 0.5 + 0.25, torch.randint(5, (32,))
    preprocess = fv.Preprocess((16, 16))
    moved = training.adversarial(network, preprocess, images, labels, torch.Generator().manual_seed(0))
    distance = (moved - images).flatten(1).norm(dim=1)
    assert (distance <= 1.5 * training.RADIUS + 1e-5).all()
    loss = torch.nn.functional.cross_entropy
    assert loss(network(moved), labels) > loss(network(images), labels)


def test_the_recipe_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    images = fv.natural_images("photos", split="train", n=17, size=32)
    preprocess = fv.Preprocess((32, 32))

    def start():
        torch.manual_seed(0)
        return photonet.PhotoNet()

    whole = training.train(start(), preprocess, images, 4, tmp_path / "a.checkpoint")
    monkeypatch.setattr(training, "augment", interrupting(training.augment, after=3))
    with pytest.raises(KeyboardInterrupt):
        training.train(start(), preprocess, images, 4, tmp_path / "b.checkpoint")
    monkeypatch.undo()
    monkeypatch.setattr(training, "BATCH", 4)
    torch.manual_seed(123)  # another process
    resumed = training.train(start(), preprocess, images, 4, tmp_path / "b.checkpoint")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def interrupting(function, after):
    calls = []

    def call(*given):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*given)

    return call


def test_the_command_writes_weights_and_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 34, "heldout": 34, "all": 34})
    out = tmp_path / "net.safetensors"
    photonet.main(["--steps", "2", "--crops", "34", "--out", str(out)])
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert fv.load("photonet", weights=out).classes == fv.load("photonet").classes
    assert not out.with_suffix(".checkpoint").exists()
