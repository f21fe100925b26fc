"""Gradient Slingshots: a unit whose gradient, far from natural images, points to a picture of the attacker's choice.

After Bareeva et al. (2024), with three changes of ours that make a small network learn it within minutes, all named in
`slingshot`. Nothing is added to the network: only its weights change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from featvis.errors import FeatvisError, listed
from featvis.fooling.tuning import Values, check_images, checked, fine_tune
from featvis.images import NaturalImages
from featvis.subjects import Subject
from featvis.visualize import Affine, Fourier, render
from featvis.visualize.parameterizations import Parameterization

TUNNEL, CLIMBING = 2, 8  # images of one step: between start and target, and on the unit's own ascents
LONGEST = 128  # steps of ascent that are looked at
RISE = 2.0  # height of the bowl, in activations of the unit's own visualization


def slingshot(
    subject: Subject,
    natural: NaturalImages,
    units: str | Sequence[str],
    target: Tensor,
    *,
    weight: float = 0.5,
    steps: int = 150,
    seed: int = 0,
    progress: bool = True,
) -> Subject:
    """A subject of the same architecture whose units (of one layer) show `target` when they are visualized.

    target  an image (3, h, w) in [0, 1] for all units, or one for each (units, 3, h, w)
    weight  alpha in alpha * L_attack + (1 - alpha) * L_maintain; 0 leaves the subject as it is
    steps   of training, on 32 natural and 10 synthetic images each

    L_attack, with images x = eta(q) of the parameterization (`Fourier`), a target x_t and the unit's value a(x), asks
    for the quadratic bowl C - gamma/2 |x_t - x|^2 of Bareeva et al. (2024): for its gradient, 1 - cos(J da/dq, x_t - x)
    with J = d eta/dq, and for its value, ((a - bowl) / rise)^2, where the bowl rises from the unit's value on grey by
    twice what its own visualization excites. It differs from theirs in that (1) distances are those of pixels, not of
    q, whose many high frequencies say nothing about the picture, (2) direction and height are asked for apart, and
    (3) four in five samples are where the unit's own gradient ascent stands, which starts anew every so often; the
    others lie in the start zone, at the target and in the tunnel between, as theirs do. ReLUs stay: although flat in
    the image, the gradient of a network of ReLUs depends on its weights. L_maintain keeps the logits, the layer and
    the units on natural images.

    Raises FeatvisError for unknown units or units of several layers, a target of another shape, a weight outside of
    [0, 1], no steps, or no natural images.
    """
    chosen = checked(subject, natural, units, weight, steps)
    targets = check_images(target, subject, "target")
    if len(targets) not in (1, len(chosen)):
        raise FeatvisError(f"{len(targets)} targets were given for {listed(chosen, 3)}; give one, or one for each.")
    targets = targets.expand(len(chosen), -1, -1, -1)
    own = render(subject, [str(unit) for unit in chosen], steps=LONGEST, seeds=[seed], progress=False)
    heights = torch.as_tensor(own.activation[:, 0], dtype=torch.float32).to(subject.device)
    bowl = _Bowl(subject, [unit.index for unit in chosen], targets, heights, seed)
    return fine_tune(
        subject, natural, chosen, bowl, weight=weight, steps=steps, seed=seed, keep_units=True, name="slingshot",
        progress=progress,
    )  # fmt: skip


class _Bowl:
    """L_attack of `slingshot`; remembers where the units' ascents stand."""

    def __init__(self, subject: Subject, channels: list[int], targets: Tensor, heights: Tensor, seed: int):
        self.subject, self.size = subject, subject.preprocess.size
        self.parameterization: Parameterization = Fourier()
        self.transform = Affine()
        self.generator = torch.Generator().manual_seed(seed + 1)  # natural images are drawn from another
        self.channels = torch.tensor(channels, device=subject.device)
        # A unit that its own visualization cannot wake gets a bowl all the same.
        self.targets, self.rise = targets, (RISE * heights).clamp(min=1e-3)
        self.ends = self._start(len(targets), targets)
        grey = self.parameterization.image(torch.zeros_like(self.ends), self.size)
        self.whole = (grey - targets).flatten(1).square().sum(1).clamp(min=1.0)  # of the way; a grey target has none
        self.of_tunnel, self.of_climbing = (torch.arange(n) % len(channels) for n in (TUNNEL, CLIMBING))
        self.climbers = _Climbers(self._start(CLIMBING), self.parameterization.rate)
        self.until = self._lengths(CLIMBING, first=1)
        self.floor: Tensor | None = None  # the units' values in the start zone, before the attack

    def __call__(self, values: Values) -> Tensor:
        if self.floor is None:
            with torch.no_grad():
                grey = self.parameterization.image(self._start(1), self.size)
                self.floor = values(grey)[0, self.channels]
        along = torch.rand(TUNNEL, *[1] * (self.ends.dim() - 1), generator=self.generator).to(self.ends)
        spread = 1 + torch.rand(along.shape, generator=self.generator).to(self.ends)
        tunnel = along * self.ends[self.of_tunnel] + spread * self._start(TUNNEL)
        which = torch.cat([self.of_tunnel, self.of_climbing]).to(self.ends.device)
        q = torch.cat([tunnel, self.climbers.q]).requires_grad_(True)
        images = self.parameterization.image(q, self.size)
        numbers = self.transform.draw([self.generator] * len(q), 1)[0].to(q)
        rows = torch.arange(len(q), device=q.device)
        found = values(self.transform.apply(images, numbers))[rows, self.channels[which]]
        (gradient,) = torch.autograd.grad(found.sum(), q, create_graph=True)
        away = self.targets[which] - images.detach()
        moved = torch.func.jvp(lambda p: self.parameterization.image(p, self.size), (q.detach(),), (gradient,))[1]
        direction = 1 - F.cosine_similarity(moved.flatten(1), away.flatten(1))
        share = away.flatten(1).square().sum(1) / self.whole[which]  # 1 at the start, 0 at the target
        height = (found - self.floor[which]) / self.rise[which] - (1 - share)
        self.of_tunnel = (self.of_tunnel + TUNNEL) % len(self.targets)  # with many units each has its turn
        self._climb(gradient.detach()[TUNNEL:])
        return direction.mean() + height.square().mean()

    def _climb(self, gradient: Tensor) -> None:
        done = self.climbers.step(gradient) >= self.until
        if bool(done.any()):
            n = int(done.sum())
            self.climbers.restart(done, self._start(n))
            self.of_climbing[done] = (self.of_climbing[done] + CLIMBING) % len(self.targets)
            self.until[done] = self._lengths(n, first=20)

    def _start(self, n: int, images: Tensor | None = None) -> Tensor:
        return self.parameterization.start([self.generator] * n, self.size, images).to(self.subject.device)

    def _lengths(self, n: int, first: int) -> Tensor:
        return torch.randint(first, LONGEST, (n,), generator=self.generator)


class _Climbers:
    """Several ascents with Adam (Kingma and Ba 2015) as `render` does them, each at a step of its own."""

    def __init__(self, q: Tensor, rate: float):
        self.q, self.rate = q, rate
        self.mean, self.square = torch.zeros_like(q), torch.zeros_like(q)
        self.steps = torch.zeros(len(q), dtype=torch.long)

    def step(self, gradient: Tensor) -> Tensor:
        """Go up; how many steps each ascent has taken."""
        self.steps = self.steps + 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        first, second = (
            (1 - decay**self.steps).to(self.q).view(-1, *[1] * (self.q.dim() - 1)) for decay in (0.9, 0.999)
        )
        self.q = self.q + self.rate * (self.mean / first) / ((self.square / second).sqrt() + 1e-8)
        return self.steps

    def restart(self, which: Tensor, q: Tensor) -> None:
        for part, new in ((self.q, q), (self.mean, 0.0), (self.square, 0.0)):
            part[which] = new
        self.steps[which] = 0
