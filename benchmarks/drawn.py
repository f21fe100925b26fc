"""Smooth random images instead of a data set: no folder has to be at hand, and none is kept in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from featvis.streams import Stream
from featvis.subjects import Subject


class Drawn(Stream):
    """`count` images of a subject's size, drawn anew each time they are asked for, with labels 0 to `classes` - 1."""

    name = "drawn"

    def __init__(self, subject: Subject, count: int, classes: int) -> None:
        super().__init__()
        self.size, self.classes = subject.preprocess.size[0], subject.classes
        self.count, self.labels = count, classes

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return index % self.labels

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.image(str(index)), self.label(index), str(index)

    def image(self, id: str) -> Tensor:
        small = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(int(id)))
        return F.interpolate(small, (self.size, self.size), mode="bicubic")[0].clamp(0, 1)

    @property
    def fingerprint(self) -> str:
        return f"{self.size} {self.count} {self.labels}"
