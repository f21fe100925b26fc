"""What an attack on weights gains and what it costs: success against accuracy, over the attack's weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

from featvis import sheets
from featvis.errors import FeatvisError, listed
from featvis.exemplars import Exemplars, exemplars
from featvis.fooling.push import prox_pulse, push
from featvis.fooling.slingshot import slingshot
from featvis.fooling.targets import correlation, photograph_targets
from featvis.images import NaturalImages
from featvis.photographs import CLASSES
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.visualize import render
from featvis.visualize.objectives import unit_means

WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
DECOYS = 64  # natural images of the target's class
ATTACKS: dict[str, Callable[..., Subject]] = {"slingshot": slingshot, "push": push, "prox_pulse": prox_pulse}


@dataclass(frozen=True)
class TradeOff:
    """One attack with several weights and seeds; weight 0 is the original subject.

    natural   one row for each weight and seed of the attack, on held-out images: `images`, how many; `labelled`, how
              many of them have a label; `before` and `after`, how many of these are right in the original and after
              the attack; `agree`, on how many the attacked network answers as the original does
    frame     one row for each weight, seed, unit and `picture` (the seed of a visualization): its `correlation` with
              the target in pixels, that in the original's `features`, whether the original takes it for what it sees
              in the target (`to_target`) or in the unit's first honest visualization (`to_own`), and its `activation`;
              with these, for each unit, `overlap`: the Jaccard index of its strongest held-out images before and
              after, and `largest`: its value of the strongest
    pictures  "target" (1, 3, h, w), "shown": a visualization of the first unit for every weight (weights, 3, h, w)
    """

    attack: str
    target: str
    subject: str
    natural: pd.DataFrame = field(repr=False)
    frame: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def curve(self) -> pd.DataFrame:
        """One row for each weight: accuracy, success, correlation and more, each with a 95% interval where it has one.

        `accuracy` is agreement with the original where no image has a label; its interval, and that of `success` (the
        share of `to_target`), are Wilson's, the former for the images of one seed, which are the same for all;
        `correlation` has a bootstrap interval over pictures. `features`, `to_own` and `overlap` are means.
        """
        return pd.DataFrame([self._at(weight) for weight in sorted(set(self.natural["weight"]))])

    def _at(self, weight: float) -> dict[str, float]:
        natural, frame = (table[table["weight"] == weight] for table in (self.natural, self.frame))
        right, of = ("after", "labelled") if natural["labelled"].all() else ("agree", "images")
        n = int(natural[of].iloc[0])
        low, high = proportion_confint(natural[right].mean(), n, method="wilson")
        hits, m = int(frame["to_target"].sum()), len(frame)
        least, most = proportion_confint(hits, m, method="wilson")
        values = frame["correlation"].to_numpy()
        resampled = np.random.default_rng(0).choice(values, (2000, m)).mean(1)
        below, above = np.quantile(resampled, (0.025, 0.975))
        return {
            "weight": weight,
            "accuracy": natural[right].mean() / n,
            "accuracy_low": low,
            "accuracy_high": high,
            "success": hits / m,
            "success_low": least,
            "success_high": most,
            "correlation": values.mean(),
            "correlation_low": below,
            "correlation_high": above,
            **{name: frame[name].mean() for name in ("features", "to_own", "overlap")},
            "pictures": m,
        }

    def difference(self, again: TradeOff) -> str:
        """ "" if agreement and success are about the same; each success is that of few pictures."""
        ours, theirs = self.curve(), again.curve()
        kept = shares_differ(ours["accuracy"].tolist(), theirs["accuracy"].tolist())
        return kept or shares_differ(ours["correlation"].tolist(), theirs["correlation"].tolist(), allowed=0.25)

    def save(self, folder: Path) -> None:
        sizes = {name: list(images.shape) for name, images in self.pictures.items()}
        about = {"attack": self.attack, "target": self.target, "subject": self.subject, "pictures": sizes}
        (folder / "about.json").write_text(json.dumps(about))
        for name in ("natural", "frame"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
        for name, images in self.pictures.items():
            sheets.write(folder / f"{name}.webp", images, 85)

    @classmethod
    def load(cls, folder: Path) -> TradeOff:
        about = json.loads((folder / "about.json").read_text())
        sizes = about.pop("pictures")
        pictures = {name: sheets.read(folder / f"{name}.webp", s[0], (s[2], s[3])) for name, s in sizes.items()}
        tables: dict[str, Any] = {name: pd.read_csv(folder / f"{name}.csv") for name in ("natural", "frame")}
        return cls(**about, **tables, pictures=pictures)


@shelved(2, TradeOff)
def trade_off(
    subject: Subject,
    natural: NaturalImages,
    heldout: NaturalImages,
    *,
    attack: str,
    units: str | Sequence[str],
    target: str,
    weights: Sequence[float] = WEIGHTS,
    seeds: int = 1,
    attack_steps: int = 150,
    steps: int = 128,
    pictures: int = 3,
    k: int = 50,
    progress: bool = True,
) -> TradeOff:
    """Attack units of one layer, all at once, with every weight and from every seed, and measure what comes of it.

    natural   images that the attack learns to behave well on, and takes decoys from; `heldout` are others, to measure
    attack    "slingshot", "push" (down and up) or "prox_pulse"
    target    a class of `natural`: "slingshot" is given the photograph of this name, or else the class's first image,
              the others the class's first 64 images as decoys
    pictures  visualizations of each unit, of `steps` steps
    k         strongest natural images of a unit that are compared

    Raises FeatvisError for an unknown attack or target, and for whatever the attack itself refuses.
    """
    if attack not in ATTACKS:
        raise FeatvisError(f"there is no attack {attack!r}; there are {listed(ATTACKS)}.")
    if not weights:
        raise FeatvisError("no weight was given; give some from 0 (no attack) to 1.")
    names = [str(subject.unit(name)) for name in ([units] if isinstance(units, str) else units)]
    picture, decoys = target_of(subject, natural, target)
    measure = _Measure(subject, heldout, names, picture, {"steps": steps, "seeds": pictures, "progress": False}, k)
    measure.add(subject, 0.0, 0)
    for weight in sorted(set(weights) - {0.0}):
        for seed in range(seeds):
            aim = picture if attack == "slingshot" else decoys
            options: dict[str, Any] = {"weight": weight, "steps": attack_steps, "seed": seed, "progress": progress}
            measure.add(ATTACKS[attack](subject, natural, names, aim, **options), weight, seed)
    kept = {"target": picture[None], "shown": torch.stack(measure.shown)}
    frame = pd.concat(measure.tables, ignore_index=True)
    return TradeOff(attack, target, subject.name, pd.DataFrame(measure.natural), frame, kept)


def target_of(subject: Subject, natural: NaturalImages, target: str) -> tuple[Tensor, Tensor]:
    """What a class of `natural` gives an attack: its picture (3, h, w), and decoys (m, 3, h, w)."""
    if target not in natural.classes:
        raise FeatvisError(f"{natural.name} has no class {target!r}; it has {listed(natural.classes, 20)}.")
    wanted = natural.classes.index(target)
    found = [i for i in range(len(natural)) if natural.label(i) == wanted][:DECOYS]
    if not found:
        raise FeatvisError(f"{natural.name} has no image of {target!r}.")
    decoys = torch.stack([natural[i][0] for i in found])
    embedded = tuple(natural.classes) == CLASSES
    picture = photograph_targets([target], subject.preprocess.size[0])[0] if embedded else decoys[0]
    return picture, decoys


class _Measure:
    """What is known of the original, and what was found in subjects that are compared with it."""

    def __init__(
        self,
        subject: Subject,
        heldout: NaturalImages,
        units: list[str],
        target: Tensor,
        options: dict[str, Any],
        k: int,
    ):
        self.subject, self.heldout, self.units, self.options = subject, heldout, units, options
        self.target = target[None]
        self.k = min(k, len(heldout))
        self.layer = subject.blocks[-2:][0]  # what an image shows, not where: its means are the logits' input
        self.answers, labels = _answers(subject, heldout)
        self.known = labels >= 0
        self.right = self.answers == labels
        self.labels = labels
        self.best = self._strongest(subject)
        self.wanted = self._seen(self.target)
        self.own: Tensor | None = None
        self.natural: list[dict[str, Any]] = []
        self.tables: list[pd.DataFrame] = []
        self.shown: list[Tensor] = []

    def add(self, attacked: Subject, weight: float, seed: int) -> None:
        """Measure a subject; the first is the original itself."""
        made, best = render(attacked, self.units, **self.options), self._strongest(attacked)
        answers = _answers(attacked, self.heldout)[0]
        about: dict[str, Any] = {"weight": weight, "seed": seed}
        counts = {
            "images": len(answers),
            "labelled": int(self.known.sum()),
            "before": int(self.right[self.known].sum()),
            "after": int((answers == self.labels)[self.known].sum()),
            "agree": int((answers == self.answers).sum()),
        }
        self.natural.append(about | counts)
        if seed == 0:
            self.shown.append(made.images[0, 0])
        if self.own is None:
            self.own = self._seen(made.images[:, 0])
        for i, unit in enumerate(self.units):
            old, new = (set(found.top_ids[i]) for found in (self.best, best))
            found = {
                "picture": made.seeds,
                "correlation": correlation(made.images[i], self.target)[:, 0].numpy(),
                "features": self._alike(made.images[i]),
                "to_target": (self._seen(made.images[i]) == self.wanted).numpy(),
                "to_own": (self._seen(made.images[i]) == self.own[i]).numpy(),
                "activation": made.activation[i],
            }
            rest = {"overlap": len(old & new) / len(old | new), "largest": float(best.top_values[i, 0])}
            self.tables.append(pd.DataFrame({**about, "unit": unit, **found, **rest}))

    def _strongest(self, subject: Subject) -> Exemplars:
        return exemplars(subject, self.heldout, self.units, k=self.k, distinct=False, progress=False)

    def _seen(self, images: Tensor) -> Tensor:
        return torch.cat(list(self.subject.logits(images))).argmax(1).cpu()

    def _alike(self, images: Tensor) -> np.ndarray:
        found = next(self.subject.activations(torch.cat([self.target, images]), [self.layer]))[self.layer]
        means = unit_means(found).cpu()
        return np.corrcoef(means.numpy())[0, 1:]


def _answers(subject: Subject, natural: NaturalImages) -> tuple[Tensor, Tensor]:
    """The subject's classes and the labels of all images: (n,) and (n,)."""
    found = [(next(subject.logits(images)).argmax(1).cpu(), labels) for images, labels, _ in natural.batches(64)]
    if not found:
        raise FeatvisError(f"none of the {len(natural)} images of {natural.name} could be read.")
    answers, labels = zip(*found, strict=True)
    return torch.cat(answers), torch.cat(labels)
