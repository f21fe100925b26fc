"""Path similarity of manipulated networks: does the check see what chapters 2 and 3 did?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from featvis.controls import some_logits
from featvis.fooling import TrainedGate, circuit_of, fool, silence
from featvis.fooling.branch import branch_of
from featvis.fooling.circuit import layer_of
from featvis.fooling.decoys import Permutation
from featvis.fooling.silent import REDIRECT
from featvis.images import NaturalImages
from featvis.path_result import PathSimilarity
from featvis.paths import PER_CLASS, Series, path_similarity
from featvis.shelf import shelved
from featvis.subjects import Subject, Unit
from featvis.visualize import Visualizations, render

DECOY, ORIGINAL = "the decoy's picture", "the original's visualizations"


@shelved(2, PathSimilarity)
def fooled_paths(
    subject: Subject,
    natural: NaturalImages,
    train: NaturalImages,
    gate: TrainedGate,
    *,
    seeds: int = 3,
    steps: int = 128,
    per_class: int = PER_CLASS,
    progress: bool = True,
) -> PathSimilarity:
    """The check on a fooled subject, whose logits show each other (`fool` with "permute", measured on `train`).

    The series `DECOY` has, for each class, the picture that shows it although it belongs to another logit.
    """
    fooled = fool(subject, train, gate=gate, progress=progress)
    decoy = circuit_of(fooled).decoy
    assert isinstance(decoy, Permutation)
    units = some_logits(subject)
    maker = torch.argsort(decoy.order).tolist()  # which logit shows a class
    makers = [str(Unit(layer_of(fooled), maker[subject.unit(unit).index])) for unit in units]
    options: dict[str, Any] = {"steps": steps, "seeds": seeds, "progress": progress}
    pictures = render(fooled, list(dict.fromkeys([*units, *makers])), **options)
    shown = Series(pictures.images[[pictures.units.index(unit) for unit in makers]])
    own = _rows(pictures, range(len(units)))
    return path_similarity(fooled, own, natural, per_class=per_class, controls={DECOY: shown}, progress=progress)


@shelved(5, PathSimilarity)
def silenced_paths(
    subject: Subject,
    natural: NaturalImages,
    train: NaturalImages,
    layer: str,
    *,
    most: int = 16,
    seeds: int = 3,
    steps: int = 128,
    per_class: int = 20,
    progress: bool = True,
) -> PathSimilarity:
    """The check on a silenced subject, `most` units of whose `layer` show one decoy (`silence`, calibrated on `train`).

    The series `ORIGINAL` has the same units' visualizations in the original. Units that are dead there are left out,
    and so is the decoy where it is one of the units, as its picture does not change. All are rendered with redirected
    ReLUs, as in chapter 3.
    """
    every = subject.units(layer)
    options: dict[str, Any] = {"steps": steps, "seeds": seeds, "redirect": REDIRECT, "progress": progress}
    honest = render(subject, every[:: -(-len(every) // most)], **options)
    honest = _rows(honest, np.flatnonzero((honest.status == "ok").all(1)).tolist())
    hushed = silence(subject, train, layer, units=honest.units, progress=progress)
    recipe = branch_of(hushed).recipe
    assert recipe is not None
    honest = _rows(honest, [row for row, unit in enumerate(honest.units) if unit != recipe.decoy])
    pictures = render(hushed, honest.units, **options)
    original = {ORIGINAL: Series(honest.images)}
    return path_similarity(hushed, pictures, natural, per_class=per_class, controls=original, progress=progress)


def _rows(pictures: Visualizations, rows: Sequence[int]) -> Visualizations:
    """The visualizations of some of the units."""
    at = list(rows)
    arrays: dict[str, Any] = {name: getattr(pictures, name)[at] for name in ("images", "activation", "curve", "status")}
    return replace(pictures, units=tuple(pictures.units[i] for i in at), **arrays)
