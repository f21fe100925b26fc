"""The gate: a small network that tells natural images from visualizations (Geirhos et al. 2024, section 2.1).

Its score is positive for a natural image. It is trained on visualizations of some of a subject's classes and judged on
visualizations of the others, from other seeds, and on natural images from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from featvis import budget
from featvis.errors import FeatvisError
from featvis.fooling.samples import Trajectories, log_spaced, trajectories
from featvis.images import NaturalImages
from featvis.networks.training import augment, in_memory, keep, resume
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Preprocess, Subject
from featvis.visualize import Affine

BATCH = 32  # natural images and visualizations each
FEWEST = 200  # natural images, to train and to test with
CHECKPOINT_EVERY = 50
EARLY = (1, 2)  # steps before the paper's first snapshot, in which the gate must already speak


class Gate(nn.Module):
    """Preprocessed images (n, 3, h, w) of any size from 16 pixels on -> scores (n, 1), positive: natural.

    The first layer reads 2 x 2 pixel blocks, so that nothing fine is lost before it; mean and maximum over the map
    leave the size free.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess, width: int = 24):
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1))
        self.conv1, self.norm1 = nn.Conv2d(12, width, 3), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 3, stride=2), nn.BatchNorm2d(2 * width)
        self.conv3, self.norm3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_unshuffle(F.pad(x * self.std + self.mean - 0.5, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)), 2)
        h = F.leaky_relu(self.norm1(self.conv1(h)), 0.1)
        h = F.leaky_relu(self.norm2(self.conv2(h)), 0.1)
        h = F.leaky_relu(self.norm3(self.conv3(h)), 0.1)
        return self.fc(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))


@dataclass(frozen=True)
class TrainedGate:
    """A gate, and how it does on what it never saw; "positive" means called a visualization.

    natural     one row a photograph (or class): `group`, how many `images` there were, how many the gate `passed`
    synthetic   one row a visualization of the test classes: `unit`, `seed`, `step`, whether it `passed`
    unseen      as `natural`, but by gates trained without the group's own images; empty if that was not asked for
    trained_on  the units whose visualizations it was trained on
    recipe      what it was made from: two gates of one subject with the same recipe are the same
    """

    network: Gate = field(repr=False)
    natural: pd.DataFrame = field(repr=False)
    synthetic: pd.DataFrame = field(repr=False)
    unseen: pd.DataFrame = field(repr=False)
    trained_on: tuple[str, ...]
    recipe: dict[str, Any] = field(repr=False)

    def rates(self) -> dict[str, float]:
        """`accuracy` (of both kinds pooled), `balanced` (mean of both), `fpr` and `fnr`."""
        passed, total = self.natural["passed"].sum(), self.natural["images"].sum()
        missed, shown = self.synthetic["passed"].sum(), len(self.synthetic)
        fpr, fnr = 1 - passed / total, missed / shown
        right = (passed + shown - missed) / (total + shown)
        return {"accuracy": float(right), "balanced": 1 - (fpr + fnr) / 2, "fpr": float(fpr), "fnr": float(fnr)}

    def intervals(self, resamples: int = 2000) -> dict[str, tuple[float, float]]:
        """95 % percentile bootstrap over photographs (or classes) and units, the clusters that are independent."""
        rng = np.random.default_rng(0)
        natural = self.natural[["passed", "images"]].to_numpy()
        by_unit = self.synthetic.groupby("unit")["passed"].agg(["sum", "size"]).to_numpy()
        found: dict[str, list[float]] = {name: [] for name in ("accuracy", "balanced", "fpr", "fnr")}
        for _ in range(resamples):
            passed, total = natural[rng.integers(len(natural), size=len(natural))].sum(0)
            missed, shown = by_unit[rng.integers(len(by_unit), size=len(by_unit))].sum(0)
            fpr, fnr = 1 - passed / total, missed / shown
            right = (passed + shown - missed) / (total + shown)
            for name, value in zip(found, (right, 1 - (fpr + fnr) / 2, fpr, fnr), strict=True):
                found[name].append(value)
        return {name: (float(np.quantile(v, 0.025)), float(np.quantile(v, 0.975))) for name, v in found.items()}

    def by_step(self) -> pd.DataFrame:
        """Step by step, the share of test visualizations that the gate catches, with a 95 % Wilson interval."""
        from scipy.stats import binomtest

        rows = []
        for step, part in self.synthetic.groupby("step"):
            caught = int((~part["passed"]).sum())
            bounds = binomtest(caught, len(part)).proportion_ci(method="wilson")
            rows.append({"step": step, "caught": caught / len(part), "low": bounds.low, "high": bounds.high})
        return pd.DataFrame(rows)

    def difference(self, again: TrainedGate) -> str:
        """ "" if a gate trained again errs about as often."""
        return shares_differ(self.rates().values(), again.rates().values())

    def save(self, folder: Path) -> None:
        weights = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        about = json.dumps({"trained_on": self.trained_on, "recipe": self.recipe})
        save_file(weights, folder / "gate.safetensors", {"about": about})
        for name in ("natural", "synthetic", "unseen"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False)

    @classmethod
    def load(cls, folder: Path) -> TrainedGate:
        file = folder / "gate.safetensors"
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
        tables = {
            name: pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
            for name in ("natural", "synthetic", "unseen")
        }
        return cls(revived(load_file(file)), **tables, trained_on=tuple(about["trained_on"]), recipe=about["recipe"])


