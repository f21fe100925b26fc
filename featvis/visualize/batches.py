"""Batches: the images that climb together, and what happens where they do not fit into the memory."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featvis.cut import Cut
from featvis.errors import FeatvisError, reason
from featvis.subjects import Subject, Unit
from featvis.threads import abreast, side_by_side
from featvis.visualize import objectives
from featvis.visualize.ascent import Ascent, OnStep, ascend, generator_for
from featvis.visualize.objectives import Objective
from featvis.visualize.parameterizations import Parameterization, Size
from featvis.visualize.transforms import Transform

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Cuts = dict[tuple[str, ...], Cut]


@dataclass(frozen=True)
class How:
    """What all batches of a run have in common, as `render` documents it."""

    parameterization: Parameterization
    transform: Transform
    size: Size
    steps: int
    rate: float
    minimize: bool
    snapshots: tuple[int, ...]
    precision: str
    redirect: int = 0


@dataclass(frozen=True)
class Batch:
    """Images that climb together: `what` is one unit of the same layer for each, or one objective for all.

    `places` are the (unit, seed) positions of the images in the result; `names` and `seeds` decide about their noise,
    `start` (n, 3, h, w) is what they begin with, if not with noise alone.
    """

    what: tuple[Unit, ...] | Objective
    places: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    start: Tensor | None = field(default=None, repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        return self.what.layers if isinstance(self.what, Objective) else (self.what[0].layer,)

    def halves(self, subject: Subject, size: Size) -> list[Batch]:
        """Two batches in place of one. Raises FeatvisError where there is nothing to halve."""
        n, pixels = len(self.places), f"{size[0]} x {size[1]} pixels"
        if n == 1:
            raise FeatvisError(
                f"one image of {pixels} of {subject.name} does not fit into the memory; try a smaller size."
            )
        if isinstance(self.what, Objective):  # which may be about all of its images together
            raise FeatvisError(
                f"{n} images of {pixels} of the objective {self.what.name!r} do not fit into the memory; try fewer "
                "seeds or a smaller size."
            )
        return [self.part(slice(0, n // 2)), self.part(slice(n // 2, n))]

    def part(self, which: slice) -> Batch:
        """Some of the images of a batch of units."""
        assert not isinstance(self.what, Objective)
        return replace(
            self,
            what=self.what[which],
            places=self.places[which],
            names=self.names[which],
            seeds=self.seeds[which],
            start=None if self.start is None else self.start[which],
        )


def climb_all(
    subject: Subject,
    how: How,
    batches: Sequence[Batch],
    tick: Callable[[], object] = lambda: None,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Batch, Ascent]]:
    """`climb` of all batches, in their order.

    On a processor several climb side by side, each on a network of its own; not objectives, which may share one, and
    not where `on_step` looks on.
    """
    alone = on_step is not None or any(isinstance(batch.what, Objective) for batch in batches)
    together = 1 if alone or subject.device.type != "cpu" else abreast(len(batches))
    cuts: list[Cuts] = [{} for _ in range(together)]
    if together == 1:
        for batch in batches:
            yield from climb(subject, how, batch, cuts[0], tick, on_step)
        return
    lock = threading.Lock()

    def run(batch: Batch, own: Cuts, check: Callable[[], None]) -> list[tuple[Batch, Ascent]]:
        def step() -> None:
            check()
            with lock:
                tick()

        return list(climb(subject, how, batch, own, step))

    for first in range(0, len(batches), together):
        some = batches[first : first + together]
        for batch, own in zip(some, cuts, strict=False):
            _cut_for(subject, how, batch, own)  # now, while no other one climbs
        for found in side_by_side([partial(run, batch, own) for batch, own in zip(some, cuts, strict=False)]):
            yield from found


def climb(
    subject: Subject,
    how: How,
    batch: Batch,
    cuts: Cuts | None = None,
    tick: Callable[[], object] = lambda: None,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Batch, Ascent]]:
    """The batch and what it came to; or, where the memory does not suffice for it, its halves one after the other.

    An image does not depend on the others of its batch but for rounding. `cuts` keeps the last network that was cut.
    """
    cuts = {} if cuts is None else cuts
    waiting = [batch]
    while waiting:
        now, *waiting = waiting
        try:
            outcome = _ascent(subject, how, now, cuts, tick, on_step)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            outcome = None  # the error holds what fills the memory: go on only when it is gone
        if outcome is not None:
            yield now, outcome
            continue
        waiting = now.halves(subject, how.size) + waiting
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"{len(now.places)} images of {how.size[0]} x {how.size[1]} pixels do not fit into the memory for "
            f"{subject.name}; going on with {len(waiting[0].places)} at once.",
            RuntimeWarning,
            stacklevel=3,
        )


def climbed(subject: Subject, how: How, batch: Batch) -> dict[str, Any]:
    """`climb` as a part of a job."""
    return as_found(climb(subject, how, batch))


def as_found(done: Iterable[tuple[Batch, Ascent]]) -> dict[str, Any]:
    """Finished batches as a part of a job: {"done": [(places, the fields of its Ascent)]}."""
    return {"done": [(list(batch.places), vars(outcome)) for batch, outcome in done]}


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory was short, on a GPU or not."""
    words = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _ascent(
    subject: Subject, how: How, batch: Batch, cuts: Cuts, tick: Callable[[], object], on_step: OnStep | None
) -> Ascent:
    return ascend(
        _cut_for(subject, how, batch, cuts),
        subject.preprocess,
        batch.what if isinstance(batch.what, Objective) else objectives.batched(batch.what, subject.device),
        [generator_for(name, seed) for name, seed in zip(batch.names, batch.seeds, strict=True)],
        parameterization=how.parameterization,
        transform=how.transform,
        size=how.size,
        steps=how.steps,
        rate=how.rate,
        sign=-1.0 if how.minimize else 1.0,
        snapshots=how.snapshots,
        start=batch.start,
        redirect=how.redirect,
        on_step=on_step,
        tick=tick,
    )


def _cut_for(subject: Subject, how: How, batch: Batch, cuts: Cuts) -> Cut:
    if batch.layers not in cuts:
        cuts.clear()
        cuts[batch.layers] = _prepared(subject, batch.layers, how)
    return cuts[batch.layers]


def _prepared(subject: Subject, layers: tuple[str, ...], how: How) -> Cut:
    dtype, (height, width) = PRECISIONS[how.precision], how.size
    network = subject.until(*layers, before_relu=how.minimize).to(dtype)
    try:
        with torch.no_grad():
            probe = torch.full((1, 3, height, width), 0.5, device=subject.device)
            network(subject.preprocess(probe).to(dtype))
    except (RuntimeError, ValueError, AssertionError) as error:
        pixels = f"{height} x {width} pixels"
        raise FeatvisError(f"{subject.name} cannot take an image of {pixels}: {reason(error)}") from error
    return network
