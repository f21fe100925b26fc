"""How the embedded networks are trained: augmentation, a little adversarial training, resumable.

Each image of a batch is moved against its own label by one gradient step of random length (at most `RADIUS` in
the Euclidean norm, Goodfellow et al. 2015): networks trained so have clearer visualizations (Engstrom et al. 2019).
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from featvis.images import NaturalImages
from featvis.subjects import Preprocess

BATCH = 64
RADIUS = 1.5
PEAK_RATE = 6e-3
CHECKPOINT_EVERY = 100


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flips, rotation, scale, contrast, brightness, saturation, tint, blur and noise: (n, 3, h, w) in [0, 1]."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*(shape or (n, 1, 1, 1)), generator=generator)

    angle, size = uniform(-0.25, 0.25, n), uniform(0.8, 1.1, n)
    flip = torch.where(uniform(0, 1, n) < 0.5, -1.0, 1.0)
    cos, sin, shift = torch.cos(angle) * size, torch.sin(angle) * size, uniform(-0.1, 0.1, n, 2)
    matrix = torch.stack(
        [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
    mean = images.mean((2, 3), keepdim=True)
    images = (images - mean) * uniform(0.75, 1.25) + mean + uniform(-0.1, 0.1)
    grey = images.mean(1, keepdim=True)
    saturation = uniform(0.75, 1.25)
    images = (grey + (images - grey) * saturation) * uniform(0.95, 1.05, n, 3, 1, 1)
    images = torch.where(uniform(0, 1) < 0.2, smoothed(images), images)
    return (images + torch.randn(images.shape, generator=generator) * uniform(0, 0.04)).clamp(0, 1)


def smoothed(images: Tensor, mode: str = "reflect") -> Tensor:
    """The mean over 3 x 3 pixels of images (n, c, h, w); `mode` is what `torch.nn.functional.pad` continues them with.

    On a processor torch's `avg_pool2d` takes ten times as long for images of three channels.
    """
    images = F.pad(images, (1, 1, 1, 1), mode=mode)
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def adversarial(
    network: nn.Module,
    preprocess: Preprocess,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    radius: float = RADIUS,
) -> Tensor:
    """Images moved up the loss by one normalized gradient step of random length, from a random start."""
    n = len(images)
    length = radius * torch.rand(n, 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    noise = noise / noise.flatten(1).norm(dim=1).view(n, 1, 1, 1) * length / 2
    moved = (images + noise).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(preprocess(moved)), labels), moved)
    norm = gradient.flatten(1).norm(dim=1).view(n, 1, 1, 1).clamp(min=1e-12)
    return (images + noise + length * gradient / norm).clamp(0, 1)


def train(
    network: nn.Module,
    preprocess: Preprocess,
    images: NaturalImages,
    steps: int,
    checkpoint: Path,
    seed: int = 0,
    decay: float = 0.995,
) -> nn.Module:
    """Train and return the moving average of `network`; an interrupted run goes on from `checkpoint`.

    decay  what the average keeps of itself in each step
    """
    pixels = torch.cat([(batch * 255).byte() for batch, _, _ in images.batches(256)])
    labels = torch.cat([labels for _, labels, _ in images.batches(256)])
    network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if saved := resume(checkpoint, parts):
        generator.set_state(saved["generator"])
        torch.set_rng_state(saved["dropout"])
        first = saved["step"]
    right = 0.0
    with tqdm(range(first, steps), initial=first, total=steps, desc="train", unit="step") as bar:
        for step in bar:
            chosen = torch.randint(len(pixels), (BATCH,), generator=generator)
            x = augment(pixels[chosen].float() / 255, generator).contiguous(memory_format=torch.channels_last)
            y = labels[chosen]
            x = adversarial(network, preprocess, x, y, generator)
            logits = network(preprocess(x))
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            right += 0.02 * ((logits.argmax(1) == y).float().mean().item() - right)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}", right=f"{right:.2f}")
            if (step + 1) % CHECKPOINT_EVERY == 0:
                random = {"generator": generator.get_state(), "dropout": torch.get_rng_state()}
                keep(checkpoint, parts, random | {"step": step + 1})
    return average.module.eval()


def in_memory(images: NaturalImages, progress: bool = True) -> tuple[Tensor, Tensor]:
    """All images as bytes (n, 3, h, w), and their labels (n,), -1 where there is none."""
    pixels, labels = [], []
    total = -(-len(images) // 256)
    for batch, label, _ in tqdm(images.batches(256), "read", total, mininterval=5, disable=not progress, leave=False):
        pixels.append((batch * 255).round().byte())
        labels.append(label)
    return torch.cat(pixels), torch.cat(labels)


def keep(checkpoint: Path, parts: dict[str, Any], rest: dict[str, Any]) -> None:
    """Write the state of all parts, and the rest, in one step."""
    unfinished = checkpoint.with_suffix(".tmp")
    torch.save({name: part.state_dict() for name, part in parts.items()} | rest, unfinished)
    os.replace(unfinished, checkpoint)


def resume(checkpoint: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Set all parts to what was kept and return it; empty if there is no checkpoint."""
    if not checkpoint.exists():
        return {}
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved


def hits(network: nn.Module, preprocess: Preprocess, images: NaturalImages) -> tuple[Tensor, Tensor]:
    """Which images the network gets right, as 0.0 or 1.0, and their labels: (n,) and (n,)."""
    right, labels = [], []
    with torch.no_grad():
        for batch, label, _ in images.batches(128):
            right.append(network(preprocess(batch)).argmax(1) == label)
            labels.append(label)
    return torch.cat(right).double(), torch.cat(labels)


def in_half(network: nn.Module) -> nn.Module:
    """The same network with all weights rounded to 16 bits, in place, as `write` stores them with `half`."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return network


def write(network: nn.Module, facts: dict[str, Any], file: Path, half: bool = False) -> None:
    """Weights as safetensors, with what is known about them as their card; with `half` in 16 bits."""
    state = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(state, file, {"card": json.dumps(facts)})


def read_card(file: Path) -> dict[str, Any]:
    """What `write` was told about the weights in `file`."""
    with safe_open(file, "pt") as weights:
        return json.loads(weights.metadata()["card"])


def _rate(progress: float) -> float:
    """One cycle: up over the first fifth, then down along a cosine."""
    if progress < 0.2:
        return 0.04 + 0.96 * progress / 0.2
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8)) + 1e-3
