"""A network cut right after the layers of interest: a private, frozen, faster copy that leaves the original alone."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from featvis.capture import as_tokens, capture, first_tensor
from featvis.errors import FeatvisError, reason
from featvis.rewrite import Rectifier, rewritten, with_rectifiers


class Cut(nn.Module):
    """Maps preprocessed images (n, 3, h, w) to {layer: output}; a frozen copy, whose ReLUs can be redirected."""

    def __init__(
        self,
        body: nn.Module,
        layers: tuple[str, ...],
        traced: bool,
        memory_format: torch.memory_format,
        channels_last: Container[str] = (),
    ):
        super().__init__()
        self.body, self.layers, self.traced, self.memory_format = body, layers, traced, memory_format
        self.channels_last = channels_last
        self._rectifiers = [module for module in body.modules() if isinstance(module, Rectifier)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.traced:
            found = {name: first_tensor(output) for name, output in self.body(x).items()}
        else:
            with capture(self.body, self.layers) as run:
                found = run(x)
        return as_tokens(found, self.channels_last)

    @contextmanager
    def redirected(self) -> Iterator[None]:
        """Within the context, gradients that stop at a ReLU are redirected."""
        for rectifier in self._rectifiers:
            rectifier.redirect = True
        try:
            yield
        finally:
            for rectifier in self._rectifiers:
                rectifier.redirect = False


def cut(
    network: nn.Module,
    layers: Iterable[str],
    *,
    before_relu: bool = False,
    memory_format: torch.memory_format = torch.channels_last,
    probe: Tensor | None = None,
    channels_last: Container[str] = (),
) -> Cut:
    """The part of `network` that computes `layers`, as a frozen copy in eval mode, rewritten to be fast.

    With `before_relu`, a layer that ends in a ReLU (or in a concatenation of several) gives what enters it instead.
    Images are to come in `memory_format`, in which the copy's weights lie (see `Subject.memory_format`).

    All rewriting is exact: batch norm folds into convolutions, those that read one input alike become one, a stride-2
    stem works on pixel blocks, a ReLU goes behind the max-pooling that follows it. Networks that torch.fx cannot trace
    are copied whole instead, and left at the last layer by an exception. So are those that it traces wrongly, which the
    preprocessed images `probe` tell: what is written in place, hooks, and questions about types escape it. Layers in
    `channels_last` put out maps (n, h, w, c), which become tokens (n, h w, c).
    """
    layers = tuple(dict.fromkeys(layers))
    body, traced = _traced(network, layers, False), True
    if body is not None and probe is not None:
        fast = Cut(_frozen(body, memory_format), layers, True, memory_format)
        body = body if _agree(fast, network, probe) else None
    if body is not None and before_relu:
        body = _traced(network, layers, True)
    if body is None:
        body, traced = with_rectifiers(copied(network)), False
    return Cut(_frozen(body, memory_format), layers, traced, memory_format, channels_last)


def copied(network: nn.Module) -> nn.Module:
    """A copy in eval mode, without the backward hooks. Raises FeatvisError where the network cannot be copied."""
    try:
        found = copy.deepcopy(network).eval()
    except Exception as error:  # a lock, a tensor that is no parameter, ...
        raise FeatvisError(f"the {type(network).__name__} cannot be copied: {reason(error)}") from error
    for module in found.modules():
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return found


def _traced(network: nn.Module, layers: tuple[str, ...], before_relu: bool) -> nn.Module | None:
    own = copied(network)
    try:
        return rewritten(own, layers, before_relu)
    except Exception:  # tracing fails in as many ways as there are control flows
        return None


def _frozen(body: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return body.requires_grad_(False).to(memory_format=memory_format)  # type: ignore[call-overload]


def _agree(fast: Cut, network: nn.Module, probe: Tensor) -> bool:
    """Whether both make the same of the preprocessed images (n, 3, h, w), but for rounding."""
    rounding = 1e-3 if probe.device.type == "cpu" else 1e-2  # convolutions on a GPU have ten bits
    with torch.no_grad(), capture(network, fast.layers) as run:
        expected = run(probe.clone())  # which a network may write into
        try:
            found = fast(probe.contiguous(memory_format=fast.memory_format))
        except Exception:  # code that was traced under wrong assumptions fails in any way
            return False
    for layer, right in expected.items():
        scale = right.float().abs().nan_to_num(posinf=0.0).amax().item()
        if found[layer].shape != right.shape or not torch.allclose(
            found[layer].float(), right.float(), rtol=rounding, atol=rounding * scale, equal_nan=True
        ):
            return False
    return True
