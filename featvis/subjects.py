"""The subject: a network under study with its preprocessing, named layers and class names."""

from __future__ import annotations

import copy
import difflib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from featvis import budget
from featvis.capture import capture, first_tensor
from featvis.cut import Cut, cut
from featvis.errors import FeatvisError, listed, reason

if TYPE_CHECKING:
    from featvis.images import NaturalImages


@dataclass(frozen=True)
class Preprocess:
    """From images in [0, 1] to the network's input: (image - mean) / std, per channel.

    `size` is the (height, width) that the network expects.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Raises FeatvisError for a size that no image has, and for numbers that would make no finite input."""
        if min(self.size) < 1:
            raise FeatvisError(
                f"images of {self.size[0]} x {self.size[1]} pixels were named; valid are 1 x 1 and more."
            )
        if not all(map(math.isfinite, self.mean)) or not all(s > 0 and math.isfinite(s) for s in self.std):
            raise FeatvisError(f"mean {self.mean} and std {self.std} were given; valid are finite ones, std above 0.")

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] -> (n, 3, h, w) as the network wants it."""
        mean, std = (_by_channel(values, images.dtype, images.device) for values in (self.mean, self.std))
        return (images - mean) / std


@lru_cache(maxsize=32)
def _by_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a constant made in inference mode could not take part in a backward pass later
        return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


class Unit(NamedTuple):
    """One channel of a layer, or one logit; prints as "inception4b:17"."""

    layer: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"


def unit_means(activation: Tensor) -> Tensor:
    """A layer's units, averaged over space or tokens: (n, c, h, w), (n, t, c) or (n, c) -> (n, c)."""
    if activation.dim() == 4:
        return activation.mean((2, 3))
    return activation.mean(1) if activation.dim() == 3 else activation


def unit_means_of(activation: Tensor, indices: Tensor) -> Tensor:
    """One unit per image, averaged over space or tokens: (n, c, ...) and (n,) -> (n,)."""
    rows = torch.arange(len(indices), device=activation.device)
    if activation.dim() == 3:
        return activation[rows, :, indices].mean(1)
    chosen = activation[rows, indices]
    return chosen.mean((1, 2)) if activation.dim() == 4 else chosen


