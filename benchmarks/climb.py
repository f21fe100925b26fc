"""How soon an image is as good as Lucent's after 512 steps, and how good it is after the same number of steps.

"As good" is the activation of the finished, untransformed image, measured by the plain network for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

import featvis as fv
from benchmarks import peer
from featvis.subjects import Subject
from featvis.visualize.objectives import unit_means

STEPS = (16, 32, 64, 128, 256, 512)


def activation(subject: Subject, unit: str, image: Tensor) -> float:
    """What the plain network makes of one image (1, 3, h, w)."""
    layer, index = subject.unit(unit)
    (found,) = subject.activations(image, [layer])
    return unit_means(found[layer])[0, index].item()


def measure(subject: Subject, units: Sequence[str], steps: Sequence[int] = STEPS) -> list[dict]:
    """One row for each number of steps: seconds per image of both, and our activations as multiples of Lucent's."""
    size = subject.preprocess.size[0]
    theirs = np.full((len(units), len(steps)), np.nan)
    seconds = float("nan")
    if peer.available():
        begin = perf_counter()
        for i, unit in enumerate(units):
            # Lucent pads by 12 pixels on each side and never crops: the network sees size + 24 pixels, at their scale.
            images = peer.render(
                subject.network, [unit], size, steps, network_size=size + 24, normalize=subject.preprocess
            )
            theirs[i] = [activation(subject, unit, image) for image in images]
        seconds = (perf_counter() - begin) / len(units)
    rows = []
    for k, count in enumerate(steps):
        begin = perf_counter()
        pictures = fv.render(subject, units, steps=count, progress=False)
        ours_seconds = (perf_counter() - begin) / len(units)
        begin = perf_counter()
        fv.render(subject, units[0], steps=count, progress=False)
        alone = perf_counter() - begin
        ours = np.array([activation(subject, unit, pictures[unit]) for unit in units])
        rows.append(
            {
                "subject": subject.name,
                "steps": count,
                "lucent_seconds": seconds * count / max(steps),
                "seconds": ours_seconds,
                "seconds_alone": alone,
                "times_lucent_same_steps": float(np.median(ours / theirs[:, k])),
                "reached_same_steps": float(np.mean(ours >= theirs[:, k])),
                "times_lucent_512": float(np.median(ours / theirs[:, -1])),
                "reached_512": float(np.mean(ours >= theirs[:, -1])),
                "times_faster": seconds / ours_seconds,
                "times_faster_alone": seconds / alone,
            }
        )
    return rows


def some_units(subject: Subject) -> list[str]:
    """Four units of four layers each, and every other logit, of PhotoNet."""
    layers = ("inception3b", "inception4b", "inception4e", "inception5b")
    units = [f"{layer}:{i}" for layer in layers for i in torch.arange(4).mul(subject.channels(layer) // 4).tolist()]
    return units + subject.units("fc")[::2]


def photonet() -> list[dict]:
    """`some_units` at 96 px."""
    subject = fv.load("photonet", device="cpu")
    return measure(subject, some_units(subject))


def bf16_pictures(steps: int = 256) -> list[dict]:
    """What the plain network in float32 makes of pictures of both precisions, from two seeds: do those in bf16 suffer?

    Another seed in float32 says how much pictures of one unit differ anyway.
    """
    subject = fv.load("photonet", device="cpu")
    units = some_units(subject)
    ways = {"fp32": ("fp32", 0), "fp32, another seed": ("fp32", 1), "bf16": ("bf16", 0)}
    found = {}
    for name, (precision, seed) in ways.items():
        pictures = fv.render(subject, units, steps=steps, seeds=[seed], precision=precision, progress=False)
        found[name] = np.array([activation(subject, unit, pictures[unit]) for unit in units])
    ratios = {name: values / found["fp32"] for name, values in found.items()}
    return [
        {
            "pictures": name,
            "units": len(units),
            "times_fp32": float(np.median(values)),
            "least": float(values.min()),
            "most": float(values.max()),
        }
        for name, values in ratios.items()
    ]


def googlenet() -> list[dict]:
    """Four units of GoogLeNet with random weights at 224 px."""
    subject = fv.load("googlenet", weights="random", device="cpu")
    return measure(subject, ["inception4a:0", "inception4a:256", "fc:0", "fc:500"], (32, 128, 512))
