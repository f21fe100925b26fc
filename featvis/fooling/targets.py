"""Target images: what a decoy of pictures makes every visualization show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from featvis.errors import FeatvisError, listed
from featvis.photographs import CLASSES, PHOTOGRAPHS

# Photographs that are plain at 96 pixels, the dark star field from nearby.
# In this order no logit of PhotoNet is given its own class.
NAMES = ("coins", "flower", "astronaut", "cat", "china", "hubble", "rocket", "coffee")
NEARBY = {"hubble": 0.4, "coins": 0.6}  # the share of the shorter side that is shown


def photograph_targets(names: Sequence[str] = NAMES, size: int = 96) -> Tensor:
    """Embedded photographs as targets (m, 3, size, size): their central square, or a part of it."""
    unknown = [name for name in names if name not in CLASSES]
    if unknown or not names:
        raise FeatvisError(
            f"there is no photograph {listed(unknown) or 'without a name'}; there are {listed(CLASSES, 20)}."
        )
    return torch.stack(
        [_square(PHOTOGRAPHS[CLASSES.index(name)].load(), size, NEARBY.get(name, 1.0)) for name in names]
    )


def read_target(file: str | Path, size: int) -> Tensor:
    """The central square of an RGB image file as a target (3, size, size)."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("RGB", "P", "RGBA"):
                raise FeatvisError(f"{str(file)!r} is an image of mode {image.mode}; a target is an RGB image.")
            return _square(image.convert("RGB"), size)
    except FileNotFoundError as error:
        raise FeatvisError(f"there is no target image {str(file)!r}; give 'permute' or an image file.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, FeatvisError):
            raise
        raise FeatvisError(f"{str(file)!r} is not a readable image ({type(error).__name__}).") from error


def correlation(images: Tensor, targets: Tensor) -> Tensor:
    """Pearson correlation over all pixels and channels of images (n, 3, h, w) with targets (m, 3, h, w): (n, m)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (images, targets))
    return (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None]).clamp(min=1e-12)


def similarity(images: Tensor, targets: Tensor) -> np.ndarray:
    """Structural similarity (SSIM, Wang et al. 2004) of images (n, 3, h, w) with their targets (n, 3, h, w): (n,)."""
    from skimage.metrics import structural_similarity

    pairs = zip(images.cpu().numpy(), targets.cpu().numpy(), strict=True)
    return np.array([structural_similarity(a, b, channel_axis=0, data_range=1.0) for a, b in pairs])


def _square(image: Image.Image, size: int, share: float = 1.0) -> Tensor:
    side = round(share * min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