class Subject:
    """A network with what is needed to study it.

    `network` maps preprocessed images (n, 3, h, w) to logits (n, classes). It is moved to `device` ("auto": CUDA
    where there is one) and set to eval mode; nothing else about it is ever changed. `examples` are the logits, and
    `late` the convolution, that are worth showing where one cannot show all.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        preprocess: Preprocess,
        classes: Sequence[str] = (),
        device: str = "auto",
        *,
        examples: Sequence[int] = (),
        late: str | None = None,
    ):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = name
        self.preprocess = preprocess
        try:
            self.device = torch.device(device)
            self.network = network.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise FeatvisError(
                f"the device {device!r} cannot be used here ({reason(error)}); give cpu, or leave it out."
            ) from error
        self.classes = tuple(classes)
        self._examples, self._late = tuple(examples), late
        if not self.layers:
            raise FeatvisError(f"{name} has no layer with a tensor output; at least one submodule is needed.")
        logits = list(self.layers.values())[-1]
        if self.classes and logits not in ((len(self.classes),), (len(self.classes), 1, 1)):
            raise FeatvisError(f"{name} ends in {logits} outputs, but {len(self.classes)} class names were given.")

    def __repr__(self) -> str:
        height, width = self.preprocess.size
        return f"Subject({self.name!r}: {len(self.blocks)} layers, {len(self.classes)} classes, {height} x {width} px)"

    @cached_property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Every module with a tensor output, in the order of execution: name -> shape of its output without n.

        Of several outputs the first counts: of attention what it gives out, not its weights.
        """
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: object) -> None:
                if isinstance(output := first_tensor(output), Tensor):
                    shapes.setdefault(name, tuple(output.shape[1:]))

            return hook

        height, width = self.preprocess.size
        probe = self.preprocess(torch.full((1, len(self.preprocess.mean), height, width), 0.5, device=self.device))
        handles = [m.register_forward_hook(note(name)) for name, m in self.network.named_modules() if name]
        try:
            with torch.no_grad():
                self.network(probe)
        except Exception as error:  # whatever a reader's own forward raises
            size = f"{height} x {width} pixels"
            raise FeatvisError(f"{self.name} cannot take an image of {size}: {reason(error)}") from error
        finally:
            for handle in handles:
                handle.remove()
        return {name: shape for name, shape in shapes.items() if len(shape) in (1, 2, 3)}

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory for the network: channels last, up to twice as fast, if it takes that.

        A `forward` that makes rows of maps by `x.view(n, -1)` takes channels first alone.
        """
        copied = copy.deepcopy(self.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        grey = torch.full((2, len(self.preprocess.mean), *self.preprocess.size), 0.5, device=self.device)
        try:
            with torch.no_grad():
                copied(self.preprocess(grey).contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return torch.contiguous_format
        return torch.channels_last

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The coarse layers worth a look: the outermost modules with weights, seen through containers."""
        containers = (nn.Sequential, nn.ModuleList)

        def walk(module: nn.Module, prefix: str) -> Iterator[str]:
            for name, child in module.named_children():
                path = f"{prefix}{name}"
                stack = not prefix and any(isinstance(c, containers) and len(c) > 2 for c in child.children())
                if isinstance(child, containers) or stack or path not in self.layers:
                    yield from walk(child, path + ".")
                elif any(True for _ in child.parameters()):
                    yield path

        order = list(self.layers)
        return tuple(sorted(walk(self.network, ""), key=order.index))

    def channels(self, layer: str) -> int:
        """The number of units of a layer; for tokens (t, d) the units are the d features."""
        shape = self.layers[self._known(layer)]
        return shape[-1] if len(shape) == 2 else shape[0]

    def units(self, layer: str) -> list[str]:
        """All units of a layer: ["fc:0", "fc:1", ...]."""
        return [f"{layer}:{i}" for i in range(self.channels(layer))]

    def examples(self, n: int = 5) -> list[str]:
        """Logits to show where one cannot show all: those that the network came with, or n spread over all."""
        head = self.blocks[-1]
        every = self.units(head)
        if self._examples:
            return [every[i] for i in self._examples]
        if budget.quick():
            every = every[:n]  # the atlas has the first ones
        n = min(n, len(every))
        return [every[i * len(every) // n] for i in range(n)]

    @property
    def late_convolution(self) -> str:
        """The convolution whose units are silenced where one is to be chosen: by default the last of 3 x 3.

        Raises FeatvisError for a network without such a convolution.
        """
        modules = self.network.named_modules()
        square = [name for name, m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        if not (self._late or square):
            raise FeatvisError(f"{self.name} has no convolution of 3 x 3; silent units need one.")
        return self._late or square[-1]

    def unit(self, text: str | Unit) -> Unit:
        """The unit that "inception4b:17" or, for a logit, "fc:coins" names. Raises FeatvisError for any other text."""
        layer, _, which = str(text).rpartition(":")
        if not layer:
            raise FeatvisError(f"{str(text)!r} names no unit; a unit is written LAYER:INDEX, such as {self._example}.")
        count = self.channels(layer)
        names = self.classes if count == len(self.classes) else ()
        if which in names:
            return Unit(layer, names.index(which))
        if not (which.isdecimal() and int(which) < count):
            valid = f"units 0 to {count - 1}" + (f" ({listed(names, 20)})" if names else "")
            raise FeatvisError(f"{str(text)!r} is no unit of {self.name}: {layer} has {valid}.")
        return Unit(layer, int(which))

    def label(self, unit: str | Unit) -> str:
        """How a figure names a unit: "fc:12 coins", or "inception4b:17"."""
        layer, index = self.unit(unit)
        is_logit = self.layers[layer] == (len(self.classes),)
        return f"{layer}:{index} {self.classes[index]}" if is_logit else f"{layer}:{index}"

    def check_size(self, *streams: NaturalImages) -> None:
        """Raises FeatvisError for natural images of another size than the network expects.

        Many networks take any size, and answer smaller images otherwise: nothing but this would tell.
        """
        needed = self.preprocess.size[0]
        for natural in streams:
            if natural.size != needed:
                raise FeatvisError(f"{natural.name} has images of {natural.size} pixels; {self.name} needs {needed}.")

    def until(self, *layers: str, before_relu: bool = False) -> Cut:
        """The network cut right after the given layers: a frozen copy, preprocessed images -> {layer: output}.

        With `before_relu`, a layer that ends in a ReLU gives what enters it instead.
        """
        known = [self._known(layer) for layer in layers]
        return cut(self.network, known, before_relu=before_relu, memory_format=self.memory_format)

    def activations(
        self, images: Tensor | Iterable[Tensor], layers: Sequence[str], batch_size: int = 64
    ) -> Iterator[dict[str, Tensor]]:
        """Stream activations: for each batch of images (n, 3, h, w) in [0, 1] one {layer: (n, channels, ...)}.

        Only one batch is held at a time; nothing after the last of `layers` is computed.
        """
        layers = [self._known(layer) for layer in layers]
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        _ = self.memory_format  # is found out before there are hooks
        with capture(self.network, layers) as run:
            for batch in batches:
                with torch.inference_mode():
                    yield run(self.prepared(batch))

    def logits(self, images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """The network's output (n, classes), batch by batch; of several, the first.

        Raises FeatvisError where that is something else, as a segmentation's maps are.
        """
        batches = images.split(64) if isinstance(images, Tensor) else images
        for batch in batches:
            with torch.inference_mode():
                found = first_tensor(self.network(self.prepared(batch)))
            if not isinstance(found, Tensor) or found.dim() != 2:
                what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
                raise FeatvisError(f"the output of {self.name} is {what}; a classifier gives (images, classes).")
            yield found

    def prepared(self, images: Tensor) -> Tensor:
        """What the network gets of images (n, 3, h, w) in [0, 1]: preprocessed, on its device, in its format."""
        return self.preprocess(images.to(self.device)).contiguous(memory_format=self.memory_format)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of architecture, weights, preprocessing and class names: another network, another fingerprint."""
        digest = hashlib.sha256(repr((str(self.network), self.preprocess, self.classes)).encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def _example(self) -> str:
        return f"{self.blocks[len(self.blocks) // 2]}:0"

    def _known(self, layer: str) -> str:
        if layer not in self.layers:
            near = difflib.get_close_matches(layer, self.layers, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise FeatvisError(f"{self.name} has no layer {layer!r}{hint}; it has {listed(self.blocks, 40)}.")
        return layer
