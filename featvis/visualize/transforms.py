"""What is done to an image before the network sees it, so that a visualization survives small changes.

A transform draws its random numbers once, before the first step (`draw` -> (steps, n, numbers)), image by image, and
applies one row of them at each step: no image depends on its batch, nothing is drawn inside the loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Transform(Protocol):
    """A random change of images."""

    def draw(self, generators: Sequence[torch.Generator], steps: int) -> Tensor:
        """The random numbers (steps, n, numbers) of n images, one generator each, uniform in [0, 1)."""
        ...

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] -> (n * views, 3, h, w), with one row (n, numbers)."""
        ...


def _uniform(generators: Sequence[torch.Generator], steps: int, numbers: int) -> Tensor:
    return torch.stack([torch.rand(steps, numbers, generator=g) for g in generators], dim=1)


def _resample(images: Tensor, across: Tensor, down: Tensor, shift: Tensor) -> Tensor:
    """Read images (n, c, h, w) at shift + x * across + y * down, each (n, 2), for x and y from -1 to 1.

    As `affine_grid` and `grid_sample` would, but the grid is one sum of a row and a column instead of a matmul.
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(1 - side, side, 2, device=images.device) / side for side in (width, height))
    row = x[:, None] * across[:, None]
    column = y[:, None] * down[:, None] + shift[:, None]
    return F.grid_sample(images, (row[:, None] + column[:, :, None]).to(images.dtype), align_corners=False)


@dataclass(frozen=True)
class Nothing:
    """No transform at all."""

    def draw(self, generators: Sequence[torch.Generator], steps: int) -> Tensor:
        return torch.zeros(steps, len(generators), 0)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images


@dataclass(frozen=True)
class Affine:
    """Jitter, scale and rotation, composed into ONE resampling; outside of the image lies grey.

    `jitter` is in pixels of an image of 224 (two draws are added, as Lucid's two jitters are), `scale` the largest
    change of size, `degrees` the largest rotation. Defaults are Lucid's as the paper used them: jitter 8 and 4,
    scale 0.9 to 1.1, rotation -10 to 10 degrees, a quarter of the images not rotated.
    """

    jitter: tuple[float, float] = (8.0, 4.0)
    scale: float = 0.1
    degrees: float = 10.0
    unrotated: float = 0.25

    def draw(self, generators: Sequence[torch.Generator], steps: int) -> Tensor:
        return _uniform(generators, steps, 6)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        r = 2 * numbers - 1
        # grid_sample's coordinates span 2 over the image's side: a pixel of 224 is 2 / 224 of it.
        shift = (r[:, 0:2] * self.jitter[0] + r[:, 2:4] * self.jitter[1]) * (2 / 224)
        size = 1 / (1 + self.scale * r[:, 4])
        turn = (numbers[:, 5] - self.unrotated).clamp(min=0) / (1 - self.unrotated) * 2 - 1
        angle = torch.where(numbers[:, 5] < self.unrotated, 0.0, turn) * math.radians(self.degrees)
        cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
        aspect = width / height
        across = torch.stack([cos, sin * aspect], 1)
        down = torch.stack([-sin / aspect, cos], 1)
        # Zero padding around (image - 0.5) is grey padding around the image.
        return _resample(images - 0.5, across, down, shift) + 0.5


@dataclass(frozen=True)
class Crops:
    """`views` random square crops with noise, resized to the image's size: MACO's augmentation (Fel et al. 2023).

    Made for large images; for small ones, whose crops a network sees magnified, `Affine` is the better choice.

    Crop sides are `smallest` to `largest` of the image's; centres lie around the middle; `noise` is the deviation of
    Gaussian noise and the half-width of uniform noise.
    """

    views: int = 8
    smallest: float = 0.4
    largest: float = 0.9
    noise: float = 0.05

    def draw(self, generators: Sequence[torch.Generator], steps: int) -> Tensor:
        return _uniform(generators, steps, 4 * self.views)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        r = numbers.view(len(images) * self.views, 4)
        side = self.smallest + (self.largest - self.smallest) * r[:, 0]
        centre = (2 * r[:, 1:3] - 1) * (1 - side)[:, None]
        zero = torch.zeros_like(side)
        across, down = torch.stack([side, zero], 1), torch.stack([zero, side], 1)
        views = _resample(images.repeat_interleave(self.views, 0), across, down, centre)
        if not self.noise:
            return views
        # Seeded by each image's own numbers: a run repeats, and no image depends on its batch.
        own = numbers.view(len(images), self.views, 4)[:, :, 3].double().sum(1).mul(1e6).long().tolist()
        generators = [torch.Generator(images.device).manual_seed(number) for number in own]
        return views + self.noise * torch.cat([self._noise(generator, views) for generator in generators])

    def _noise(self, generator: torch.Generator, like: Tensor) -> Tensor:
        """Gaussian and uniform noise for the views of one image."""
        shape = (self.views, *like.shape[1:])
        gauss = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
        return gauss + torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype) * 2 - 1
