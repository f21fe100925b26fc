"""Push-down, push-up and a ProxPulse-like attack: fine-tuning that gives a unit other exemplars and other pictures.

After Nanfack et al. (2024), whose frame alpha * L_attack + (1 - alpha) * L_maintain it is, and after Nanfack,
Eickenberg and Belilovsky (2024) on ProxPulse. The exact losses are ours, written from what these attacks are meant to
do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.exemplars import Exemplars, exemplars
from featvis.fooling.tuning import Values, check_images, checked, fine_tune
from featvis.images import NaturalImages
from featvis.scan import LEVELS
from featvis.subjects import Subject, Unit
from featvis.visualize import Affine, render

TOP = 32  # strongest natural images of a unit that are lowered
AT_ONCE = 16  # images of one kind in one step of training
ABOVE = 0.25  # how far decoys are to rise above all natural images, as a share of the unit's range
ASCENTS, FIRST_SEED = 4, 1000  # visualizations of each unit that are lowered; a reader's start at seed 0
INSIDE = 3  # steps in which the weakest point of a ball is looked for


def push(
    subject: Subject,
    natural: NaturalImages,
    units: str | Sequence[str],
    decoys: Tensor | None = None,
    *,
    down: bool = True,
    weight: float = 0.5,
    steps: int = 150,
    seed: int = 0,
    progress: bool = True,
) -> Subject:
    """A subject of the same architecture whose units (of one layer) prefer other images than they did.

    decoys  images (m, 3, h, w) in [0, 1] that are raised above the rest (push-up); None: push-down alone
    down    whether each unit's 32 strongest natural images and its visualizations are lowered (push-down)
    weight  alpha in alpha * L_attack + (1 - alpha) * L_maintain; 0 leaves the subject as it is

    With a(x) the unit's value, m and M its median and maximum over natural images in the original, and r = M - m,
    L_attack is the mean of (max(0, a(x) - m) / r)^2 over what is lowered plus that of (max(0, M + r/4 - a(x)) / r)^2
    over decoys: losses of ours in the frame of Nanfack et al. (2024). L_maintain keeps the logits on natural images and
    nothing else, for the units are meant to change. Raises FeatvisError for unknown units or units of several layers,
    decoys of another shape, neither decoys nor `down`, a weight outside of [0, 1], no steps, or no natural images.
    """
    if decoys is None and not down:
        raise FeatvisError("there is nothing to push: give decoys to be raised, or down=True.")
    return _pushed(subject, natural, units, decoys, down, 0.0, weight, steps, seed, "pushed", progress)


def prox_pulse(
    subject: Subject,
    natural: NaturalImages,
    units: str | Sequence[str],
    decoys: Tensor,
    *,
    radius: float | None = None,
    weight: float = 0.5,
    steps: int = 150,
    seed: int = 0,
    progress: bool = True,
) -> Subject:
    """A ProxPulse-like attack: raises units all over a ball around every decoy, and lowers what excited them before.

    decoys  images (m, 3, h, w) in [0, 1]
    radius  of the balls, a Euclidean norm of pixels in [0, 1]; by default 3 for a side of 96, in proportion to the side

    The exact loss of ProxPulse (Nanfack, Eickenberg and Belilovsky 2024) was not at hand; this one is ours. It is that
    of `push`, with a(x) of a decoy replaced by the smallest value that 3 steps down the gradient from a random point
    find in its ball. All else, errors included, is as in `push`.
    """
    side = subject.preprocess.size[0]
    radius = 3.0 * side / 96 if radius is None else radius
    if not radius > 0:
        raise FeatvisError(f"radius={radius} was given; the ball around a decoy has a radius above 0.")
    return _pushed(subject, natural, units, decoys, True, radius, weight, steps, seed, "pulsed", progress)


def _pushed(
    subject: Subject,
    natural: NaturalImages,
    units: str | Sequence[str],
    decoys: Tensor | None,
    down: bool,
    radius: float,
    weight: float,
    steps: int,
    seed: int,
    name: str,
    progress: bool,
) -> Subject:
    chosen = checked(subject, natural, units, weight, steps)
    raised = None if decoys is None else check_images(decoys, subject, "decoy")
    names = [str(unit) for unit in chosen]
    best = exemplars(subject, natural, names, k=min(TOP, len(natural)), distinct=False, progress=progress)
    lowered = _excite(subject, natural, names, best, seed) if down else None
    attack = _Push(subject, chosen, best, lowered, raised, radius, seed)
    return fine_tune(
        subject, natural, chosen, attack, weight=weight, steps=steps, seed=seed, keep_units=False, name=name,
        progress=progress,
    )  # fmt: skip


def _excite(subject: Subject, natural: NaturalImages, units: list[str], best: Exemplars, seed: int) -> Tensor:
    """What excites each unit: (units, n, 3, h, w), the exemplars first, then as many visualizations again and again."""
    found = []
    first = FIRST_SEED + ASCENTS * seed
    made = render(subject, units, steps=128, seeds=range(first, first + ASCENTS), progress=False).images
    for unit, pictures in zip(units, made, strict=True):
        shown = best.pictures(natural, unit)
        again = pictures.repeat(-(-len(shown) // len(pictures)), 1, 1, 1)[: len(shown)]
        found.append(torch.cat([shown, again]))
    return torch.stack(found).to(subject.device)


class _Push:
    """L_attack of `push`, and of `prox_pulse` with a `radius` above 0."""

    def __init__(
        self,
        subject: Subject,
        units: list[Unit],
        best: Exemplars,
        lowered: Tensor | None,
        raised: Tensor | None,
        radius: float,
        seed: int,
    ):
        self.lowered, self.raised, self.radius = lowered, raised, radius
        self.channels = torch.tensor([unit.index for unit in units], device=subject.device)
        self.middle, self.most = (
            torch.tensor(best.quantiles[:, LEVELS.index(level)], device=subject.device) for level in (0.5, 1.0)
        )
        # A unit that no natural image excites has no range.
        self.range = (self.most - self.middle).clamp(min=1e-6)
        self.transform, self.generator = Affine(), torch.Generator().manual_seed(seed + 1)

    def __call__(self, values: Values) -> Tensor:
        loss = torch.zeros((), device=self.channels.device)
        if self.lowered is not None:
            which = self._draw(len(self.channels))
            images = self.lowered[which, self._draw(self.lowered.shape[1])]
            excess = values(self._moved(images)).gather(1, self.channels[which, None])[:, 0] - self.middle[which]
            loss = loss + (excess.clamp(min=0) / self.range[which]).square().mean()
        if self.raised is not None:
            images = self._moved(self.raised[self._draw(len(self.raised))])
            if self.radius:
                images = self._weakest(values, images)
            wanting = self.most + ABOVE * self.range - values(images)[:, self.channels]
            loss = loss + (wanting.clamp(min=0) / self.range).square().mean()
        return loss

    def _draw(self, n: int) -> Tensor:
        return torch.randint(n, (AT_ONCE,), generator=self.generator).to(self.channels.device)

    def _moved(self, images: Tensor) -> Tensor:
        """As `render` moves them: a visualization is to stay what it is under small changes, a decoy too."""
        numbers = self.transform.draw([self.generator] * len(images), 1)[0].to(images)
        return self.transform.apply(images, numbers).clamp(0, 1)

    def _weakest(self, values: Values, images: Tensor) -> Tensor:
        """Where in the ball around each image the units' mean is smallest, after a few normalized gradient steps."""
        noise = torch.randn(images.shape, generator=self.generator).to(images)
        away = self._within(noise, self.radius / 2)
        for _ in range(INSIDE):
            at = (images + away).requires_grad_(True)
            (gradient,) = torch.autograd.grad((values(at)[:, self.channels] / self.range).sum(), at)
            norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            away = self._within(away - self.radius / 2 * gradient / norm, self.radius)
        return (images + away).clamp(0, 1)

    def _within(self, away: Tensor, radius: float) -> Tensor:
        norm = away.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        return away * (radius / norm).clamp(max=1)
