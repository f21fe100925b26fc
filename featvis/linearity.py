"""Are straight units easier to read? Path linearity between natural images, and what extrema predict of the rest.

A unit's activation along the straight line from an image that excites it little to one that excites it much,
x_t = (1 - t) x_low + t x_high, against the straight line between its two values. Definition and decoders are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

from featvis.exemplars import exemplars
from featvis.holm import holm
from featvis.images import NaturalImages
from featvis.ranks import related
from featvis.shelf import shelved
from featvis.subjects import Subject
from featvis.visualize.objectives import unit_means, unit_means_of
from featvis.visualize.render import render

POINTS = 33  # of a path
MEASURES = ("bend", "unexplained", "turn")
DECODERS = ("pixels", "look")
SOURCES = ("visualization", "exemplar")
ROUNDING = 1e-4  # a bend of less is that of an affine unit in single precision


def paths(subject: Subject, unit: str, low: Tensor, high: Tensor, points: int = POINTS) -> dict[str, float]:
    """How straight `unit` is on the lines from images `low` to images `high`, both (n, 3, h, w); means over the lines.

    bend         mean |f(x_t) - chord| / |f(high) - f(low)|
    unexplained  1 - R^2 of the best straight line through f(x_t)
    turn         mean angle between successive gradients, in degrees, on every fourth point, where there are gradients
    """
    t = torch.linspace(0, 1, points)
    line = torch.lerp(low[:, None], high[:, None], t.view(1, -1, 1, 1, 1))
    values = _values(subject, unit, line.flatten(0, 1)).view(len(low), points).double()
    rise = values[:, -1:] - values[:, :1]
    chord = values[:, :1] + rise * t
    used = rise[:, 0].abs() > 1e-6
    bend = ((values - chord).abs().mean(1) / rise[:, 0].abs().clamp(min=1e-12))[used]
    centred, step = values - values.mean(1, keepdim=True), (t - 0.5).double()
    whole = centred.square().sum(1)
    fitted = (centred @ step).square() / step.square().sum()
    unexplained = (1 - fitted / whole.clamp(min=1e-12))[used]
    gradient = _gradients(subject, unit, line[:, ::4].flatten(0, 1)).reshape(len(low), -1, low[0].numel())
    cosine = F.cosine_similarity(gradient[:, 1:], gradient[:, :-1], dim=2).clamp(-1, 1)
    moving = gradient.norm(dim=2) > 0  # a ReLU that is shut has no gradient to turn
    turn = torch.rad2deg(torch.acos(cosine))[moving[:, 1:] & moving[:, :-1]]
    return {
        "bend": float(bend.mean()) if len(bend) else np.nan,
        "unexplained": float(unexplained.mean()) if len(unexplained) else np.nan,
        "turn": float(turn.mean()) if len(turn) else np.nan,
    }


def _values(subject: Subject, unit: str, images: Tensor) -> Tensor:
    layer, index = subject.unit(unit)
    found = (part[layer] for part in subject.activations(images, [layer]))
    return torch.cat([unit_means_of(a, torch.full((len(a),), index, device=a.device)) for a in found]).cpu()


def _gradients(subject: Subject, unit: str, images: Tensor) -> Tensor:
    layer, index = subject.unit(unit)
    network, parts = subject.until(layer), []
    for batch in images.split(64):
        inputs = batch.to(subject.device).requires_grad_()
        found = network(subject.preprocess(inputs))[layer]
        value = unit_means_of(found, torch.full((len(batch),), index, device=found.device))
        parts.append(torch.autograd.grad(value.sum(), inputs)[0].cpu())
    return torch.cat(parts)


def look(images: Tensor) -> Tensor:
    """What is easily seen of images (n, 3, h, w), whatever the place of things: (n, 30).

    Means and deviations of the colours, and the energy of edges at three scales and four orientations, in brightness
    and in the difference of red and blue.
    """
    channels = torch.stack([images.mean(1), images[:, 0] - images[:, 2]], 1)
    parts = [images.mean((2, 3)), images.std((2, 3))]
    for _ in range(3):
        x, y = channels[..., :-1, 1:] - channels[..., :-1, :-1], channels[..., 1:, :-1] - channels[..., :-1, :-1]
        parts += [(edge.square().mean((2, 3)) + 1e-8).log() for edge in (x, y, (x + y) / 2, (x - y) / 2)]
        channels = F.avg_pool2d(channels, 2)
    return torch.cat(parts, 1)


def predictions(at_low: Tensor, at_high: Tensor, images: Tensor) -> Tensor:
    """Position of vectors (n, d) along the line from `at_low` to `at_high`, both (d,): the affine guess, 0 to 1."""
    way = at_high - at_low
    return (images - at_low) @ way / (way @ way).clamp(min=1e-12)


@dataclass(frozen=True)
class Linearity:
    """One row for each unit: `unit`, `layer`, the `MEASURES` of its paths, and for every source of extrema and decoder
    ("visualization pixels", ...) the rank correlation between what is predicted and its activation on other images;
    `status` "ok", or "silent" where natural images or ascent do not move the unit."""

    table: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        return self.table

    @property
    def used(self) -> pd.DataFrame:
        """The units that respond and are not affine: ranks of rounding errors would say nothing."""
        return self.table[(self.table["status"] == "ok") & ~(self.table["bend"] <= ROUNDING)]

    def correlations(self) -> pd.DataFrame:
        """Rank correlation over units of each measure with each success; inside of layers (see `ranks`).

        Intervals are 95% bootstraps over units; `p` is from permuting units within layers, `adjusted` after Holm.
        """
        used, rows = self.used, []
        for measure in MEASURES:
            for success in (f"{source} {decoder}" for source in SOURCES for decoder in DECODERS):
                part = used[["layer", measure, success]].dropna()
                inside = related(part["layer"], part[measure], part[success])
                plain = spearmanr(part[measure], part[success]).statistic
                found = {"measure": measure, "success": success, "units": len(part), "across layers": plain}
                rows.append(found | inside._asdict())
        frame = pd.DataFrame(rows)
        return frame.assign(adjusted=holm(frame["p"].to_numpy()))

    def difference(self, again: Linearity) -> str:
        """ "" if the measures of the typical unit are about the same."""
        numbers = [name for name in self.table if self.table[name].dtype == float]
        change = (self.table[numbers] - again.table[numbers]).abs().median() / self.table[numbers].std()
        return "" if change.max() <= 0.1 else f"{change.idxmax()} differs by {change.max():.2f} standard deviations"

    def save(self, folder: Path) -> None:
        self.table.to_csv(folder / "linearity.csv", index=False, float_format="%.5g")

    @classmethod
    def load(cls, folder: Path) -> Linearity:
        return cls(pd.read_csv(folder / "linearity.csv"))


def _some(units: Sequence[str], count: int) -> list[str]:
    """`count` of them, evenly spaced."""
    return [units[i] for i in np.unique(np.linspace(0, len(units) - 1, count).round().astype(int))]


@shelved(1, Linearity)
def linearity(
    subject: Subject,
    natural: NaturalImages,
    test: NaturalImages,
    *,
    per_layer: int = 10,
    lines: int = 4,
    steps: int = 64,
    progress: bool = True,
) -> Linearity:
    """Measure `per_layer` units of every block.

    natural  images that the paths' ends and the exemplars come from
    test     other images, on which activations are predicted
    lines    paths of each unit, from its `lines` weakest to its `lines` strongest images

    Raises FeatvisError for images of another size than the subject's.
    """
    subject.check_size(natural, test)
    units = [name for layer in subject.blocks for name in _some(subject.units(layer), per_layer)]
    best = exemplars(subject, natural, units, k=lines, progress=progress)
    drawn = {
        side: render(subject, units, steps=steps, minimize=side == "bottom", progress=progress)
        for side in ("top", "bottom")
    }
    images = torch.cat([batch for batch, _, _ in test.batches(256)])
    layers: dict[str, list[Tensor]] = {layer: [] for layer in subject.blocks}
    for found in subject.activations(images, subject.blocks):
        for layer, parts in layers.items():
            parts.append(unit_means(found[layer]).cpu())
    activations = {layer: torch.cat(parts).numpy() for layer, parts in layers.items()}
    looks = look(images)
    mean, deviation = looks.mean(0), looks.std(0).clamp(min=1e-6)
    rows = []
    for i, unit in enumerate(tqdm(units, "paths", unit="unit", disable=not progress, leave=False)):
        layer, index = subject.unit(unit)
        actual = activations[layer][:, index]
        row: dict[str, Any] = {"unit": unit, "layer": layer}
        alive = np.ptp(actual) > 1e-6 and best.top_values[i, -1] - best.bottom_values[i, -1] > 1e-6
        row["status"] = "ok" if alive and drawn["top"].status[i, 0] == "ok" else "silent"
        if row["status"] == "ok":
            low, high = (best.pictures(natural, unit, side) for side in ("bottom", "top"))
            row |= paths(subject, unit, low, high)
            ends = {
                "visualization": (drawn["bottom"].images[i], drawn["top"].images[i]),
                "exemplar": (low[:1], high[:1]),
            }
            for source, (first, last) in ends.items():
                flat = predictions(first.flatten(), last.flatten(), images.flatten(1))
                row[f"{source} pixels"] = spearmanr(flat, actual).statistic
                start, end = ((look(picture)[0] - mean) / deviation for picture in (first, last))
                row[f"{source} look"] = spearmanr(predictions(start, end, (looks - mean) / deviation), actual).statistic
        rows.append(row)
    return Linearity(pd.DataFrame(rows))
