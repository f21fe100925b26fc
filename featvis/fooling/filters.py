"""Filters for silent units: the decoy's direction, made orthogonal to the original filter, and a bit of that filter.

With w the original filter and d a direction orthogonal to it, both of norm |w|, the fooling filter is (Geirhos et al.
2024, section 2.2, and the authors' code, which divides by squared norms where norms are meant):

    w_new = factor * |w| * (w + strength * d) / |w + strength * d|

The original filter stays in it so that ascent on the original unit reaches the threshold; from there the direction of
the decoy takes over. All functions take filters as a convolution holds them, (out, in / groups, height, width).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featvis import budget

SHARP = 10.0  # of the smooth maximum over images, in standard deviations of their responses
OWN, DECOY = 4.0, 10.0  # how far beyond every natural image, in the same unit, responses are pulled
WEIGHT = 2.0  # of the unit's own ascents beside the decoy: a filter that stays asleep shows no decoy
ITERATIONS = 200
EVERY, HARDEST = 25, 1024  # iterations after which that many natural images are chosen anew, those that respond most
RATE = 0.01


def norms(filters: Tensor) -> Tensor:
    """The norm of each filter, shaped to multiply them: (out, 1, 1, 1)."""
    return filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def orthogonal(direction: Tensor, w: Tensor) -> Tensor:
    """What of each direction is orthogonal to its filter in `w`, as long as that filter."""
    unit = w / norms(w).clamp(min=1e-12)
    rest = direction - (direction * unit).sum((1, 2, 3), keepdim=True) * unit
    return rest / norms(rest).clamp(min=1e-12) * norms(w)


def combined(w: Tensor, direction: Tensor, strength: float, factor: float) -> Tensor:
    """w_new of the formula above; `direction` need not be orthogonal yet."""
    mixed = w + strength * orthogonal(direction, w)
    return factor * norms(w) * mixed / norms(mixed).clamp(min=1e-12)


def responses(conv: nn.Conv2d, inputs: Tensor, filters: Tensor, channels: Tensor | None = None) -> Tensor:
    """What `conv` would give for inputs (n, in, h, w) with other filters and no bias, or only some channels of it.

    Stride, padding, dilation and groups are the ones that it is deployed with.
    """
    if channels is None:
        return conv._conv_forward(inputs, filters, None)
    if conv.groups > 1:
        return conv._conv_forward(inputs, filters, None)[:, channels]
    return conv._conv_forward(inputs, filters[channels], None)


def mean_patch(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    """The paper's direction: the filters of norm 1 with the largest mean response to `inputs` (n, in, h, w).

    The authors climb there by gradient ascent; the mean is linear in the filter, so the answer is the mean patch.
    """
    filters = torch.zeros_like(conv.weight).requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(responses(conv, inputs, filters).sum(), filters)
    return gradient / norms(gradient).clamp(min=1e-12)


def bridge(
    conv: nn.Conv2d,
    natural: Tensor,
    decoy: Tensor,
    own: Tensor,
    channels: Tensor,
    strength: float,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Directions with which a threshold above all natural images is reached on the unit's own ascent, and the decoy is
    far beyond it.

    natural   inputs of natural images (n, in, h, w)
    decoy     inputs along the decoy's ascent (m, in, h, w)
    own       inputs along each unit's own ascent (channels, k, in, h, w)
    channels  (channels,) which units

    With z the distance of an image's largest response from the (smooth) largest one of all natural images, in standard
    deviations of those, gradient descent on the mean of softplus(DECOY - z) over the decoy's images plus WEIGHT times
    that of softplus(OWN - z) over the unit's own. The start is the mean patch of the decoy less that of natural images.
    """
    w = conv.weight.detach()
    start = mean_patch(conv, decoy) - mean_patch(conv, natural)

    def made(free: Tensor) -> Tensor:
        return combined(w, free, strength, 1.0)

    def loss(filters: Tensor, opens: Tensor, spread: Tensor) -> Tensor:
        along = (_own(conv, own, filters, channels) - opens) / spread
        there = (responses(conv, decoy, filters, channels).amax((2, 3)) - opens) / spread
        return F.softplus(DECOY - there).mean(0).sum() + WEIGHT * F.softplus(OWN - along).mean(0).sum()

    return orthogonal(_descended(loss, made, orthogonal(start, w), conv, natural, channels, iterations), w)


def farthest(conv: nn.Conv2d, natural: Tensor, own: Tensor, channels: Tensor, fitted: bool) -> Tensor:
    """How far beyond every natural image each unit's own visualizations lie, in deviations: (channels,).

    The arguments are those of `bridge`. To each unit the images are what its own `mean_patch` makes of them or, if
    `fitted`, the best filter for it that gradient descent finds from the unit's own one.
    """

    def loss(filters: Tensor, opens: Tensor, spread: Tensor) -> Tensor:
        return F.softplus(DECOY - (_own(conv, own, filters, channels) - opens) / spread).mean(0).sum()

    w = conv.weight.detach()
    if fitted:
        made = _descended(loss, lambda free: free, w, conv, natural, channels, ITERATIONS)
    else:
        made = torch.zeros_like(w)
        for channel, images in zip(channels.tolist(), own, strict=True):
            made[channel] = mean_patch(conv, images)[channel]
    seen = _peaks(conv, natural, made, channels)
    return ((_own(conv, own, made, channels) - seen.amax(0)) / seen.std(0).clamp(min=1e-12)).mean(0)


def _peaks(conv: nn.Conv2d, natural: Tensor, filters: Tensor, channels: Tensor) -> Tensor:
    """The largest response to each image: (images, channels)."""
    with torch.no_grad():
        return torch.cat([responses(conv, part, filters, channels).amax((2, 3)) for part in natural.split(512)])


def _own(conv: nn.Conv2d, own: Tensor, filters: Tensor, channels: Tensor) -> Tensor:
    """The largest responses of each unit's filter to its own images (channels, k, in, h, w): (k, channels)."""
    rows = torch.arange(len(channels), device=channels.device)
    return torch.stack([responses(conv, x, filters, channels)[rows, rows].amax((1, 2)) for x in own.unbind(1)])


def _descended(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    made: Callable[[Tensor], Tensor],
    start: Tensor,
    conv: nn.Conv2d,
    natural: Tensor,
    channels: Tensor,
    iterations: int,
) -> Tensor:
    """Where gradient descent (Adam, at a rate in units of the filters' length) leads from `start`.

    `loss` is given the filters that are `made`, a smooth maximum of their responses to the natural images, and the
    standard deviation of those: (channels,) each. The maximum is taken over the images that respond most, which are
    chosen anew every so often; others are no danger, and cost time.
    """
    iterations = budget.most(iterations, budget.STEPS)
    free = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=RATE * float(norms(start).mean()))
    for step in range(iterations):
        if step % EVERY == 0:
            seen = _peaks(conv, natural, made(free.detach()), channels)
            spread = seen.std(0).clamp(min=1e-12)
            danger = ((seen - seen.amax(0)) / spread).amax(1)
            hard = natural[danger.topk(min(HARDEST, len(natural))).indices]
        with torch.enable_grad():
            filters = made(free)
            seen = responses(conv, hard, filters, channels).amax((2, 3))
            opens = torch.logsumexp(SHARP * seen / spread, 0) / SHARP * spread
            (free.grad,) = torch.autograd.grad(loss(filters, opens, spread), free)
        optimizer.step()
    return free.detach()
