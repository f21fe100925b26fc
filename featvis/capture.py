"""What the layers of a network give: outputs caught on the way, with nothing computed after the last one."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn


class _Done(Exception):
    """All wanted layers have been seen: the rest of the forward pass is not needed."""


@contextmanager
def capture(network: nn.Module, layers: Iterable[str]) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Within the context, `run(x)` gives {layer: output} of the first call of each layer, computing nothing after.

    Hooks are removed when the context is left, however it is left.
    """
    wanted = list(layers)
    found: dict[str, Tensor] = {}
    modules = dict(network.named_modules())

    def hook(name: str) -> Callable[..., Tensor | None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> Tensor | None:
            if name in found or not isinstance(tensor := first_tensor(output), Tensor):
                return None
            found[name] = tensor
            if len(found) == len(wanted):
                raise _Done
            # A later in-place ReLU would overwrite the output. Let it have a copy that the gradient goes through.
            if tensor is output:
                return tensor.clone()
            found[name] = tensor.clone()
            return None

        return keep

    def run(x: Tensor) -> dict[str, Tensor]:
        found.clear()
        with suppress(_Done), evaluating(network):
            network(x)
        return dict(found)

    handles = [modules[name].register_forward_hook(hook(name)) for name in wanted]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within the context all modules are in eval mode; those that were in training mode are again afterwards."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_tokens(found: dict[str, Tensor], channels_last: Container[str]) -> dict[str, Tensor]:
    """{layer: output} with the places of maps (n, h, w, c) as tokens, (n, h w, c)."""
    return {name: output.flatten(1, 2) if name in channels_last else output for name, output in found.items()}


def first_tensor(output: Any) -> Any:
    """What counts as the output of a module that gives several, such as attention or a dictionary: the first."""
    while isinstance(output, (tuple, list, Mapping)) and output:
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output
