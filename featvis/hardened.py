"""Does training with adversarial perturbations change the path? Two copies of a network that differ in nothing else.

Both go on from the same weights, on the same images in the same order: one sees each image as it is, the other moved
against its label (as in `featvis.networks.training`). Only so is a difference between the two due to perturbations.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from featvis import budget, damage, zoo
from featvis.controls import rendered_paths
from featvis.errors import FeatvisError
from featvis.images import NaturalImages
from featvis.networks.photonet import SIZE
from featvis.networks.training import RADIUS, adversarial, augment, in_memory
from featvis.path_result import PathSimilarity
from featvis.paths import PER_CLASS
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject

BATCH, RATE = 32, 1e-3
ATTACKED = 340  # test images that an attack is tried on
NAMES = ("plain", "hardened")


@dataclass(frozen=True)
class HardenedPaths:
    """Path similarity of both copies, and what they do on test images.

    paths   "plain" and "hardened" -> PathSimilarity of their logits' visualizations
    rates   one row for each copy: the `radius` that it was trained with, `accuracy` on test images, and `attacked`, the
            share that is right when each image is moved towards another class by a norm of `attack`
            (`damage.adversarial`)
    """

    paths: dict[str, PathSimilarity]
    rates: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """The rows of both `PathSimilarity.frame`, with the copy's name as `network`."""
        return pd.concat([found.frame().assign(network=name) for name, found in self.paths.items()], ignore_index=True)

    def difference(self, again: HardenedPaths) -> str:
        """ "" if rates and normalized similarities are about the same."""
        old, new = (result.rates[["accuracy", "attacked"]].to_numpy().ravel().tolist() for result in (self, again))
        every = [shares_differ(old, new), *(self.paths[name].difference(again.paths[name]) for name in self.paths)]
        return next(filter(None, every), "")

    def save(self, folder: Path) -> None:
        self.rates.to_csv(folder / "rates.csv", index=False)
        for name, found in self.paths.items():
            found.save(folder, f"{name}.npz")

    @classmethod
    def load(cls, folder: Path) -> HardenedPaths:
        rates = pd.read_csv(folder / "rates.csv")
        return cls({name: PathSimilarity.load(folder, f"{name}.npz") for name in rates["network"]}, rates)


def trained_on(
    subject: Subject,
    images: NaturalImages,
    steps: int,
    radius: float,
    name: str,
    seed: int = 0,
    progress: bool = True,
) -> Subject:
    """A copy of a classifier after `steps` more batches of images, moved by about `radius` against their label.

    The radius is a Euclidean norm of pixels in [0, 1] (see `adversarial`); 0 trains on the images as they are. Raises
    FeatvisError if the images' classes are not the subject's.
    """
    if tuple(images.classes) != tuple(subject.classes):
        raise FeatvisError(f"{images.name} has other classes than {subject.name}; training on needs the same ones.")
    network = copy.deepcopy(subject.network).requires_grad_(True).train()
    network = network.to(memory_format=subject.memory_format)  # type: ignore[call-overload]
    pixels, labels = in_memory(images, progress=False)
    generator = torch.Generator().manual_seed(seed)
    apart = torch.Generator().manual_seed(seed + 1)  # perturbations must not change which images are drawn
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in tqdm(range(steps), name, unit="step", disable=not progress, leave=False):
            chosen = torch.randint(len(pixels), (BATCH,), generator=generator)
            x, y = augment(pixels[chosen].float() / 255, generator), labels[chosen]
            x = x.contiguous(memory_format=subject.memory_format)
            # With a radius of 0, too: batch normalization and dropout see the same number of batches.
            x = adversarial(network, subject.preprocess, x, y, apart, radius)
            loss = F.cross_entropy(network(subject.preprocess(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    options: dict[str, Any] = {"preprocess": subject.preprocess, "classes": subject.classes, "device": "cpu"}
    network = network.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    return zoo.load(network, name=f"{subject.name}-{name}", **options)


@shelved(2, HardenedPaths)
def hardened_paths(
    subject: Subject,
    natural: NaturalImages,
    train: NaturalImages,
    *,
    train_steps: int = 100,
    radius: float | None = None,
    seeds: int = 3,
    steps: int = 128,
    per_class: int = PER_CLASS,
    progress: bool = True,
) -> HardenedPaths:
    """Train two copies of `subject` on for `train_steps`, with perturbations of `radius` and without, and check both.

    natural  images to compare with and to attack, of the subject's classes
    train    images of the same classes to train on
    radius   by default twice PhotoNet's, in proportion to the side of the image
    """
    if radius is None:
        radius = 2 * RADIUS * subject.preprocess.size[0] / SIZE
    paths, rows = {}, []
    for name, moved in zip(NAMES, (0.0, radius), strict=True):
        copied = trained_on(subject, train, train_steps, moved, name, progress=progress)
        rows.append({"network": name, "radius": moved, **_rates(copied, natural)})
        paths[name] = rendered_paths(copied, natural, seeds=seeds, steps=steps, per_class=per_class, progress=progress)
    return HardenedPaths(paths, pd.DataFrame(rows))


def _rates(subject: Subject, natural: NaturalImages) -> dict[str, float]:
    pixels, labels = in_memory(natural, progress=False)
    right = torch.cat([logits.argmax(1).cpu() for logits in subject.logits(pixels.float() / 255)]) == labels
    some = torch.linspace(0, len(pixels) - 1, min(budget.most(ATTACKED, 40), len(pixels))).long()
    towards = (labels[some] + 1) % len(subject.classes)
    moved = damage.adversarial(subject, pixels[some].float() / 255, towards.to(subject.device))
    kept = torch.cat([logits.argmax(1).cpu() for logits in subject.logits(moved)]) == labels[some]
    rates = {"accuracy": float(right.double().mean()), "attacked": float(kept.double().mean())}
    return {**rates, "attack": damage.RADIUS * natural.size, "images": len(pixels)}