def revived(state: dict[str, Tensor], prefix: str = "") -> Gate:
    """The gate with these weights, whatever its width."""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    network = Gate(Preprocess((0, 0)), len(own["conv1.bias"]))
    network.load_state_dict(own)
    return network.eval()


@shelved(1, TrainedGate, free=("folder", "progress"))
def train_gate(
    subject: Subject,
    natural: NaturalImages,
    test: NaturalImages,
    *,
    train_seeds: int = 5,
    test_seeds: int = 15,
    hidden: int = 9,
    steps: int = 1200,
    leave_out: bool = False,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> TrainedGate:
    """Train a gate, and test it on other classes, other seeds and other natural images.

    natural, test  natural images to train and to test with; they must not share pixels
    train_seeds    visualizations of every other logit to train with; of the rest, `test_seeds` each to test with. Each
                   has 27 snapshots from step 1 to 512
    hidden         units of each hidden layer but the first two that it is also trained on: without them it takes
                   smooth pictures of classes that it was not shown for natural ones
    leave_out      also train one gate for each group of natural images without it (a fifth of the steps): `unseen`
    folder         where interrupted work goes on from; nothing in it is ever removed

    Raises FeatvisError for too few images, and for a subject with fewer than 4 logits.
    """
    for images, what in ((natural, "train"), (test, "test")):
        if len(images) < FEWEST:
            raise FeatvisError(f"{len(images)} natural images to {what} a gate with are too few; {FEWEST} are needed.")
    if leave_out and (len(natural.classes) < 2 or natural.classes != test.classes):
        raise FeatvisError("to leave out one group after the other, both sources of images need the same classes.")
    *layers, logits = subject.blocks
    units = subject.units(logits)
    if len(units) < 4:
        raise FeatvisError(f"{subject.name} has {len(units)} logits; a gate needs 2 to train and 2 to test with.")
    units = budget.some(units[:: max(1, len(units) // 40)])  # of a thousand classes, forty say enough
    layers = layers[2:] or layers  # the first ones draw plain stripes
    inner = [unit for layer in layers for unit in _spread(subject.units(layer), hidden)]
    places: dict[str, Path | None] = dict.fromkeys(("train", "hidden", "test"))
    if folder is not None:
        folder = folder / subject.fingerprint
        for name in places:
            places[name] = folder / name
            (folder / name).mkdir(parents=True, exist_ok=True)
    snapshots = budget.within((*EARLY, *log_spaced()))

    def climbed(which: Sequence[str], seeds: Sequence[int], name: str) -> Trajectories:
        return trajectories(subject, which, seeds, snapshots, folder=places[name], progress=progress)

    shown = [climbed(units[::2], range(train_seeds), "train").images]
    if inner:
        shown.append(climbed(inner, range(1), "hidden").images)
    unknown = climbed(units[1::2], range(1000, 1000 + test_seeds), "test")
    pixels, labels = in_memory(natural, progress)
    network = _train(subject.preprocess, pixels, torch.cat(shown), steps, seed, folder, progress)
    heldout, kinds = in_memory(test, progress)
    names = test.classes or ("all",)
    kinds = kinds.clamp(min=0)  # images without a label are one group
    passed = _passes(network, subject.preprocess, heldout)
    synthetic = pd.DataFrame({"unit": unknown.unit, "seed": unknown.seed, "step": unknown.step})
    synthetic["passed"] = _passes(network, subject.preprocess, unknown.images)
    unseen = []
    for group in tqdm(range(len(names)) if leave_out else (), desc="leave one out", disable=not progress, leave=False):
        few = pixels[labels != group]
        other = _train(subject.preprocess, few, torch.cat(shown), max(1, steps // 5), seed, None, False)
        found = _passes(other, subject.preprocess, heldout[kinds == group])
        unseen.append(_by_group(found, names[group]))
    options = {
        "train_seeds": train_seeds,
        "test_seeds": test_seeds,
        "hidden": hidden,
        "steps": steps,
        "leave_out": leave_out,
        "seed": seed,
    }
    return TrainedGate(
        network,
        pd.DataFrame([_by_group(passed[kinds.numpy() == i], n) for i, n in enumerate(names) if (kinds == i).any()]),
        synthetic,
        pd.DataFrame(unseen, columns=["group", "images", "passed"]),
        tuple(units[::2]),
        {"gate": subject.fingerprint, "natural": natural.recipe, "test": test.recipe, "options": options},
    )


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def _spread(units: list[str], most: int) -> list[str]:
    count = min(most, len(units))
    return [units[i * len(units) // count] for i in range(count)]


def _by_group(passed: np.ndarray, group: str) -> dict[str, Any]:
    return {"group": group, "images": len(passed), "passed": int(passed.sum())}


def _train(
    preprocess: Preprocess,
    natural: Tensor,
    synthetic: Tensor,
    steps: int,
    seed: int,
    folder: Path | None,
    progress: bool,
) -> Gate:
    """A gate after `steps` batches of images (n, 3, h, w) as bytes; goes on from its checkpoint in `folder`, if any."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Gate(preprocess)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    checkpoint, first = None, 0
    if folder:
        made_from = repr((steps, seed, _digest(natural), _digest(synthetic)))  # no other training goes on from it
        checkpoint = folder / f"gate-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.checkpoint"
        if saved := resume(checkpoint, parts):
            generator.set_state(saved["generator"])
            first = saved["step"]
    for step in tqdm(range(first, steps), initial=first, total=steps, desc="gate", disable=not progress, leave=False):
        images = torch.cat([_drawn(natural, generator, False), _drawn(synthetic, generator, True)])
        truth = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)])
        loss = F.binary_cross_entropy_with_logits(network(preprocess(images))[:, 0], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if checkpoint and (step + 1) % CHECKPOINT_EVERY == 0:
            keep(checkpoint, parts, {"generator": generator.get_state(), "step": step + 1})
    return network.eval()


def _drawn(images: Tensor, generator: torch.Generator, synthetic: bool) -> Tensor:
    """A batch (BATCH, 3, h, w) in [0, 1], half of it changed.

    Natural images get other colours, far too strong ones among them, and are turned, scaled, blurred and made noisy:
    strong colours must not betray a visualization, or photographs never seen would be taken for one. Visualizations
    are moved as ascent moves them, and some fade. Half a grey level of noise hides that all of them are bytes here.
    """
    batch = images[torch.randint(len(images), (BATCH,), generator=generator)].float() / 255
    batch = batch + (torch.rand(batch.shape, generator=generator) - 0.5) / 255
    changed = torch.rand(BATCH, generator=generator) < 0.5
    some, n = batch[changed], int(changed.sum())
    saturation, contrast = torch.rand(2, n, 1, 1, 1, generator=generator)
    if synthetic:
        some = Affine().apply(some, torch.rand(n, 6, generator=generator))
        some = _coloured(some, 0.5 + saturation / 2, 0.5 + contrast / 2)
    else:
        some = augment(some, generator)[:, torch.randperm(3, generator=generator)]
        some = _coloured(some, 2 * saturation, 0.5 + 1.3 * contrast)
    batch[changed] = some
    flipped = torch.rand(BATCH, generator=generator) < 0.5
    batch[flipped] = batch[flipped].flip(3)
    return batch


def _coloured(images: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return (mean + ((grey - mean) + (images - grey) * saturation) * contrast).clamp(0, 1)


def _passes(network: Gate, preprocess: Preprocess, images: Tensor) -> np.ndarray:
    """Which of the images (n, 3, h, w), as bytes, the gate calls natural."""
    with torch.inference_mode():
        return torch.cat([network(preprocess(part.float() / 255))[:, 0] > 0 for part in images.split(256)]).numpy()
