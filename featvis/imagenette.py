"""Imagenette (Howard 2019): 13,394 photographs of ten easily told classes of ImageNet, by torchvision's downloader.

They are looked for in the folder that FEATVIS_IMAGENETTE names, as torchvision keeps them. Without it torchvision
downloads them, once, and checks the archive's checksum.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featvis._torchvision import torchvision
from featvis.errors import FeatvisError, listed, reason
from featvis.images import FolderImages

FOLDER = "FEATVIS_IMAGENETTE"
VARIANT = "320px"  # the shorter side; networks on ImageNet see 224 pixels
_PARTS = {"train": "train", "heldout": "val", "val": "val"}


class ImagenetteImages(FolderImages):
    """The image files, with the classes' names as ImageNet's networks call them."""

    def __init__(self, folder: Path, part: str, n: int | None, size: int):
        super().__init__(folder, n, size)
        self.name, self._part, self._asked = f"imagenette-{part}", part, n
        names = torchvision.datasets.Imagenette._WNID_TO_CLASS
        self.classes = tuple(names[wnid][0] if wnid in names else wnid for wnid in self.classes)

    @property
    def recipe(self) -> dict[str, Any]:
        options = {"source": "imagenette", "split": self._part, "n": self._asked, "size": self.size}
        return options | {"fingerprint": self.fingerprint}


def imagenette(split: str = "heldout", n: int | None = None, size: int = 224) -> ImagenetteImages:
    """The images of "train" or of "heldout" (also "val"), or a fixed random choice of `n`.

    Raises FeatvisError for an unknown split and where there is no Imagenette.
    """
    if split not in _PARTS:
        raise FeatvisError(f"imagenette has no split {split!r}; there are {listed(_PARTS)}.")
    given = os.environ.get(FOLDER)
    root = Path(given or Path.home() / ".cache" / "featvis" / "imagenette").expanduser()
    part = _PARTS[split]
    url = torchvision.datasets.Imagenette._ARCHIVES[VARIANT][0]
    try:
        found = torchvision.datasets.Imagenette(root, part, VARIANT, download=not given)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        where = f"{str(root)!r} holds none" if given else f"it could not be downloaded: {reason(error)}"
        raise FeatvisError(
            f"there is no Imagenette ({where}); fetch {url} by other means, unpack it and set {FOLDER} to the folder "
            f"that holds {Path(url).stem}."
        ) from error
    return ImagenetteImages(Path(found._image_root), part, n, size)
