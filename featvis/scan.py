"""One pass over natural images: the best and worst of every unit, and a sample, in the memory of one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featvis import checkpoint
from featvis.errors import FeatvisError
from featvis.images import NaturalImages
from featvis.subjects import Subject, Unit, unit_means

LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SAMPLE = 4096  # images whose activations are kept for quantiles and histograms
BINS = 24


@dataclass(frozen=True)
class Scan:
    """What is looked for: the `most` best and worst images of each unit, in batches of `batch`."""

    units: tuple[Unit, ...]
    most: int
    batch: int

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(unit.layer for unit in self.units))

    @property
    def order(self) -> list[Unit]:
        """The units as a pass goes through them: layer by layer."""
        return [unit for layer in self.layers for unit in self.units if unit.layer == layer]

    def look(self, subject: Subject, natural: NaturalImages, state: Pass, stop: int) -> Iterator[int]:
        """Go on with a pass up to image `stop`; the number of images that each batch brought."""
        layers = self.layers
        columns = {
            layer: torch.tensor([u.index for u in self.units if u.layer == layer], device=subject.device)
            for layer in layers
        }
        for images, _labels, ids in natural.batches(self.batch, state.seen, stop):
            found = next(subject.activations([images], layers))
            values = torch.cat([unit_means(found[layer])[:, columns[layer]] for layer in layers], 1)
            places = torch.cat([_places(found[layer])[:, columns[layer]] for layer in layers], 1)
            state.add(values.cpu().float(), places.cpu().float(), ids)
            state.seen += self.batch
            state.skipped = list(natural.skipped)
            yield len(ids)


def shard(subject: Subject, natural: NaturalImages, scan: Scan, part: tuple[int, int]) -> dict[str, Any]:
    """The pass over the images of one shard, as a part of a job."""
    state = Pass(len(scan.units), scan.most, len(natural))
    state.seen, stop = part
    for _ in scan.look(subject, natural, state, stop):
        pass
    return {name: value for name, value in vars(state).items() if name != "sampled"} | {"skipped": natural.skipped}


def _places(maps: Tensor) -> Tensor:
    """Where each map (n, c, h, w) has its maximum, as (n, c, 2) of y and x in [0, 1]; -1 without a map."""
    if maps.dim() != 4:
        return maps.new_full((len(maps), maps.shape[-1] if maps.dim() == 3 else maps.shape[1], 2), -1.0)
    height, width = maps.shape[-2:]
    at = maps.flatten(2).argmax(2)
    return torch.stack([(at // width + 0.5) / height, (at % width + 0.5) / width], -1)


_SHARED = ("top", "top_index", "top_at", "bottom", "bottom_index", "sample", "ids")


class Pass:
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
        self.skipped: list[str] = []  # what could not be read, as the images tell it
        self.seen = 0

    def add(self, values: Tensor, places: Tensor, ids: list[str]) -> None:
        """Take in a batch, whose images stand at `seen` and behind it: values (n, units), places (n, units, 2).

        Raises FeatvisError, naming an image, if an activation is not finite: nothing could be ordered by it.
        """
        finite = torch.isfinite(values).all(1)
        if not finite.all():
            raise FeatvisError(
                f"{ids[int(finite.int().argmin())]} activates a unit to what is no finite number; weights and "
                "preprocessing have to give finite activations."
            )
        index = torch.arange(len(ids)).expand(values.shape[1], -1)
        sample = values[torch.from_numpy(self.sampled[self.seen : self.seen + len(ids)])]
        self._take(values.T, index, places.transpose(0, 1), -values.T, index, sample, ids)

    def join(self, later: dict[str, Any]) -> None:
        """Take in what another pass found among the images behind these."""
        later = {name: later[name] for name in _SHARED}
        self._take(*later.values())

    def _take(
        self,
        top: Tensor,
        top_index: Tensor,
        at: Tensor,
        bottom: Tensor,
        bottom_index: Tensor,
        sample: Tensor,
        ids: list,
    ) -> None:
        first = len(self.ids)

        def behind(own: Tensor, new: Tensor, order: Tensor) -> Tensor:
            return torch.cat([own, torch.where(new < 0, new, new + first)], 1).gather(1, order)

        self.top, order = _merge(self.top, top)
        self.top_index = behind(self.top_index, top_index, order)
        self.top_at = torch.cat([self.top_at, at], 1).gather(1, order[..., None].expand(-1, -1, 2))
        self.bottom, order = _merge(self.bottom, bottom)
        self.bottom_index = behind(self.bottom_index, bottom_index, order)
        self.sample = torch.cat([self.sample, sample])
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
        checkpoint.write(file, key, {**vars(self), "sampled": torch.from_numpy(self.sampled)})

    @classmethod
    def resume(cls, file: Path | None, key: str) -> Pass | None:
        """The state in `file`, if it is whole and belongs to the same pass."""
        saved = checkpoint.read(file, key)
        if saved is None:
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
