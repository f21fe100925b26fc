"""`render`: visualizations of any number of units, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis.engine import LOCAL, Engine, Ray, chosen, keep, kept, key_of, outcomes
from featvis.errors import FeatvisError, listed
from featvis.images import natural_images, usual
from featvis.shelf import shelved
from featvis.subjects import Subject, Unit
from featvis.visualize import objectives, parameterizations, transforms
from featvis.visualize.ascent import Ascent, OnStep
from featvis.visualize.batches import PRECISIONS, Batch, How, as_found, climb_all, climbed
from featvis.visualize.objectives import Objective
from featvis.visualize.parameterizations import Parameterization
from featvis.visualize.result import Visualizations
from featvis.visualize.transforms import Transform

PARAMETERIZATIONS = ("fourier", "pixels", "maco")
Group = str | tuple[bool, *tuple[str, ...]]  # a unit's layer; or what an objective reads, and whether only that
ROUNDING = 1e-3  # by which a start may leave [0, 1]


@shelved(1, Visualizations, free=("batch", "engine", "progress", "on_step"), later=("redirect",))
def render(
    subject: Subject,
    units: Sequence[str | Objective] | str | Objective,
    *,
    steps: int = 256,
    seeds: int | Sequence[int] = 1,
    size: int | None = None,
    parameterization: str | Parameterization = "fourier",
    transform: Transform | None = None,
    minimize: bool = False,
    snapshots: Sequence[int] = (),
    rate: float | None = None,
    precision: str = "fp32",
    batch: int | None = None,
    start: Tensor | None = None,
    redirect: int = 0,
    engine: Engine = LOCAL,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Visualizations:
    """Find an image that maximizes (or minimizes) each unit, from each seed.

    units             "inception4b:17", "fc:coins", or an Objective; units of one layer share a batch
    seeds             how many, or which ones
    size              side of the image in pixels (the subject's own by default)
    parameterization  "fourier", "pixels", "maco", or your own
    minimize          a unit that ends in a ReLU, which is flat below 0, is minimized by what enters the ReLU
    transform         Affine() by default
    snapshots         steps whose images are kept, and given to `on_step(step, images)`
    precision         "fp32" or "bf16" (the network alone; faster only where the processor has bf16 arithmetic)
    batch             images at once, at most; chosen from image size and device if not given, halved where the memory
                      does not suffice. On a processor with several threads up to four batches of units climb side by
                      side, and need their memory at the same time
    start             what to start from instead of noise, in [0, 1]: one image (3, h, w) for all, one for each unit
                      (units, 3, h, w), or one for each unit and seed (units, seeds, 3, h, w)
    redirect          steps in which a ReLU that would let no gradient at all of an image through lets some through
                      (16 in Lucid, which has this rule against dead units); by default only images that get no
                      gradient at all are helped so
    engine            "local", "ray" or `featvis.engine.Ray(...)`: batches are Ray tasks, with the same result; with a
                      folder, as in `featvis.engine.Local(folder)`, an interrupted job goes on behind its last batch
    """
    wanted = [units] if isinstance(units, (str, Objective)) else list(units)
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    side = subject.preprocess.size if size is None else (size, size)
    _check(wanted, steps, seeds, side, precision, snapshots, batch, redirect)
    starts = None if start is None else _starts(start, len(wanted), len(seeds), side)
    parameterization = named(parameterization, subject, side)
    how = How(
        parameterization,
        transforms.Affine() if transform is None else transform,
        side,
        steps,
        parameterization.rate if rate is None else rate,
        minimize,
        tuple(snapshots),
        precision,
        redirect,
    )
    names = [w.name if isinstance(w, Objective) else str(subject.unit(w)) for w in wanted]
    ordered = _order(wanted, subject, side, len(seeds))
    parts = _batches(ordered, names, seeds, batch or batch_size(side, subject.device), starts)
    collected = _Collected(len(wanted), len(seeds), steps, side, snapshots)
    where = chosen(engine)
    if isinstance(where, Ray) and on_step is not None:
        raise FeatvisError("on_step is called in this process; it needs engine='local'.")
    total = steps * len(parts)
    with tqdm(total=total, desc=f"render {subject.name}", unit="step", disable=not progress, leave=False) as bar:
        if isinstance(where, Ray):
            keys = [_key(subject, how, part) for part in parts]
            for _, found in outcomes(where, climbed, (subject, how), parts, keys):
                collected.take(found)
                bar.update(steps)
        else:
            missing = []
            for part in parts:
                key = None if where.folder is None else _key(subject, how, part)  # it takes a while to write it
                if (before := kept(where, key)) is None:
                    missing.append((part, key))
                else:
                    collected.take(before)
                    bar.update(steps)
            waiting, done = iter(missing), list[tuple[Batch, Ascent]]()
            for piece, outcome in climb_all(subject, how, [part for part, _ in missing], bar.update, on_step):
                collected.add(piece.places, outcome)
                if collected.steps < steps:
                    break
                if not done:
                    part, key = next(waiting)
                done.append((piece, outcome))
                if piece.places[-1] == part.places[-1]:  # the last one of a batch, which may come in pieces
                    keep(where, key, as_found(done))
                    done = []
    return collected.result(subject.name, names, seeds, minimize)


def _key(subject: Subject, how: How, part: Batch) -> str | None:
    """All that decides about a batch of units; an objective's has no lasting name."""
    return None if isinstance(part.what, Objective) else key_of("render", subject, how, part)


def _batches(
    ordered: list[tuple[Group, int, Unit | Objective]],
    names: list[str],
    seeds: tuple[int, ...],
    size: int,
    starts: Tensor | None,
) -> list[Batch]:
    """At most `size` images at once, in equal parts: of units of one layer, or of objectives that read the same."""
    batches = []
    for group, entries in groupby(ordered, key=lambda entry: entry[0]):
        members = list(entries)
        jobs = [(what, i, j) for _, i, what in members for j in range(len(seeds))]
        # All seeds of an objective stay together: they may look at each other.
        block = len(seeds) if isinstance(group, tuple) else 1
        blocks = len(jobs) // block
        count = -(-blocks // max(1, size // block))
        for first, last in pairwise(block * (blocks * i // count) for i in range(count + 1)):
            some = jobs[first:last]
            what: tuple[Unit, ...] | Objective = tuple(one for one, _, _ in some if isinstance(one, Unit))
            if isinstance(group, tuple):
                every = [one for one, _, j in some if isinstance(one, Objective) and j == 0]
                what = objectives.stacked(every, [len(seeds)] * len(every))
            places = tuple((i, j) for _, i, j in some)
            begin = None if starts is None else torch.stack([starts[place] for place in places])
            noise = tuple(names[i] for i, _ in places), tuple(seeds[j] for _, j in places)
            batches.append(Batch(what, places, *noise, begin))
    return batches


def batch_size(size: tuple[int, int], device: torch.device) -> int:
    """Images at once, 4 to 64: as many pixels as 64 of 96 x 96 pixels have, on a processor as 32 of them.

    An image of PhotoNet in a batch of 32 took 92% of its time in one of 64 (two threads, inception3a and 4b), fewer
    gained no more; an image of 224 pixels takes least in batches of 4.
    """
    pixels = (32 if device.type == "cpu" else 64) * 96 * 96
    return min(64, max(4, pixels // (size[0] * size[1])))


class _Collected:
    """The outcomes of all batches, put where they belong."""

    def __init__(self, units: int, seeds: int, steps: int, size: tuple[int, int], snapshots: Sequence[int]):
        self.images = torch.zeros(units, seeds, 3, *size)
        self.snapshots = {step: torch.zeros_like(self.images) for step in snapshots}
        self.activation = np.full((units, seeds), np.nan)
        self.curve = np.full((units, seeds, steps), np.nan, np.float32)
        self.status = np.full((units, seeds), "not run", dtype="<U16")
        self.steps = steps

    def add(self, places: Sequence[tuple[int, int]], outcome: Ascent) -> None:
        rows, columns = np.array(places).T
        self.images[rows, columns] = outcome.images
        for step, images in outcome.snapshots.items():
            self.snapshots[step][rows, columns] = images
        self.activation[rows, columns] = outcome.activation.numpy()
        self.curve[rows, columns, : len(outcome.curve)] = outcome.curve.T.numpy()
        self.status[rows, columns] = outcome.status
        self.steps = min(self.steps, len(outcome.curve))

    def take(self, found: dict[str, Any]) -> None:
        """Add what `as_found` wrote of finished batches."""
        for places, fields in found["done"]:
            self.add(places, Ascent(**fields))

    def result(self, subject: str, names: list[str], seeds: tuple[int, ...], minimize: bool) -> Visualizations:
        return Visualizations(
            subject,
            tuple(names),
            seeds,
            self.images,
            self.activation,
            self.curve[:, :, : self.steps],
            self.status,
            self.steps,
            minimize,
            {step: images for step, images in self.snapshots.items() if step <= self.steps},
        )


def _order(
    wanted: list[str | Objective], subject: Subject, size: tuple[int, int], seeds: int
) -> list[tuple[Group, int, Unit | Objective]]:
    """(group, position, unit or objective): first objectives by what they read, then units in the network's order."""
    entries: list[tuple[Group, int, Unit | Objective]] = []
    for i, what in enumerate(wanted):
        if isinstance(what, Objective):
            objectives.check(what, subject, size, seeds)
            entries.append(((what.beside is None, *what.layers), i, what))
        else:
            unit = subject.unit(what)
            entries.append((unit.layer, i, unit))
    depth = {layer: k for k, layer in enumerate(subject.layers)}
    groups = list(dict.fromkeys(group for group, *_ in entries if isinstance(group, tuple)))
    return sorted(entries, key=lambda e: groups.index(e[0]) - len(groups) if isinstance(e[0], tuple) else depth[e[0]])


def named(name: str | Parameterization, subject: Subject, size: tuple[int, int]) -> Parameterization:
    """The parameterization of this name, for a subject and an image size; one's own stays as it is."""
    if not isinstance(name, str):
        return name
    if name == "fourier":
        return parameterizations.Fourier()
    if name == "pixels":
        return parameterizations.Pixels()
    if name != "maco":
        raise FeatvisError(f"there is no parameterization {name!r}; there are {listed(PARAMETERIZATIONS)}.")
    return parameterizations.Maco(_usual_magnitude(usual(subject.name), size[0]))


@lru_cache(maxsize=4)
def _usual_magnitude(source: str, side: int) -> Tensor:
    return parameterizations.mean_magnitude(natural_images(source, split="train", size=side))


def _check(
    wanted: list[str | Objective],
    steps: int,
    seeds: tuple[int, ...],
    size: tuple[int, int],
    precision: str,
    snapshots: Sequence[int],
    batch: int | None,
    redirect: int,
) -> None:
    if not wanted:
        raise FeatvisError("no unit was given; a unit is written LAYER:INDEX, such as inception4b:17.")
    if steps < 1:
        raise FeatvisError(f"steps={steps} was given; at least 1 step is needed.")
    if not seeds:
        raise FeatvisError("no seed was given; at least 1 is needed.")
    if min(size) < 16:
        raise FeatvisError(f"size={size[0]} was given; an image has at least 16 pixels a side.")
    if precision not in PRECISIONS:
        raise FeatvisError(f"precision={precision!r} was given; valid are {listed(PRECISIONS)}.")
    beyond = [step for step in snapshots if not 1 <= step <= steps]
    if beyond:
        raise FeatvisError(f"snapshots at steps {listed(beyond)} lie outside of 1 to {steps}.")
    if redirect < 0:
        raise FeatvisError(f"redirect={redirect} was given; it is a number of steps, 0 or more.")
    if batch is not None and batch < 1:
        raise FeatvisError(f"batch={batch} was given; at least 1 image is rendered at once.")


def _starts(start: Tensor, units: int, seeds: int, size: tuple[int, int]) -> Tensor:
    """One start for each unit and seed, (units, seeds, 3, h, w)."""
    image = (3, *size)
    valid = [image, (units, *image), (units, seeds, *image)]
    if start.shape not in valid:
        raise FeatvisError(
            f"the start has shape {tuple(start.shape)}; it is one image {image} in [0, 1], "
            f"one for each unit {valid[1]}, or one for each unit and seed {valid[2]}."
        )
    lowest, highest = float(start.min()), float(start.max())
    if not (lowest >= -ROUNDING and highest <= 1 + ROUNDING):
        raise FeatvisError(f"the start has values from {lowest:g} to {highest:g}; an image's lie in [0, 1].")
    wide = start.unsqueeze(1) if start.dim() == 4 else start
    return wide.expand(units, seeds, *image)
