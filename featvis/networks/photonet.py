"""PhotoNet: a thin GoogLeNet for 96 x 96 crops of the 17 embedded photographs.

Layer names, block structure and strides are GoogLeNet's (Szegedy et al. 2015, as in torchvision); only the
widths are smaller, and the last pooling is left out so that 5a and 5b keep a 6 x 6 map. Run
`python -m featvis.networks.photonet` to train it again; `photonet.safetensors` beside this file holds the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from featvis import _torchvision  # noqa: F401  (declares torchvision's operators before the next line)
from featvis.networks.training import hits, read_card, train, write
from featvis.subjects import Preprocess

from torchvision.models.googlenet import BasicConv2d, Inception  # isort: skip

if TYPE_CHECKING:
    from featvis.images import NaturalImages

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SIZE = 96
STEPS = 2000
MEAN, STD = (0.48, 0.41, 0.38), (0.28, 0.24, 0.25)  # of the training crops, rounded


class PhotoNet(nn.Module):
    """(n, 3, 96, 96) normalized images -> (n, classes) logits. Any input of at least 32 pixels works."""

    def __init__(self, classes: int = 17):
        super().__init__()
        self.conv1 = BasicConv2d(3, 32, kernel_size=7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv2d(32, 32, kernel_size=1)
        self.conv3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(64, 24, 24, 40, 8, 16, 16)
        self.inception3b = Inception(96, 32, 32, 64, 12, 16, 16)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(128, 40, 32, 56, 12, 16, 16)
        self.inception4b = Inception(128, 40, 32, 56, 12, 16, 16)
        self.inception4c = Inception(128, 40, 32, 56, 12, 16, 16)
        self.inception4d = Inception(128, 40, 32, 56, 12, 16, 16)
        self.inception4e = Inception(128, 48, 40, 64, 16, 24, 24)
        self.inception5a = Inception(160, 48, 48, 64, 16, 24, 24)
        self.inception5b = Inception(160, 64, 56, 80, 16, 24, 24)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(x))))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        x = self.inception4b(self.inception4a(self.maxpool3(x)))
        x = self.inception4e(self.inception4d(self.inception4c(x)))
        x = self.inception5b(self.inception5a(x))
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))


def card() -> dict:
    """What is known about the committed weights: accuracy with its interval, crops, steps, minutes."""
    return read_card(WEIGHTS)


def main(arguments: list[str] | None = None) -> None:
    """Train PhotoNet: `python -m featvis.networks.photonet [--steps N] [--out FILE]`."""
    import argparse
    import time

    from featvis.images import natural_images

    parser = argparse.ArgumentParser(prog="python -m featvis.networks.photonet", description="Train PhotoNet again.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--crops", type=int, default=10_200, help="training crops drawn from the photographs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    begin = time.monotonic()
    preprocess = Preprocess((SIZE, SIZE), MEAN, STD)
    crops = natural_images("photos", split="train", n=options.crops, size=SIZE)
    checkpoint = options.out.with_suffix(".checkpoint")
    network = train(PhotoNet(), preprocess, crops, options.steps, checkpoint, options.seed)
    heldout = natural_images("photos", split="heldout", size=SIZE)
    facts = accuracy(network, preprocess, heldout) | {
        "steps": options.steps,
        "training_crops": options.crops,
        "minutes_of_the_last_run": round((time.monotonic() - begin) / 60, 1),
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    write(network, facts, options.out)
    checkpoint.unlink(missing_ok=True)
    print(json.dumps(facts, indent=1))


def accuracy(network: nn.Module, preprocess: Preprocess, images: NaturalImages) -> dict:
    """Top-1 accuracy with a 95% interval by bootstrap over classes: crops of one photograph are not independent."""
    from scipy.stats import bootstrap

    right, labels = hits(network, preprocess, images)
    by_class = [right[labels == k].mean().item() for k in range(len(images.classes))]
    interval = bootstrap((by_class,), np.mean, method="percentile", random_state=0).confidence_interval
    return {
        "accuracy": right.mean().item(),
        "ci_low": float(interval.low),
        "ci_high": float(interval.high),
        "by_class": dict(zip(images.classes, by_class, strict=True)),
        "heldout_crops": len(right),
    }


if __name__ == "__main__":
    main()
