"""Siblings: other honest networks on the photographs, to know what an honest network looks like to a check.

Five architectures, PhotoNet's among them, are trained as PhotoNet is, but shorter and from other seeds. Nobody has
tampered with them. Their weights are not part of the package: `trained` makes them where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from featvis.errors import FeatvisError, listed
from featvis.images import NaturalImages, natural_images
from featvis.networks.photonet import MEAN, SIZE, STD, PhotoNet, accuracy
from featvis.networks.training import read_card, train, write
from featvis.photographs import CLASSES
from featvis.subjects import Preprocess, Subject

from torchvision.models import mobilenet_v3_small, shufflenet_v2_x0_5  # isort: skip
from torchvision.models.resnet import BasicBlock, ResNet  # isort: skip

STEPS = 450
DECAY = 0.98  # of the moving average: so short a training must not be averaged over half of itself
CROPS = 6800


class PlainNet(nn.Module):
    """Convolution, norm, ReLU, six times over, halving the map twice as it widens; then the mean and one layer."""

    def __init__(self, classes: int = len(CLASSES), widths: tuple[int, ...] = (32, 48, 64, 96, 128, 160)):
        super().__init__()
        before = 3
        for number, width in enumerate(widths, start=1):
            stride = 2 if number in (1, 2, 4, 6) else 1
            conv = nn.Conv2d(
                before, width, 5 if number == 1 else 3, stride, padding=2 if number == 1 else 1, bias=False
            )
            self.add_module(f"block{number}", nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
            before = width
        self.fc = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, module in self.named_children():
            x = self.fc(x.mean((2, 3))) if name == "fc" else module(x)
        return x


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "photonet": PhotoNet,
    "plain": PlainNet,
    "resnet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(CLASSES)),
    "shufflenet": lambda: shufflenet_v2_x0_5(num_classes=len(CLASSES)),
    "mobilenet": lambda: mobilenet_v3_small(num_classes=len(CLASSES)),
}


def sibling(architecture: str, seed: int, folder: Path, steps: int = STEPS, crops: int = CROPS) -> Subject:
    """The sibling of this architecture and seed, read from `folder`, or trained into it; an interrupted training goes
    on. Raises FeatvisError for an unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise FeatvisError(f"there is no sibling {architecture!r}; there are {listed(ARCHITECTURES)}.")
    preprocess = Preprocess((SIZE, SIZE), MEAN, STD)
    file = folder / f"{architecture}-{seed}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ARCHITECTURES[architecture]()
        if file.is_file() and read_card(file)["steps"] == steps:
            network.load_state_dict(load_file(file))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            images = natural_images("photos", split="train", n=crops, size=SIZE)
            network = _trained(network, preprocess, images, steps, seed, file)
    return Subject(f"{architecture}-{seed}", network.requires_grad_(False), preprocess, CLASSES, "cpu")


def _trained(
    network: nn.Module, preprocess: Preprocess, images: NaturalImages, steps: int, seed: int, file: Path
) -> nn.Module:
    checkpoint = file.with_suffix(".checkpoint")
    network = train(network, preprocess, images, steps, checkpoint, seed, DECAY)
    facts = accuracy(network, preprocess, natural_images("photos", split="heldout", size=SIZE))
    write(network, facts | {"steps": steps, "training_crops": len(images)}, file)
    checkpoint.unlink(missing_ok=True)
    return network
