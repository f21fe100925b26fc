"""The 17 photographs that ship inside the wheels of scikit-image and scikit-learn, and crops of them.

A photograph is scaled to a shorter side of 512 pixels and cut into cells of 100 pixels. One cell in five is held
out: a held-out crop lies inside such a cell, a training crop touches none. Crops are cut out before they are
resized, so no pixel reaches both splits, not even through a resampling filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

SHORT_SIDE = 512
CELL = 100
SIDES = (64, 96)  # smallest and largest side of a crop in pixels, before resizing
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Photograph:
    """One photograph: `name` is its class; `source` where it comes from, `credit` and `licence` as stated there."""

    name: str
    source: str
    credit: str
    licence: str

    def load(self) -> Image.Image:
        """The photograph as an RGB image, scaled to a shorter side of 512 pixels."""
        return _load(self.source)


PHOTOGRAPHS = (
    Photograph("astronaut", "skimage.data.astronaut", "NASA, Eileen Collins", "public domain"),
    Photograph("cat", "skimage.data.chelsea", "Stéfan van der Walt, Chelsea", "CC0"),
    Photograph("coffee", "skimage.data.coffee", "Rachel Michetti, Pikolo Espresso Bar", "CC0"),
    Photograph("hubble", "skimage.data.hubble_deep_field", "NASA, Hubble eXtreme Deep Field", "public domain"),
    Photograph(
        "tissue",
        "skimage.data.immunohistochemistry",
        "Center for Microscopy And Molecular Imaging, colonic glands",
        "no known copyright restrictions",
    ),
    Photograph("retina", "skimage.data.retina", "Mikael Häggström, doi:10.15347/wjm/2014.008", "CC0"),
    Photograph(
        "motorcycle",
        "skimage.data.stereo_motorcycle",
        "Middlebury stereo benchmark 2014 (Scharstein et al.), left view",
        "distributed with scikit-image",
    ),
    Photograph("rocket", "skimage.data.rocket", "SpaceX, launch of DSCOVR", "public domain"),
    Photograph("brick", "skimage.data.brick", "CC0Textures, Bricks25", "CC0"),
    Photograph("grass", "skimage.data.grass", "linolafett, Grass 01", "CC0"),
    Photograph("gravel", "skimage.data.gravel", "CC0Textures, Gravel04", "CC0"),
    Photograph("camera", "skimage.data.camera", "Lav Varshney", "CC0"),
    Photograph(
        "coins", "skimage.data.coins", "Brooklyn Museum, Greek coins from Pompeii", "no known copyright restrictions"
    ),
    Photograph("moon", "skimage.data.moon", "distributed with scikit-image", "distributed with scikit-image"),
    Photograph("page", "skimage.data.page", "distributed with scikit-image", "distributed with scikit-image"),
    Photograph("china", "sklearn.datasets china.jpg", "danielbuechele, flickr 6061409035", "CC BY 2.0"),
    Photograph("flower", "sklearn.datasets flower.jpg", "vultilion, flickr 6056698931", "CC BY 2.0"),
)
CLASSES = tuple(photograph.name for photograph in PHOTOGRAPHS)


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _load(source: str) -> Image.Image:
    if source.startswith("skimage"):
        import skimage.data

        pixels = getattr(skimage.data, source.rsplit(".", 1)[1])()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # the stereo pair: its left view
    else:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(source.rsplit(" ", 1)[1])
    image = Image.fromarray(np.asarray(pixels)).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def heldout_cells(width: int, height: int) -> np.ndarray:
    """Which cells are held out, as booleans (rows, columns); what remains at the edges belongs to the last ones."""
    rows, columns = height // CELL, width // CELL
    return (np.arange(rows)[:, None] + 2 * np.arange(columns)[None, :]) % 5 == 2


def boxes(photograph: int, split: str, seed: int = 0) -> Iterator[tuple[int, int, int]]:
    """Endless (left, top, side) of square crops of one photograph.

    The k-th crop of a photograph depends on (photograph, split, seed) alone, never on how many are drawn.
    """
    width, height = PHOTOGRAPHS[photograph].load().size
    mask = heldout_cells(width, height)
    cells = np.argwhere(mask)
    rng = np.random.default_rng([seed, photograph, SPLITS.index(split)])
    while True:
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        if split == "heldout":
            row, column = cells[rng.integers(len(cells))]
            left, top = column * CELL + rng.integers(CELL - side + 1), row * CELL + rng.integers(CELL - side + 1)
        else:
            left, top = rng.integers(width - side + 1), rng.integers(height - side + 1)
            if mask[top // CELL : (top + side - 1) // CELL + 1, left // CELL : (left + side - 1) // CELL + 1].any():
                continue
        yield int(left), int(top), side


def crop(photograph: int, box: tuple[int, int, int], size: int) -> np.ndarray:
    """The square crop as uint8 (size, size, 3)."""
    left, top, side = box
    region = PHOTOGRAPHS[photograph].load().crop((left, top, left + side, top + side))
    return np.asarray(region.resize((size, size), Image.Resampling.BICUBIC))
