"""The fooling circuit: the same network on natural images, another one under activation maximization.

With F the original unit, D its decoy and e = 1 where the gate sees a visualization, else 0 (after Geirhos et al. 2024,
figure 3, and the authors' code, where c and k are typed and A keeps the c):

    B = ReLU(F + c - k e)        C = ReLU(D + c + k e - k)        A = B + C - c

On natural images A = F while F > -c and D < k - c; on visualizations A = D while D > -c and F < k - c.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featvis import budget, zoo
from featvis.errors import FeatvisError, listed
from featvis.fooling.decoys import PICTURES, Permutation, Pictures, check_targets, permutation
from featvis.fooling.gate import TrainedGate
from featvis.fooling.gate_network import Gate, revived
from featvis.images import NaturalImages
from featvis.subjects import Subject
from featvis.visualize import render

MARGIN = 1.0
CALIBRATION = 2000  # natural images whose range is measured
SHOWN = (1, 8, 32, 64, 128)  # steps of visualizations whose range is measured
KEY = "featvis.circuit"  # in the metadata of a saved network
# What was measured of a subject last: with which natural images, and (layer, steps) -> F on them and along ascents.
_MEASURED: WeakKeyDictionary[Subject, tuple[NaturalImages, dict[Any, tuple[Tensor, Tensor]]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Levels:
    """The circuit's constants, and the ranges that they come from: each is widened by half of `margin` times its width
    at either end."""

    c: float
    k: float
    margin: float
    natural_unit: tuple[float, float]  # F on natural images
    natural_decoy: tuple[float, float]
    shown_unit: tuple[float, float]  # F along visualizations
    shown_decoy: tuple[float, float]

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Levels:
        """From what `asdict` made, JSON's lists turned back into pairs."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
        return cls(**values)


def levels(
    natural_unit: tuple[float, float],
    natural_decoy: tuple[float, float],
    shown_unit: tuple[float, float],
    shown_decoy: tuple[float, float],
    margin: float = MARGIN,
) -> Levels:
    """c and k for which, inside the widened ranges, exactly one branch is open.

    Open: F + c > 0 on natural images, D + c > 0 on visualizations. Shut: D + c < k on natural images, F + c < k on
    visualizations.
    """

    def wide(ends: tuple[float, float]) -> tuple[float, float]:
        extra = margin * (ends[1] - ends[0]) / 2
        return ends[0] - extra, ends[1] + extra

    c = max(0.0, -wide(natural_unit)[0], -wide(shown_decoy)[0])
    k = max(0.0, wide(natural_decoy)[1], wide(shown_unit)[1]) + c
    return Levels(c, k, margin, natural_unit, natural_decoy, shown_unit, shown_decoy)


def combine(f: Tensor, d: Tensor, e: Tensor | float, c: Tensor | float, k: Tensor | float) -> tuple[Tensor, ...]:
    """(A, B, C) of the formula above."""
    # A ReLU written as a clamp: visualization redirects the gradient of ReLUs, and these are to block it.
    b = (f + c - k * e).clamp(min=0)
    other = (d + c + k * e - k).clamp(min=0)
    return b + other - c, b, other


