"""torch-lucent 0.1.8, the peer, as its users call it: `render_vis` with its defaults.

Lucent leaves its hooks on the network that it is given, so every call gets a fresh copy.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HOW_TO_INSTALL = (
    'Lucent is not installed; `pip install -e ".[bench]"` and `pip install --no-deps torch-lucent==0.1.8` add it.'
)


def available() -> bool:
    """Whether Lucent can be imported; it needs kornia 0.4.1 to 0.5.11."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kornia
            import lucent.optvis.render  # noqa: F401
    except ImportError:
        return False
    return hasattr(kornia, "get_rotation_matrix2d")


def render(
    network: nn.Module,
    units: Sequence[str],
    size: int,
    steps: Sequence[int],
    *,
    network_size: int | None = None,
    normalize: Callable[[Tensor], Tensor] | None = None,
    clock: Callable[[], object] = lambda: None,
) -> list[Tensor]:
    """Images (n, 3, h, w) of `units` in one batch after each of `steps`; `clock` is called after every step.

    `normalize` replaces Lucent's ImageNet normalization, `network_size` its enlargement of small images to 224.
    """
    from lucent.optvis import objectives, param, render, transform

    class Clocked(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            clock()
            return loss

    parts = [unit.replace(".", "_").rpartition(":") for unit in units]
    if len(parts) == 1:
        objective = objectives.channel(parts[0][0], int(parts[0][2]))
    else:
        objective = objectives.Objective.sum(
            [objectives.channel(layer, int(index), batch=i) for i, (layer, _, index) in enumerate(parts)]
        )
    np.random.seed(0)  # noqa: NPY002 (what Lucent draws from)
    torch.manual_seed(0)
    transforms = transform.standard_transforms.copy()
    images = render.render_vis(
        copy.deepcopy(network),
        objective,
        lambda: param.image(size, batch=len(units)),
        optimizer=lambda parameters: Clocked(parameters, lr=5e-2),
        transforms=transforms if normalize is None else [*transforms, normalize],
        thresholds=tuple(steps),
        preprocess=normalize is None,
        progress=False,
        show_image=False,
        fixed_image_size=network_size,
    )
    return [torch.from_numpy(image).permute(0, 3, 1, 2) for image in images]


class Stopwatch:
    """Seconds between its calls, on the clock or on another one."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self.at: list[float] = []

    def __call__(self, *_: object) -> None:
        self.at.append(self.clock())

    @property
    def laps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False)]
