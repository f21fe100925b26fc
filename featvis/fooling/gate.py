"""The gate: a small network that tells natural images from visualizations (Geirhos et al. 2024, section 2.1).

Its score is positive for a natural image. It is trained on visualizations of some of a subject's classes and judged on
visualizations of the others, from other seeds, and on natural images from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from featvis import budget
from featvis.errors import FeatvisError
from featvis.fooling.gate_network import Gate, passes, revived, set_midway, train
from featvis.fooling.samples import STEPS, Trajectories, imitations, log_spaced, trajectories
from featvis.images import NaturalImages
from featvis.networks.training import in_memory
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.threads import side_by_side

IMITATED = 48  # natural images whose imitations by ascent it is trained on
LIKE = 128  # steps after which an imitation is as like as it gets
TEST_SEEDS = 15  # visualizations of each unit to test with, or more,
TEST_SNAPSHOTS = 3000  # so that there are at least so many snapshots
FEWEST = 200  # natural images, to train and to test with
FOLDS = 6  # gates that leave natural images out, each another part of the photographs
EARLY = (1, 2)  # steps before the paper's first snapshot, in which the gate must already speak


@dataclass(frozen=True)
class TrainedGate:
    """A gate, and how it does on what it never saw; "positive" means called a visualization.

    natural     one row a photograph (or class): `group`, how many `images` there were, how many the gate `passed`
    synthetic   one row a visualization of the test classes: `unit`, `seed`, `step`, whether it `passed`
    unseen      as `natural`, but each row by the gate of a `fold`, trained without the group's own images and those of
                the fold's other groups, with the share of a quarter of the test visualizations that this gate `missed`;
                empty if that was not asked for
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
        """95% percentile bootstrap over photographs (or classes) and units, the clusters that are independent."""
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
        """Step by step, the share of test visualizations that the gate catches, with a 95% Wilson interval."""
        from scipy.stats import binomtest

        rows = []
        for step, part in self.synthetic.groupby("step"):
            caught = int((~part["passed"]).sum())
            bounds = binomtest(caught, len(part)).proportion_ci(method="wilson")
            rows.append({"step": step, "caught": caught / len(part), "low": bounds.low, "high": bounds.high})
        return pd.DataFrame(rows)

    def difference(self, again: TrainedGate) -> str:
        """ "" if a gate trained again errs about as often, also on what it never saw."""
        return shares_differ(self._shares(), again._shares())

    def _shares(self) -> list[float]:
        alarms = 1 - self.unseen["passed"].sum() / self.unseen["images"].sum() if len(self.unseen) else 0.0
        missed = self.unseen["missed"].mean() if len(self.unseen) else 0.0
        return [*self.rates().values(), float(alarms), float(missed)]

    def save(self, folder: Path) -> None:
        state = self.network.state_dict().items()
        weights = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in state}
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


