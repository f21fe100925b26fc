"""A subject that renders in milliseconds, and natural images for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import featvis as fv


class Small(nn.Module):
    """Two convolutions and a linear layer on 32 x 32 pixels."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.BatchNorm2d(6), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.conv1(x)).mean((2, 3)))


PREPROCESS = fv.Preprocess((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def small_subject(seed: int = 0, classes: str = "abcd") -> fv.Subject:
    """The same weights for the same seed; every letter is a class."""
    torch.manual_seed(seed)
    return fv.Subject("small", Small(len(classes)), PREPROCESS, tuple(classes), "cpu")


def small_images(n: int = 51) -> fv.images.NaturalImages:
    """Crops of the photographs at 32 pixels."""
    return fv.natural_images("photos", n=n, size=32)
