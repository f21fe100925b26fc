"""Small changes that should leave an honest visualization as it is: a little more training, and less that is unused."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featvis.audit.traces import by_channel
from featvis.capture import first_tensor
from featvis.subjects import Subject, unit_means

STEPS, BATCH, RATE = 24, 32, 3e-4


def tuned(subject: Subject, images: Tensor, labels: Tensor, seed: int = 0) -> Subject:
    """The subject after a little more training on natural images (n, 3, h, w) with labels (n,).

    Normalization and dropout stay in evaluation mode: only weights move. Adam, 24 batches of 32, at a rate of 3e-4.
    """
    network = copy.deepcopy(subject.network).requires_grad_(True).eval()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        logits = _logits(network, subject, images[chosen].to(subject.device))
        loss = F.cross_entropy(logits, labels[chosen].to(subject.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Subject(
        f"{subject.name}-tuned", network.requires_grad_(False), subject.preprocess, subject.classes, str(subject.device)
    )


def unused(subject: Subject, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Channels of convolutions and linear layers that no logit depends on for any of these images (n, 3, h, w).

    {module: (whether unused (c,), mean output (c,))}, of the modules that have any.
    """
    # Frozen: only what depends on the image by a gradient counts.
    network = copy.deepcopy(subject.network).requires_grad_(False)
    every = dict(network.named_modules())
    flat = (1, 2)  # a linear layer on a map has its channels last
    modules = {
        name: every[name]
        for name, shape in subject.layers.items()
        if isinstance(every[name], nn.Conv2d) or (isinstance(every[name], nn.Linear) and len(shape) in flat)
    }
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        if name in outputs:
            return None
        outputs[name] = output
        return output.clone()  # what comes next may work in place

    used: dict[str, Tensor] = {}
    mean: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(keep, name)).remove)
        for batch in images.split(BATCH):
            outputs.clear()
            with torch.enable_grad():
                inputs = batch.to(subject.device).requires_grad_()
                logits = _logits(network, subject, inputs)
                # Random weights, so that no two paths to the logits cancel.
                weights = torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(0)).to(logits)
                # What no gradient can reach, such as a hard decision, may still matter: it is left alone.
                reached = [name for name in outputs if outputs[name].requires_grad]
                given = torch.autograd.grad(
                    (logits @ weights).sum(), [outputs[name] for name in reached], allow_unused=True
                )
            for name, gradient in zip(reached, given, strict=True):
                output = by_channel(outputs[name].detach())
                zero = torch.zeros(output.shape[1])
                mean[name] = mean.get(name, zero) + output.mean(2).sum(0).cpu() / len(images)
                used.setdefault(name, zero.bool())
                if gradient is not None:
                    used[name] |= (by_channel(gradient) != 0).any(2).any(0).cpu()
    return {name: (~flags, mean[name]) for name, flags in used.items() if not flags.all()}


def _logits(network: nn.Module, subject: Subject, images: Tensor) -> Tensor:
    """(n, classes), the mean over space where the network gives maps; of several outputs, the first."""
    return unit_means(first_tensor(network(subject.preprocess(images))))


def pruned(subject: Subject, idle: dict[str, tuple[Tensor, Tensor]]) -> Subject:
    """The subject with the channels that `unused` found set to their mean on natural images."""
    network = copy.deepcopy(subject.network).requires_grad_(False)
    for name, (flags, mean) in idle.items():
        module = network.get_submodule(name)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        if module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(len(flags)), requires_grad=False)
        module.weight[flags] = 0.0
        module.bias[flags] = mean[flags].to(module.bias)
    return Subject(f"{subject.name}-pruned", network, subject.preprocess, subject.classes, str(subject.device))
