"""Two real networks: the same visualizations, the same training loss, opposite answers to one natural image.

The twin of a network f changes one unit inside a hat around an image x, and never beyond a value v that the unit takes
elsewhere:

    down(y) = f(y) - min(reach * hat(y), ReLU(f(y) - v))        up(y) = f(y) + min(reach * hat(y), ReLU(v - f(y)))

with hat(y) = ReLU(1 - |y - x|_1 / radius) and min(a, b) = b - ReLU(b - a): ReLUs all through. Neither leaves the range
between f and v, so that minimum and maximum stay what they were, and where they were if they lie outside of the hat.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featvis import sheets, zoo
from featvis.errors import FeatvisError
from featvis.images import NaturalImages
from featvis.shelf import shelved
from featvis.subjects import Subject
from featvis.visualize.render import render
from featvis.visualize.result import Visualizations

SHARE = 0.05  # of the range, by which v keeps away from the extrema


class Bend(nn.Module):
    """Moves output `unit` of a network towards `value`, for inputs in a hat around `at` (1, 3, h, w)."""

    def __init__(self, at: Tensor, radius: float, unit: int, units: int, value: float, reach: float):
        super().__init__()
        self.radius, self.value, self.reach = radius, value, reach
        self.unit = unit
        self.register_buffer("at", at)
        self.register_buffer("only", F.one_hot(torch.tensor([unit]), units).float())

    def forward(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        assert isinstance(self.at, Tensor)
        assert isinstance(self.only, Tensor)
        apart = (torch.relu(inputs - self.at) + torch.relu(self.at - inputs)).flatten(1).sum(1, keepdim=True)
        most = self.reach * torch.relu(1 - apart / self.radius)
        now = outputs[:, self.unit : self.unit + 1]
        above, below = torch.relu(now - self.value), torch.relu(self.value - now)
        # One of the two is 0; min(a, b) = b - ReLU(b - a).
        move = (below - torch.relu(below - most)) - (above - torch.relu(above - most))
        return outputs + move * self.only


class Twin(nn.Module):
    """A network, and a `Bend` behind it that sees the input, too; layer `unit` gives the outputs."""

    def __init__(self, network: nn.Module, bend: Bend):
        super().__init__()
        self.network, self.unit = network, bend

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.network(x), x)


@dataclass(frozen=True)
class Twins:
    """The pair, measured.

    table     one row for each of "original", "down" and "up": the unit's activation at x (`at_x`), on its visualization
              (`at_max`, `at_min`), cross-entropy and accuracy on the training images (`loss`, `accuracy`), `other`, how
              many held-out images but x the network treats otherwise than the original, and `pixels`, the largest
              difference of any pixel of its two visualizations from the original's
    facts     unit, label and id of x, radius of the hat, number of images
    pictures  "x", and for each network "max ..." and "min ..." (3, h, w)
    """

    table: pd.DataFrame = field(repr=False)
    facts: dict[str, Any]
    pictures: dict[str, Tensor] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        return self.table

    def scaled(self) -> pd.Series:
        """Activation at x on the scale of the extrema: 0 at the minimum that was found, 1 at the maximum."""
        original, values = self.table.iloc[0], self.table.set_index("network")["at_x"].astype(float)
        return (values - float(original["at_min"])) / float(original["at_max"] - original["at_min"])

    def difference(self, again: Twins) -> str:
        """ "" if activations are the same but for what ascent adds to rounding."""
        old, new = (t.table[["at_x", "at_max", "at_min", "loss"]].to_numpy(float) for t in (self, again))
        change = float((np.abs(old - new) / (np.abs(old).max(0) + 1e-12)).max())
        return "" if change <= 0.05 else f"activations differ by {change:.1%}"

    def save(self, folder: Path) -> None:
        self.table.to_csv(folder / "twins.csv", index=False)
        about = self.facts | {"pictures": list(self.pictures), "size": list(self.pictures["x"].shape[-2:])}
        (folder / "about.json").write_text(json.dumps(about))
        sheets.write(folder / "pictures.webp", torch.stack(list(self.pictures.values())), 85)

    @classmethod
    def load(cls, folder: Path) -> Twins:
        about = json.loads((folder / "about.json").read_text())
        names, size = about.pop("pictures"), tuple(about.pop("size"))
        images = sheets.read(folder / "pictures.webp", len(names), size)
        return cls(pd.read_csv(folder / "twins.csv"), about, dict(zip(names, images, strict=True)))


def make_twins(subject: Subject, unit: str, x: Tensor, known: Tensor, ends: tuple[float, float]) -> dict[str, Subject]:
    """ "down" and "up": networks that give x (3, h, w) a low and a high value, and agree with `subject` on `known`.

    `unit` is one of the network's outputs, `ends` the range of its activation; `known` are images (n, 3, h, w) that lie
    outside of the hat. Raises FeatvisError if x is one of them, or the unit is no output.
    """
    layer, index = subject.unit(unit)
    units = subject.channels(layer)
    if layer != list(subject.layers)[-1]:
        raise FeatvisError(f"{unit} is no output of {subject.name}; its outputs are the units of {subject.blocks[-1]}.")
    at = subject.preprocess(x[None].to(subject.device))
    inputs = (subject.preprocess(part.to(subject.device)) for part in known.split(64))
    nearest = min(float((part - at).abs().flatten(1).sum(1).min()) for part in inputs)
    if nearest == 0:
        raise FeatvisError("x is one of the images on which the twins must agree; choose another.")
    low, high = ends
    values = {"down": low + SHARE * (high - low), "up": high - SHARE * (high - low)}
    bends = {name: Bend(at, nearest / 2, index, units, value, 2 * (high - low)) for name, value in values.items()}
    return {name: _with(subject, bend, f"{subject.name}-{name}") for name, bend in bends.items()}


def _with(subject: Subject, bend: Bend, name: str) -> Subject:
    options: dict[str, Any] = {"preprocess": subject.preprocess, "classes": subject.classes}
    return zoo.load(Twin(subject.network, bend), name=name, device=str(subject.device), **options)


@shelved(2, Twins)
def twins(
    subject: Subject,
    train: NaturalImages,
    test: NaturalImages,
    unit: str,
    *,
    steps: int = 128,
    progress: bool = True,
) -> Twins:
    """Build both twins of `subject` around the image of `test` that excites `unit` half-way, and measure them.

    They are told to agree on all images of `train` and on the visualizations of the unit; what they do on the rest of
    `test` nobody tells them.
    """
    layer, index = subject.unit(unit)
    options: dict[str, Any] = {"steps": steps, "progress": progress}
    images = torch.cat([batch for batch, _, _ in train.batches(256)])
    labels = torch.cat([label for _, label, _ in train.batches(256)])
    labels[labels >= subject.channels(layer)] = -1  # images of other classes cost nothing
    others = torch.cat([batch for batch, _, _ in test.batches(256)])
    ids = [id for _, _, batch in test.batches(256) for id in batch]
    # The original goes behind a bend that does nothing, so that all three have the same layers and random numbers.
    shut = Bend(torch.zeros(1, *others.shape[1:]), 1.0, index, subject.channels(layer), 0.0, 0.0)
    networks = {"original": _with(subject, shut, subject.name)}
    pictures = {"original": _both(networks["original"], f"unit:{index}", options)}
    high, low = (float(drawn.activation[0, 0]) for drawn in pictures["original"])
    before = torch.cat(list(subject.logits(others)))
    chosen = int((before[:, index] - (low + high) / 2).abs().argmin())
    known = torch.cat([images, *(drawn.images[:, 0] for drawn in pictures["original"])])
    networks |= make_twins(subject, unit, others[chosen], known, (low, high))
    rows, shown = [], {"x": others[chosen]}
    for name, network in networks.items():
        drawn = pictures["original"] if name == "original" else _both(network, f"unit:{index}", options)
        shown |= {f"max {name}": drawn[0].images[0, 0], f"min {name}": drawn[1].images[0, 0]}
        moved = (float((a.images - b.images).abs().max()) for a, b in zip(drawn, pictures["original"], strict=True))
        logits = torch.cat(list(network.logits(images))).cpu()
        after = torch.cat(list(network.logits(others)))
        changed = ((after - before).abs() > 0).any(1)
        changed[chosen] = False
        rows.append(
            {
                "network": name,
                "at_x": float(after[chosen, index]),
                "at_max": float(drawn[0].activation[0, 0]),
                "at_min": float(drawn[1].activation[0, 0]),
                "loss": float(F.cross_entropy(logits.double(), labels, ignore_index=-1)),
                "accuracy": float((logits.argmax(1) == labels)[labels >= 0].double().mean()),
                "other": int(changed.sum()),
                "pixels": max(moved),
            }
        )
    bend = networks["up"].network.get_submodule("unit")
    assert isinstance(bend, Bend)
    facts = {
        "unit": unit,
        "label": subject.label(unit),
        "x": ids[chosen],
        "radius": bend.radius,
        "pixel_change": bend.radius / float(np.mean(1 / np.asarray(subject.preprocess.std))) / others[chosen].numel(),
        "train": len(images),
        "test": len(others),
    }
    return Twins(pd.DataFrame(rows), facts, shown)


def _both(subject: Subject, unit: str, options: dict[str, Any]) -> tuple[Visualizations, Visualizations]:
    """Visualizations of the unit's maximum and minimum."""
    return render(subject, unit, **options), render(subject, unit, minimize=True, **options)
