"""Observers: whoever does a matching trial. Those here are machines, and are called so wherever they appear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from math import isclose

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, linear_sum_assignment
from torch import Tensor

from featvis.errors import FeatvisError
from featvis.matching.stimuli import depths
from featvis.matching.trials import Trial
from featvis.subjects import Subject

# Given a trial, a row of the left side for each row of the right side: a permutation.
Observer = Callable[[Trial], Sequence[int]]
PIXELS = 12  # side of the image that the pixel observer compares


def perfect(trial: Trial) -> Sequence[int]:
    """Knows every answer."""
    return trial.answer


def chance(rng: np.random.Generator) -> Observer:
    """Draws a permutation at random."""
    return lambda trial: rng.permutation(len(trial.units)).tolist()


def lapsing(observer: Observer, rate: float, rng: np.random.Generator) -> Observer:
    """Answers as `observer` does, but guesses the whole trial with probability `rate`."""
    if not 0 <= rate <= 1:
        raise FeatvisError(f"a lapse rate of {rate} was given; it is a share from 0 to 1.")
    guess = chance(rng)
    return lambda trial: guess(trial) if rng.random() < rate else observer(trial)


def knowing(share: float | Callable[[Trial], float], rng: np.random.Generator) -> Observer:
    """Knows each unit with a probability that makes `share` of its matches right on average; guesses the others."""

    def answer(trial: Trial) -> list[int]:
        k = len(trial.units)
        knows = rng.random(k) < known(round(share(trial) if callable(share) else share, 3), k)
        given = list(trial.answer)
        free = [j for j, row in enumerate(trial.answer) if not knows[row]]
        for j, row in zip(free, rng.permutation([trial.answer[j] for j in free]).tolist(), strict=True):
            given[j] = row
        return given

    return answer


@lru_cache(maxsize=4096)
def known(share: float, k: int) -> float:
    """The probability q of knowing a unit for which a share s of k matches is right: s = q + (1 - q^k) / k.

    Whoever knows m < k units guesses a permutation of the others, which has one more hit on average.
    """
    if share <= 1 / k or isclose(share, 1):
        return float(share >= 1)
    if share > 1:
        raise FeatvisError(f"a share of {share} was given; it goes from {1 / k:.3f} (chance) to 1.")
    return float(brentq(lambda q: q + (1 - q**k) / k - share, 0, 1))


def alike(features: Mapping[str, np.ndarray]) -> Observer:
    """A machine that matches by likeness: the assignment with the largest sum of cosines (Hungarian algorithm).

    `features` has a vector for each image; a row's is the mean of its images'.
    """

    def answer(trial: Trial) -> list[int]:
        left, right = (_rows(side, features) for side in (trial.left, trial.right))
        _, rows = linear_sum_assignment(right @ left.T, maximize=True)
        return rows.tolist()

    return answer


def machine_features(
    subject: Subject, pictures: Mapping[str, Tensor], another: Subject | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """What each machine observer compares: name -> image -> vector, each centred and scaled over all images.

    Pixels; means and standard deviations of the channels of one early and one late layer of the subject itself; the
    same of the last layer before the logits of another network.
    """
    keys = list(pictures)
    images = torch.stack([pictures[key] for key in keys])
    small = F.interpolate(images, (PIXELS, PIXELS), mode="area").flatten(1)
    banks = {"machine: pixels": small.numpy()}
    by_depth = depths(subject)
    for name, layer in ("early", by_depth["early"][-1]), ("late", by_depth["late"][-1]):
        banks[f"machine: {name} features of the subject"] = _channels(subject, images, layer)
    if another is not None:
        scaled = F.interpolate(images, another.preprocess.size, mode="bilinear", antialias=True)
        banks["machine: features of another network"] = _channels(another, scaled, another.blocks[-2])
    found = {}
    for name, values in banks.items():
        scaled_values = (values - values.mean(0)) / (values.std(0) + 1e-6)
        found[name] = dict(zip(keys, scaled_values, strict=True))
    return found


def answers(observers: Mapping[str, Observer], trials: Iterable[Trial]) -> pd.DataFrame:
    """One row for each observer and trial: the trial's cell, and which units were matched rightly (see `right`)."""
    rows = [
        (name, t.id, t.part, t.kind, t.n, t.depth, " ".join(t.units), t.right_units(observer(t)))
        for t in trials
        for name, observer in observers.items()
    ]
    return pd.DataFrame(rows, columns=["observer", "trial", "part", "kind", "n", "depth", "units", "right"])


def _rows(side: Sequence[Sequence[str]], features: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = np.stack([np.mean([features[key] for key in row], 0) for row in side])
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)


def _channels(subject: Subject, images: Tensor, layer: str) -> np.ndarray:
    """Mean and standard deviation over the map of every channel, (n, 2 c)."""
    parts = []
    for found in subject.activations(images, [layer]):
        maps = found[layer].flatten(2) if found[layer].dim() > 2 else found[layer][..., None]
        parts.append(torch.cat([maps.mean(2), maps.std(2, correction=0)], 1).cpu().float())
    return torch.cat(parts).numpy()
