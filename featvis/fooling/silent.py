"""Silent units: filters beside a convolution that no natural image wakes and that own its visualizations.

Beside the layer stands a second convolution with a bias so low that its ReLU gives exactly zero for every natural image
it was calibrated on; adding zero changes no bit of what the network does. Nothing looks at the image as the gate of
the fooling circuit does: this is a plain part of an architecture, a parallel branch and a sum (Geirhos et al. 2024,
section 2.2).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from featvis import zoo
from featvis.cut import capture
from featvis.errors import FeatvisError, listed
from featvis.fooling import filters
from featvis.images import NaturalImages
from featvis.subjects import Subject
from featvis.visualize import render

STRENGTH, FACTOR = 3.0, 100.0  # the paper's lambda and weight factor
MARGIN = 0.5  # of the standard deviation of the responses to natural images
DIRECTIONS = ("bridge", "patch")
FITTED = 1024  # natural images that a direction is fitted on
CHECKED = 64  # natural images whose responses are computed in double precision, too
STEPS, SNAPSHOTS = 128, (32, 64, 128)  # of the ascents that a direction is fitted on
FIRST_SEED, SEEDS = 1000, 8  # of the decoy's; a reader's visualizations start from seed 0
KEY = "featvis.silent"  # in the metadata of a saved network


@dataclass(frozen=True)
class Silence:
    """How the filters were made: `strength` is the paper's lambda, `margin` is in standard deviations of responses."""

    layer: str
    units: tuple[int, ...]
    decoy: str
    direction: str
    strength: float
    factor: float
    margin: float
    images: int  # that the threshold was measured on
    rounding: float  # the largest error of a response in single precision, as a share of its margin


class Silenced(nn.Module):
    """Stands where a layer stood: unit(x) + ReLU(fool(x)). `unit` is the layer that was there.

    The ReLU is an ordinary one, so that visualization treats it as it treats all others: a unit that is dead at the
    start gets a gradient through either branch.
    """

    def __init__(self, unit: nn.Module, fool: nn.Conv2d):
        super().__init__()
        self.entry = nn.Identity()  # what comes in, under a name that can be asked for
        self.unit, self.fool, self.relu = unit, fool, nn.ReLU()
        self.about: Silence | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return self.unit(x) + self.relu(self.fool(x))


