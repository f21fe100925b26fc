"""Units that are silent by nature: no image of a training set activates them, and activation maximization may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis.checkpoint import read, write
from featvis.errors import FeatvisError
from featvis.exemplars import SAVE_EVERY
from featvis.fooling.promise import upper_bound
from featvis.fooling.silent import silence
from featvis.images import NaturalImages
from featvis.shelf import shelved
from featvis.subjects import Subject
from featvis.visualize.render import render


@dataclass(frozen=True)
class Survey:
    """Which units natural images activate; one row of `units` for each.

    `layer`, `unit`, `training`: how many training images activate it (a value above zero at any position),
    `heldout`: how many held-out ones, `largest`: its largest value on either; for units that no training image
    activates `visualization`, the activation that maximization reaches, and its `status`.
    """

    subject: str
    training: int  # images
    heldout: int
    units: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """One row for each layer: units, those `silent` in training, `still silent` on held-out images, and `excitable`
        all the same; with the upper 95% bound, for a silent unit, of the share of training images that activate it."""
        silent = self.units["training"] == 0
        still = silent & (self.units["heldout"] == 0)
        table = self.units.assign(
            units=1,
            silent=silent.astype(int),
            still=still.astype(int),
            excitable=(still & (self.units["visualization"] > 0)).astype(int),
        )
        columns = ["units", "silent", "still", "excitable"]
        found = table.groupby("layer", sort=False)[columns].sum().reset_index()
        return found.assign(bound=upper_bound(0, self.training))

    def difference(self, again: Survey) -> str:
        """ "" if the same units are silent, but for one in a hundred that a rounding error may tip."""
        changed = ((self.units["training"] == 0) != (again.units["training"] == 0)).mean()
        return "" if changed <= 0.01 else f"{changed:.1%} of the units changed between silent and not"

    def save(self, folder: Path) -> None:
        about = pd.DataFrame([{"subject": self.subject, "training": self.training, "heldout": self.heldout}])
        about.to_csv(folder / "about.csv", index=False)
        self.units.to_csv(folder / "units.csv", index=False, float_format="%.5g")

    @classmethod
    def load(cls, folder: Path) -> Survey:
        about = pd.read_csv(folder / "about.csv").iloc[0]
        units = pd.read_csv(folder / "units.csv", keep_default_na=True, dtype={"status": str})
        found = units.fillna({"status": ""})
        return cls(str(about["subject"]), int(about["training"]), int(about["heldout"]), found)


@shelved(1, Survey, free=("folder", "progress"))
def silent_units(
    subject: Subject,
    images: NaturalImages,
    heldout: NaturalImages,
    layers: Sequence[str] | None = None,
    *,
    steps: int = 128,
    folder: Path | None = None,
    progress: bool = True,
) -> Survey:
    """Look for silent units in `layers` (by default all blocks that give maps, and the MLP neurons of a transformer).

    Any number of images is streamed; with a `folder`, an interrupted pass goes on there. An image activates a unit if
    the unit is above zero anywhere: behind a ReLU, if it gives anything at all. Raises FeatvisError for images of
    another size than the subject's, and where no layer gives maps.
    """
    subject.check_size(images, heldout)
    chosen = tuple(layers or [layer for layer in subject.blocks if len(subject.layers[layer]) == 3] + _neurons(subject))
    if not chosen:
        raise FeatvisError(f"{subject.name} has no layer that gives maps; name layers, such as {subject.blocks[0]}.")
    names = [unit for layer in chosen for unit in subject.units(layer)]
    passes = [
        _count(subject, part, chosen, None if folder is None else folder / f"survey-{which}.pt", progress)
        for which, part in (("training", images), ("heldout", heldout))
    ]
    table = pd.DataFrame(
        {
            "layer": [name.rpartition(":")[0] for name in names],
            "unit": names,
            "training": passes[0][0].numpy(),
            "heldout": passes[1][0].numpy(),
            "largest": torch.maximum(passes[0][1], passes[1][1]).numpy(),
            "visualization": float("nan"),
            "status": "",
        }
    )
    silent = table["training"] == 0
    if silent.any():
        run = render(subject, table.loc[silent, "unit"].tolist(), steps=steps, progress=progress)
        table.loc[silent, "visualization"] = run.activation[:, 0]
        table.loc[silent, "status"] = run.status[:, 0]
    return Survey(subject.name, passes[0][2], passes[1][2], table)


@shelved(1, Survey, free=("progress",))
def silenced_survey(
    subject: Subject,
    images: NaturalImages,
    heldout: NaturalImages,
    layer: str,
    *,
    steps: int = 128,
    progress: bool = True,
) -> Survey:
    """A control of `silent_units`: what it says of a network whose units of `layer` were silenced on purpose.

    It looks at the block that the layer belongs to, as it does by default, and at the ReLU of the silent branch inside
    of it. `images` calibrate the filters and are counted as training images, so on these silence is by construction.
    Takes the time of `silence` and of `silent_units`, and raises what they raise.
    """
    hushed = silence(subject, images, layer, progress=progress)
    block = next((name for name in subject.blocks if f"{layer}.".startswith(f"{name}.")), layer)
    return silent_units(hushed, images, heldout, [block, f"{layer}.relu"], steps=steps, progress=progress)


def _neurons(subject: Subject) -> list[str]:
    """The activations (tokens, d) between the two linear layers of each MLP."""
    over_tokens = (name for name, shape in subject.layers.items() if len(shape) == 2)
    return [name for name in over_tokens if isinstance(subject.network.get_submodule(name), torch.nn.GELU)]


def _count(
    subject: Subject, images: NaturalImages, layers: Sequence[str], checkpoint: Path | None, progress: bool
) -> tuple[Tensor, Tensor, int]:
    """For all units, how many images activate each, its largest value, and the number of images."""
    key = f"{subject.fingerprint} {images.fingerprint} {layers}"
    state = read(checkpoint, key)
    if state is None:
        units = sum(subject.channels(layer) for layer in layers)
        state = {"count": torch.zeros(units, dtype=torch.long), "largest": torch.full((units,), -torch.inf)}
        state |= {"seen": torch.tensor(0), "read": torch.tensor(0)}
    first = int(state["seen"])
    total, name = len(images), f"survey {images.name}"
    with tqdm(total=total, initial=first, desc=name, unit="image", disable=not progress, leave=False) as bar:
        for number, (batch, _, ids) in enumerate(images.batches(64, start=first), start=1):
            found = next(subject.activations([batch], layers))
            peaks = torch.cat([_peaks(found[layer]) for layer in layers], 1).cpu()
            state["count"] += (peaks > 0).sum(0)
            state["largest"] = torch.maximum(state["largest"], peaks.amax(0))
            state["seen"] = torch.tensor(min(len(images), first + 64 * number))
            state["read"] += len(ids)
            bar.update(len(ids))
            if checkpoint is not None and number % SAVE_EVERY == 0:
                write(checkpoint, key, state)
    if not int(state["read"]):
        raise FeatvisError(f"none of the {len(images)} images of {images.name} could be read.")
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return state["count"], state["largest"], int(state["read"])


def _peaks(activation: Tensor) -> Tensor:
    """The largest value over all positions: (n, c, h, w), (n, t, c) or (n, c) -> (n, c)."""
    if activation.dim() == 4:
        return activation.amax((2, 3))
    return activation.amax(1) if activation.dim() == 3 else activation