@shelved(3, TrainedGate, free=("folder", "progress"), later=("ascent",))
def train_gate(
    subject: Subject,
    natural: NaturalImages,
    test: NaturalImages,
    *,
    train_seeds: int = 5,
    test_seeds: int | None = None,
    hidden: int = 9,
    steps: int = 1200,
    leave_out: bool = False,
    seed: int = 0,
    ascent: int = STEPS,
    folder: Path | None = None,
    progress: bool = True,
) -> TrainedGate:
    """Train a gate, and test it on other classes, other seeds and other natural images.

    natural, test  natural images to train and to test with; they must not share pixels
    train_seeds    visualizations of every other logit to train with; of the rest, `test_seeds` each to test with. Each
                   has 27 snapshots from step 1 to 512, or those up to step `ascent`. By default 15 to test with, or as
                   many as give 3,000 snapshots
    hidden         units of each hidden layer but the first two that it is also trained on: without them it takes
                   smooth pictures of classes that it was not shown for natural ones. It is also trained on pictures of
                   some natural training images that ascent makes of decoys (see `imitations`)
    leave_out      also train `FOLDS` gates (a fifth of the steps), each without another part of the groups of natural
                   images: `unseen`
    folder         where interrupted work goes on from; nothing in it is ever removed

    Raises FeatvisError for too few images or images of another size, and for a subject with fewer than 4 logits.
    """
    subject.check_size(natural, test)
    for images, what in ((natural, "train"), (test, "test")):
        if len(images) < FEWEST:
            raise FeatvisError(f"{len(images)} natural images to {what} a gate with are too few; {FEWEST} are needed.")
    if leave_out and (len(natural.classes) < 2 or natural.classes != test.classes):
        raise FeatvisError("to leave groups out in turn, both sources of images need the same classes.")
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
    snapshots = budget.within(tuple(step for step in (*EARLY, *log_spaced()) if step <= ascent))
    if test_seeds is None:
        test_seeds = budget.most(max(TEST_SEEDS, -(-TEST_SNAPSHOTS // (len(units[1::2]) * len(snapshots)))), 1)

    def climbed(which: Sequence[str], seeds: Sequence[int], name: str) -> Trajectories:
        return trajectories(subject, which, seeds, snapshots, folder=places[name], progress=progress)

    shown = [climbed(units[::2], range(train_seeds), "train").images]
    if inner:
        shown.append(climbed(inner, range(1), "hidden").images)
    unknown = climbed(units[1::2], range(1000, 1000 + test_seeds), "test")
    pixels, labels = in_memory(natural, progress)
    some = torch.linspace(0, len(pixels) - 1, budget.most(IMITATED, 2)).round().long()
    early = [step for step in snapshots if step <= LIKE]
    copies = imitations(pixels[some] / 255, subject.preprocess, early, folder=folder, progress=progress)
    synthetic = torch.cat(shown)
    every = torch.cat([synthetic, copies.flatten(0, 1)])
    network = train(subject.preprocess, pixels, every, steps, seed, folder, progress)
    set_midway(network, subject.preprocess, pixels, shown[0])
    heldout, kinds = in_memory(test, progress)
    names = test.classes or ("all",)
    kinds = kinds.clamp(min=0)  # images without a label are one group
    quarter = unknown.images[::4]  # of all units, seeds and steps

    def without(fold: int, check: Callable[[], None]) -> list[dict[str, Any]]:
        out = torch.tensor(folds[fold])
        few, others = pixels[~torch.isin(labels, out)], copies[~torch.isin(labels[some], out)].flatten(0, 1)
        other = train(subject.preprocess, few, torch.cat([synthetic, others]), max(1, steps // 5), seed, check=check)
        set_midway(other, subject.preprocess, few, shown[0])
        missed = round(float(passes(other, subject.preprocess, quarter).mean()), 5)
        found = [passes(other, subject.preprocess, heldout[kinds == group]) for group in folds[fold]]
        with lock:
            bar.update()
        pairs = zip(folds[fold], found, strict=True)
        return [_by_group(passed, names[group]) | {"fold": fold, "missed": missed} for group, passed in pairs]

    folds = [list(range(len(names)))[i::FOLDS] for i in range(min(FOLDS, len(names)))] if leave_out else []
    lock = Lock()
    with tqdm(total=len(folds), desc="leave out", disable=not (progress and leave_out), leave=False) as bar:
        unseen = [row for rows in side_by_side([partial(without, i) for i in range(len(folds))]) for row in rows]
    passed = passes(network, subject.preprocess, heldout)
    tested = pd.DataFrame({"unit": unknown.unit, "seed": unknown.seed, "step": unknown.step})
    tested["passed"] = passes(network, subject.preprocess, unknown.images)
    options = {
        "train_seeds": train_seeds,
        "test_seeds": test_seeds,
        "hidden": hidden,
        "steps": steps,
        "leave_out": leave_out,
        "seed": seed,
        **({} if ascent == STEPS else {"ascent": ascent}),
    }
    return TrainedGate(
        network,
        pd.DataFrame([_by_group(passed[kinds.numpy() == i], n) for i, n in enumerate(names) if (kinds == i).any()]),
        tested,
        pd.DataFrame(unseen, columns=["group", "images", "passed", "fold", "missed"]),
        tuple(units[::2]),
        {"gate": subject.fingerprint, "natural": natural.recipe, "test": test.recipe, "options": options},
    )


def _spread(units: list[str], most: int) -> list[str]:
    count = min(most, len(units))
    return [units[i * len(units) // count] for i in range(count)]


def _by_group(passed: np.ndarray, group: str) -> dict[str, Any]:
    return {"group": group, "images": len(passed), "passed": int(passed.sum())}
