"""A network cut right after the layers of interest: a private, frozen, faster copy that leaves the original alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from featvis.capture import capture, first_tensor
from featvis.rewrite import Rectifier, rewritten, with_rectifiers


class Cut(nn.Module):
    """Maps preprocessed images (n, 3, h, w) to {layer: output}; a frozen copy, whose ReLUs can be redirected."""

    def __init__(self, body: nn.Module, layers: tuple[str, ...], traced: bool, memory_format: torch.memory_format):
        super().__init__()
        self.body, self.layers, self.traced, self.memory_format = body, layers, traced, memory_format
        self._rectifiers = [module for module in body.modules() if isinstance(module, Rectifier)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.traced:
            return {name: first_tensor(output) for name, output in self.body(x).items()}
        with capture(self.body, self.layers) as run:
            return run(x)

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
) -> Cut:
    """The part of `network` that computes `layers`, as a frozen copy in eval mode, rewritten to be fast.

    With `before_relu`, a layer that ends in a ReLU (or in a concatenation of several) gives what enters it instead.
    Images are to come in `memory_format`, in which the copy's weights lie (see `Subject.memory_format`).

    All rewriting is exact: batch norm folds into convolutions, those that read one input alike become one, a stride-2
    stem works on pixel blocks, a ReLU goes behind the max-pooling that follows it. Networks that torch.fx cannot trace
    are copied whole instead, and left at the last layer by an exception.
    """
    layers = tuple(dict.fromkeys(layers))
    copied = copy.deepcopy(network).eval()
    try:
        body: nn.Module = rewritten(copied, layers, before_relu)
        traced = True
    except Exception:  # tracing fails in as many ways as there are control flows
        body, traced = with_rectifiers(copied), False
    body.requires_grad_(False).to(memory_format=memory_format)  # type: ignore[call-overload]
    return Cut(body, layers, traced, memory_format)
