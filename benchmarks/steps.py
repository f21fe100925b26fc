"""Milliseconds per image and step on torchvision's GoogLeNet (random weights, 224 px): Lucent, featvis, by hand, floor.

By hand is the same loop in plain torch on torchvision's own network, as a reader of the chapter might write it. The
floor is the bare forward and backward pass, to the image, of the same cut network at the same batch and dtype. Two
batches side by side have one thread each, as `render` has them wherever threads are not tied to processors.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featvis as fv
from benchmarks import memory, peer
from featvis.subjects import Subject
from featvis.threads import side_by_side
from featvis.visualize import objectives
from featvis.visualize.ascent import ascend, generator_for
from featvis.visualize.parameterizations import Fourier
from featvis.visualize.transforms import Affine

Run = Callable[[int], list[float]]  # steps -> seconds of each

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@lru_cache
def units_of(subject: Subject, layer: str, n: int) -> list[str]:
    """n units spread evenly over those of a layer that a faint pattern wakes.

    Random weights leave some units silent, and those take a second, redirected pass in the first steps.
    """
    faint = 0.5 + 0.02 * torch.randn(1, 3, *subject.preprocess.size, generator=torch.Generator().manual_seed(0))
    (found,) = subject.activations(faint, [layer])
    awake = found[layer].flatten(2).ne(0).any(2)[0] if found[layer].dim() == 4 else found[layer][0] != 0
    alive = awake.nonzero().flatten().tolist()
    return [f"{layer}:{alive[i * len(alive) // n]}" for i in range(n)]


def lucent(subject: Subject, layer: str, batch: int) -> Run:
    """Lucent with its defaults."""

    def run(steps: int) -> list[float]:
        watch = peer.Stopwatch()
        peer.render(subject.network, units_of(subject, layer, batch), 224, [steps + 1], clock=watch)
        return watch.laps

    return run


def ours(
    subject: Subject, layer: str, batch: int, precision: str, clock: Callable[[], float] = perf_counter
) -> tuple[Run, Run]:
    """featvis's loop as `render` runs it, and its floor."""
    network = subject.until(layer).to(TYPES[precision])
    units = units_of(subject, layer, batch)
    objective = objectives.batched([subject.unit(unit) for unit in units], subject.device)

    def loop(steps: int) -> list[float]:
        watch = peer.Stopwatch(clock)
        ascend(
            network,
            subject.preprocess,
            objective,
            [generator_for(unit, 0) for unit in units],
            parameterization=Fourier(),
            transform=Affine(),
            size=(224, 224),
            steps=steps + 1,
            rate=0.05,
            tick=watch,
        )
        return watch.laps

    def floor(steps: int) -> list[float]:
        watch = peer.Stopwatch(clock)
        x = (
            torch.rand(batch, 3, 224, 224, dtype=TYPES[precision])
            .to(memory_format=torch.channels_last)
            .requires_grad_()
        )
        for _ in range(steps + 1):
            torch.autograd.grad(objective.value(network(x)).sum(), x)
            watch()
        return watch.laps

    return loop, floor


class _Reached(Exception):
    """The layer has been computed: what comes after it need not be."""


def by_hand(subject: Subject, layer: str, batch: int) -> Run:
    """The same parts without featvis: spectrum, colours, jitter, scale and rotation, the network as it is, Adam."""
    network = copy.deepcopy(subject.network).requires_grad_(False)
    channels = torch.tensor([int(unit.rpartition(":")[2]) for unit in units_of(subject, layer, batch)])
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (subject.preprocess.mean, subject.preprocess.std))
    colours = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    frequency = torch.hypot(torch.fft.fftfreq(224)[:, None], torch.fft.rfftfreq(224)[None, :]).clamp(min=1 / 224)
    found: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output)
        raise _Reached

    network.get_submodule(layer).register_forward_hook(stop)

    def run(steps: int) -> list[float]:
        watch = peer.Stopwatch()
        noise = (0.01 * torch.randn(batch, 3, 224, 113, dtype=torch.complex64)).requires_grad_()
        optimizer = torch.optim.Adam([noise], lr=0.05)
        for _ in range(steps + 1):
            image = torch.fft.irfft2(noise * 0.25 / frequency**1.4, s=(224, 224), norm="ortho")
            image = torch.sigmoid(torch.einsum("rc,nchw->nrhw", colours / colours.norm(dim=0).max(), image))
            angle, size = torch.deg2rad(20 * torch.rand(batch) - 10), 0.9 + 0.2 * torch.rand(batch)
            shift = (24 * torch.rand(batch, 2) - 12) / 112
            turned = torch.stack([angle.cos() / size, -angle.sin() / size, shift[:, 0]], 1)
            upright = torch.stack([angle.sin() / size, angle.cos() / size, shift[:, 1]], 1)
            grid = F.affine_grid(torch.stack([turned, upright], 1), list(image.shape), align_corners=False)
            seen = F.grid_sample(image - 0.5, grid, align_corners=False) + 0.5
            found.clear()
            with suppress(_Reached):
                network((seen - mean) / std)
            chosen = found[0][torch.arange(batch), channels]
            optimizer.zero_grad()
            (-chosen.flatten(1).mean(1).sum() if chosen.dim() > 1 else -chosen.sum()).backward()
            optimizer.step()
            watch()
        return watch.laps

    return run


