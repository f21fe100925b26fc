"""Gradient ascent on one batch of images: the lean loop under `render`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featvis.cut import Cut
from featvis.subjects import Preprocess
from featvis.visualize.objectives import BESIDE, IMAGE, Objective
from featvis.visualize.parameterizations import Parameterization, Size
from featvis.visualize.transforms import Nothing, Transform

# Steps in which the gradients of dead images are redirected; costs nothing where all units are alive.
WARM_UP = 64

OnStep = Callable[[int, Tensor], None]


class StopRender(Exception):
    """Raised by an `on_step` callback: end the run and keep what there is."""


@dataclass
class Ascent:
    """What one batch of n images came to. `curve` is (steps, n), `images` (n, 3, h, w), all on the CPU."""

    images: Tensor
    activation: Tensor
    curve: Tensor
    status: list[str]
    snapshots: dict[int, Tensor] = field(default_factory=dict)


def generator_for(name: str, seed: int) -> torch.Generator:
    """The source of all randomness of one image: the same for a unit and seed in every batch and on every device."""
    return torch.Generator().manual_seed(zlib.crc32(f"{name}|{seed}".encode()))


def evaluate(
    network: Cut, preprocess: Preprocess, objective: Objective, transform: Transform, images: Tensor, row: Tensor
) -> Tensor:
    """The objective (n,) of images (n, 3, h, w) that are transformed with a row of numbers: the mean over all views."""
    dtype = next(network.parameters()).dtype

    def run(views: Tensor) -> dict[str, Tensor]:
        return network(preprocess(views).to(dtype=dtype, memory_format=network.memory_format))

    views = transform.apply(images, row)
    seen = {IMAGE: views, **run(views)}
    if objective.beside is not None:
        with torch.no_grad():
            others = run(transform.apply(objective.beside.to(images), row))
        seen |= {BESIDE + layer: found for layer, found in others.items()}
    return objective.value(seen).float().view(len(images), -1).mean(1)


def ascend(
    network: Cut,
    preprocess: Preprocess,
    objective: Objective,
    generators: Sequence[torch.Generator],
    *,
    parameterization: Parameterization,
    transform: Transform,
    size: Size,
    steps: int,
    rate: float,
    sign: float = 1.0,
    snapshots: Sequence[int] = (),
    start: Tensor | None = None,
    redirect: int = 0,
    on_step: OnStep | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Ascent:
    """Maximize `sign` times the objective over n images, one generator each, with Adam.

    In the first `redirect` steps gradients are redirected at every ReLU that lets nothing through for an image. Later,
    and up to `WARM_UP`, only those of images that get no gradient at all.

    After the warm-up nothing in the loop waits for the device but snapshots. An image whose value or gradient is not
    finite stands still from then on; the others go on.
    """
    device = next(network.parameters()).device
    parameters = parameterization.start(generators, size, start).to(device).contiguous().requires_grad_(True)
    numbers = transform.draw(generators, steps).to(device)
    optimizer = torch.optim.Adam([parameters], lr=rate, fused=True)
    n = len(generators)
    stopped_at = torch.zeros(n, dtype=torch.long, device=device)
    curve = torch.zeros(steps, n, device=device)
    kept: dict[int, Tensor] = {}

    def climb(row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = parameterization.image(parameters, size)
        values = evaluate(network, preprocess, objective, transform, images, row)
        (gradient,) = torch.autograd.grad(-sign * values.sum(), parameters)
        return values.detach(), gradient, gradient.flatten(1).norm(dim=1)

    done = steps
    for step in range(1, steps + 1):
        with network.redirected() if step <= redirect else nullcontext():
            values, gradient, norm = climb(numbers[step - 1])
        if redirect < step <= WARM_UP and bool((norm == 0).any()):
            with network.redirected():
                _, redirected, _ = climb(numbers[step - 1])
            gradient = torch.where(_wide(norm == 0, gradient), redirected, gradient)
        curve[step - 1] = values
        stopped_at = torch.where((stopped_at == 0) & ~(values + norm).isfinite(), step, stopped_at)
        running = _wide(stopped_at == 0, gradient)
        # The fused optimizer goes by memory, whatever the strides: what follows channels last has its gradient so.
        parameters.grad = torch.where(running, gradient, 0).contiguous()
        if step > 1:  # without momentum a stopped image stands still
            optimizer.state[parameters]["exp_avg"].mul_(running)
        optimizer.step()
        if step in snapshots or step == steps:
            with torch.no_grad():
                kept[step] = parameterization.image(parameters, size)
            if on_step is not None:
                try:
                    on_step(step, kept[step])
                except StopRender:
                    done = step
                    break
        tick()
    with torch.no_grad():
        images = kept[done]
        activation = evaluate(network, preprocess, objective, Nothing(), images, numbers[0])
    seen = torch.cat([curve[:done], activation[None]])
    flat = (seen == seen[0]).all(0)
    status = [
        f"stopped {at}" if at else "dead" if dead else "ok"
        for at, dead in zip(stopped_at.tolist(), flat.tolist(), strict=True)
    ]
    return Ascent(
        images.cpu(),
        activation.cpu(),
        curve[:done].cpu(),
        status,
        {step: kept[step].cpu() for step in snapshots if step in kept},
    )


def _wide(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.dim() - 1))
