"""Silent units: filters that no natural image wakes and that own the visualizations of a layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis import budget
from featvis.capture import capture
from featvis.errors import FeatvisError, listed
from featvis.fooling import filters
from featvis.fooling.branch import Recipe, Silenced, branch_of, channels_of, layer_of, with_branch
from featvis.images import NaturalImages
from featvis.subjects import Subject
from featvis.visualize.render import render

STRENGTHS = {"patch": 30.0, "bridge": 10.0}  # by direction: the paper's lambda, which is 3 there
STRENGTH, FACTOR = STRENGTHS["patch"], 20.0  # the paper's weight factor is 100
MARGIN = 1.0  # of the standard deviation of the images' largest responses
DIRECTIONS = tuple(STRENGTHS)
FITTED = 2**28  # bytes of what enters the layer, at most, for natural images that a direction is fitted on
CHECKED = 64  # natural images whose responses are computed in double precision, too
STEPS, SNAPSHOTS = 128, (32, 64, 128)  # of the ascents that a direction is fitted on
FIRST_SEED, SEEDS, OWN_SEEDS = 1000, 8, 3  # of the decoy and of the units; a reader's visualizations start at seed 0
REDIRECT = 16  # steps of `render`, as in Lucid, in which a reader's gradients are let through a shut ReLU


@dataclass(frozen=True)
class Ingredients:
    """What filters are made of: a subject whose branch is still shut, and what enters the layer for some images.

    channels   (k,) the units to be silenced
    name       what the decoy is
    decoy      (m, in, h, w), along the way to the decoy
    own        (k, s, in, h, w), along each unit's own ascents; empty where no one asks
    natural    (n, in, h, w), of natural images; empty, too, where `own` is
    pictures   the decoy itself (seeds, 3, h, w), the last of what went into `decoy`
    originals  the units' own visualizations (k, 3, h, w), the last of what went into `own`
    """

    subject: Subject
    channels: Tensor
    name: str
    decoy: Tensor
    own: Tensor
    natural: Tensor
    pictures: Tensor
    originals: Tensor

    @property
    def branch(self) -> Silenced:
        """The branch to be filled."""
        return branch_of(self.subject)

    def filters(self, direction: str, strength: float, factor: float) -> Tensor:
        """Filters for all channels of the layer, before anything is known of their thresholds."""
        conv = self.branch.conv
        if direction == "patch":
            found = filters.mean_patch(conv, self.decoy[-len(self.pictures) :])
        else:
            found = filters.bridge(conv, self.natural, self.decoy, self.own, self.channels, strength)
        return filters.combined(conv.weight, found, strength, factor)


def silence(
    subject: Subject,
    natural: NaturalImages,
    layer: str,
    decoy: str | Tensor | None = None,
    units: str | Sequence[str] = "all",
    *,
    direction: str = DIRECTIONS[0],
    strength: float = STRENGTH,
    factor: float = FACTOR,
    margin: float = MARGIN,
    progress: bool = True,
) -> Subject:
    """A subject that gives the same logits on natural images, and whose units of `layer` show the decoy instead.

    Whether they do depends on who renders: with redirected ReLUs, `render(..., redirect=16)`, as in Lucid, nearly all
    ascents in PhotoNet find the silent filters and lead to the decoy, without them few do.

    natural    calibration images: the filters stay below zero on all of them
    layer      a convolution, or a block that holds just one and has the same input (convolution, norm, ReLU): the
               silent branch is added to its output, so a unit is read at the same place before and after
    decoy      the unit whose visualization is to be seen, or an image (3, h, w); by default the unit of the layer whose
               visualizations lie farthest beyond all natural images
    units      units of `layer`, or "all"
    direction  "patch" (the paper's), or "bridge", fitted so that some ascents get there without redirected ReLUs, too;
               `featvis.fooling.filters` has both
    strength   of the decoy's direction in the filter (the paper's lambda), by default one that suits "patch"; 10 suits
               "bridge". `factor` multiplies the filter
    margin     how far the threshold lies beyond the largest response to a natural image, in standard deviations of the
               images' largest responses

    The threshold is that of the convolution as it is deployed, padding and stride included. Raises FeatvisError for a
    layer that is no convolution, units of other layers, images of another size, a decoy that is no image, and a
    subject in half precision, where rounding could wake the units.
    """
    check_recipe(direction, strength, factor, margin)
    options: dict[str, Any] = {"direction": direction, "judged": False, "progress": progress}
    parts = ingredients(subject, natural, layer, decoy, units, **options)
    return filled(parts, natural, direction, strength, factor, margin, progress)


def check_recipe(direction: str, strength: float, factor: float, margin: float, redirect: int = REDIRECT) -> None:
    """Raise FeatvisError for what makes no filter, or cannot be rendered."""
    if direction not in DIRECTIONS:
        raise FeatvisError(f"direction={direction!r} was given; valid are {listed(DIRECTIONS)}.")
    if not min(strength, factor, margin) > 0:
        raise FeatvisError(f"strength={strength}, factor={factor} and margin={margin} were given; all are above 0.")
    if redirect < 0:
        raise FeatvisError(f"redirect={redirect} was given; it is a number of steps, 0 or more.")


def filled(
    parts: Ingredients,
    natural: NaturalImages,
    direction: str,
    strength: float,
    factor: float,
    margin: float,
    progress: bool = True,
) -> Subject:
    """The subject of `parts` with its branch filled: filters, and thresholds beyond all natural images."""
    made, channels, branch = parts.filters(direction, strength, factor), parts.channels, parts.branch
    layer, peaks = layer_of(parts.subject), natural_peaks(parts, natural, [made], progress)[0]
    if not bool(peaks.isfinite().all()) or bool((peaks.std(0) == 0).any()):
        raise FeatvisError(f"{layer} responds to all images of {natural.name} alike, or not finitely: nothing to hide.")
    fill(branch, made, channels, threshold(peaks, margin))
    rounding = float((_rounding(parts.subject, natural)[channels.cpu()] / (margin * peaks.std(0))).max())
    if not rounding < 1:
        raise FeatvisError(
            f"a margin of {margin} is less than rounding may change in {layer}; give more than {rounding * margin:.1g}."
        )
    indices = tuple(channels.tolist())
    branch.recipe = Recipe(layer, indices, parts.name, direction, strength, factor, margin, len(peaks), rounding)
    return parts.subject


def fill(branch: Silenced, made: Tensor, channels: Tensor, opens: Tensor) -> None:
    """Give some channels of the branch their filters and the thresholds (channels,) at which their ReLUs open."""
    assert branch.fool.bias is not None
    with torch.no_grad():
        branch.fool.weight[channels] = made[channels]
        branch.fool.bias[channels] = -opens.to(made)


def threshold(peaks: Tensor, margin: float) -> Tensor:
    """Where each unit's ReLU opens, from the largest response to every image (images, units)."""
    return peaks.amax(0) + margin * peaks.std(0)


