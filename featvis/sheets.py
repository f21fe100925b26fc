"""Many small images of one size in one WebP file: tile i stands in row i // 16, column i % 16."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

COLUMNS = 16
LOSSLESS = 101


def to_pixels(images: Tensor) -> np.ndarray:
    """(n, 3, h, w) in [0, 1] -> uint8 (n, h, w, 3)."""
    return (images.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def write(file: Path | io.BytesIO, images: Tensor, quality: int = 90, columns: int = COLUMNS) -> None:
    """Write (n, 3, h, w) images in [0, 1] as one sheet; `quality` 0 to 100, or LOSSLESS."""
    pixels = to_pixels(images)
    n, height, width, _ = pixels.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows, columns, height, width, 3), np.uint8)
    sheet.reshape(rows * columns, height, width, 3)[:n] = pixels
    picture = Image.fromarray(sheet.swapaxes(1, 2).reshape(rows * height, columns * width, 3))
    picture.save(file, "WEBP", lossless=quality >= LOSSLESS, quality=min(quality, 100), method=6)


def uri(images: Tensor, columns: int = COLUMNS, quality: int = 70) -> str:
    """(n, 3, h, w) images in [0, 1] as one sheet in a data: URI."""
    buffer = io.BytesIO()
    write(buffer, images, quality, columns)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def read(file: Path, n: int, size: tuple[int, int], columns: int = COLUMNS) -> Tensor:
    """The first `n` tiles of a sheet as (n, 3, h, w) in [0, 1]."""
    height, width = size
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    rows = pixels.shape[0] // height
    tiles = pixels.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)[:n]
    return torch.from_numpy(tiles.copy()).permute(0, 3, 1, 2).float() / 255


def write_image(file: Path, image: Tensor) -> None:
    """Write one image (3, h, w) in [0, 1]; the file's suffix says how."""
    Image.fromarray(to_pixels(image[None])[0]).save(file)
