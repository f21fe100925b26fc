"""Natural images as streams of (image, label, id): the embedded photographs, CIFAR-10, a folder, a data set.

Images are float tensors (3, size, size) in [0, 1]; normalization belongs to the subject.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from featvis import budget, photographs
from featvis.errors import FeatvisError, listed, reason
from featvis.streams import NaturalImages as NaturalImages
from featvis.streams import Stream

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
_BROKEN = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
PHOTO_CROPS = {"train": 6800, "heldout": 5100, "all": 11_900}  # 400, 300 and 700 crops of each photograph
HASHED = 64  # images of a data set whose pixels its fingerprint knows
OWN = ("cifar10", "imagenette")  # data sets that come in two parts
USUAL = {"photonet": "photos", "cifarnet": "cifar10"}  # subject -> source of the images that it was trained on


class PhotoCrops(Stream):
    """Crops of the 17 embedded photographs, in turn: image i is crop i // 17 of photograph i % 17.

    `split` is "train", "heldout" or "all": four training crops, then three held-out ones, and so on.
    """

    def __init__(self, split: str = "heldout", n: int | None = None, size: int = 96, seed: int = 0):
        super().__init__()
        if split not in PHOTO_CROPS:
            raise FeatvisError(f"photos have no split {split!r}; there are {listed(PHOTO_CROPS)}.")
        self.name, self.split, self.size, self.seed = f"photos-{split}", split, size, seed
        self.classes = photographs.CLASSES
        self.n = PHOTO_CROPS[split] if n is None else n
        if self.n < 1:
            raise FeatvisError(f"n={n} images were asked for; at least 1 is needed.")
        per_photograph = -(-self.n // len(self.classes))
        self._boxes = [list(islice(self._stream(p), per_photograph)) for p in range(len(self.classes))]

    def _stream(self, photograph: int) -> Iterator[tuple[int, int, int]]:
        if self.split != "all":
            yield from photographs.boxes(photograph, self.split, self.seed)
        train, heldout = (photographs.boxes(photograph, split, self.seed) for split in ("train", "heldout"))
        while True:
            yield from islice(train, 4)
            yield from islice(heldout, 3)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        number, label = divmod(index, len(self.classes))
        box = self._boxes[label][number]
        id = f"{self.classes[label]}/{box[0]},{box[1]},{box[2]}"
        return self.image(id), label, id

    def label(self, index: int) -> int:
        return index % len(self.classes)

    def image(self, id: str) -> Tensor:
        name, box = _parse(id)
        return _to_tensor(photographs.crop(self.classes.index(name), box, self.size))

    def overlap(self, first: str, second: str) -> bool:
        (name1, (x1, y1, s1)), (name2, (x2, y2, s2)) = _parse(first), _parse(second)
        if name1 != name2:
            return False
        width = min(x1 + s1, x2 + s2) - max(x1, x2)
        height = min(y1 + s1, y2 + s2) - max(y1, y2)
        return width > 0 and height > 0 and width * height > 0.4 * min(s1, s2) ** 2

    @property
    def recipe(self) -> dict[str, Any]:
        options = {"source": "photos", "split": self.split, "n": self.n, "size": self.size}
        return options | {"fingerprint": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        return _digest("photos", self.split, self.n, self.size, self.seed, photographs.SHORT_SIDE, photographs.CELL)


class FolderImages(Stream):
    """Image files below a folder; the first folder level names the class, if there is one.

    Files that are no images or smaller than the crop are left out and named in `skipped`, those that fail to
    decode as soon as they are met. Each image
    is scaled to a shorter side of 8/7 of `size` and cropped in the centre, as is usual for ImageNet.
    """

    def __init__(self, folder: str | Path, n: int | None = None, size: int = 224):
        super().__init__()
        self.folder, self.size = Path(folder), size
        self.name = self.folder.name
        if not self.folder.is_dir():
            raise FeatvisError(f"{str(folder)!r} is no folder of images; give 'photos' or a folder that exists.")
        files = sorted(f for f in self.folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if n is not None and n < len(files):  # spread over the classes, the same files every time
            order = np.random.default_rng(0).permutation(len(files))
            usable = islice((i for i in order if self._usable(files[i])), n)
            self._files = [files[i] for i in sorted(usable)]
        else:
            self._files = [f for f in files if self._usable(f)]
        if not self._files:
            found = f"its files cannot be used: {listed(self.skipped, 3)}" if self.skipped else "it holds no image file"
            raise FeatvisError(f"{str(folder)!r} has no usable image, {found}; valid are {listed(sorted(SUFFIXES))}.")
        levels = [f.relative_to(self.folder).parts for f in self._files]
        self.classes = tuple(sorted({parts[0] for parts in levels if len(parts) > 1}))
        self._labels = [self.classes.index(parts[0]) if len(parts) > 1 else -1 for parts in levels]

    def _usable(self, file: Path) -> bool:
        # Headers only: decoding all of ImageNet to find a few broken files would take longer than reading it.
        try:
            with Image.open(file) as image:
                (width, height), mode = image.size, image.mode
        except _BROKEN as error:
            self.skipped.append(f"{file.name}: not a readable image ({type(error).__name__})")
            return False
        if mode == "F":
            self.skipped.append(f"{file.name}: its pixels are fractions of an unknown range")
            return False
        if min(width, height) < self.size:
            self.skipped.append(f"{file.name}: {width} x {height} is smaller than the crop of {self.size}")
            return False
        return True

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        file = self._files[index]
        id = file.relative_to(self.folder).as_posix()
        return self.image(id), self._labels[index], id

    def label(self, index: int) -> int:
        return self._labels[index]

    def image(self, id: str) -> Tensor:
        try:
            with Image.open(self.folder / id) as image:
                return _centre_crop(ImageOps.exif_transpose(image), self.size)  # upright, as phones mean it
        except _BROKEN as error:
            raise FeatvisError(f"{id}: not a readable image ({type(error).__name__})") from error

    @cached_property  # it looks at every file
    def fingerprint(self) -> str:
        stats = [(str(f.relative_to(self.folder)), f.stat().st_size) for f in self._files]
        return _digest("folder", self.size, stats)


class DatasetImages(Stream):
    """A torchvision data set (or any sequence) of (PIL image, array or tensor in [0, 1], label).

    Images that cannot be read are left out and named in `skipped` when they are met. The fingerprint knows the text of
    the data set and the pixels of up to `HASHED` images, spread over all.
    """

    def __init__(self, dataset: Sequence[Any], n: int | None = None, size: int = 224, name: str | None = None):
        super().__init__()
        self.dataset, self.size = dataset, size
        self.name = name or type(dataset).__name__.lower()
        self.classes = tuple(str(c) for c in getattr(dataset, "classes", ()))
        total = len(dataset)
        if total == 0:
            raise FeatvisError(f"the data set {self.name} is empty; at least 1 image is needed.")
        self._order = np.arange(total)
        if n is not None and n < total:
            self._order = np.sort(np.random.default_rng(0).permutation(total)[:n])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        number = int(self._order[index])
        image, label = self._item(number)
        return _centre_crop(_to_pil(image), self.size), int(label), str(number)

    def _item(self, number: int) -> tuple[Any, Any]:
        try:
            item = self.dataset[number]
        except _BROKEN as error:
            raise FeatvisError(f"{number}: not a readable image ({reason(error)})") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise FeatvisError(
                f"{self.name} gives a {type(item).__name__} for an image; valid is a pair of an image and its label."
            )
        return item[0], item[1]

    def label(self, index: int) -> int:
        number = int(self._order[index])
        targets = getattr(self.dataset, "targets", None)  # most of torchvision's data sets list them
        return int(self._item(number)[1] if targets is None else targets[number])

    def image(self, id: str) -> Tensor:
        return _centre_crop(_to_pil(self._item(int(id))[0]), self.size)

    @cached_property  # it looks at images
    def fingerprint(self) -> str:
        pixels = hashlib.sha256()
        for number in self._order[:: -(-len(self) // HASHED)].tolist():
            with suppress(FeatvisError):
                pixels.update(np.asarray(_to_pil(self._item(number)[0])).tobytes())
        text = repr(self.dataset)
        return _digest("dataset", self.name, self.size, self._order.tolist(), text, pixels.hexdigest())


class _Half(Stream):
    """Every other image of a stream."""

    def __init__(self, images: NaturalImages, first: int):
        super().__init__()
        self.images, self.first = images, first
        self.name, self.size, self.classes = f"{images.name}-{first}", images.size, images.classes
        self.skipped = images.skipped

    def __len__(self) -> int:
        return (len(self.images) - self.first + 1) // 2

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.images[2 * index + self.first]

    def label(self, index: int) -> int:
        return self.images.label(2 * index + self.first)

    def image(self, id: str) -> Tensor:
        return self.images.image(id)

    @property
    def fingerprint(self) -> str:
        return _digest("half", self.images.fingerprint, self.first)


def train_and_test(source: str | Path, size: int = 96) -> tuple[NaturalImages, NaturalImages]:
    """Natural images to train something with, and others to test it with.

    Of "photos" 6,800 training and 20,400 held-out crops, of "cifar10" and "imagenette" their two sets, of a folder its
    subfolders `train` and `val`, or else every other image.
    """
    if str(source) == "photos":
        return (
            natural_images(source, split="train", n=6800, size=size),
            natural_images(source, split="heldout", n=20_400, size=size),
        )
    if str(source) in OWN or all((Path(source) / split).is_dir() for split in ("train", "val")):
        other = "heldout" if str(source) in OWN else "val"
        return natural_images(source, split="train", size=size), natural_images(source, split=other, size=size)
    images = _stream_of(source, "heldout", 2 * budget.IMAGES if budget.quick() else None, size)
    return _Half(images, 0), _Half(images, 1)


def usual(name: str) -> str:
    """The source of natural images that suits the subject of this name: what it was trained on, or else "photos"."""
    return USUAL.get(name, "photos")


def natural_images(
    source: str | Path | Sequence[Any] = "photos",
    *,
    split: str = "heldout",
    n: int | None = None,
    size: int = 96,
    workers: int = 0,
) -> NaturalImages:
    """A stream of natural images.

    `source` is "photos" (the embedded photographs), "cifar10" (see `featvis.cifar`) or "imagenette" (see
    `featvis.imagenette`), all with the splits "train" and "heldout", a folder of images (its subfolder named as the
    split is taken where there is one), or a torchvision data set. `n` limits the number of images (a fixed random
    choice, the same every time), and so does the quick budget; `size` is their side in pixels. With `workers`, so many
    processes read and decode the batches of a folder ahead; the stream is the same.
    Raises FeatvisError for an unknown split, a folder that does not exist or one without a usable image.
    """
    if size < 1:
        raise FeatvisError(f"images of size {size} were asked for; at least 1 pixel is needed.")
    if n is not None and n < 1:
        raise FeatvisError(f"n={n} images were asked for; at least 1 is needed.")
    if workers < 0:
        raise FeatvisError(f"workers={workers} was given; valid are 0 (read in this process) and more.")
    if budget.quick():
        n = budget.IMAGES if n is None else min(n, budget.IMAGES)
    if not isinstance(source, (str, Path)):
        return DatasetImages(source, n, size)
    images = _stream_of(source, split, n, size)
    if isinstance(images, FolderImages):
        images.workers = workers
    return images


def _stream_of(source: str | Path, split: str, n: int | None, size: int) -> NaturalImages:
    """The stream of this name or folder, whatever the budget."""
    if str(source) == "photos":
        return PhotoCrops(split, n, size)
    if str(source) == "cifar10":
        from featvis.cifar import cifar10  # which builds upon this module

        return cifar10(split, n, size)
    if str(source) == "imagenette":
        from featvis.imagenette import imagenette

        return imagenette(split, n, size)
    folder = Path(source) / split
    return FolderImages(folder if folder.is_dir() else source, n, size)


def _parse(id: str) -> tuple[str, tuple[int, int, int]]:
    name, _, box = id.partition("/")
    x, y, side = (int(value) for value in box.split(","))
    return name, (x, y, side)


def _to_pil(image: Any) -> Image.Image:
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image).permute(2, 0, 1) if image.ndim == 3 else torch.from_numpy(image)
    if isinstance(image, Tensor):
        from featvis._torchvision import torchvision

        low, high = image.min().item(), image.max().item()
        if image.is_floating_point() and not (low >= 0 and high <= 1):
            raise FeatvisError(
                f"an image has values from {low:.3g} to {high:.3g}; valid are 0 to 1: the subject normalizes."
            )
        return torchvision.transforms.functional.to_pil_image(image)
    if not isinstance(image, Image.Image):
        raise FeatvisError(f"a {type(image).__name__} came for an image; valid are PIL images, arrays and tensors.")
    return image


def _in_colour(image: Image.Image) -> Image.Image:
    """In 8-bit RGB: 16 bits scaled down, where Pillow would cut them off, and transparent pixels on white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _centre_crop(image: Image.Image, size: int) -> Tensor:
    image = _in_colour(image)
    short = min(image.size)
    side = short if short <= size else round(short * 7 / 8)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return _to_tensor(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)))


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float().div_(255)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