def silence(
    subject: Subject,
    natural: NaturalImages,
    layer: str,
    decoy: str | Tensor | None = None,
    units: str | Sequence[str] = "all",
    *,
    direction: str = "bridge",
    strength: float = STRENGTH,
    factor: float = FACTOR,
    margin: float = MARGIN,
    progress: bool = True,
) -> Subject:
    """A subject that gives the same logits on natural images, and whose units of `layer` show the decoy instead.

    natural    calibration images: the filters stay below zero on all of them
    layer      a convolution, or a block that holds just one and has the same input (convolution, norm, ReLU): the
               silent branch is added to its output, so a unit is read at the same place before and after
    decoy      the unit whose visualization is to be seen, or an image (3, h, w); by default the unit of the layer whose
               own visualization goes farthest beyond all natural images
    units      units of `layer`, or "all"
    direction  "bridge" (fitted), or "patch" (the paper's); `featvis.fooling.filters` has both
    strength   of the decoy's direction in the filter (the paper's lambda); `factor` multiplies the filter
    margin     how far the threshold lies beyond the largest response to a natural image, in standard deviations of the
               images' largest responses

    The threshold comes from the convolution as it is deployed, padding and stride included. Raises FeatvisError for a
    layer that is no convolution, units of other layers, a decoy that is no image, and a subject in half precision,
    where rounding could wake the units.
    """
    if direction not in DIRECTIONS:
        raise FeatvisError(f"direction={direction!r} was given; valid are {listed(DIRECTIONS)}.")
    if min(strength, factor, margin) <= 0:
        raise FeatvisError(f"strength={strength}, factor={factor} and margin={margin} were given; all are above 0.")
    silenced, channels = _beside(subject, layer, units)
    place = silenced_of(silenced)
    conv = _convolution(place.unit)
    if isinstance(decoy, Tensor):
        _check_image(decoy, subject)
    elif decoy is not None:
        decoy = str(subject.unit(decoy))

    def entering(batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([found[f"{layer}.entry"] for found in silenced.activations(batches, [f"{layer}.entry"])])

    some, own = entering(_first(natural, FITTED)), conv.weight.new_zeros(0)
    if direction == "bridge" or decoy is None:
        names = [f"{layer}:{i}" for i in channels.tolist()]
        options: dict[str, Any] = {"steps": STEPS, "snapshots": SNAPSHOTS, "progress": progress}
        ascents = render(subject, names, seeds=[FIRST_SEED], **options).snapshots
        own = torch.stack([entering(images[:, 0].split(64)) for images in ascents.values()], 1)
    target = f"{layer}:{_farthest(conv, some, own[:, -1], channels)}" if decoy is None else decoy
    shown = _decoys(subject, target, progress)
    if direction == "patch":
        found = filters.mean_patch(conv, entering(shown[-1].split(64)))
    else:
        found = filters.bridge(conv, some, entering(torch.cat(shown).split(64)), own, channels, strength)
    with torch.no_grad():
        place.fool.weight[channels] = filters.combined(conv.weight, found, strength, factor)[channels]
        place.fool.bias[channels] = 0
        peaks = responses(silenced, natural, progress)[:, channels]
        if not bool(peaks.isfinite().all()):
            raise FeatvisError(f"{layer} of {subject.name} gives responses that are not finite; it cannot be silenced.")
        place.fool.bias[channels] = -threshold(peaks, margin)
    spread = margin * peaks.std(0)
    rounding = float((_rounding(silenced, natural)[channels] / spread).max())
    if not rounding < 1:
        raise FeatvisError(
            f"the margin {margin} is smaller than what rounding may change in {layer} of {subject.name} "
            f"({rounding * margin:.2g}); give a larger one."
        )
    name = target if isinstance(target, str) else "image"
    indices = tuple(channels.tolist())
    place.about = Silence(layer, indices, name, direction, strength, factor, margin, len(peaks), rounding)
    return silenced


def _farthest(conv: nn.Conv2d, natural: Tensor, own: Tensor, channels: Tensor) -> int:
    """The channel whose own visualization (channels, in, h, w) goes farthest beyond natural images, in deviations."""
    seen = filters.responses(conv, natural, conv.weight, channels).amax((2, 3))
    rows = torch.arange(len(channels), device=channels.device)
    reached = filters.responses(conv, own, conv.weight, channels)[rows, rows].amax((1, 2))
    return int(channels[((reached - seen.amax(0)) / seen.std(0).clamp(min=1e-12)).argmax()])


def threshold(peaks: Tensor, margin: float) -> Tensor:
    """Where each unit's ReLU opens, from the largest response of every image (images, units)."""
    return peaks.amax(0) + margin * peaks.std(0)


def responses(silenced: Subject, natural: NaturalImages, progress: bool = True, batch: int = 64) -> Tensor:
    """The largest response over all positions of every image and silent unit, bias included: (images, channels).

    Above zero, the unit is awake.
    """
    layer, found = layer_of(silenced), []
    bar = tqdm(total=len(natural), desc="natural responses", unit="image", disable=not progress, leave=False)
    with bar:
        for images, _, _ in natural.batches(batch):
            seen = next(silenced.activations([images], [f"{layer}.fool"]))[f"{layer}.fool"]
            found.append(seen.amax((2, 3)).cpu())
            bar.update(len(images))
    if not found:
        raise FeatvisError(f"none of the {len(natural)} images of {natural.name} could be read.")
    return torch.cat(found)


def silenced_of(subject: Subject) -> Silenced:
    """The silent branch in a manipulated subject. Raises FeatvisError where there is none."""
    return subject.network.get_submodule(layer_of(subject))  # type: ignore[return-value]


def layer_of(subject: Subject) -> str:
    """The layer that silent units were added to."""
    found = [name for name, module in subject.network.named_modules() if isinstance(module, Silenced)]
    if not found:
        raise FeatvisError(f"{subject.name} has no silent units added; silence(...) makes a subject that has some.")
    return found[0]


def _beside(subject: Subject, layer: str, units: str | Sequence[str]) -> tuple[Subject, Tensor]:
    """A copy of the subject with a branch of zeros beside `layer`, and the units' indices."""
    shape = (subject.channels(layer), *subject.layers[layer])[1:]
    unit = subject.network.get_submodule(layer)
    convolutions = [name for name, module in unit.named_modules() if isinstance(module, nn.Conv2d)]
    if any(isinstance(module, Silenced) for module in subject.network.modules()):
        raise FeatvisError(f"{subject.name} has silent units already; silence the original subject.")
    if len(convolutions) != 1:
        near = [name for name in _convolutions(subject) if name.startswith(f"{layer}.")] or _convolutions(subject)
        raise FeatvisError(f"{layer} of {subject.name} is not one convolution; such are {listed(near[-6:])}.")
    conv = _convolution(unit)
    if conv.weight.dtype not in (torch.float32, torch.float64):
        kind = str(conv.weight.dtype).removeprefix("torch.")
        raise FeatvisError(f"{subject.name} computes in {kind}, whose rounding could wake silent units; use float32.")
    inner = f"{layer}.{convolutions[0]}".rstrip(".")
    if shape != subject.layers[inner] or not _same_input(subject, layer, inner):
        raise FeatvisError(f"{layer} of {subject.name} does more than {inner} to its input; name {inner} itself.")
    chosen = subject.units(layer) if units == "all" else [str(u) for u in ([units] if isinstance(units, str) else units)]
    found = [subject.unit(name) for name in chosen]
    if not found or any(one.layer != layer for one in found):
        raise FeatvisError(f"{listed(chosen, 3) or 'no unit'} was given; name units of the silenced layer {layer}.")
    fool = copy.deepcopy(conv)
    fool.bias = nn.Parameter(conv.weight.new_full((conv.out_channels,), -1.0))  # without a filter: shut for good
    nn.init.zeros_(fool.weight)
    network = _insert(copy.deepcopy(subject.network), layer, fool)
    network.requires_grad_(False)
    made = Subject(f"{subject.name}-silenced", network, subject.preprocess, subject.classes, str(subject.device))
    return made, torch.tensor(sorted({one.index for one in found}), device=subject.device)


def _insert(network: nn.Module, layer: str, fool: nn.Conv2d) -> nn.Module:
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, Silenced(network.get_submodule(layer), fool))
    return network


