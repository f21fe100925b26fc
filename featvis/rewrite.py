"""Rewriting a network as a graph so that it is faster and gives the same: batch norm, convolutions, ReLUs, the stem."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featvis.capture import first_tensor

_RELU_FUNCTIONS = {F.relu, F.relu_, torch.relu, torch.relu_}
_RELU_METHODS = {"relu", "relu_"}


class _Overwritten(Exception):
    """The graph changes a wanted output in place: the network is copied whole instead of being rewritten."""


class _RedirectedReLU(torch.autograd.Function):
    """ReLU (up to `cap`) whose gradient, where an image would get none at all, is let through if it raises the input.

    The rule is Lucid's (`redirected_relu_grad`), applied image by image.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.cap = cap
        return x.clamp(0, cap)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        linear = (x > 0) & (x < ctx.cap)
        plain = torch.where(linear, grad, 0)
        blocked = plain.flatten(1).abs().amax(1) == 0
        # `grad` belongs to a loss that is minimized: negative values raise the input.
        redirected = torch.where(linear | ((x <= 0) & (grad < 0)), grad, 0)
        return torch.where(blocked.view(-1, *[1] * (x.dim() - 1)), redirected, plain), None


class Rectifier(nn.Module):
    """ReLU, or ReLU6 with `cap` 6; while `redirect` is set, an image whose gradient stops here gets some through."""

    def __init__(self, cap: float = float("inf"), inplace: bool = False):
        super().__init__()
        self.cap, self.inplace, self.redirect = cap, inplace, False

    def forward(self, x: Tensor) -> Tensor:
        if self.redirect:
            return _RedirectedReLU.apply(x, self.cap)
        return F.relu(x, self.inplace) if self.cap == float("inf") else F.hardtanh(x, 0.0, self.cap, self.inplace)


class _OnBlocks(nn.Module):
    """A stride-2 convolution of an image as a dense one on its 2 x 2 pixel blocks: the same sums, no strided reads.

    Output i reads pixels 2 i + t - padding, t = 0 ... kernel - 1. With `before` (even, >= padding) zeros in front of
    the image these are taps t + before - padding of the blocks i, i + 1, ...: the kernel gets that many zeros in front.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel, self.padding = conv.kernel_size[0], int(conv.padding[0])
        self.before = self.padding + self.padding % 2
        front = self.before - self.padding
        back = (front + self.kernel) % 2
        self.taps = (front + self.kernel + back) // 2
        weight = _blocks(F.pad(conv.weight.detach(), (front, back, front, back)))
        self.dense = nn.Conv2d(weight.shape[1], weight.shape[0], self.taps, bias=conv.bias is not None)
        self.dense.weight, self.dense.bias = nn.Parameter(weight), conv.bias

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Whether `module` is a convolution of an image with stride 2 and square kernel and padding."""
        return (
            isinstance(module, nn.Conv2d)
            and module.in_channels <= 4
            and (module.groups, module.stride, module.dilation) == (1, (2, 2), (1, 1))
            and module.padding_mode == "zeros"
            and module.kernel_size[0] == module.kernel_size[1]
            and isinstance(module.padding, tuple)
            and module.padding[0] == module.padding[1]
        )

    def forward(self, x: Tensor) -> Tensor:
        def after(side: int) -> int:
            outputs = (side + 2 * self.padding - self.kernel) // 2 + 1
            return 2 * (outputs + self.taps - 1) - self.before - side

        height, width = x.shape[-2:]
        x = F.pad(x, (self.before, after(width), self.before, after(height)))
        return self.dense(_blocks(x))


def _blocks(x: Tensor) -> Tensor:
    """(n, c, h, w), h and w even -> (n, 4 c, h / 2, w / 2), in x's memory format: 2 x 2 blocks of pixels, row by row.

    `pixel_unshuffle` orders them by channel, and takes longer on a processor where channels come last.
    """
    blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # n, c, row, 2, column, 2
    if x.is_contiguous():
        return blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).permute(0, 3, 1, 2)


