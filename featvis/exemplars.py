"""Exemplars: the natural images that excite a unit most and least, found in one pass over any number of images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis.errors import FeatvisError
from featvis.images import NaturalImages
from featvis.shelf import shelved
from featvis.subjects import Subject, unit_means

LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SAMPLE = 4096  # images whose activations are kept for quantiles and histograms
BINS = 24
SPARE = 6  # candidates kept for each exemplar, so that overlapping crops can be left out
ROUNDING = 1e-3  # of the largest activation
SAVE_EVERY = 20  # batches between two checkpoints


@dataclass(frozen=True)
class Exemplars:
    """What natural images do to each unit; activations are averaged over a channel's map.

    top_ids, bottom_ids        (units, k) ids of the images that excite most and least, the most extreme first
    top_values, bottom_values  (units, k) their activations
    top_at                     (units, k, 2) where the map has its maximum: (y, x) in [0, 1], -1 where there is no map
    quantiles                  (units, levels) at `LEVELS`; the ends are exact, the rest from at most 4096 images
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
        return torch.stack([natural.image(str(id)) for id in ids[self.units.index(unit)] if id])

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


@shelved(1, Exemplars, free=("batch", "checkpoint", "progress"))
def exemplars(
    subject: Subject,
    natural: NaturalImages,
    units: Sequence[str],
    k: int = 9,
    *,
    distinct: bool = True,
    batch: int = 64,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Exemplars:
    """Find the k images that excite each unit most and least, in one pass over `natural` for all units of all layers.

    `units` may name whole layers ("inception4b") and single units ("fc:coins"). Ties go to the earlier image. With
    `distinct`, crops that largely overlap a better one are left out. With a `checkpoint` file an interrupted pass goes
    on where it was. Raises FeatvisError if there is no image, or k is not between 1 and the number of images.
    """
    wanted = [name for entry in units for name in (subject.units(entry) if entry in subject.layers else [entry])]
    chosen = [subject.unit(name) for name in wanted]
    if not 1 <= k <= len(natural):
        raise FeatvisError(f"k={k} exemplars were asked for; valid are 1 to {len(natural)}, the number of images.")
    layers = list(dict.fromkeys(unit.layer for unit in chosen))
    columns = {
        layer: torch.tensor([u.index for u in chosen if u.layer == layer], device=subject.device) for layer in layers
    }
    key = f"{subject.fingerprint} {natural.fingerprint} {k} {distinct} {wanted}"
    state = _Pass.resume(checkpoint, key) or _Pass(len(chosen), k * (SPARE if distinct else 1), len(natural))
    stream = natural.batches(batch, start=state.seen)
    with tqdm(
        total=len(natural),
        initial=state.seen,
        desc=f"exemplars {subject.name}",
        unit="image",
        disable=not progress,
        leave=False,
    ) as bar:
        for number, (images, _labels, ids) in enumerate(stream, start=1):
            found = next(subject.activations([images], layers))
            values = torch.cat([unit_means(found[layer])[:, columns[layer]] for layer in layers], 1)
            places = torch.cat([_places(found[layer])[:, columns[layer]] for layer in layers], 1)
            state.add(values.cpu().float(), places.cpu().float(), ids)
            state.seen += batch
            bar.update(len(ids))
            if checkpoint is not None and number % SAVE_EVERY == 0:
                state.save(checkpoint, key)
    if not state.ids:
        raise FeatvisError(f"none of the {len(natural)} images of {natural.name} could be read.")
    # The pass went layer by layer; give the units back in the order asked for.
    went = [unit for layer in layers for unit in chosen if unit.layer == layer]
    rank = {unit: i for i, unit in enumerate(went)}
    outcome = state.outcome(natural, k, distinct, np.array([rank[unit] for unit in chosen]))
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Exemplars(subject.name, natural.name, tuple(str(unit) for unit in chosen), **outcome, images=len(state.ids))


def _places(maps: Tensor) -> Tensor:
    """Where each map (n, c, h, w) has its maximum, as (n, c, 2) of y and x in [0, 1]; -1 without a map."""
    if maps.dim() != 4:
        return maps.new_full((len(maps), maps.shape[-1] if maps.dim() == 3 else maps.shape[1], 2), -1.0)
    height, width = maps.shape[-2:]
    at = maps.flatten(2).argmax(2)
    return torch.stack([(at // width + 0.5) / height, (at % width + 0.5) / width], -1)


class _Pass:
    """The running state of one pass: k best and worst of every unit, and a sample for the quantiles."""

    def __init__(self, units: int, k: int, images: int):
        self.top = torch.full((units, k), -torch.inf)
        self.bottom = torch.full((units, k), -torch.inf)  # of the negated activations
        self.top_index = torch.full((units, k), -1, dtype=torch.long)
        self.bottom_index = self.top_index.clone()
        self.top_at = torch.full((units, k, 2), -1.0)
        self.sampled = np.zeros(images, bool)
        self.sampled[np.random.default_rng(0).permutation(images)[:SAMPLE]] = True
        self.sample = torch.zeros(0, units)
        self.ids: list[str] = []
        self.seen = 0

    def add(self, values: Tensor, places: Tensor, ids: list[str]) -> None:
        first = len(self.ids)
        index = torch.arange(first, first + len(ids)).expand(values.shape[1], -1)
        self.top, order = _merge(self.top, values.T)
        self.top_index = torch.cat([self.top_index, index], 1).gather(1, order)
        at = torch.cat([self.top_at, places.transpose(0, 1)], 1)
        self.top_at = at.gather(1, order[..., None].expand(-1, -1, 2))
        self.bottom, order = _merge(self.bottom, -values.T)
        self.bottom_index = torch.cat([self.bottom_index, index], 1).gather(1, order)
        self.sample = torch.cat([self.sample, values[torch.from_numpy(self.sampled[first : first + len(ids)])]])
        self.ids += ids

    def outcome(self, natural: NaturalImages, k: int, distinct: bool, order: np.ndarray) -> dict[str, np.ndarray]:
        def pick(indices: Tensor) -> np.ndarray:
            rows = ([self.ids[i] if i >= 0 else "" for i in row] for row in indices[order].tolist())
            return np.array([_distinct(row, natural, k, distinct) for row in rows])

        top, bottom = pick(self.top_index), pick(self.bottom_index)
        names = np.array(self.ids)
        sample = self.sample.numpy()[:, order]
        quantiles = np.quantile(sample, LEVELS, axis=0).T
        top_values = np.take_along_axis(self.top.numpy()[order], top, 1)
        bottom_values = -np.take_along_axis(self.bottom.numpy()[order], bottom, 1)
        quantiles[:, 0] = -self.bottom.numpy()[order, 0]
        quantiles[:, -1] = self.top.numpy()[order, 0]
        ends = quantiles[:, [0, -1]]
        histogram = np.stack(
            [np.histogram(sample[:, i], BINS, (lo, max(hi, lo + 1e-6)))[0] for i, (lo, hi) in enumerate(ends)]
        )
        return {
            "top_ids": names[np.take_along_axis(self.top_index.numpy()[order], top, 1)],
            "bottom_ids": names[np.take_along_axis(self.bottom_index.numpy()[order], bottom, 1)],
            "top_values": top_values,
            "bottom_values": bottom_values,
            "top_at": np.take_along_axis(self.top_at.numpy()[order], top[..., None], 1),
            "quantiles": quantiles.astype(np.float32),
            "histogram": histogram,
        }

    def save(self, file: Path, key: str) -> None:
        unfinished = file.with_suffix(".tmp")
        torch.save({"key": key, **vars(self), "sampled": torch.from_numpy(self.sampled)}, unfinished)
        os.replace(unfinished, file)

    @classmethod
    def resume(cls, file: Path | None, key: str) -> _Pass | None:
        """The state in `file`, if it is whole and belongs to the same pass."""
        if file is None or not file.exists():
            return None
        try:
            saved = torch.load(file, weights_only=True)
        except Exception:  # cut short: start again
            return None
        if saved.pop("key", None) != key:
            return None
        self = cls.__new__(cls)
        vars(self).update(saved, sampled=saved["sampled"].numpy())
        return self


def _merge(best: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of both (c, k) and (c, n) in descending order, and where they stood; ties go to the earlier."""
    values, order = torch.sort(torch.cat([best, new], 1), dim=1, descending=True, stable=True)
    return values[:, : best.shape[1]], order[:, : best.shape[1]]


def _distinct(ids: list[str], natural: NaturalImages, k: int, distinct: bool) -> list[int]:
    """Positions of k entries, passing over those that overlap an earlier one while there are others left."""
    kept: list[int] = []
    for i, id in enumerate(ids):
        if id and (not distinct or not any(natural.overlap(id, ids[j]) for j in kept)):
            kept.append(i)
        if len(kept) == k:
            return kept
    rest = [i for i, id in enumerate(ids) if i not in kept]
    return sorted((kept + rest)[:k])
