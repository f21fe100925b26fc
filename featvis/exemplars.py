"""Exemplars: the natural images that excite a unit most and least, found in one pass over any number of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis.engine import LOCAL, Engine, Ray, key_of, outcomes, place
from featvis.engine import chosen as engine_of
from featvis.errors import FeatvisError, listed
from featvis.images import NaturalImages
from featvis.scan import Pass, Scan, shard
from featvis.shelf import shelved
from featvis.subjects import Subject, row_of

SPARE = 6  # candidates kept for each exemplar, so that overlapping crops can be left out
ROUNDING = 1e-3  # of the largest activation
SAVE_EVERY = 20  # batches between two checkpoints
SHARDS, FEWEST = 64, 4  # tasks that a pass is divided into, and the fewest batches of one


@dataclass(frozen=True)
class Exemplars:
    """What natural images do to each unit; activations are averaged over a channel's map.

    top_ids, bottom_ids        (units, k) ids of the images that excite most and least, the most extreme first
    top_values, bottom_values  (units, k) their activations
    top_at                     (units, k, 2) where the map has its maximum: (y, x) in [0, 1], -1 where there is no map
    quantiles                  (units, levels) at `scan.LEVELS`; the ends are exact, the rest from at most 4096 images
    histogram                  (units, 24) counts of that sample between the ends
    images                     how many images were seen
    """

    subject: str
    natural: str
    units: tuple[str, ...]
    top_ids: np.ndarray = field(repr=False)
    top_values: np.ndarray = field(repr=False)
    top_at: np.ndarray = field(repr=False)
    bottom_ids: np.ndarray = field(repr=False)
    bottom_values: np.ndarray = field(repr=False)
    quantiles: np.ndarray = field(repr=False)
    histogram: np.ndarray = field(repr=False)
    images: int = 0

    def frame(self) -> pd.DataFrame:
        """One row for each unit, side ("top" or "bottom") and rank: id and activation."""
        parts = []
        for side, ids, values in (
            ("top", self.top_ids, self.top_values),
            ("bottom", self.bottom_ids, self.bottom_values),
        ):
            n, k = ids.shape
            parts.append(
                pd.DataFrame(
                    {
                        "unit": np.repeat(self.units, k),
                        "side": side,
                        "rank": np.tile(np.arange(k), n),
                        "id": ids.ravel(),
                        "activation": values.ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def pictures(self, natural: NaturalImages, unit: str, side: str = "top") -> Tensor:
        """The exemplars of one unit as images (k, 3, size, size)."""
        ids = self.top_ids if side == "top" else self.bottom_ids
        return torch.stack([natural.image(str(id)) for id in ids[row_of(self.units, unit)] if id])

    def difference(self, again: Exemplars) -> str:
        """ "" if the strongest activations are the same but for rounding; else by how much they differ."""
        change = np.abs(self.top_values - again.top_values).max() / np.abs(self.top_values).max()
        return "" if change <= ROUNDING else f"the exemplars' activations differ by {change:.2%}"

    def save(self, folder: Path) -> None:
        """Write everything as one npz file into an existing folder."""
        arrays: dict[str, Any] = {
            "top_values": self.top_values,
            "bottom_values": self.bottom_values,
            "top_at": self.top_at.astype(np.float16),
            "quantiles": self.quantiles,
            "histogram": self.histogram.astype(np.int32),
            "top_ids": self.top_ids.astype(str),
            "bottom_ids": self.bottom_ids.astype(str),
        }
        about = {"subject": self.subject, "natural": self.natural, "units": self.units, "images": self.images}
        np.savez_compressed(folder / "exemplars.npz", about=json.dumps(about), **arrays)

    @classmethod
    def load(cls, folder: Path) -> Exemplars:
        """Read what `save` wrote."""
        with np.load(folder / "exemplars.npz", allow_pickle=False) as saved:
            about = json.loads(str(saved["about"]))
            arrays = {name: saved[name] for name in saved.files if name != "about"}
        about["units"] = tuple(about["units"])
        return cls(**about, **arrays)


@shelved(1, Exemplars, free=("batch", "checkpoint", "engine", "progress"))
def exemplars(
    subject: Subject,
    natural: NaturalImages,
    units: Sequence[str] | str,
    k: int = 9,
    *,
    distinct: bool = True,
    batch: int = 64,
    checkpoint: Path | None = None,
    engine: Engine = LOCAL,
    progress: bool = True,
) -> Exemplars:
    """Find the k images that excite each unit most and least, in one pass over `natural` for all units of all layers.

    `units` may name whole layers ("inception4b") and single units ("fc:coins"). Ties go to the earlier image. With
    `distinct`, crops that largely overlap a better one are left out. With a `checkpoint` file an interrupted pass goes
    on where it was; `featvis.engine.Local(folder)` puts that file into a folder of its own. With the `engine` "ray" or
    `featvis.engine.Ray(...)` shards of the images are Ray tasks, which keep theirs; the result is the same.

    Raises FeatvisError if there is no image, for images of another size than the subject's, and if k is not between 1
    and the number of images.
    """
    units = [units] if isinstance(units, str) else units
    wanted = [name for entry in units for name in (subject.units(entry) if entry in subject.layers else [entry])]
    chosen = [subject.unit(name) for name in wanted]
    if not 1 <= k <= len(natural):
        raise FeatvisError(f"k={k} exemplars were asked for; valid are 1 to {len(natural)}, the number of images.")
    subject.check_size(natural)
    scan = Scan(tuple(chosen), k * (SPARE if distinct else 1), batch)
    key = f"{subject.fingerprint} {natural.fingerprint} {k} {distinct} {wanted}"
    where = engine_of(engine)
    lasting = checkpoint is None  # an engine's folder keeps what is finished; a caller's file what is not
    if isinstance(where, Ray):
        checkpoint = None  # it keeps its shards
    elif where.folder is not None and checkpoint is None:
        checkpoint = place(where.folder, key)
    state = Pass.resume(checkpoint, key) or Pass(len(chosen), scan.most, len(natural))
    natural.skipped += [line for line in state.skipped if line not in natural.skipped]
    with tqdm(
        total=len(natural),
        initial=state.seen,
        desc=f"exemplars {subject.name}",
        unit="image",
        disable=not progress,
        leave=False,
    ) as bar:
        if not isinstance(where, Ray):
            for number, count in enumerate(scan.look(subject, natural, state, len(natural)), start=1):
                bar.update(count)
                if checkpoint is not None and number % SAVE_EVERY == 0:
                    state.save(checkpoint, key)
            if checkpoint is not None and lasting:
                state.save(checkpoint, key)
        else:
            # The shards depend on the number of images alone: another number of workers finds the same ones finished.
            step = batch * max(FEWEST, -(-len(natural) // (batch * SHARDS)))
            shards = [(first, min(first + step, len(natural))) for first in range(0, len(natural), step)]
            keys = [key_of("exemplars", subject, natural, scan, part) for part in shards]
            found: dict[int, dict[str, Any]] = {}
            for number, some in outcomes(where, shard, (subject, natural, scan), shards, keys):
                found[number] = some
                bar.update(shards[number][1] - shards[number][0])
            for number in range(len(shards)):  # in the order of the images, because ties go to the earlier one
                state.join(found[number])
                natural.skipped += [line for line in found[number]["skipped"] if line not in natural.skipped]
    if not state.ids:
        raise FeatvisError(f"none of the {len(natural)} images of {natural.name} could be read.")
    if k > len(state.ids):
        raise FeatvisError(
            f"k={k} exemplars were asked for, but only {len(state.ids)} of {len(natural)} images of {natural.name} "
            f"could be read ({listed(natural.skipped, 3)})."
        )
    # The pass went layer by layer; give the units back in the order asked for.
    rank = {unit: i for i, unit in enumerate(scan.order)}
    outcome = state.outcome(natural, k, distinct, np.array([rank[unit] for unit in chosen]))
    if checkpoint is not None and not lasting:
        checkpoint.unlink(missing_ok=True)
    return Exemplars(subject.name, natural.name, tuple(str(unit) for unit in chosen), **outcome, images=len(state.ids))
