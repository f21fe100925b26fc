"""What an audit of GoogLeNet costs, part by part, and how much of it the network's own passes are.

Random weights: their pictures say nothing, their time is that of any weights. The profiler tells passes from the rest:
time inside of modules' calls and of autograd, the transform's and the parameterization's way back included.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from time import process_time

import featvis as fv
from benchmarks.drawn import Drawn
from featvis.audit.audit import STEPS
from featvis.audit.evidence import PARTS, gather
from featvis.audit.sample import sampled

CLASSES = 40
FORWARD, BACKWARD = "_call_impl", "_engine_run_backward"  # of torch's modules, and of torch's autograd


def measure(units: int, images: int, steps: int = STEPS) -> list[dict]:
    """One row for each part of the audit of `units` units with `images` natural images, and one for all of them."""
    subject = fv.load("googlenet", "random", device="cpu")
    natural = Drawn(subject, images, CLASSES)
    chosen = sampled(subject, units)
    watch = _Watch()
    gather(subject, natural, chosen, steps=steps, tick=watch.begin)
    watch.stop()
    first, second, third = (sum(times) for times in zip(*watch.parts.values(), strict=True))
    return [
        {
            "part": part,
            "seconds": own,
            "forward": forward,
            "backward": backward,
            "share_of_passes": (forward + backward) / own,
            "units": units,
            "images": images,
            "steps": steps,
        }
        for part, (own, forward, backward) in (watch.parts | {"all": (first, second, third)}).items()
    ]


class _Watch:
    """Seconds of each part, with a profile of its own: (all, inside of modules, inside of autograd)."""

    def __init__(self, clock: Callable[[], float] = process_time) -> None:
        self.clock = clock
        self.parts: dict[str, tuple[float, float, float]] = {}
        self.part = ""

    def begin(self, part: str) -> None:
        assert part in PARTS
        self.stop()
        self.part, self.profile, self.at = part, cProfile.Profile(self.clock), self.clock()
        self.profile.enable()

    def stop(self) -> None:
        if not self.part:
            return
        self.profile.disable()
        seconds = self.clock() - self.at
        # pstats: (file, line, function) -> (calls, ..., seconds with all that it calls); recursion counts once.
        found = pstats.Stats(self.profile).stats  # type: ignore[attr-defined]
        inside = [sum(row[3] for (_, _, name), row in found.items() if name == key) for key in (FORWARD, BACKWARD)]
        self.parts[self.part] = (seconds, inside[0], inside[1])
        self.part = ""
