"""What the parts of a layer do on natural images and on visualizations: responses, weights, and who gets a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from featvis.capture import as_tokens, first_tensor
from featvis.subjects import Subject, Unit
from featvis.visualize.objectives import unit_means_of

BATCH = 32


def parts_of(subject: Subject, layer: str) -> list[str]:
    """The innermost modules of a layer that give out tensors with channels; the layer itself if there are none."""
    inside = [name for name in subject.layers if name == layer or name.startswith(f"{layer}.")]
    modules = {name: subject.network.get_submodule(name) for name in inside}
    leaves = [n for n, m in modules.items() if not any(True for _ in m.children()) and _channels_first(subject, n, m)]
    return leaves or [layer]


def _channels_first(subject: Subject, name: str, module: nn.Module) -> bool:
    """Whether a module's channels are where a map's are: some networks put linear layers on maps, channels last."""
    return name not in subject.channels_last


@dataclass(frozen=True)
class Trace:
    """What one module gives out, channel by channel (c,): on natural images (n) and on visualizations (m).

    natural_on, shown_on   (n, c), (m, c): whether it is above zero anywhere
    mean, deviation        (c,) over natural images and positions
    """

    natural_on: Tensor = field(repr=False)
    shown_on: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    deviation: Tensor = field(repr=False)

    def separation(self) -> Tensor:
        """(c,) how well "on or off" tells natural images from visualizations: balanced accuracy, 0.5 to 1.

        Less two standard errors, or the best of many channels would look the better, the fewer images there are.
        """
        rates, variance = [], torch.zeros(self.shown_on.shape[1], dtype=torch.float64)
        for on in (self.natural_on, self.shown_on):
            rates.append(on.double().mean(0))
            smooth = (on.double().sum(0) + 1) / (len(on) + 2)
            variance = variance + smooth * (1 - smooth) / len(on)
        return 0.5 + ((rates[1] - rates[0]).abs() - 2 * variance.sqrt()).clamp(min=0) / 2

    def silent(self) -> Tensor:
        """(c,) whether no natural image switches it on, and a visualization does."""
        return ~self.natural_on.any(0) & self.shown_on.any(0)

    def shut(self) -> Tensor:
        """(c,) how many standard deviations its natural responses lie below zero on average."""
        return -self.mean / self.deviation.clamp(min=1e-12)


def traces(subject: Subject, parts: Sequence[str], natural: Tensor, shown: Tensor) -> dict[str, Trace]:
    """Traces of the modules `parts` on images (n, 3, h, w) and (m, 3, h, w), in one pass over each."""
    on: dict[str, list[list[Tensor]]] = {part: [[], []] for part in parts}
    zeros = {part: torch.zeros(subject.channels(part), dtype=torch.float64) for part in parts}
    totals, squares = dict(zeros), dict(zeros)
    counts = dict.fromkeys(parts, 0)
    for kind, images in enumerate((natural, shown)):
        for found in subject.activations(images, parts, BATCH):
            for part, output in found.items():
                flat = by_channel(output)
                on[part][kind].append((flat > 0).any(2).cpu())
                if kind == 0:
                    doubles = flat.double()
                    totals[part] = totals[part] + doubles.sum((0, 2)).cpu()
                    squares[part] = squares[part] + doubles.square().sum((0, 2)).cpu()
                    counts[part] += flat.shape[0] * flat.shape[2]
    result = {}
    for part in parts:
        mean = totals[part] / counts[part]
        deviation = (squares[part] / counts[part] - mean.square()).clamp(min=0).sqrt()
        result[part] = Trace(torch.cat(on[part][0]), torch.cat(on[part][1]), mean, deviation)
    return result


def by_channel(output: Tensor) -> Tensor:
    """(n, c, h, w), (n, t, c) or (n, c) -> (n, c, positions)."""
    if output.dim() == 4:
        return output.flatten(2)
    return output.transpose(1, 2) if output.dim() == 3 else output[:, :, None]


def filters(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The filters of every convolution and linear layer, as (name, (channels, inputs))."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            yield name, module.weight.detach().flatten(1)


def gradient_shares(subject: Subject, unit: Unit, images: Tensor) -> Tensor:
    """Which channels of its layer's parts a unit depends on: (n, channels of all parts + 1), rows that add up to 1.

    Each entry is the share of a channel in the sum of absolute gradients; the last one is 1 where nothing has any.
    """
    parts = parts_of(subject, unit.layer)
    found: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: object, output: object) -> Tensor | None:
        if name in found or not isinstance(tensor := first_tensor(output), Tensor):
            return None
        found[name] = tensor
        return tensor.clone() if tensor is output else None  # what comes next may work in place

    def last(_module: nn.Module, _inputs: object, output: object) -> None:
        found.setdefault("", first_tensor(output))

    def tokens(name: str, output: Tensor) -> Tensor:
        return as_tokens({name: output}, subject.channels_last)[name]

    modules, rows = dict(subject.network.named_modules()), []
    with ExitStack() as stack:
        for name in parts:
            stack.callback(modules[name].register_forward_hook(partial(keep, name)).remove)
        stack.callback(modules[unit.layer].register_forward_hook(last).remove)
        for batch in images.split(BATCH):
            found.clear()
            inputs = batch.to(subject.device).requires_grad_()
            with torch.enable_grad():
                subject.network(subject.preprocess(inputs))
                output = tokens(unit.layer, found.pop("") if "" in found else found[unit.layer])
                value = unit_means_of(output, torch.full((len(batch),), unit.index, device=output.device))
                reached = [name for name in parts if found[name].requires_grad]
                given = torch.autograd.grad(value.sum(), [found[name] for name in reached], allow_unused=True)
            gradients = dict(zip(reached, given, strict=True))
            size = []
            for name in parts:
                gradient = gradients.get(name)
                zero = torch.zeros(by_channel(tokens(name, found[name])).shape[:2], device=subject.device)
                size.append(zero if gradient is None else by_channel(tokens(name, gradient)).abs().sum(2))
            every = torch.cat(size, 1).double()
            whole = every.sum(1, keepdim=True)
            shares = every / whole.clamp(min=1e-300)
            rows.append(torch.cat([shares, (whole == 0).double()], 1).cpu())
    return torch.cat(rows)
