"""CIFAR-10 (Krizhevsky 2009): 60,000 independent natural images of 32 x 32 pixels in ten classes.

They are looked for in the folder that FEATVIS_CIFAR10 names: image files as `train/<class>/*.jpg` and
`test/<class>/*.jpg`, or what torchvision.datasets.CIFAR10 keeps. Without it torchvision downloads them, once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from featvis._torchvision import torchvision
from featvis.errors import FeatvisError, listed, reason
from featvis.images import DatasetImages, FolderImages, _digest
from featvis.streams import Stream

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "FEATVIS_CIFAR10"
SIZE = 32
_PARTS = {"train": "train", "heldout": "test", "test": "test"}


class Cifar10Images(Stream):
    """CIFAR-10's images, scaled as a whole where `size` is not 32. `origin` says where they come from."""

    def __init__(self, source: FolderImages | DatasetImages, part: str, size: int):
        super().__init__()
        self._source, self._part, self.size = source, part, size
        self.name, self.classes = f"cifar10-{part}", CLASSES
        self.skipped = list(source.skipped)
        self._asked = len(source) + len(source.skipped)
        if not set(source.classes) <= set(CLASSES):
            raise FeatvisError(
                f"the folder of CIFAR-10 holds the classes {listed(source.classes)}; there should be {listed(CLASSES)}."
            )
        self.origin = "JPEG copy in a folder" if isinstance(source, FolderImages) else "torchvision's CIFAR10"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        image, label, id = self._source[index]
        # A few files of a folder need not be of all classes, so the folder's own numbering does not count.
        return self._scaled(image), CLASSES.index(self._source.classes[label]), id

    def label(self, index: int) -> int:
        return CLASSES.index(self._source.classes[self._source.label(index)])

    def image(self, id: str) -> Tensor:
        return self._scaled(self._source.image(id))

    def _scaled(self, image: Tensor) -> Tensor:
        if self.size == SIZE:
            return image
        scaled = F.interpolate(image[None], (self.size, self.size), mode="bicubic", antialias=True)
        return scaled[0].clamp(0, 1)

    @property
    def recipe(self) -> dict[str, Any]:
        options = {"source": "cifar10", "split": self._part, "n": self._asked, "size": self.size}
        return options | {"fingerprint": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        # torchvision checks what it reads against checksums; where it lies must not count.
        folder = isinstance(self._source, FolderImages)
        images = self._source.fingerprint if folder else "torchvision"
        return _digest("cifar10", self._part, len(self), self.size, images)


def cifar10(
    split: str = "heldout", n: int | None = None, size: int = SIZE, *, folder: Path | None = None, download: bool = True
) -> Cifar10Images:
    """The 50,000 images of "train" or the 10,000 of "heldout" (also "test"), or a fixed random choice of `n`.

    `folder` stands for FEATVIS_CIFAR10. Raises FeatvisError for an unknown split and where there is no CIFAR-10.
    """
    if split not in _PARTS:
        raise FeatvisError(f"cifar10 has no split {split!r}; there are {listed(_PARTS)}.")
    if n is not None and n < 1:
        raise FeatvisError(f"n={n} images were asked for; at least 1 is needed.")
    part = _PARTS[split]
    given = folder or os.environ.get(FOLDER)
    root = Path(given or Path.home() / ".cache" / "featvis" / "cifar10").expanduser()
    if (root / part).is_dir():
        return Cifar10Images(FolderImages(root / part, n, SIZE), part, size)
    try:
        dataset = torchvision.datasets.CIFAR10(root, train=part == "train", download=download and not given)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        where = f"{str(root)!r} holds none" if given else f"it could not be downloaded: {reason(error)}"
        raise FeatvisError(
            f"there is no CIFAR-10 ({where}); set {FOLDER} to a folder with train/<class>/*.jpg and "
            "test/<class>/*.jpg, or to torchvision's with cifar-10-batches-py."
        ) from error
    return Cifar10Images(DatasetImages(dataset, n, SIZE), part, size)


def at_hand() -> bool:
    """Whether CIFAR-10 can be read without downloading it."""
    try:
        cifar10(n=1, download=False)
    except FeatvisError:
        return False
    return True