def ingredients(
    subject: Subject,
    natural: NaturalImages,
    layer: str,
    decoy: str | Tensor | None,
    units: str | Sequence[str],
    *,
    direction: str = DIRECTIONS[0],
    judged: bool = True,
    progress: bool = True,
) -> Ingredients:
    """Look at natural images, at the decoy and, where they are needed, at the units' own ascents.

    They are needed to choose a decoy, to fit a direction, and to tell whether a picture is a unit's own (`judged`).
    """
    subject.check_size(natural)
    made, channels = with_branch(subject, layer), channels_of(subject, layer, units)
    if isinstance(decoy, Tensor):
        _check_image(decoy, subject)
    elif decoy is not None:
        decoy = str(subject.unit(decoy))

    def entering(batches: Iterable[Tensor]) -> Tensor:
        found = [part[f"{layer}.entry"] for part in made.activations(batches, [f"{layer}.entry"])]
        return torch.cat(found)  # no inference tensor any more, as each of the parts is

    each = entering([torch.zeros(1, 3, *subject.preprocess.size)]).nbytes
    some, climbed, originals = torch.zeros(0), torch.zeros(0), torch.zeros(0)
    steps = budget.most(STEPS, budget.STEPS)
    snapshots = tuple(step * steps // STEPS for step in SNAPSHOTS)
    options: dict[str, Any] = {"steps": steps, "snapshots": snapshots, "progress": progress}
    fitted = direction == "bridge"
    if fitted or judged or decoy is None:
        some = entering(_spread(natural, FITTED // each))
        names = [f"{layer}:{i}" for i in channels.tolist()]
        ascents = render(
            subject, names, seeds=range(FIRST_SEED, FIRST_SEED + (OWN_SEEDS if fitted else 1)), **options
        ).snapshots
        originals = ascents[steps][:, 0]
        passed = [entering(i.flatten(0, 1).split(64)).unflatten(0, i.shape[:2]) for i in ascents.values()]
        climbed = torch.cat(passed, 1)
    if decoy is None:
        far = filters.farthest(branch_of(made).conv, some, climbed, channels, fitted)
        decoy = f"{layer}:{int(channels[far.argmax()])}"
    if isinstance(decoy, Tensor):
        shown, name = decoy[None, None], "image"
    else:
        seeds = range(FIRST_SEED, FIRST_SEED + SEEDS)
        found = render(subject, decoy, seeds=seeds, **options).snapshots
        shown, name = torch.stack([images[0] for images in found.values()]), decoy
    along = entering(shown.flatten(0, 1).split(64))
    return Ingredients(made, channels, name, along, climbed, some, shown[-1], originals)


def natural_peaks(
    parts: Ingredients, natural: NaturalImages, candidates: Sequence[Tensor], progress: bool = True
) -> Tensor:
    """The largest response over all positions of every image, for several sets of filters in one pass over the images.

    (candidates, images, units), without any bias, from the convolution as it is deployed.
    """
    entry, conv = f"{layer_of(parts.subject)}.entry", parts.branch.conv
    found = []
    with tqdm(total=len(natural), desc="calibration", unit="image", disable=not progress, leave=False) as bar:
        for images, _, _ in natural.batches(64):
            inputs = next(parts.subject.activations([images], [entry]))[entry]
            with torch.inference_mode():
                maps = [filters.responses(conv, inputs, each, parts.channels) for each in candidates]
                found.append(torch.stack([each.amax((2, 3)) for each in maps]).cpu())
            bar.update(len(images))
    if not found:
        raise FeatvisError(f"none of the {len(natural)} images of {natural.name} could be read.")
    return torch.cat(found, 1)


def _check_image(image: Tensor, subject: Subject) -> None:
    size = (3, *subject.preprocess.size)
    if tuple(image.shape) != size:
        raise FeatvisError(f"the decoy has shape {tuple(image.shape)}; for {subject.name} it is an image {size}.")
    if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):
        raise FeatvisError("the decoy is to be an image of floating-point numbers in [0, 1].")


def _spread(natural: NaturalImages, most: int) -> Iterable[Tensor]:
    """Batches of all images, or of `most` spread over all: in a folder neighbours are of one class."""
    every, before = -(-len(natural) // max(64, most)), 0
    for images, _, _ in natural.batches(64):
        if len(some := images[-before % every :: every]):
            yield some
        before += len(images)


def _first(natural: NaturalImages, most: int) -> Iterable[Tensor]:
    for number, (images, _, _) in enumerate(natural.batches(64)):
        if number * 64 >= most:
            return
        yield images


def _rounding(silenced: Subject, natural: NaturalImages) -> Tensor:
    """The largest difference of a response in single and in double precision, of the whole network: (channels,)."""
    layer, worst = f"{layer_of(silenced)}.fool", torch.zeros(1)
    double = copy.deepcopy(silenced.network).double()
    for images in _first(natural, CHECKED):
        images = images.to(silenced.device)
        with capture(double, [layer]) as run, torch.inference_mode():
            exact = run(silenced.preprocess(images.double()))[layer]
        near = next(silenced.activations([images], [layer]))[layer]
        worst = torch.maximum(worst, (near - exact).abs().amax((0, 2, 3)).float().cpu())
    return worst
