"""What one step of one image costs at the logits, and one image of an exemplar scan; and what networks ask for.

Times are processor time of one thread, which other programs on the machine stretch less than time on the clock. The
machine's own pace, a matrix product and a convolution, is taken in the same rounds. Counts come from networks on the
device "meta", which has shapes and no numbers: nothing is computed for them.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import featvis as fv
from benchmarks import steps
from featvis.capture import first_tensor
from featvis.subjects import Subject, unit_means

BATCH = 4
MEASURED = ("googlenet", "resnet50", "vit_b_16")
COUNTED = ("googlenet", "resnet50", "vit_b_16", "vit_l_16")


def measure(rounds: int) -> dict[str, Any]:
    """Medians of `rounds` rounds, in which the machine and all networks take turns; one thread, float32."""
    runs: dict[tuple[str, str], Callable[[], float]] = {
        ("machine", "matrix product"): _product(2048),
        ("machine", "convolution"): _convolution(256, 56),
    }
    for name in MEASURED:
        subject = fv.load(name, weights="random", device="cpu")
        logits = _awake(subject)
        runs[name, "step"] = _step(subject, logits)
        runs[name, "scan"] = _scan(subject, logits)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        laps = [{key: run() for key, run in runs.items()} for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)
    found = {key: median(lap[key] for lap in laps) for key in runs}
    return {
        "batch": BATCH,
        "rounds": rounds,
        "pace": {what: operations for (name, what), operations in found.items() if name == "machine"},
        "seconds": {
            name: {"step": found[name, "step"] / BATCH, "scan": found[name, "scan"] / BATCH} for name in MEASURED
        },
        "counts": {name: count(blank(name)) for name in COUNTED},
    }


def blank(name: str) -> Subject:
    """A network of torchvision's without numbers in it."""
    with torch.device("meta"):
        return fv.load(name, weights="random", device="meta")


def layers_of(subject: Subject) -> list[str]:
    """The layers of which every unit would be rendered, logits last: blocks; of a transformer, MLPs and attention."""
    logits = subject.blocks[-1]
    inner = [layer for layer in subject.layers if layer.endswith((".self_attention", ".mlp.1"))]
    return [*inner, logits] if inner else list(subject.blocks)


def count(subject: Subject) -> dict[str, Any]:
    """What one image asks for, by counting every operation of a forward pass and of its backward pass to the image.

    multiply_adds  of the forward pass
    layers         units of each layer, and floating-point operations of one step that ends there, there and back
    kept           numbers that the forward pass to the logits keeps for the backward pass, in the network cut there
    """
    wanted = layers_of(subject)
    height, width = subject.preprocess.size
    image = torch.full((1, 3, height, width), 0.5, device=subject.device, requires_grad=True)
    reached: dict[str, tuple[int, Tensor]] = {}

    def note(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            reached.setdefault(layer, (counter.get_total_flops(), first_tensor(output)))

        return hook

    modules = dict(subject.network.named_modules())
    handles = [modules[layer].register_forward_hook(note(layer)) for layer in wanted]
    wants = {parameter: parameter.requires_grad for parameter in subject.network.parameters()}
    try:
        for parameter in wants:
            parameter.requires_grad_(False)  # as in a step: the gradient goes to the image alone
        with FlopCounterMode(display=False) as counter:
            subject.network(subject.preprocess(image))
        forward = counter.get_total_flops()
        rows = []
        for layer, (until, output) in reached.items():
            with FlopCounterMode(display=False) as back:
                torch.autograd.grad(output.sum(), image, retain_graph=True)
            flops = until + back.get_total_flops()
            rows.append({"layer": layer, "units": subject.channels(layer), "step": flops})
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted_before in wants.items():
            parameter.requires_grad_(wanted_before)
    return {"multiply_adds": forward // 2, "layers": rows, "kept": _kept(subject, wanted[-1], image)}


def _kept(subject: Subject, layer: str, image: Tensor) -> int:
    network = subject.until(layer)
    own = {tensor.untyped_storage()._cdata for tensor in network.state_dict(keep_vars=True).values()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(subject.preprocess(image))
    assert outputs
    return sum(
        tensor.untyped_storage().nbytes() // tensor.element_size() for key, tensor in kept.items() if key not in own
    )


def _awake(subject: Subject) -> str:
    """The name of the logits; where torchvision starts them with zeros, as a transformer's, with other weights."""
    logits = subject.blocks[-1]
    last = subject.network.get_submodule(logits)
    assert isinstance(last, nn.Linear)
    if not last.weight.any():
        nn.init.normal_(last.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return logits


def _step(subject: Subject, logits: str) -> Callable[[], float]:
    """Seconds of one step of a batch, as `render` runs it, after a first one."""
    loop, _ = steps.ours(subject, logits, BATCH, "fp32", clock=process_time)
    return lambda: median(loop(1))


def _scan(subject: Subject, logits: str) -> Callable[[], float]:
    """Seconds of one batch of decoded images in a scan."""
    images = torch.rand(BATCH, 3, *subject.preprocess.size, generator=torch.Generator().manual_seed(0))

    def run() -> float:
        begin = process_time()
        for found in subject.activations(images, [logits]):
            unit_means(found[logits])
        return process_time() - begin

    return run


def _product(side: int) -> Callable[[], float]:
    """Operations a second of a square matrix product."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    return lambda: 2 * side**3 / _seconds(lambda: left @ right)


def _convolution(channels: int, side: int) -> Callable[[], float]:
    """Operations a second of a 3 x 3 convolution with many channels."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(BATCH, channels, side, side).to(memory_format=torch.channels_last)
    operations = 2 * BATCH * side**2 * 9 * channels**2
    return lambda: operations / _seconds(lambda: convolution(images))


def _seconds(run: Callable[[], object]) -> float:
    with torch.inference_mode():
        begin = process_time()
        run()
        return process_time() - begin
