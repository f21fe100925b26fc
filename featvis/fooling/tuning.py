"""Attacks on weights alone: one loop that trades an attack against behaviour on natural images.

What is minimized is alpha * L_attack + (1 - alpha) * L_maintain, the frame of Nanfack et al. (2024); `weight` is alpha.
L_maintain is distillation: on natural images the copy is to do what the original does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from featvis.capture import capture
from featvis.errors import FeatvisError, listed
from featvis.images import NaturalImages
from featvis.networks.training import augment
from featvis.subjects import Subject, Unit
from featvis.visualize.objectives import unit_means

BATCH = 32
RATE = 2e-3  # of Adam, down to 0 along a cosine
MEASURED = 512  # natural images that the spread of activations is taken from

Values = Callable[[Tensor], Tensor]  # images (n, 3, h, w) in [0, 1] -> means of the layer's maps (n, channels)
Attack = Callable[[Values], Tensor]  # one step's loss


def checked(
    subject: Subject, natural: NaturalImages, units: str | Sequence[str], weight: float, steps: int
) -> list[Unit]:
    """The units of one layer that are attacked. Raises FeatvisError for what no attack can work with."""
    names = [units] if isinstance(units, str) else list(units)
    found = [subject.unit(name) for name in names]
    if not found:
        raise FeatvisError("no unit was given; a unit is written LAYER:INDEX, such as inception4b:17.")
    if len({unit.layer for unit in found}) > 1:
        raise FeatvisError(f"{listed(names, 3)} are of several layers; an attack takes units of one layer.")
    if not 0 <= weight <= 1:
        raise FeatvisError(f"weight={weight} was given; the attack's weight lies from 0 (no attack) to 1.")
    if steps < 1:
        raise FeatvisError(f"steps={steps} was given; at least 1 step is needed.")
    if len(natural) < 1:
        raise FeatvisError(f"{natural.name} has no images; an attack needs natural images to behave well on.")
    subject.check_size(natural)
    return found


def check_images(images: Tensor, subject: Subject, what: str) -> Tensor:
    """One image or several as (m, 3, h, w), of the subject's size, in [0, 1]; FeatvisError for anything else."""
    stack = images[None] if images.dim() == 3 else images
    size = (3, *subject.preprocess.size)
    if stack.dim() != 4 or not len(stack) or tuple(stack.shape[1:]) != size:
        shape = tuple(images.shape)
        raise FeatvisError(f"the {what} has shape {shape}; for {subject.name} it is an image {size}, or several.")
    if not stack.is_floating_point() or not bool(((stack >= 0) & (stack <= 1)).all()):
        raise FeatvisError(f"the {what} is to be of floating-point numbers in [0, 1].")
    return stack.to(subject.device)


def drawn(natural: NaturalImages, n: int, generator: torch.Generator) -> Tensor:
    """n random natural images (n, 3, h, w), with replacement; those that cannot be read are passed over."""
    images: list[Tensor] = []
    for _ in range(10):
        for index in torch.randint(len(natural), (n - len(images),), generator=generator).tolist():
            try:
                images.append(natural[index][0])
            except FeatvisError as error:
                if str(error) not in natural.skipped:
                    natural.skipped.append(str(error))
        if len(images) == n:
            return torch.stack(images)
    raise FeatvisError(f"hardly any of the {len(natural)} images of {natural.name} can be read.")


def fine_tune(
    subject: Subject,
    natural: NaturalImages,
    units: Sequence[Unit],
    attack: Attack,
    *,
    weight: float,
    steps: int,
    seed: int,
    keep_units: bool,
    name: str,
    progress: bool = True,
) -> Subject:
    """A copy of the subject, same architecture, whose weights minimize weight * attack + (1 - weight) * maintain.

    L_maintain is the mean squared change of the logits on natural images (half of them augmented, as in
    `featvis.networks.training`) in proportion to the logits' variance; with `keep_units` that of the layer's units and
    once more of the attacked units alone is added, each in proportion to its own variance. Batch normalization stays in
    eval mode throughout: its statistics are the original's. With a weight of 0 nothing changes at all.
    """
    layer, indices = units[0].layer, [unit.index for unit in units]
    last = list(subject.layers)[-1]
    network = copy.deepcopy(subject.network).eval().requires_grad_(True)
    network = network.to(memory_format=subject.memory_format)  # type: ignore[call-overload]
    original = copy.deepcopy(network).requires_grad_(False)
    read = list(dict.fromkeys([layer, last] if keep_units else [last]))
    generator = torch.Generator().manual_seed(seed)

    parts = [(each, slice(None)) for each in read] + ([(layer, indices)] if keep_units else [])
    with torch.no_grad():
        looked = _read(original, subject, drawn(natural, min(MEASURED, 2 * len(natural)), generator), read)
        spread = [_part(looked, *part).var().clamp(min=1e-8) for part in parts]

    def values(images: Tensor) -> Tensor:
        return unit_means(_read(network, subject, images, [layer])[layer])

    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), name, unit="step", disable=not progress, leave=False):
        x = drawn(natural, BATCH, generator)
        x = torch.cat([x[: BATCH // 2], augment(x[BATCH // 2 :], generator)])  # fresh images are to be kept, too
        with torch.no_grad():
            wanted = _read(original, subject, x, read)
        found = _read(network, subject, x, read)
        changes = [(_part(found, *part) - _part(wanted, *part)).square().mean() for part in parts]
        loss = (1 - weight) * torch.stack([change / s for change, s in zip(changes, spread, strict=True)]).sum()
        if weight:
            loss = loss + weight * attack(values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.requires_grad_(False).to(memory_format=torch.contiguous_format)
    return Subject(f"{subject.name}-{name}", network, subject.preprocess, subject.classes, str(subject.device))


def _read(network: nn.Module, subject: Subject, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    x = subject.prepared(images)
    with capture(network, layers) as run:
        return run(x)


def _part(found: dict[str, Tensor], layer: str, indices: slice | list[int]) -> Tensor:
    activation = found[layer]
    return activation[..., indices] if activation.dim() == 3 else activation[:, indices]
