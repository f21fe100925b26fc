"""CifarNet: a thin ResNet for the 32 x 32 images of CIFAR-10.

Layer names and block structure are ResNet-18's (He et al. 2016, as in torchvision) at half of its width or less,
without the stem's pooling, layer1 and half of layer4: most weights are where maps are small and cheap. Every ReLU is
a module of its own, so that each can be traced and hooked. Some epochs train on images moved against their label, which
makes visualizations clearer (see `training`).

`python -m featvis.networks.cifarnet` trains it again; `cifarnet.safetensors` beside this file holds the result.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from featvis.networks.training import _rate, adversarial, hits, in_half, in_memory, keep, read_card, resume, write
from featvis.subjects import Preprocess

if TYPE_CHECKING:
    from featvis.images import NaturalImages

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SIZE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images
EPOCHS = 52
BATCH = 256
SHIFT = 3  # pixels


class Phase(NamedTuple):
    """A part of a cycle: until which share of it, the side of the windows cut from the images, how far images are
    moved against their label (in the Euclidean norm; such steps cost twice as much, and some accuracy), and the side of
    a square that is blotted out (DeVries and Taylor 2017)."""

    until: float
    size: int
    radius: float
    blot: int


class Cycle(NamedTuple):
    """A training from start to end, at rates up to `rate`; it has its `share` of the epochs."""

    share: float
    rate: float
    phases: tuple[Phase, ...]


# Small windows cost as much less as they are smaller; the last phase wins back what they and the moved images cost. The
# second cycle starts from the average that the first one came to.
CYCLES = (
    Cycle(40 / 52, 0.2, (Phase(0.25, 24, 0.0, 0), Phase(0.375, 24, 0.25, 0), Phase(1.0, 32, 0.0, 8))),
    Cycle(12 / 52, 0.1, (Phase(1.0, 32, 0.0, 12),)),
)


class Block(nn.Module):
    """ResNet's basic block: relu(bn(conv(relu(bn(conv(x))))) + x), halving the map where `stride` is 2."""

    def __init__(self, before: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != width:
            shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class CifarNet(nn.Module):
    """(n, 3, 32, 32) normalized images -> (n, classes) logits. Any input of at least 16 pixels works."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.layer2 = nn.Sequential(Block(32, 64, 2), Block(64, 64))
        self.layer3 = nn.Sequential(Block(64, 128, 2), Block(128, 128))
        self.layer4 = nn.Sequential(Block(128, 224, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(224, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Block):  # a block starts as its shortcut (Goyal et al. 2017)
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def card() -> dict[str, Any]:
    """What is known about the committed weights: accuracy with its interval, source of the images, epochs, minutes."""
    return read_card(WEIGHTS)


def augment(images: Tensor, flip: Tensor, generator: torch.Generator, size: int = SIZE) -> Tensor:
    """Windows (n, 3, size, size) at random places of images (n, 3, h, w), mirrored where `flip` (n,) says so.

    They may reach up to `SHIFT` pixels over the edges, where the image is reflected.
    """
    n, _, height, width = images.shape
    images = torch.where(flip.view(n, 1, 1, 1), images.flip(3), images)
    images = F.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT), mode="reflect")
    top = torch.randint(height + 2 * SHIFT - size + 1, (n, 1), generator=generator)
    left = torch.randint(width + 2 * SHIFT - size + 1, (n, 1), generator=generator)
    rows, columns = top + torch.arange(size), left + torch.arange(size)
    chosen = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2)  # which is channels_last in memory


def blotted(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Images (n, 3, h, w) with a square of their mean colour, whose centre may be anywhere in the image."""
    n, _, height, width = images.shape
    y, x = (torch.randint(limit, (n, 1), generator=generator) for limit in (height, width))
    rows, columns = ((torch.arange(limit) - at).abs() <= side // 2 for limit, at in ((height, y), (width, x)))
    return torch.where((rows[:, :, None] & columns[:, None])[:, None], images.mean((2, 3), keepdim=True), images)


def train(
    network: nn.Module,
    preprocess: Preprocess,
    pixels: Tensor,
    labels: Tensor,
    epochs: int,
    checkpoint: Path,
    seed: int = 0,
    bf16: bool = False,
    cycle: Cycle = CYCLES[0],
) -> nn.Module:
    """Train for one cycle on uint8 `pixels` (n, 3, 32, 32) and return the network's moving average.

    Resumes from `checkpoint`.

    An image is mirrored in every other epoch, which shows more different images than a coin each time (Jordan 2024).
    With `bf16`, convolutions are computed in bfloat16 (half of the time or less on processors with such arithmetic).
    """
    batches = max(1, len(pixels) // BATCH)
    network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True)
    optimizer = torch.optim.SGD(network.parameters(), cycle.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / (epochs * batches)))
    parts: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule}
    first = resume(checkpoint, parts).get("epoch", 0)
    side = torch.randint(2, labels.shape, generator=torch.Generator().manual_seed(seed))
    right, total = 0.0, epochs * batches
    with tqdm(initial=first * batches, total=total, desc="train", unit="step", mininterval=5) as bar:
        for epoch in range(first, epochs):
            generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)  # an epoch needs no other's state
            order = torch.randperm(len(pixels), generator=generator)
            phase = next(phase for phase in cycle.phases if epoch / epochs < phase.until)
            for chosen in order[: batches * BATCH].chunk(batches):
                x = augment(pixels[chosen].float() / 255, (side[chosen] + epoch) % 2 == 1, generator, phase.size)
                x = blotted(x, phase.blot, generator) if phase.blot else x
                y = labels[chosen]
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    if phase.radius:
                        x = adversarial(network, preprocess, x, y, generator, phase.radius)
                    logits = network(preprocess(x)).float()
                loss = F.cross_entropy(logits, y, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                average.update_parameters(network)
                right += 0.02 * ((logits.argmax(1) == y).float().mean().item() - right)
                bar.set_postfix(epoch=epoch + 1, loss=f"{loss.item():.2f}", right=f"{right:.2f}", refresh=False)
                bar.update()
            keep(checkpoint, parts, {"epoch": epoch + 1})
    return average.module.eval()


def main(arguments: list[str] | None = None) -> None:
    """Train CifarNet: `python -m featvis.networks.cifarnet [--epochs N] [--data FOLDER] [--out FILE]`."""
    from featvis.cifar import FOLDER, cifar10

    parser = argparse.ArgumentParser(prog="python -m featvis.networks.cifarnet", description="Train CifarNet again.")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--data", type=Path, help=f"folder of CIFAR-10 (default: {FOLDER}, or else a download)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="convolve in bfloat16, for processors that can")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    begin = time.monotonic()
    preprocess = Preprocess((SIZE, SIZE), MEAN, STD)
    heldout = cifar10("heldout", folder=options.data)
    images = cifar10("train", folder=options.data)
    pixels, labels = in_memory(images)
    network: nn.Module = CifarNet()
    checkpoints, left = [], options.epochs
    for number, cycle in enumerate(CYCLES):
        epochs = left if cycle is CYCLES[-1] else math.ceil(cycle.share * options.epochs)
        left -= epochs
        checkpoints.append(options.out.with_suffix(f".checkpoint{number}"))
        if epochs:
            seed = options.seed + number
            network = train(network, preprocess, pixels, labels, epochs, checkpoints[-1], seed, options.bf16, cycle)
    facts = accuracy(in_half(network), preprocess, heldout) | {
        "epochs": options.epochs,
        "precision": "bf16" if options.bf16 else "fp32",
        "training_images": len(pixels),
        "minutes_of_the_last_run": round((time.monotonic() - begin) / 60, 1),
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": images.origin,
    }
    write(network, facts, options.out, half=True)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
    print(json.dumps(facts, indent=1))


def accuracy(network: nn.Module, preprocess: Preprocess, images: NaturalImages) -> dict[str, Any]:
    """Top-1 accuracy on independent images, with Wilson's 95% interval."""
    from scipy.stats import binomtest

    right, labels = hits(network, preprocess, images)
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    by_class = {name: right[labels == k].mean().item() for k, name in enumerate(images.classes) if (labels == k).any()}
    return {
        "accuracy": right.mean().item(),
        "ci_low": float(interval.low),
        "ci_high": float(interval.high),
        "by_class": by_class,
        "test_images": len(right),
    }


if __name__ == "__main__":
    main()