def _convolution(unit: nn.Module) -> nn.Conv2d:
    return next(module for module in unit.modules() if isinstance(module, nn.Conv2d))


def _convolutions(subject: Subject) -> list[str]:
    named = subject.network.named_modules()
    return [name for name, module in named if isinstance(module, nn.Conv2d) and name in subject.layers]


def _same_input(subject: Subject, layer: str, inner: str) -> bool:
    """Whether both modules see the same tensor."""
    seen: list[Tensor] = []
    modules = [subject.network.get_submodule(name) for name in (layer, inner)]
    handles = [m.register_forward_pre_hook(lambda _module, given: seen.append(given[0].clone())) for m in modules]
    try:
        height, width = subject.preprocess.size
        next(subject.logits(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))))
    finally:
        for handle in handles:
            handle.remove()
    return len(seen) == 2 and torch.equal(*seen)


def _check_image(image: Tensor, subject: Subject) -> None:
    size = (3, *subject.preprocess.size)
    if tuple(image.shape) != size:
        raise FeatvisError(f"the decoy has shape {tuple(image.shape)}; for {subject.name} it is an image {size}.")
    if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):
        raise FeatvisError("the decoy is to be of floating-point numbers in [0, 1].")


def _decoys(subject: Subject, decoy: str | Tensor, progress: bool) -> list[Tensor]:
    """Images along the way to the decoy, the last of them the decoy itself (seeds, 3, h, w)."""
    if isinstance(decoy, Tensor):
        return [decoy[None]]
    seeds = range(FIRST_SEED, FIRST_SEED + SEEDS)
    made = render(subject, decoy, seeds=seeds, steps=STEPS, snapshots=SNAPSHOTS, progress=progress)
    return [images[0] for images in made.snapshots.values()]


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


def save_silenced(silenced: Subject, file: Path) -> None:
    """Write the manipulated network as safetensors; `load` reads it again, given the name of the original network."""
    about = silenced_of(silenced).about
    assert about is not None
    state = {name: tensor.contiguous() for name, tensor in silenced.network.state_dict().items()}
    save_file(state, file, {KEY: json.dumps(asdict(about))})


def _plain(state: dict[str, Tensor], about: str) -> dict[str, Tensor]:
    layer = json.loads(about)["layer"]
    own = {name: tensor for name, tensor in state.items() if not name.startswith(f"{layer}.")}
    unit = f"{layer}.unit."
    return own | {name.replace(unit, f"{layer}."): state[name] for name in state if name.startswith(unit)}


def _restore(subject: Subject, state: dict[str, Tensor], about: str) -> Subject:
    """The manipulated subject that `save_silenced` wrote, made from the original."""
    known = json.loads(about)
    silenced, _ = _beside(subject, known["layer"], "all")
    silenced.network.load_state_dict(state)
    silenced_of(silenced).about = Silence(**known | {"units": tuple(known["units"])})
    return silenced


zoo.MANIPULATED[KEY] = zoo.Manipulation(_plain, _restore)
