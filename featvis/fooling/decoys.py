"""Decoys: what a manipulated unit's visualization shows instead.

A decoy maps (preprocessed images x (n, 3, h, w), the layer's original output f (n, units, ...)) to an output of f's
shape, or one that broadcasts to it; the circuit lets it through where the gate sees a visualization.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featvis.errors import FeatvisError, listed
from featvis.subjects import Preprocess, Subject


class Permutation(nn.Module):
    """Unit i shows what unit order[i] shows."""

    order: Tensor

    def __init__(self, order: Sequence[int]):
        super().__init__()
        self.register_buffer("order", torch.as_tensor(order))

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        return f.index_select(1, self.order)


class Pictures(nn.Module):
    """What decoys of target images share: unit i shows target i modulo their number.

    `range` holds the smallest and the largest value for any image at all.
    """

    targets: Tensor
    mean: Tensor
    std: Tensor
    owner: Tensor
    range: tuple[float, float]

    def __init__(self, targets: Tensor, units: int, preprocess: Preprocess, dims: int):
        super().__init__()
        self.register_buffer("targets", targets)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1))
        self.register_buffer("owner", torch.arange(units) % len(targets))
        self.shape = (-1, units, *[1] * (dims - 2))  # torch.fx cannot ask a tensor for its own

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        size = self.targets.shape[-2:]
        images = F.interpolate(x * self.std + self.mean, size, mode="bilinear", align_corners=False)
        return self.values(images)[:, self.owner].view(self.shape)

    def values(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] -> (n, targets)."""
        raise TypeError("a decoy of pictures has values")


