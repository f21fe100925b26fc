"""The variety that a gate is trained on: natural images as other photographs might look, visualizations as ascent
moves them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from featvis.networks.training import smoothed
from featvis.visualize import Affine

Uniform = Callable[..., Tensor]  # (low, high) -> (n, 1, 1, 1), or the shape that follows


def photographs(images: Tensor, generator: torch.Generator) -> Tensor:
    """Natural images (n, 3, h, w) in [0, 1], changed so strongly that a few photographs stand for many.

    Neither colours nor contrast, smoothness or noise must betray a visualization, or a photograph never seen would be
    taken for one: they are turned, enlarged, recoloured, blurred or sharpened, made noisy; some lie over one another,
    some are faint.
    """
    n, uniform, some = len(images), *_draws(len(images), generator)
    images = torch.where(some(0.6), _moved(images, uniform), images)
    order = torch.eye(3)[torch.rand(n, 3, generator=generator).argsort(1)]
    mixture = uniform(0, 1, n, 3, 3)
    mixture = torch.lerp(order, mixture / mixture.sum(2, keepdim=True), uniform(0, 1, n, 1, 1) ** 2)
    images = torch.einsum("nij,njhw->nihw", mixture, images)
    soft, choice = smoothed(images), uniform(0, 1)
    sharp = images + uniform(0, 1.5) * (images - soft)
    images = torch.where(choice > 0.8, sharp, torch.where(choice < 0.2, soft, images))
    images = torch.where((choice > 0.2) & (choice < 0.35), smoothed(soft), images)
    images = coloured(images, uniform(0, 2), uniform(math.log(0.25), math.log(1.8)).exp())
    images = images + uniform(-0.25, 0.25) + uniform(-0.08, 0.08, n, 3, 1, 1)
    images = _noisy(images, some(0.5), uniform(math.log(0.003), math.log(0.15)).exp(), generator).clamp(0, 1)
    over = images[torch.randperm(n, generator=generator)] * torch.where(some(0.2), uniform(0.2, 0.8), 0)
    images = 1 - (1 - images) * (1 - over)
    faint = coloured(images, uniform(0, 1), uniform(0.05, 0.4))
    faint = faint - faint.mean((1, 2, 3), keepdim=True) + uniform(0.1, 0.9)
    return torch.where(some(0.2), faint, images).clamp(0, 1)


def visualizations(images: Tensor, generator: torch.Generator) -> Tensor:
    """Visualizations (n, 3, h, w) in [0, 1], most moved as ascent moves them, some paler or noisy."""
    uniform, some = _draws(len(images), generator)
    moved = Affine().apply(images, torch.rand(len(images), 6, generator=generator))
    images = torch.where(some(0.7), moved, images)
    images = coloured(images, uniform(0.5, 1.1), uniform(0.6, 1))
    return _noisy(images, some(0.2), uniform(0, 0.06), generator).clamp(0, 1)


def coloured(images: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Images (n, 3, h, w) with that much more of both, (n, 1, 1, 1) each; their brightness stays."""
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return mean + ((grey - mean) + (images - grey) * saturation) * contrast


def _draws(n: int, generator: torch.Generator) -> tuple[Uniform, Callable[[float], Tensor]]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*(shape or (n, 1, 1, 1)), generator=generator)

    return uniform, lambda share: uniform(0, 1) < share


def _moved(images: Tensor, uniform: Uniform) -> Tensor:
    n = len(images)
    angle, size = uniform(-0.3, 0.3, n), uniform(math.log(0.45), math.log(1.15), n).exp()
    flip, shift = uniform(-1, 1, n).sign(), uniform(-0.2, 0.2, n, 2)
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    matrix = torch.stack([cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def _noisy(images: Tensor, which: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    return images + torch.randn(images.shape, generator=generator) * torch.where(which, deviation, 0)
