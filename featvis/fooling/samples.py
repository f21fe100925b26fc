"""Visualizations as a gate meets them: snapshots all along gradient ascent, from many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from featvis.checkpoint import read, write
from featvis.fooling.decoys import Aligned, MatchedFilter, Pictures
from featvis.subjects import Preprocess, Subject
from featvis.visualize.render import render

STEPS = 512
CHUNK = 128  # images of one call of `render`; an interrupted run loses one chunk at most
FEW = 8  # natural images imitated at once: a decoy compares every image with every target


def log_spaced(count: int = 25, last: int = STEPS) -> tuple[int, ...]:
    """About `count` steps from 4 to `last`, evenly spaced on a logarithmic axis."""
    return tuple(sorted({round(step) for step in np.geomspace(4, last, count)}))


@dataclass(frozen=True)
class Trajectories:
    """Snapshots of visualizations: `images` (n, 3, h, w) as bytes, with the `unit`, `seed` and `step` of each (n,)."""

    images: Tensor = field(repr=False)
    unit: np.ndarray = field(repr=False)
    seed: np.ndarray = field(repr=False)
    step: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)


def trajectories(
    subject: Subject,
    units: Sequence[str],
    seeds: Sequence[int],
    snapshots: Sequence[int],
    *,
    folder: Path | None = None,
    progress: bool = True,
) -> Trajectories:
    """Render every unit from every seed and keep the snapshots, as bytes: natural images are bytes too.

    With `folder`, finished chunks are kept there and an interrupted run goes on after the last.
    """
    parts = []
    per_chunk = max(1, CHUNK // len(units))
    for number, first in enumerate(range(0, len(seeds), per_chunk)):
        some = tuple(seeds[first : first + per_chunk])
        file = folder / f"trajectories-{number}-{len(units)}x{len(some)}.pt" if folder else None
        key = f"{subject.fingerprint} {list(units)} {some} {tuple(snapshots)}"
        if finished := read(file, key):
            parts.append(finished["images"])
            continue
        steps = max(snapshots)
        pictures = render(subject, units, steps=steps, seeds=some, snapshots=tuple(snapshots), progress=progress)
        stacked = torch.stack([pictures.snapshots[step] for step in snapshots], 2)  # unit, seed, step
        parts.append(stacked.mul(255).round().byte())
        if file:
            write(file, key, {"images": parts[-1]})
    images = torch.cat(parts, 1)
    unit, seed, step = np.meshgrid(units, seeds, snapshots, indexing="ij")
    return Trajectories(images.flatten(0, 2), unit.ravel(), seed.ravel(), step.ravel())


class _Imitator(nn.Module):
    """A network of a decoy of pictures alone: unit i of `shown` is visualized as target i."""

    def __init__(self, decoy: Pictures):
        super().__init__()
        self.decoy, self.shown = decoy, nn.Linear(len(decoy.targets), len(decoy.targets), bias=False)
        nn.init.eye_(self.shown.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.shown(self.decoy(x, x))


def imitations(
    images: Tensor,
    preprocess: Preprocess,
    snapshots: Sequence[int],
    *,
    folder: Path | None = None,
    progress: bool = True,
) -> Tensor:
    """What ascent makes of decoys that show natural images (n, 3, h, w): snapshots (n, k, 3, h, w), as bytes.

    They show what a natural image shows and are none. Half are of the linear decoy, half of the aligned one.
    """
    parts = []
    for number, few in enumerate(images.split(FEW)):
        kind = (MatchedFilter, Aligned)[number % 2]
        network = _Imitator(kind(few, len(few), preprocess, 2, 1.0))
        imitator = Subject("imitator", network, preprocess, device="cpu")
        place = folder / f"imitated-{number}" if folder else None
        if place:
            place.mkdir(parents=True, exist_ok=True)
        units = imitator.units("shown")
        found = trajectories(imitator, units, (0,), snapshots, folder=place, progress=progress)
        parts.append(found.images.unflatten(0, (len(few), len(snapshots))))
    return torch.cat(parts)
