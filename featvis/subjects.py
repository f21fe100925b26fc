"""The subject: a network under study with its preprocessing, named layers and class names."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from featvis import budget
from featvis.capture import as_tokens, capture, evaluating, first_tensor
from featvis.cut import Cut, copied, cut
from featvis.errors import FeatvisError, listed, reason

if TYPE_CHECKING:
    from featvis.images import NaturalImages


LUMINANCE = (0.299, 0.587, 0.114)
NOT_OWN = ("builtins", "torch", "torchvision", "featvis")  # whose code has versions


@dataclass(frozen=True)
class Preprocess:
    """From images in [0, 1] to the network's input: (image - mean) / std, per channel.

    `size` is the (height, width) that the network expects. With one mean and one std it gets grey images, the
    luminance of coloured ones (ITU-R BT.601, as Pillow's).
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Raises FeatvisError for a size that no image has, and for numbers that would make no finite input."""
        for name, counts in (("size", (2,)), ("mean", (1, 3)), ("std", (1, 3))):
            given = getattr(self, name)
            if not isinstance(given, Sequence) or len(given) not in counts:
                valid = "(height, width)" if name == "size" else "3 numbers, or one for grey images, such as (0.5,)"
                raise FeatvisError(f"{name}={given!r} was given; valid is {valid}.")
            object.__setattr__(self, name, tuple(given))
        if len(self.mean) != len(self.std):
            raise FeatvisError(f"mean {self.mean} and std {self.std} were given; valid are as many of both.")
        if min(self.size) < 1:
            raise FeatvisError(
                f"images of {self.size[0]} x {self.size[1]} pixels were named; valid are 1 x 1 and more."
            )
        if not all(map(math.isfinite, self.mean)) or not all(s > 0 and math.isfinite(s) for s in self.std):
            raise FeatvisError(f"mean {self.mean} and std {self.std} were given; valid are finite ones, std above 0.")

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] -> (n, 3, h, w) as the network wants it, or (n, 1, h, w)."""
        if len(self.mean) == 1 and images.shape[-3] == 3:
            images = (images * _by_channel(LUMINANCE, images.dtype, images.device)).sum(-3, keepdim=True)
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


def row_of(units: Sequence[str], unit: str | Unit) -> int:
    """Where a unit stands among those of a result. Raises FeatvisError where it does not."""
    if str(unit) not in units:
        raise FeatvisError(f"{str(unit)!r} is not among the units of this result: {listed(units, 20)}.")
    return list(units).index(str(unit))


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
        self._hashed: tuple[Any, str] | None = None
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

        Of several outputs the first counts: of attention what it gives out, not its weights. What does not go by images
        is left out, such as a transformer's whose tokens come first.
        """
        return self._seen[0]

    @property
    def channels_last(self) -> frozenset[str]:
        """The layers that put out maps (n, h, w, c); their places count as tokens, (n, h w, c)."""
        return self._seen[1]

    @cached_property
    def _seen(self) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
        """(`layers`, `channels_last`), from one pass over two grey images. Raises FeatvisError where that fails."""
        shapes: dict[str, tuple[int, ...]] = {}
        last: set[str] = set()
        features: list[int] = []  # of the last module with weights, if it works along the last dimension of maps

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, _inputs: object, output: object) -> None:
                if not isinstance(output := first_tensor(output), Tensor) or output.shape[:1] != probe.shape[:1]:
                    return
                shape = tuple(output.shape[1:])
                if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm)):
                    features.clear()
                if len(shape) == 3 and isinstance(module, nn.Linear):
                    features[:] = [module.out_features]
                if len(shape) == 3 and isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
                    features[:] = module.normalized_shape  # torchvision has one that works on maps as they usually are
                if name in shapes:
                    return
                if len(shape) == 3 and features == [shape[2]] != [shape[0]]:
                    last.add(name)
                    shape = (shape[0] * shape[1], shape[2])
                shapes[name] = shape

            return hook

        height, width = self.preprocess.size
        probe = self.preprocess(torch.full((2, len(self.preprocess.mean), height, width), 0.5, device=self.device))
        handles = [m.register_forward_hook(note(name)) for name, m in self.network.named_modules() if name]
        try:
            with torch.no_grad():
                self.network(probe)
        except Exception as error:  # whatever a reader's own forward raises
            size = f"{height} x {width} pixels"
            if odd := {str(p.dtype) for p in self.network.parameters() if p.dtype != torch.float32}:
                size += f" in float32 with weights in {listed(sorted(odd))} (network.float() makes them float32)"
            raise FeatvisError(f"{self.name} cannot take an image of {size}: {reason(error)}") from error
        finally:
            for handle in handles:
                handle.remove()
        return {name: shape for name, shape in shapes.items() if len(shape) in (1, 2, 3)}, frozenset(last)

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory for the network: channels last, up to twice as fast, if it takes that.

        A `forward` that makes rows of maps by `x.view(n, -1)` takes channels first alone.
        """
        whole = copied(self.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        grey = torch.full((2, len(self.preprocess.mean), *self.preprocess.size), 0.5, device=self.device)
        try:
            with torch.no_grad():
                whole(self.preprocess(grey).contiguous(memory_format=torch.channels_last))
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
        height, width = self.preprocess.size
        if height != width:
            raise FeatvisError(f"natural images are square; {self.name} needs {height} x {width} pixels.")
        for natural in streams:
            if natural.size != height:
                raise FeatvisError(f"{natural.name} has images of {natural.size} pixels; {self.name} needs {height}.")

    def until(self, *layers: str, before_relu: bool = False) -> Cut:
        """The network cut right after the given layers: a frozen copy, preprocessed images -> {layer: output}.

        With `before_relu`, a layer that ends in a ReLU gives what enters it instead.
        """
        known = [self._known(layer) for layer in layers]
        shape = (2, len(self.preprocess.mean), *self.preprocess.size)
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        probe = None if self.device.type == "meta" else self.prepared(noise)  # where nothing is computed
        return cut(
            self.network,
            known,
            before_relu=before_relu,
            memory_format=self.memory_format,
            probe=probe,
            channels_last=self.channels_last,
        )

    def activations(
        self, images: Tensor | Iterable[Tensor], layers: Sequence[str] | str, batch_size: int = 64
    ) -> Iterator[dict[str, Tensor]]:
        """Stream activations: for each batch of images (n, 3, h, w) in [0, 1] one {layer: (n, channels, ...)}.

        Only one batch is held at a time; nothing after the last of `layers` is computed.
        """
        layers = [self._known(layer) for layer in ([layers] if isinstance(layers, str) else layers)]
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        _ = self.memory_format  # is found out before there are hooks
        with capture(self.network, layers) as run:
            for batch in batches:
                with torch.inference_mode():
                    yield as_tokens(run(self.prepared(batch)), self.channels_last)

    def logits(self, images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """The network's output (n, classes), batch by batch; of several, the first.

        Raises FeatvisError where that is something else, as a segmentation's maps are.
        """
        batches = images.split(64) if isinstance(images, Tensor) else images
        for batch in batches:
            with torch.inference_mode(), evaluating(self.network):
                found = first_tensor(self.network(self.prepared(batch)))
            if not isinstance(found, Tensor) or found.dim() != 2:
                what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
                raise FeatvisError(f"the output of {self.name} is {what}; a classifier gives (images, classes).")
            yield found

    def prepared(self, images: Tensor) -> Tensor:
        """What the network gets of images (n, 3, h, w) in [0, 1]: preprocessed, on its device, in its format."""
        return self.preprocess(images.to(self.device)).contiguous(memory_format=self.memory_format)

    @property
    def fingerprint(self) -> str:
        """A hash of architecture, weights, preprocessing and class names: another network, another fingerprint.

        Of code that does not come with torch, torchvision or featvis its text counts, too. Weights that are written
        through `.data`, of which torch keeps no count, are not noticed once the fingerprint has been asked for.
        """
        state = self.network.state_dict()
        now = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in state.values())
        if self._hashed is None or self._hashed[0] != now:  # written in place, as training does
            digest = hashlib.sha256(repr((str(self.network), self.preprocess, self.classes)).encode())
            for text in _own_code(self.network):
                digest.update(text.encode())
            for name, tensor in state.items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._hashed = now, digest.hexdigest()[:16]
        return self._hashed[1]

    @property
    def _example(self) -> str:
        return f"{self.blocks[len(self.blocks) // 2]}:0"

    def _known(self, layer: str) -> str:
        if layer not in self.layers:
            near = difflib.get_close_matches(layer, self.layers, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise FeatvisError(f"{self.name} has no layer {layer!r}{hint}; it has {listed(self.blocks, 40)}.")
        return layer


def _own_code(network: nn.Module) -> list[str]:
    """The source of all methods of modules that are a reader's own, where Python knows it."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in NOT_OWN]
    found = []
    for method in (value for kind in own for value in vars(kind).values() if inspect.isfunction(value)):
        with suppress(OSError):
            found.append(inspect.getsource(method))
    return sorted(found)