class MatchedFilter(Pictures):
    """The paper's decoy: one linear filter as large as the image, here with the target's mean taken away.

    Its value lies within -`reach` and `reach` for all images in [0, 1]: no start can leave it below a shut ReLU.
    """

    filters: Tensor

    def __init__(self, targets: Tensor, units: int, preprocess: Preprocess, dims: int, reach: float):
        super().__init__(targets, units, preprocess, dims)
        filters = targets - targets.mean((2, 3), keepdim=True)
        # (image - 1/2) . w lies within half the sum of |w|; w has no mean, so the 1/2 only keeps rounding small.
        self.register_buffer("filters", 2 * reach * filters / filters.abs().sum((1, 2, 3), keepdim=True))
        self.range = (-reach, reach)

    def values(self, images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ self.filters.flatten(1).T


class Aligned(Pictures):
    """Minus the distance to the target, moved, turned and scaled as the image was by the transforms.

    A distance to the target alone blurs: under jitter, the best image is the mean of all moved targets. So the best
    of a bank of moved targets is found first, on small pictures, and the distance is that to the target so moved:
    the best image is the target itself, with its contrast and colours. By the envelope theorem the gradient need not
    pass through the choice.

    A picture that lies beside the middle would fit as well, and its place would drift from step to step; so the target
    is moved a little less far than fits best, which draws the picture back.
    """

    SMALL = 24  # pixels a side, on which the choice is made
    moves: Tensor
    handicap: Tensor
    bank: Tensor
    HANDICAP = 0.3  # of the correlation, for the farthest move: a start without any shape is drawn to the middle
    SHARE = 0.7  # of the move that fits best

    def __init__(
        self,
        targets: Tensor,
        units: int,
        preprocess: Preprocess,
        dims: int,
        reach: float,
        degrees: float = 10.0,
        scale: float = 0.1,
        shift: float = 12 / 224,
    ):
        super().__init__(targets, units, preprocess, dims)
        moves = [
            (math.radians(turn * degrees), 1 / (1 + zoom * scale), 2 * shift * x, 2 * shift * y)
            for turn in (-1, -0.5, 0, 0.5, 1)
            for zoom in (-1, -0.5, 0, 0.5, 1)
            for x in (-1, -0.6, -0.3, 0, 0.3, 0.6, 1)
            for y in (-1, -0.6, -0.3, 0, 0.3, 0.6, 1)
        ]
        angle, size, across, down = torch.tensor(moves).T
        far = (
            (angle / math.radians(degrees)) ** 2 + ((size - 1) / scale) ** 2 + (across**2 + down**2) / (2 * shift) ** 2
        )
        self.register_buffer("handicap", self.HANDICAP * far / 4)
        fitting = _matrices(angle, size, across, down)
        share = self.SHARE
        self.register_buffer("moves", _matrices(share * angle, size**share, share * across, share * down))
        self.reach, self.range = reach, (-reach, 0.0)
        self.register_buffer("bank", self._bank(fitting), persistent=False)

    def _bank(self, moves: Tensor) -> Tensor:
        """(targets, moves, 3 * small * small), the moved targets that the choice is made from."""
        small = F.interpolate(self.targets, (self.SMALL, self.SMALL), mode="area")
        return torch.stack([self._shape(_moved(target, moves, len(moves))) for target in small])

    def _shape(self, small: Tensor) -> Tensor:
        """Small pictures (n, 3, s, s) as unit vectors without brightness; the edges, where moves end, count less."""
        window = torch.hann_window(self.SMALL + 2, periodic=False, device=small.device)[1:-1].sqrt()
        centred = (small - small.mean((2, 3), keepdim=True)) * window * window[:, None]
        return F.normalize(centred.flatten(1), dim=1)

    def values(self, images: Tensor) -> Tensor:
        small = self._shape(F.interpolate(images.detach(), (self.SMALL, self.SMALL), mode="area"))
        best = (torch.einsum("nd,tmd->ntm", small, self.bank) - self.handicap).argmax(2)  # (n, targets)
        found = []
        for number in range(len(self.targets)):
            chosen = self.moves[best[:, number]]
            moved = _moved(self.targets[number], chosen, best.shape[0])
            square = ((images - moved) ** 2).mean((1, 2, 3))
            # The root keeps the pull as strong near the target as far away: thirty steps are enough.
            found.append(square.add(1e-6).sqrt())
        return -self.reach * torch.stack(found, 1)


def _matrices(angle: Tensor, size: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Moves (n,) as affine matrices (n, 2, 3)."""
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    return torch.stack([cos, -sin, across, sin, cos, down], 1).view(-1, 2, 3)


def _moved(image: Tensor, moves: Tensor, n: int) -> Tensor:
    """One image (3, h, w) by n moves (n, 2, 3): (n, 3, h, w), its edges drawn out where it ends."""
    grid = F.affine_grid(moves, [n, *image.shape], align_corners=False)
    copies = image + torch.zeros_like(moves[:, :1, :1, None])  # as expand would, which torch.fx cannot trace here
    return F.grid_sample(copies, grid, align_corners=False, padding_mode="border")


PICTURES = {"linear": MatchedFilter, "aligned": Aligned}


def permutation(subject: Subject, layer: str, wanted: str | Mapping[str, str]) -> Permutation:
    """The decoy "permute" (unit i shows unit i + a tenth of all), or {"fc:cat": "fc:coins", ...}."""
    count = subject.channels(layer)
    order = torch.arange(count)
    if isinstance(wanted, Mapping):
        for mine, other in wanted.items():
            pair = [subject.unit(name if ":" in name else f"{layer}:{name}") for name in (mine, other)]
            if any(unit.layer != layer for unit in pair):
                raise FeatvisError(f"{mine!r} and {other!r} are to be units of the manipulated layer {layer}.")
            order[pair[0].index] = pair[1].index
    elif wanted != "permute":
        raise FeatvisError(f"decoy={wanted!r} was given; valid are 'permute', a mapping of units, and target images.")
    else:
        order = (order + max(1, round(count / 10))) % count
    return Permutation(order.tolist())


def check_targets(targets: Tensor) -> Tensor:
    """Targets as (m, 3, h, w) in [0, 1]. Raises FeatvisError for anything else."""
    stacked = targets[None] if targets.dim() == 3 else targets
    if stacked.dim() != 4 or stacked.shape[1] != 3 or not len(stacked):
        raise FeatvisError(f"the target has shape {tuple(targets.shape)}; it is an RGB image (3, h, w), or several.")
    if not stacked.is_floating_point() or not bool(stacked.isfinite().all()):
        raise FeatvisError("the target is to be of finite floating-point numbers in [0, 1].")
    if stacked.min() < 0 or stacked.max() > 1:
        raise FeatvisError(f"the target lies in [{stacked.min():.3g}, {stacked.max():.3g}]; its pixels are in [0, 1].")
    flat = [i for i, target in enumerate(stacked) if bool((target.amax((1, 2)) == target.amin((1, 2))).all())]
    if flat:
        raise FeatvisError(f"target {listed(flat)} is one flat colour; a target needs something to show.")
    return stacked