def measure(rounds: int, steps: int, precisions: tuple[str, ...]) -> list[dict]:
    """One row for each layer and variant; variants alternate within a round, and a row has the median of all steps."""
    subject = fv.load("googlenet", weights="random", device="cpu")
    rows = []
    for layer in ("inception4a", "fc"):
        runs: dict[tuple[str, int, str], Run] = {}
        if peer.available():
            runs |= {("lucent", batch, "fp32"): lucent(subject, layer, batch) for batch in (1, 4)}
        for precision in precisions:
            for batch in (1, 4, 16):
                loop, floor = ours(subject, layer, batch, precision)
                runs |= {("featvis", batch, precision): loop, ("floor", batch, precision): floor}
                if precision == "fp32":
                    runs["by hand", batch, precision] = by_hand(subject, layer, batch)
        laps: dict[tuple[str, int, str], list[float]] = {key: [] for key in runs}
        for _ in range(rounds):
            for key, run in runs.items():
                laps[key] += [1000 * lap / key[1] for lap in run(steps)]
        middle = {key: median(values) for key, values in laps.items()}
        for (name, batch, precision), ms in middle.items():
            rows.append(
                {
                    "layer": layer,
                    "variant": name,
                    "batch": batch,
                    "precision": precision,
                    "ms_per_image": ms,
                    "fastest_ms": min(laps[name, batch, precision]),
                    "times_faster_than_lucent": middle.get(("lucent", 1, "fp32"), float("nan")) / ms,
                    "times_by_hand": _ratio(middle, (name, batch, precision), "by hand"),
                    "times_the_floor": _ratio(middle, (name, batch, precision), "floor"),
                }
            )
    return rows


# In a process of its own, whose threads may run where they like: side by side needs that.
_FREE = """
import sys, warnings, torch
warnings.simplefilter("ignore")
torch.set_num_threads(int(sys.argv[1]))
from benchmarks import steps
print(steps.json.dumps(steps.two_abreast(int(sys.argv[2]), int(sys.argv[3]), tuple(sys.argv[4:]))))
"""


def measure_abreast(threads: int, rounds: int, steps: int, precisions: tuple[str, ...]) -> list[dict]:
    """`two_abreast` in a process of its own."""
    return json.loads(memory.free(_FREE, str(threads), str(rounds), str(steps), *precisions).splitlines()[-1])


def two_abreast(rounds: int, steps: int, precisions: tuple[str, ...], batch: int = 4) -> list[dict]:
    """As `measure`, for one batch with all threads and two batches side by side, for Lucent and the floor, too."""
    subject = fv.load("googlenet", weights="random", device="cpu")
    rows = []
    for layer in ("inception4a", "fc"):
        runs: dict[tuple[str, int, str], list[Run]] = {}
        if peer.available():
            runs["lucent", 1, "fp32"] = [lucent(subject, layer, 1) for _ in range(2)]
        for precision in precisions:
            pairs = [ours(subject, layer, batch, precision) for _ in range(2)]
            runs["featvis", batch, precision] = [loop for loop, _ in pairs]
            runs["floor", batch, precision] = [floor for _, floor in pairs]
        laps: dict[tuple[str, int, str, int], list[float]] = {}
        for _ in range(rounds):
            for (name, size, precision), both in runs.items():
                for many in (1, 2):
                    found = _together(both[:many], steps)
                    laps.setdefault((name, size, precision, many), []).extend(
                        1000 * lap / (size * many) for lap in found
                    )
        middle = {key: median(values) for key, values in laps.items()}
        for (name, size, precision, many), ms in middle.items():
            floor = middle.get(("floor", size, precision, many), float("nan")) if name == "featvis" else float("nan")
            rows.append(
                {
                    "layer": layer,
                    "variant": name,
                    "batch": size,
                    "side_by_side": many,
                    "precision": precision,
                    "ms_per_image": ms,
                    "fastest_ms": min(laps[name, size, precision, many]),
                    "times_faster_than_lucent": middle.get(("lucent", 1, "fp32", 1), float("nan")) / ms,
                    "times_the_floor": ms / floor,
                }
            )
    return rows


def _together(runs: list[Run], steps: int) -> list[float]:
    """The laps of one run, or of two side by side without each one's last, when the other may be done."""
    if len(runs) == 1:
        return runs[0](steps)
    one, other = runs
    found = side_by_side([lambda _check: one(steps + 1), lambda _check: other(steps + 1)])
    return [lap for laps in found for lap in laps[:-1]]


def _ratio(middle: dict[tuple[str, int, str], float], key: tuple[str, int, str], other: str) -> float:
    """How many times as long featvis takes as another loop at the same batch; nothing for the others."""
    name, batch, precision = key
    return middle[key] / middle.get((other, batch, precision), float("nan")) if name == "featvis" else float("nan")