class _Tracer(fx.Tracer):
    """Notes what the first call of every module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.returned: dict[str, Any] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        self.returned.setdefault(self.path_of_module(m), output)
        return output


def folded(network: nn.Module, layers: tuple[str, ...]) -> fx.GraphModule:
    """The part of `network` that computes `layers`, as a graph that gives {layer: output}, batch norms folded away.

    Changes `network`, whose modules it uses. Raises whatever torch.fx raises for a network that it cannot trace.
    """
    return _finished(_folded(network, layers))


def rewritten(network: nn.Module, layers: tuple[str, ...], before_relu: bool) -> fx.GraphModule:
    """As `folded`, but rewritten to be fast, and with `before_relu` without its last ReLUs; see `cut`."""
    body = _folded(network, layers)
    _replace_relus(body)
    if before_relu:
        _drop_last_relus(body)
    _merge_alike(body)
    for path, module in list(body.named_modules()):
        if _OnBlocks.suits(module):
            _set(body, path, _OnBlocks(module))
    return _finished(body)


def _folded(network: nn.Module, layers: tuple[str, ...]) -> fx.GraphModule:
    tracer = _Tracer()
    graph = tracer.trace(network)
    outputs = {layer: first_tensor(tracer.returned[layer]).node for layer in layers}
    graph.erase_node(next(node for node in graph.nodes if node.op == "output"))
    graph.output(outputs)
    body = fx.GraphModule(network, graph)  # copies the graph
    body.graph.eliminate_dead_code()
    _spare(body)
    _fold_batch_norm(body)
    return body


def _finished(body: fx.GraphModule) -> fx.GraphModule:
    body.delete_all_unused_submodules()
    body.recompile()
    return body


def _outputs(body: fx.GraphModule) -> set[fx.Node]:
    """The nodes of what the graph gives."""
    return set(next(node for node in body.graph.nodes if node.op == "output").all_input_nodes)


def _spare(body: fx.GraphModule) -> None:
    """Let nothing overwrite an output: what works in place no longer does (ReLUs may again, later)."""
    kept = _outputs(body)
    for module in body.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    for node in body.graph.nodes:
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.target is operator.iadd:
            node.target = operator.add
        if node.op == "call_method" and node.target.endswith("_") and node.args[0] in kept:
            raise _Overwritten(node.target)


def _fold_batch_norm(body: fx.GraphModule) -> None:
    kept = _outputs(body)
    modules = dict(body.named_modules())
    calls = Counter(node.target for node in body.graph.nodes if node.op == "call_module")
    for node in list(body.graph.nodes):
        if node.op != "call_module" or not isinstance(norm := modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or not isinstance(conv := modules[before.target], nn.Conv2d):
            continue
        if not _is_bare(conv):
            continue
        if before in kept or len(before.users) > 1 or calls[before.target] > 1 or calls[node.target] > 1:
            continue
        _set(body, before.target, fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        if node in kept:
            kept.add(before)
        body.graph.erase_node(node)


def _replace_relus(body: fx.GraphModule) -> None:
    kept = _outputs(body)
    modules = dict(body.named_modules())

    def module(node: fx.Node) -> nn.Module | None:
        return modules.get(str(node.target)) if node.op == "call_module" else None

    for number, node in enumerate(list(body.graph.nodes)):
        is_relu = (
            (node.op == "call_function" and node.target in _RELU_FUNCTIONS)
            or (node.op == "call_method" and node.target in _RELU_METHODS)
            or isinstance(module(node), (nn.ReLU, nn.ReLU6))
        )
        if not is_relu:
            continue
        before, after = node.args[0], next(iter(node.users), None)
        if after is not None and len(node.users) == 1 and node not in kept and isinstance(module(after), nn.MaxPool2d):
            # They commute, and after the pooling the ReLU has less to do.
            node.replace_all_uses_with(before)
            before = replaced = after
            private = True
        else:
            replaced = node
            # In place only where nobody else needs the input: not an output, not read twice, not a view.
            lone = before not in kept and len(before.users) == 1
            private = lone and isinstance(module(before), (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
        name = f"rectifier_{number}"
        cap = 6.0 if isinstance(module(node), nn.ReLU6) else float("inf")
        body.add_submodule(name, Rectifier(cap, private))
        with body.graph.inserting_after(replaced):
            rectified = body.graph.call_module(name, (before,))
        replaced.replace_all_uses_with(rectified, delete_user_cb=lambda user, new=rectified: user is not new)
        if replaced in kept:
            kept.add(rectified)
        body.graph.erase_node(node)


def _drop_last_relus(body: fx.GraphModule) -> None:
    pending = list(_outputs(body))
    while pending:
        node = pending.pop()
        if node.op == "call_module" and isinstance(body.get_submodule(str(node.target)), Rectifier):
            node.replace_all_uses_with(node.all_input_nodes[0])
            body.graph.erase_node(node)
        elif node.target is torch.cat:
            pending += node.all_input_nodes


def _merge_alike(body: fx.GraphModule) -> None:
    """Convolutions that read one input, differ in their weights alone and lead to ReLUs become one, which is split.

    The input is read once, and its gradient comes in one piece where it was a sum. ReLUs do not mind how their input
    lies in memory; whatever else follows a convolution might.
    """
    modules = dict(body.named_modules())
    calls = Counter(node.target for node in body.graph.nodes if node.op == "call_module")
    alike: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in body.graph.nodes:
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        to_relus = all(isinstance(modules.get(str(user.target)), Rectifier) for user in node.users)
        if conv is not None and to_relus and calls[node.target] == 1 and _is_plain(conv):
            form = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.bias is None
            alike.setdefault((*node.all_input_nodes, *form), []).append(node)
    groups = [nodes for nodes in alike.values() if len(nodes) > 1]
    for number, nodes in enumerate(groups):
        convs = [modules[str(node.target)] for node in nodes]
        widths = [conv.out_channels for conv in convs]
        merged = copy.deepcopy(convs[0])
        merged.out_channels = sum(widths)
        for name in dict(merged.named_parameters()):
            setattr(merged, name, nn.Parameter(torch.cat([getattr(conv, name).detach() for conv in convs])))
        body.add_submodule(f"merged_{number}", merged)
        with body.graph.inserting_before(nodes[0]):
            whole = body.graph.call_module(f"merged_{number}", tuple(nodes[0].all_input_nodes))
            pieces = body.graph.call_method("split", (whole, widths, 1))
            for i, node in enumerate(nodes):
                for user in node.users:
                    modules[str(user.target)].inplace = False  # a piece is a view
                node.replace_all_uses_with(body.graph.call_function(operator.getitem, (pieces, i)))
        for node in nodes:
            body.graph.erase_node(node)


def _is_plain(conv: nn.Module) -> bool:
    """Whether a module is a convolution without groups, hooks and reparameterized weights."""
    return isinstance(conv, nn.Conv2d) and conv.groups == 1 and _is_bare(conv)


def _is_bare(conv: nn.Module) -> bool:
    """Whether a module is a convolution without hooks and reparameterized weights."""
    return (
        type(conv) is nn.Conv2d
        and not (conv._forward_hooks or conv._forward_pre_hooks or list(conv.buffers()))
        and {name for name, _ in conv.named_parameters()} <= {"weight", "bias"}
    )


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def with_rectifiers(network: nn.Module) -> nn.Module:
    """`network` itself, its ReLU modules without hooks replaced by rectifiers."""
    for path, module in list(network.named_modules()):
        hooked = module._forward_hooks or module._forward_pre_hooks
        if path and isinstance(module, (nn.ReLU, nn.ReLU6)) and not hooked:
            _set(network, path, Rectifier(6.0 if isinstance(module, nn.ReLU6) else float("inf"), module.inplace))
    return network
