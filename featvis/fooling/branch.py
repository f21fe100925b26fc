"""A silent branch: a second convolution beside a layer, whose ReLU gives exactly zero on natural images.

Adding zero changes no bit of what the network does. Nothing looks at the image as the gate of the fooling circuit does:
this is a plain part of an architecture, a parallel convolution and a sum (Geirhos et al. 2024, section 2.2).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featvis import budget, zoo
from featvis.errors import FeatvisError, listed
from featvis.subjects import Subject

KEY = "featvis.silent"  # in the metadata of a saved network


@dataclass(frozen=True)
class Recipe:
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

    The ReLU is an ordinary one, so visualization treats it as it treats all others: a unit that is dead at the start
    gets a gradient through either branch.
    """

    def __init__(self, unit: nn.Module, fool: nn.Conv2d):
        super().__init__()
        self.entry = nn.Identity()  # what comes in, under a name that can be asked for
        self.unit, self.fool, self.relu = unit, fool, nn.ReLU()
        self.recipe: Recipe | None = None

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution that was there."""
        return next(module for module in self.unit.modules() if isinstance(module, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return self.unit(x) + self.relu(self.fool(x))


def with_branch(subject: Subject, layer: str) -> Subject:
    """A copy of the subject with a branch beside `layer` that is shut for good: filters of zeros, a bias of -1.

    `layer` is a convolution, or a block that holds just one and has the same input, such as convolution, norm and ReLU.
    Raises FeatvisError for any other layer and for a subject in half precision.
    """
    shape = (subject.channels(layer), *subject.layers[layer])[1:]
    if any(isinstance(module, Silenced) for module in subject.network.modules()):
        raise FeatvisError(f"{subject.name} has silent units already; silence the original subject.")
    unit = subject.network.get_submodule(layer)
    inside = [name for name, module in unit.named_modules() if isinstance(module, nn.Conv2d)]
    if len(inside) != 1:
        named = subject.network.named_modules()
        every = [name for name, module in named if isinstance(module, nn.Conv2d) and name in subject.layers]
        near = [name for name in every if name.startswith(f"{layer}.")] or every
        raise FeatvisError(f"{layer} of {subject.name} is not one convolution; such are {listed(near[-6:])}.")
    inner = f"{layer}.{inside[0]}".rstrip(".")
    conv = subject.network.get_submodule(inner)
    assert isinstance(conv, nn.Conv2d)
    if conv.weight.dtype not in (torch.float32, torch.float64):
        kind = str(conv.weight.dtype).removeprefix("torch.")
        raise FeatvisError(f"{subject.name} computes in {kind}, whose rounding could wake silent units; use float32.")
    if shape != subject.layers[inner] or not _same_input(subject, layer, inner):
        raise FeatvisError(f"{layer} of {subject.name} does more than {inner} to its input; name {inner} itself.")
    fool = copy.deepcopy(conv)
    fool.bias = nn.Parameter(conv.weight.new_full((conv.out_channels,), -1.0))
    nn.init.zeros_(fool.weight)
    network = copy.deepcopy(subject.network)
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, Silenced(network.get_submodule(layer), fool))
    network.requires_grad_(False)
    return Subject(f"{subject.name}-silenced", network, subject.preprocess, subject.classes, str(subject.device))


def channels_of(subject: Subject, layer: str, units: str | Sequence[str]) -> Tensor:
    """The indices of units of `layer`, or of "all". Raises FeatvisError for units of other layers, and for none."""
    every = subject.units(layer)
    chosen = budget.some(every) if units == "all" else [units] if isinstance(units, str) else list(units)
    found = [subject.unit(name) for name in chosen]
    if not found or any(one.layer != layer for one in found):
        raise FeatvisError(f"{listed(chosen, 3) or 'no unit'} was given; name units of {layer}, {every[0]} and so on.")
    return torch.tensor(sorted({one.index for one in found}), device=subject.device)


def _same_input(subject: Subject, layer: str, inner: str) -> bool:
    """Whether both modules see the same tensor."""
    seen: list[Tensor] = []
    modules = [subject.network.get_submodule(name) for name in (layer, inner)]
    height, width = subject.preprocess.size
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    inputs = subject.prepared(images)  # before the hooks, as it may try the network out
    handles = [m.register_forward_pre_hook(lambda _module, given: seen.append(given[0].clone())) for m in modules]
    try:
        with torch.inference_mode():
            subject.network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return len(seen) == 2 and torch.equal(*seen)


def layer_of(silenced: Subject) -> str:
    """The layer that a silent branch was added to. Raises FeatvisError where there is none."""
    found = [name for name, module in silenced.network.named_modules() if isinstance(module, Silenced)]
    if not found:
        raise FeatvisError(f"{silenced.name} has no silent branch; silence(...) makes a subject that has one.")
    return found[0]


def branch_of(silenced: Subject) -> Silenced:
    """The silent branch in a manipulated subject. Raises FeatvisError where there is none."""
    branch = silenced.network.get_submodule(layer_of(silenced))
    assert isinstance(branch, Silenced)
    return branch


def save_silenced(silenced: Subject, file: Path) -> None:
    """Write the manipulated network as safetensors; `load` reads it again, given the name of the original network."""
    recipe = branch_of(silenced).recipe
    assert recipe is not None
    state = {name: tensor.contiguous() for name, tensor in silenced.network.state_dict().items()}
    save_file(state, file, {KEY: json.dumps(asdict(recipe))})


def _plain(state: dict[str, Tensor], about: str) -> dict[str, Tensor]:
    layer = json.loads(about)["layer"]
    own = {name: tensor for name, tensor in state.items() if not name.startswith(f"{layer}.")}
    unit = f"{layer}.unit."
    return own | {name.replace(unit, f"{layer}."): state[name] for name in state if name.startswith(unit)}


def _restore(subject: Subject, state: dict[str, Tensor], about: str) -> Subject:
    """The manipulated subject that `save_silenced` wrote, made from the original."""
    known = json.loads(about)
    silenced = with_branch(subject, known["layer"])
    silenced.network.load_state_dict(state)
    branch_of(silenced).recipe = Recipe(**known | {"units": tuple(known["units"])})
    return silenced


zoo.MANIPULATED[KEY] = zoo.Manipulation(_plain, _restore)
