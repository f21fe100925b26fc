"""Visualizations as a gate meets them: snapshots all along gradient ascent, from many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featvis.checkpoint import read, write
from featvis.subjects import Subject
from featvis.visualize.render import render

STEPS = 512
CHUNK = 64  # images rendered at once; an interrupted run loses one chunk at most


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
