"""What all sources of natural images have in common: streams of (image, label, id), read in batches.

Images are float tensors (3, size, size) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featvis.errors import FeatvisError

Batch = tuple[Tensor, Tensor, list[str]]


class NaturalImages(Protocol):
    """A finite, ordered, random-access stream of natural images of one size."""

    name: str
    size: int
    classes: tuple[str, ...]
    skipped: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        """Image (3, size, size) in [0, 1], label (-1: unknown), id (unique in this stream)."""
        ...

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches of (images (n, 3, size, size), labels (n,), ids), from image `start` on and up to `stop`."""
        ...

    def label(self, index: int) -> int:
        """The label of one image, found without reading the image where that is possible."""
        ...

    def image(self, id: str) -> Tensor:
        """The image (3, size, size) with this id."""
        ...

    def overlap(self, first: str, second: str) -> bool:
        """Whether two images show largely the same pixels of one photograph."""
        ...

    @property
    def recipe(self) -> dict[str, Any]:
        """What `natural_images` needs to make this stream again, with its fingerprint."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever an image of the stream may have changed."""
        ...


class Stream:
    """What the sources share: batching by random access."""

    name: str
    size: int
    classes: tuple[str, ...] = ()
    workers: int = 0  # processes that read ahead

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        raise TypeError(f"{type(self).__name__} has no images")

    def label(self, index: int) -> int:
        return self[index][1]

    def image(self, id: str) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no images")

    @property
    def fingerprint(self) -> str:
        raise TypeError(f"{type(self).__name__} has no images")

    @property
    def recipe(self) -> dict[str, Any]:
        return {"source": self.name, "n": len(self), "size": self.size, "fingerprint": self.fingerprint}

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        end = len(self) if stop is None else stop
        spans = [range(first, min(first + batch_size, end)) for first in range(start, end, batch_size)]
        read = _Spans(self, spans)
        # A loader keeps the order, whichever process is done first.
        ahead = DataLoader(read, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is)
        for batch, broken in ahead if self.workers else (read[i] for i in range(len(read))):
            self.skipped += [line for line in broken if line not in self.skipped]
            if batch is not None:
                yield batch

    def overlap(self, first: str, second: str) -> bool:
        return first == second


class _Spans(Dataset):
    """The images of each span of a stream, with what is to be said of files that turn out broken and are left out."""

    def __init__(self, stream: Stream, spans: list[range]):
        self.stream, self.spans = stream, spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> tuple[Batch | None, list[str]]:
        rows, broken = [], []
        for index in self.spans[number]:
            try:
                rows.append(self.stream[index])
            except FeatvisError as error:
                broken.append(str(error))
        if not rows:
            return None, broken
        images, labels, ids = zip(*rows, strict=True)
        return (torch.stack(images), torch.tensor(labels), list(ids)), broken


def _as_it_is(batch: Any) -> Any:
    return batch
