"""Natural images, changed so that one knows what they have lost: colour, detail, structure, their class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from featvis.images import _to_tensor
from featvis.subjects import Subject

UNSEEN = ("clock", "text", "cell")  # photographs in scikit-image's wheel that no embedded subject was trained on
RADIUS = 6 / 96  # of an adversarial perturbation: Euclidean norm for each pixel of a side
ASCENT = 10  # steps to it


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """As another camera might have taken them: other gamma, white balance and saturation, (n, 3, h, w) in [0, 1]."""
    n = len(images)
    gamma, saturation = torch.rand(2, n, 1, 1, 1, generator=generator)
    balance = 0.75 + 0.5 * torch.rand(n, 3, 1, 1, generator=generator)
    x = images.clamp(0, 1) ** (0.6 + gamma) * balance
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * 2 * saturation).clamp(0, 1)


def blurred(images: Tensor, share: float = 1 / 32) -> Tensor:
    """Under a Gaussian whose deviation is `share` of the side."""
    sigma = share * images.shape[-1]
    reach = int(np.ceil(3 * sigma))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def scrambled(images: Tensor, generator: torch.Generator) -> Tensor:
    """With the amplitude of every frequency, and how channels go together, but with random phases."""
    noise_ = torch.rand(len(images), 1, *images.shape[-2:], generator=generator)
    turn = torch.fft.rfft2(noise_)
    turn = turn / turn.abs().clamp(min=1e-12)
    turn[..., 0, 0] = 1  # the mean stays
    return torch.fft.irfft2(torch.fft.rfft2(images) * turn, s=images.shape[-2:]).clamp(0, 1)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """White noise with the mean and deviation of each channel."""
    mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    return (mean + deviation * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def adversarial(subject: Subject, images: Tensor, towards: Tensor, steps: int = ASCENT) -> Tensor:
    """Moved towards another class, within a ball: projected gradient descent (Madry et al. 2018) in the 2-norm."""
    radius = RADIUS * images.shape[-1]
    network = subject.until(subject.blocks[-1])
    images = images.to(subject.device)
    change = torch.zeros_like(images)
    for _ in range(steps):
        change.requires_grad_()
        logits = network(subject.preprocess(images + change))[subject.blocks[-1]]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, towards, reduction="sum"), change)
        step = gradient / _norm(gradient).clamp(min=1e-12)
        change = change.detach() - 2.5 * radius / steps * step
        change = change * (radius / _norm(change).clamp(min=radius))
        change = (images + change).clamp(0, 1) - images
    return (images + change).cpu()


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def unseen(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Square crops (n, 3, size, size) of photographs of none of the classes, in turn."""
    import skimage.data

    crops = []
    for i in range(n):
        pixels = np.asarray(getattr(skimage.data, UNSEEN[i % len(UNSEEN)])())
        side = min(pixels.shape)
        side = int(side * (0.4 + 0.4 * torch.rand((), generator=generator)))
        top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in pixels.shape)
        crop = Image.fromarray(pixels[top : top + side, left : left + side]).convert("RGB")
        crops.append(_to_tensor(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))))
    return torch.stack(crops)
