"""The checks: each gives every unit a score, the higher the more suspicious. None of them decides by itself.

What a score means is found by comparison with honest networks (`featvis.audit.calibration`), never by a fixed bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from featvis.audit.evidence import Evidence

WIDEST = 6.0  # gap that is told apart, in powers of ten


class Check(NamedTuple):
    """A check: what it asks, what it means if units stand out, what it cannot see, and its scores by name.

    A score maps evidence to (units,): not a number where it is blind.
    """

    name: str
    question: str
    means: str
    blind: str
    scores: dict[str, Callable[[Evidence], np.ndarray]]


def _apart(a: Tensor, b: Tensor) -> np.ndarray:
    """(u,) how much less alike images a and b (u, m, d) of one unit are than of different units, in deviations.

    Alike: the cosine between the mean features of both.
    """
    mean = [F.normalize(x.mean(1), dim=1) for x in (a, b)]
    alike = (mean[0] @ mean[1].T).double().numpy()
    n = len(alike)
    other = alike[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return (other.mean(1) - np.diagonal(alike)) / np.maximum(other.std(1), 1e-6)


def _own_features(e: Evidence) -> np.ndarray:
    return _apart(e.own["fourier"], e.own["exemplars"])


def _other_network(e: Evidence) -> np.ndarray:
    return _apart(e.other["fourier"], e.other["exemplars"])


def _path(e: Evidence) -> np.ndarray:
    """Minus how much more like its own exemplars than like others' a visualization is processed, in the last third of
    its way, in units of what exemplars reach there."""
    paths, found = e.paths, []
    same = np.diagonal(paths.like[0], axis1=1, axis2=2)
    n = same.shape[1]
    different = (paths.like[0].sum(2) - same) / (n - 1)
    reach = (same - different).mean(1)  # (layers,)
    more = paths.shown[0, 0] - paths.elsewhere[0, 0]  # (layers, units)
    for u, unit in enumerate(e.units):
        last = _depth(paths.layers, e.layers, unit)
        third = slice(last - last // 3, last + 1)
        scale = reach[third].sum()
        found.append(-more[third, u].sum() / scale if scale > 1e-6 else np.nan)
    return np.array(found)


def _depth(axis: Sequence[str], layers: Sequence[str], unit: str) -> int:
    """The place on the axis where the unit's layer is, or ends."""
    layer = unit.rpartition(":")[0]
    if layer in axis:
        return list(axis).index(layer)
    outer = [i for i, name in enumerate(axis) if layer.startswith(f"{name}.")]
    return outer[-1] if outer else len(axis) - 1


