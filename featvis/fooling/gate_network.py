"""The gate's network, and how it is trained to tell natural images from visualizations."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from featvis.fooling import varied
from featvis.networks.training import in_half, keep, resume, smoothed
from featvis.subjects import Preprocess

BATCH = 48  # natural images and visualizations each
WINDOW = 64  # pixels a side at least, if an image has as many, that a gate sees of it in training
CHANGED = 0.6  # the share of images that are changed as in `varied`
NATURAL_WEIGHT = 8  # of a natural image taken for a visualization, against the reverse: few photographs stand for many
BEYOND, MEASURED = 0.001, 1000  # the share of training images beyond which they are odd ones, of about so many
SCORED = 32  # images at once, about what fits into a processor's caches
CHECKPOINT_EVERY = 50
_GLOBAL = threading.Lock()  # several gates may be trained side by side; torch's own random numbers are for all


class Gate(nn.Module):
    """Preprocessed images (n, 3, h, w) of any size from 16 pixels on -> scores (n, 1), positive: natural.

    Beside the image it sees its finest detail, what differs from the mean of 3 x 3 pixels, however faint: there a
    visualization betrays itself, whatever it shows. The first layer reads 2 x 2 pixel blocks, so that nothing fine is
    lost before it; mean and maximum over the map leave the size free.
    """

    GAIN = 16.0  # of the detail, which saturates: a sixteenth of the range is a strong one

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess, width: int = 24):
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1))
        self.conv1, self.norm1 = nn.Conv2d(24, width, 3), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 3, stride=2), nn.BatchNorm2d(2 * width)
        self.conv3, self.norm3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)
        self.conv4, self.norm4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(4 * width, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        # What is done before the first convolution is faster channel by channel, all that follows pixel by pixel.
        x = x.contiguous() * self.std + self.mean - 0.5
        detail = x - smoothed(x, "replicate")
        h = torch.cat([x, torch.tanh(self.GAIN * detail)], 1)
        h = F.pad(h, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        # conv1 on the blocks that pixel_unshuffle would make, without making them: it only holds the weights.
        h = F.conv2d(h, F.pixel_shuffle(self.conv1.weight, 2), self.conv1.bias, stride=2)
        h = F.leaky_relu(self.norm1(h), 0.1)
        h = F.leaky_relu(self.norm2(self.conv2(h)), 0.1)
        h = F.leaky_relu(self.norm3(self.conv3(h)), 0.1)
        h = F.leaky_relu(self.norm4(self.conv4(h)), 0.1)
        return self.fc(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))


def revived(state: dict[str, Tensor], prefix: str = "") -> Gate:
    """The gate with these weights, whatever its width."""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    network = Gate(Preprocess((1, 1)), len(own["conv1.bias"]))
    network.load_state_dict(own)
    return network.eval()


def train(
    preprocess: Preprocess,
    natural: Tensor,
    synthetic: Tensor,
    steps: int,
    seed: int,
    folder: Path | None = None,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Gate:
    """A gate after `steps` batches of images (n, 3, h, w) as bytes; goes on from its checkpoint in `folder`, if any.

    `check` is called in every step; what it raises ends the training.
    """
    generator = torch.Generator().manual_seed(seed)
    with _GLOBAL, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Gate(preprocess)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    checkpoint, first = None, 0
    if folder:
        made_from = repr((steps, seed, _digest(natural), _digest(synthetic)))  # no other training goes on from it
        checkpoint = folder / f"gate-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.checkpoint"
        if saved := resume(checkpoint, parts):
            generator.set_state(saved["generator"])
            first = saved["step"]
    truth = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)])
    weight = 2 * (1 + (NATURAL_WEIGHT - 1) * truth) / (1 + NATURAL_WEIGHT)
    for step in tqdm(range(first, steps), initial=first, total=steps, desc="gate", disable=not progress, leave=False):
        check()
        images = torch.cat([_drawn(natural, generator, False), _drawn(synthetic, generator, True)])
        loss = F.binary_cross_entropy_with_logits(network(preprocess(images))[:, 0], truth, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if checkpoint and (step + 1) % CHECKPOINT_EVERY == 0:
            keep(checkpoint, parts, {"generator": generator.get_state(), "step": step + 1})
    return in_half(network.eval())  # type: ignore[return-value]


def _drawn(images: Tensor, generator: torch.Generator, synthetic: bool) -> Tensor:
    """A batch (BATCH, 3, side, side) in [0, 1], most of it changed as in `varied`: windows of images (n, 3, h, w).

    Windows cost less than whole images, and what is found in them does not hang on what is shown. Half a grey level of
    noise hides that all of them are bytes here.
    """
    batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
    for dim in (2, 3):
        side = batch.shape[dim]
        window = min(side, max(WINDOW, 2 * side // 3))
        batch = batch.narrow(dim, int(torch.randint(side - window + 1, (1,), generator=generator)), window)
    batch = batch.float() / 255 + (torch.rand(batch.shape, generator=generator) - 0.5) / 255
    changed = torch.rand(BATCH, generator=generator) < CHANGED
    batch[changed] = (varied.visualizations if synthetic else varied.photographs)(batch[changed], generator)
    flipped = torch.rand(BATCH, generator=generator) < 0.5
    batch[flipped] = batch[flipped].flip(3)
    return batch


def set_midway(network: Gate, preprocess: Preprocess, natural: Tensor, synthetic: Tensor) -> None:
    """Let a score of 0 lie midway between the training images of both kinds that are hardest to tell apart.

    Of the natural ones and of the visualizations of logits, one in a thousand lies beyond. Images are (n, 3, h, w), as
    bytes.
    """
    ends = []
    for images, share in ((natural, BEYOND), (synthetic, 1 - BEYOND)):
        ends.append(_scores(network, preprocess, images[:: max(1, len(images) // MEASURED)]).quantile(share))
    network.fc.bias.data -= (ends[0] + ends[1]) / 2
    in_half(network)


def passes(network: Gate, preprocess: Preprocess, images: Tensor) -> np.ndarray:
    """Which of the images (n, 3, h, w), as bytes, the gate calls natural."""
    return (_scores(network, preprocess, images) > 0).numpy()


def _scores(network: Gate, preprocess: Preprocess, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([network(preprocess(part.float() / 255))[:, 0] for part in images.split(SCORED)])


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