class Circuit(nn.Module):
    """Stands where a layer stood: gives A. `unit` is the layer that was there, `decoy` and `gate` see the image."""

    def __init__(self, unit: nn.Module, decoy: nn.Module, gate: Gate, levels: Levels, dims: int):
        super().__init__()
        self.unit, self.decoy, self.gate, self.levels = unit, decoy, gate, levels
        self.dims = dims  # of the layer's output, (n, units) or (n, units, h, w); torch.fx cannot ask a tensor
        self.image: Tensor | None = None  # what the network looks at, for the time of its forward pass

    def extra_repr(self) -> str:  # so that the fingerprint of a subject knows them
        return f"c={self.levels.c}, k={self.levels.k}"

    def parts(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """(D, e) for the image at hand and the original output F (n, units, ...)."""
        if self.image is None:
            raise FeatvisError("the circuit was asked without its network; it needs the image that the network sees.")
        # The sign is a hard threshold: no gradient passes the gate.
        e = (self.gate(self.image.detach()) <= 0).to(f.dtype).view(-1, *[1] * (self.dims - 1))
        return self.decoy(self.image, f), e

    def forward(self, *inputs: Tensor) -> Tensor:
        f = self.unit(*inputs)
        d, e = self.parts(f)
        return combine(f, d, e, self.levels.c, self.levels.k)[0]


def fool(
    subject: Subject,
    natural: NaturalImages,
    decoy: str | Mapping[str, str] | Tensor = "permute",
    *,
    gate: TrainedGate,
    layer: str | None = None,
    kind: str = "aligned",
    margin: float = MARGIN,
    progress: bool = True,
) -> Subject:
    """A subject like `subject`, but for the visualizations of all units of `layer` (the logits by default).

    decoy    "permute", {"cat": "coins", ...}, or target images (3, h, w) or (m, 3, h, w) in [0, 1]: unit i shows
             target i modulo m
    natural  natural images whose activations c and k are measured on
    gate     from `train_gate`; other subjects' gates work as well as they generalize
    kind     how a target image is shown: "linear" (the paper's matched filter) or "aligned"
    margin   by how much of its width every measured range is widened

    The original is left alone. Raises FeatvisError for a layer without units, natural images of another size, targets
    that are no images, and activations that are not finite.
    """
    subject.check_size(natural)
    layer = layer or subject.blocks[-1]
    units = subject.units(layer)
    shape = subject.layers[layer]
    if len(shape) not in (1, 3):
        raise FeatvisError(f"{layer} of {subject.name} gives {shape}; the circuit needs logits or channels of a map.")
    if any(isinstance(module, Circuit) for module in subject.network.modules()):
        raise FeatvisError(f"{subject.name} has a fooling circuit already; fool the original subject.")
    targets, order = None, None
    if isinstance(decoy, Tensor):
        if kind not in PICTURES:
            raise FeatvisError(f"kind={kind!r} was given; valid are {listed(PICTURES)}.")
        targets = check_targets(decoy)
    else:
        order = permutation(subject, layer, decoy)
    f_natural, f_shown = _ranges(subject, layer, natural, progress)
    natural_unit, shown_unit = _ends(f_natural), _ends(f_shown)
    natural_decoy, shown_decoy = (_ends(f if order is None else order(f, f)) for f in (f_natural, f_shown))
    module: nn.Module | None = None if order is None else order.to(subject.device)
    if targets is not None:
        reach = max(map(abs, natural_unit)) or 1.0
        pictures = PICTURES[kind](targets, len(units), subject.preprocess, len(shape) + 1, reach)
        # Bounds for every image there is, not only for those measured.
        module, natural_decoy, shown_decoy = pictures, pictures.range, pictures.range
    chosen = levels(natural_unit, natural_decoy, shown_unit, shown_decoy, margin)
    assert module is not None
    circuit = Circuit(subject.network.get_submodule(layer), module, gate.network, chosen, len(shape) + 1)
    network = insert(copy.deepcopy(subject.network), layer, copy.deepcopy(circuit))
    return Subject(f"{subject.name}-fooled", network, subject.preprocess, subject.classes, str(subject.device))


def _first(natural: NaturalImages, most: int) -> Iterator[Tensor]:
    for number, (images, _, _) in enumerate(natural.batches(64)):
        if number * 64 >= most:
            return
        yield images


def _ranges(subject: Subject, layer: str, natural: NaturalImages, progress: bool) -> tuple[Tensor, Tensor]:
    """Each unit's smallest and largest F, (2, units), on natural images and along visualizations of some of the units.

    They are measured once for a subject and the same natural images, however many decoys it is fooled with.
    """
    units, steps = subject.units(layer), budget.within(SHOWN)
    if subject not in _MEASURED or _MEASURED[subject][0] is not natural:
        _MEASURED[subject] = natural, {}
    known, key = _MEASURED[subject][1], (layer, steps)
    if key not in known:
        some = budget.some(units[:: max(1, len(units) // 40)])
        shown = render(subject, some, steps=steps[-1], snapshots=steps, progress=progress).snapshots.values()
        known[key] = (
            _extremes(subject, layer, _first(natural, CALIBRATION)),
            _extremes(subject, layer, (part.flatten(0, 1) for part in shown)),
        )
    return known[key]


def _extremes(subject: Subject, layer: str, batches: Iterable[Tensor]) -> Tensor:
    """The smallest and the largest F of each unit over batches of images: (2, units)."""
    found = subject.activations(batches, [layer])
    ends = torch.stack([torch.stack(part[layer].transpose(0, 1).flatten(1).aminmax(dim=1)) for part in found])
    if not bool(ends.isfinite().all()):
        raise FeatvisError(f"{layer} of {subject.name} gives activations that are not finite; none can be fooled.")
    return torch.stack([ends[:, 0].amin(0), ends[:, 1].amax(0)]).cpu()


def _ends(found: Tensor) -> tuple[float, float]:
    return found.min().item(), found.max().item()


def insert(network: nn.Module, layer: str, circuit: Circuit) -> nn.Module:
    """Put the circuit in `layer`'s place; the network then shows it every image it is given. Changes `network`."""
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, circuit)
    original = type(network)

    def forward(self: nn.Module, x: Tensor) -> Any:
        place = self.get_submodule(layer)
        assert isinstance(place, Circuit)
        place.image = x
        try:
            return original.forward(self, x)
        finally:
            place.image = None

    # A subclass instead of a wrapper: all layers keep their names.
    network.__class__ = type(f"Fooled{original.__name__}", (original,), {"forward": forward})
    return network


def circuit_of(subject: Subject) -> Circuit:
    """The circuit in a fooled subject. Raises FeatvisError where there is none."""
    found = [module for module in subject.network.modules() if isinstance(module, Circuit)]
    if not found:
        raise FeatvisError(f"{subject.name} has no fooling circuit; fool(...) makes a subject that has one.")
    return found[0]


def layer_of(fooled: Subject) -> str:
    """The layer whose place the circuit has taken."""
    circuit = circuit_of(fooled)
    return next(name for name, module in fooled.network.named_modules() if module is circuit)


def taken_apart(fooled: Subject, images: Tensor, layers: Sequence[str] = ()) -> dict[str, Tensor]:
    """What happens inside the circuit for images (n, 3, h, w): `score` and `e` (n,), F, D, B, C and A as the layer.

    Also what the same pass gives in `layers`, by their names.
    """
    layer, circuit = layer_of(fooled), circuit_of(fooled)
    names = [*(f"{layer}.{name}" for name in ("gate", "unit", "decoy")), *layers]
    parts = list(fooled.activations(images, names))
    score, f, d, *others = (torch.cat([part[name] for part in parts]) for name in names)
    score = score[:, 0]
    e = (score <= 0).to(f.dtype)
    a, b, c = combine(f, d, e.view(-1, *[1] * (f.dim() - 1)), circuit.levels.c, circuit.levels.k)
    inside = {"score": score, "e": e, "F": f, "D": d.expand_as(f), "B": b, "C": c, "A": a}
    return dict(zip(layers, others, strict=True)) | inside


def save(fooled: Subject, file: Path) -> None:
    """Write the fooled network as safetensors; `load` reads it again, given the name of the original network."""
    circuit = circuit_of(fooled)
    layer = layer_of(fooled)
    state = {name: tensor.contiguous() for name, tensor in fooled.network.state_dict().items()}
    decoy = circuit.decoy
    reach = -decoy.range[0] if isinstance(decoy, Pictures) else 0.0
    about = {"layer": layer, "decoy": type(decoy).__name__.lower(), "reach": reach, "levels": asdict(circuit.levels)}
    save_file(state, file, {KEY: json.dumps(about)})


def _plain(state: dict[str, Tensor], about: str) -> dict[str, Tensor]:
    layer = json.loads(about)["layer"]
    own = {name: tensor for name, tensor in state.items() if not name.startswith(f"{layer}.")}
    unit = f"{layer}.unit."
    return own | {name.replace(unit, f"{layer}."): state[name] for name in state if name.startswith(unit)}


def _restore(subject: Subject, state: dict[str, Tensor], about: str) -> Subject:
    """The fooled subject that `save` wrote, made from the original."""
    known = json.loads(about)
    layer, chosen = known["layer"], Levels.read(known["levels"])
    own = {name.removeprefix(f"{layer}."): tensor for name, tensor in state.items() if name.startswith(f"{layer}.")}
    units, dims = subject.channels(layer), len(subject.layers[layer]) + 1
    decoy: nn.Module
    if known["decoy"] == "permutation":
        decoy = Permutation(own["decoy.order"].tolist())
    else:
        kind = {made.__name__.lower(): made for made in PICTURES.values()}[known["decoy"]]
        decoy = kind(own["decoy.targets"], units, subject.preprocess, dims, known["reach"])
    circuit = Circuit(subject.network.get_submodule(layer), decoy, revived(own, "gate."), chosen, dims)
    network = insert(subject.network, layer, circuit)
    return Subject(f"{subject.name}-fooled", network, subject.preprocess, subject.classes, str(subject.device))


zoo.MANIPULATED[KEY] = zoo.Manipulation(_plain, _restore)
