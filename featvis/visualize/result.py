"""The value that `render` returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featvis import sheets
from featvis.subjects import row_of

FEW = 64
# Rounding differs between processors and batch sizes, and hundreds of steps of ascent enlarge it: a picture is the
# same if it excites its unit the same, within these relative differences (median and largest over all units).
ACTIVATION_MEDIAN, ACTIVATION_WORST = 0.03, 0.5


@dataclass(frozen=True)
class Visualizations:
    """Images found by activation maximization, one for each unit and seed.

    images       (units, seeds, 3, h, w) in [0, 1]
    activation   (units, seeds): of the finished, untransformed image, in the units of the layer
    curve        (units, seeds, steps): of the transformed image at each step
    snapshots    step -> images after that step, like `images`
    status       (units, seeds) of "ok", "dead" (the unit never responded) or "stopped N" (not finite at step N)
    """

    subject: str
    units: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Tensor = field(repr=False)
    activation: np.ndarray = field(repr=False)
    curve: np.ndarray = field(repr=False)
    status: np.ndarray = field(repr=False)
    steps: int
    minimize: bool = False
    snapshots: Mapping[int, Tensor] = field(default_factory=dict, repr=False)

    def __getitem__(self, unit: str) -> Tensor:
        """The images (seeds, 3, h, w) of one unit. Raises FeatvisError for a unit that was not rendered."""
        return self.images[row_of(self.units, unit)]

    def frame(self) -> pd.DataFrame:
        """One row for each unit and seed: unit, seed, activation, steps, status."""
        rows = [
            (unit, seed, float(self.activation[i, j]), self.steps, str(self.status[i, j]))
            for i, unit in enumerate(self.units)
            for j, seed in enumerate(self.seeds)
        ]
        return pd.DataFrame(rows, columns=["unit", "seed", "activation", "steps", "status"])

    def best(self) -> Tensor:
        """The image (units, 3, h, w) of the seed with the most extreme activation."""
        order = self.activation.argmin(1) if self.minimize else self.activation.argmax(1)
        return self.images[torch.arange(len(self.units)), torch.as_tensor(order)]

    def difference(self, again: Visualizations) -> str:
        """ "" if `again`, of the same or only some of the units, excites them the same; else by how much it differs."""
        before = self.activation[[self.units.index(unit) for unit in again.units]]
        scale = np.abs(before).max() + 1e-12
        change = np.abs(again.activation - before) / np.maximum(np.abs(before), 0.05 * scale)
        middle, worst = float(np.median(change)), float(change.max())
        ok = middle <= ACTIVATION_MEDIAN and worst <= ACTIVATION_WORST
        return "" if ok else f"activations differ by {middle:.1%} (median) and {worst:.1%} (worst)"

    def save(self, folder: Path) -> None:
        """Write images as WebP sheets and numbers as npz into an existing folder.

        The more pictures, the smaller each: a whole layer's sheet has quality 28, a few pictures have 90.
        """
        quality = 90 if self.images.shape[:2].numel() <= FEW else 28
        for step, images in {0: self.images, **self.snapshots}.items():
            name = "images.webp" if step == 0 else f"step-{step}.webp"
            sheets.write(folder / name, images.flatten(0, 1), quality)
        np.savez_compressed(
            folder / "numbers.npz", activation=self.activation, curve=self.curve.astype(np.float16), status=self.status
        )
        about = {
            "subject": self.subject,
            "units": self.units,
            "seeds": self.seeds,
            "steps": self.steps,
            "minimize": self.minimize,
            "snapshots": list(self.snapshots),
            "size": list(self.images.shape[-2:]),
        }
        (folder / "about.json").write_text(json.dumps(about))

    @classmethod
    def load(cls, folder: Path) -> Visualizations:
        """Read what `save` wrote; images come back with the precision of the sheet."""
        about = json.loads((folder / "about.json").read_text())
        shape = (len(about["units"]), len(about["seeds"]))

        def images(name: str) -> Tensor:
            tiles = sheets.read(folder / name, shape[0] * shape[1], tuple(about["size"]))
            return tiles.unflatten(0, shape)

        with np.load(folder / "numbers.npz", allow_pickle=False) as numbers:
            return cls(
                about["subject"],
                tuple(about["units"]),
                tuple(about["seeds"]),
                images("images.webp"),
                numbers["activation"],
                numbers["curve"],
                numbers["status"],
                about["steps"],
                about["minimize"],
                {step: images(f"step-{step}.webp") for step in about["snapshots"]},
            )