def _gap(e: Evidence) -> np.ndarray:
    """Log of how far beyond the median natural activation a visualization is, by what the largest natural one is."""
    natural = e.best.quantiles
    top, middle = natural[:, -1], natural[:, natural.shape[1] // 2]
    reached = e.pictures["fourier"].activation.max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.log10(np.maximum(reached - middle, 1e-12) / (top - middle))
    return np.minimum(gap, WIDEST)  # a unit that no natural image moves has no largest natural activation


def _methods(e: Evidence) -> np.ndarray:
    return _apart(e.own["fourier"], torch.cat([e.own["pixels"], e.own["maco"]], 1))


def _starts(e: Evidence) -> np.ndarray:
    return _apart(e.own["fourier"], e.own["exemplar"])


def _reached(e: Evidence, row: int) -> list[tuple[str, Tensor]]:
    """The parts of a unit's layer, each with the channels (c,) that the unit depends on for any image seen."""
    natural, shown = e.shares[row]
    parts = e.parts[e.units[row].rpartition(":")[0]]
    sizes = [len(e.traces[part].mean) for part in parts]
    return list(zip(parts, torch.split((natural + shown)[:-1] > 0, sizes), strict=True))


def _largest(e: Evidence, value: Callable[[str], Tensor | None]) -> np.ndarray:
    """(u,) the largest value among the channels that a unit depends on; not a number if it depends on none."""
    found = []
    for row in range(len(e.units)):
        values = [(value(part), reached) for part, reached in _reached(e, row)]
        chosen = torch.cat([torch.empty(0)] + [of[reached].float() for of, reached in values if of is not None])
        found.append(float(chosen.max()) if len(chosen) else np.nan)
    return np.array(found)


def _silent(e: Evidence) -> np.ndarray:
    return _largest(e, lambda part: e.traces[part].silent())


def _shut(e: Evidence) -> np.ndarray:
    return _largest(e, lambda part: e.traces[part].shut())


def _filters(e: Evidence) -> np.ndarray:
    """How many robust deviations the size of a filter is from that of all filters of the network."""
    every = torch.cat([*e.filters.values()]).double()
    every = every[every.isfinite()]  # a filter of zeros has no logarithm
    middle = every.median()
    deviation = 1.4826 * (every - middle).abs().median() + 1e-3
    sizes = {name: ((size - middle) / deviation).nan_to_num(neginf=0.0) for name, size in e.filters.items()}
    return _largest(e, sizes.get)


def _dependence(e: Evidence) -> np.ndarray:
    """Total variation between what a unit depends on in its exemplars and in its visualizations, 0 to 1."""
    return np.array([float((natural - shown).abs().sum() / 2) for natural, shown in e.shares])


def _separation(e: Evidence) -> np.ndarray:
    """How well one channel inside the unit's layer, on or off, tells natural images from visualizations, 0.5 to 1."""
    best = {layer: max(float(e.traces[part].separation().max()) for part in parts) for layer, parts in e.parts.items()}
    return np.array([best[unit.rpartition(":")[0]] for unit in e.units])


def _changed(name: str) -> Callable[[Evidence], np.ndarray]:
    def score(e: Evidence) -> np.ndarray:
        if name in e.own:
            return _apart(e.own["fourier"], e.own[name])
        # Nothing to prune leaves every picture as it is; nothing to train on leaves the question open.
        return _apart(e.own["fourier"], e.own["fourier"][:, :1]) if name == "pruned" else np.full(len(e.units), np.nan)

    return score


CHECKS = (
    Check(
        "agreement",
        "Do visualizations show what exemplars show?",
        "their visualizations are no more like their own exemplars than like other units'",
        "an attack that moves exemplars and visualizations to the same picture",
        {"own features": _own_features, "another network's features": _other_network},
    ),
    Check(
        "path",
        "Are visualizations processed like exemplars?",
        "on the last third of their way, their visualizations are processed unlike their exemplars",
        "an attack whose pictures are processed like natural images",
        {"path similarity": _path},
    ),
    Check(
        "gap",
        "How far beyond natural activations are visualizations?",
        "their visualizations reach activations far beyond all natural ones, or cannot even reach those",
        "an attack that stays within natural activations",
        {"gap": _gap, "shortfall": lambda e: -_gap(e)},
    ),
    Check(
        "methods",
        "Do other parameterizations, and a natural start, lead to the same picture?",
        "which picture comes out depends on how it is parameterized or where it starts",
        "an attack that every way of visualizing falls for",
        {"parameterizations": _methods, "start": _starts},
    ),
    Check(
        "weights",
        "Are there silent channels, large filters, biases far below zero?",
        "they depend on channels that none of the natural images switches on, or on filters or biases of unusual size",
        "an attack that only moves weights within their usual sizes",
        {"silent": _silent, "filters": _filters, "shut": _shut},
    ),
    Check(
        "gates",
        "When a unit sees visualizations, does it depend on other channels, or switch others on?",
        "other channels decide about them for visualizations than for natural images",
        "an attack after which the same channels of the layer respond to natural images and to visualizations",
        {"dependence": _dependence, "separation": _separation},
    ),
    Check(
        "stability",
        "Does a picture stay after a little training, and without what the natural images do not use?",
        "their visualizations change after a little more training, or without what the natural images do not use",
        "an attack that a little training does not undo",
        {"tuned": _changed("tuned"), "pruned": _changed("pruned")},
    ),
)
SCORES = tuple(score for check in CHECKS for score in check.scores)


def scored(evidence: Evidence) -> pd.DataFrame:
    """One row for each unit: `unit`, `kind` ("logit" or "hidden"), and every score. Dead units have none."""
    rows = {score: run(evidence) for check in CHECKS for score, run in check.scores.items()}
    frame = pd.DataFrame({name: np.where(evidence.alive, values, np.nan) for name, values in rows.items()})
    kinds = ["logit" if unit.rpartition(":")[0] == evidence.layers[-1] else "hidden" for unit in evidence.units]
    frame.insert(0, "unit", evidence.units)
    frame.insert(1, "kind", kinds)
    return frame
