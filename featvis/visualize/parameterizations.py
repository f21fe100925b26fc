"""How an image is written as numbers that gradient ascent may move.

Each parameterization has `start(generators, size, image)` -> parameters and `image(parameters, size)` -> (n, 3, h, w)
in [0, 1]. The Fourier form and its constants are Lucid's (Olah et al. 2017), the fixed magnitude is MACO's (Fel et al.
2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.images import NaturalImages

Size = tuple[int, int]


class Parameterization(Protocol):
    """An image as numbers; `rate` is the step size of Adam that suits them."""

    @property
    def rate(self) -> float: ...
    def start(self, generators: Sequence[torch.Generator], size: Size, image: Tensor | None = None) -> Tensor:
        """Parameters (n, ...) for n images, one generator each, near `image` (n, 3, h, w) if that is given."""
        ...

    def image(self, parameters: Tensor, size: Size) -> Tensor:
        """(n, ...) -> images (n, 3, h, w) in [0, 1]."""
        ...


@lru_cache(maxsize=8)
def colour_matrix(device: torch.device | str = "cpu") -> Tensor:
    """(3, 3), from decorrelated channels to RGB: Lucid's root of ImageNet's colour covariance, max column norm 1."""
    root = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    return (root / root.norm(dim=0).max()).to(device)


def recolour(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels of (n, 3, h, w) by a (3, 3) matrix, as one matmul."""
    return (matrix @ x.flatten(2)).view_as(x)


def _noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    # Drawn on the CPU, image by image: the same start on every device and in every batch.
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _logits(image: Tensor, decorrelate: bool) -> Tensor:
    x = torch.logit(image.clamp(0.01, 0.99))
    return recolour(x, torch.linalg.inv(colour_matrix()).to(x)) if decorrelate else x


@dataclass(frozen=True)
class Pixels:
    """One number a pixel and channel, through a sigmoid; naive unless `decorrelate`s colours."""

    decorrelate: bool = False
    deviation: float = 0.01
    rate: float = 0.05

    def start(self, generators: Sequence[torch.Generator], size: Size, image: Tensor | None = None) -> Tensor:
        noise = self.deviation * _noise(generators, (3, *size))
        return noise if image is None else noise + _logits(image.cpu(), self.decorrelate)

    def image(self, parameters: Tensor, size: Size) -> Tensor:
        x = recolour(parameters, colour_matrix(parameters.device)) if self.decorrelate else parameters
        return torch.sigmoid(x)


@lru_cache(maxsize=16)
def _frequency_scale(size: Size, decay: float, device: torch.device | str) -> Tensor:
    # (h, w // 2 + 1, 1); the 4 is Lucid's.
    height, width = size
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    return (0.25 / frequency.clamp(min=1 / max(size)) ** decay)[..., None].to(device)


@dataclass(frozen=True)
class Fourier:
    """Real and imaginary parts of the spectrum, low frequencies weighted up by 1 / frequency ** `decay`.

    Lucid's decay is 1; 1.4 reaches higher activations in as many steps and shows shapes more clearly.
    """

    decorrelate: bool = True
    deviation: float = 0.01
    decay: float = 1.4
    rate: float = 0.05

    def start(self, generators: Sequence[torch.Generator], size: Size, image: Tensor | None = None) -> Tensor:
        height, width = size
        noise = self.deviation * _noise(generators, (3, height, width // 2 + 1, 2))
        if image is None:
            return noise
        spectrum = torch.fft.rfft2(_logits(image.cpu(), self.decorrelate), norm="ortho")
        return noise + torch.view_as_real(spectrum) / _frequency_scale(size, self.decay, "cpu")

    def image(self, parameters: Tensor, size: Size) -> Tensor:
        spectrum = torch.view_as_complex(parameters * _frequency_scale(size, self.decay, parameters.device))
        x = torch.fft.irfft2(spectrum, s=size, norm="ortho")
        return torch.sigmoid(recolour(x, colour_matrix(x.device)) if self.decorrelate else x)


@dataclass(frozen=True)
class Maco:
    """Phase only: the magnitude of every frequency is that of natural images, in decorrelated colours (MACO).

    `magnitude` is (3, h, w // 2 + 1), from `mean_magnitude(natural)`. Phases are standardized, as in the paper; those
    of a given image have another spread, and are taken as they are.
    """

    magnitude: Tensor = field(repr=False)
    rate: float = 0.1

    def start(self, generators: Sequence[torch.Generator], size: Size, image: Tensor | None = None) -> Tensor:
        height, width = size
        if self.magnitude.shape != (3, height, width // 2 + 1):
            raise FeatvisError(
                f"the magnitude of shape {tuple(self.magnitude.shape)} belongs to another image size than {height} x "
                f"{width}; make it with mean_magnitude from natural images of that size."
            )
        if image is None:
            return _noise(generators, (3, height, width // 2 + 1))
        # The last dimension says that these phases are an image's own.
        return torch.fft.rfft2(_logits(image.cpu(), True), norm="ortho").angle()[..., None]

    def image(self, parameters: Tensor, size: Size) -> Tensor:
        if parameters.dim() == 5:
            phase = parameters[..., 0]
        else:
            mean, std = parameters.mean((1, 2, 3), keepdim=True), parameters.std((1, 2, 3), keepdim=True)
            phase = (parameters - mean) / (std + 1e-4)
        x = torch.fft.irfft2(torch.polar(self.magnitude.to(phase).expand_as(phase), phase), s=size, norm="ortho")
        x = x - x.mean((2, 3), keepdim=True)
        x = x / (x.std((1, 2, 3), keepdim=True) + 1e-4)
        return torch.sigmoid(recolour(x, colour_matrix(x.device)))


def mean_magnitude(natural: NaturalImages | Iterable[Tensor], most: int = 2000) -> Tensor:
    """The mean magnitude spectrum (3, h, w // 2 + 1) of natural images, in decorrelated colours before the sigmoid."""
    total, count = torch.zeros(()), 0
    batches = natural.batches(100) if hasattr(natural, "batches") else natural
    for batch in batches:
        images = batch[0] if isinstance(batch, tuple) else batch
        total = total + torch.fft.rfft2(_logits(images, True), norm="ortho").abs().sum(0)
        count += len(images)
        if count >= most:
            break
    return total / count
