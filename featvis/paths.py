"""Path similarity (Geirhos et al. 2024, section 3): is a visualization processed like natural images of its class?

In every layer, S is the mean similarity of the activations of two images: of a visualization and natural images of
its class, of two natural images of one class, of two natural images of different classes. Scaled by the latter two,

    s_norm = (S_fv,same - S_nat,diff) / (S_nat,same - S_nat,diff)

is 1 where a visualization is as much like the class as the class is like itself, and 0 where it is as much like
the class as the images of any other class are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from featvis.engine import LOCAL, Engine, cluster_of, key_of
from featvis.errors import FeatvisError, listed
from featvis.exemplars import exemplars
from featvis.images import NaturalImages
from featvis.path_result import PathSimilarity, mean_off_diagonal
from featvis.similarity import Item, Pairs, check_metrics, pair_sums
from featvis.subjects import Subject, Unit
from featvis.visualize import Visualizations

PER_CLASS = 40
FEWEST_GROUPS, FEWEST_IMAGES = 3, 4
SHOWN = "visualizations"


class Series(NamedTuple):
    """Images to be compared with natural ones: `images` (groups, m, 3, h, w), and the id of the natural image that each
    was made from (`origins` (groups, m), "" for none): the two of them are no pair."""

    images: Tensor
    origins: Sequence[Sequence[str]] | None = None


def path_layers(subject: Subject) -> tuple[str, ...]:
    """The default axis: the subject's blocks.

    Everything on its way to the output passes each of them, one after the other, so "the first two thirds" means
    something; the branches inside of a block are parallel, and six of them would count as six layers. What a
    block gives out is its concatenation, sum or ReLU, also where a network calls those as functions. A normalization
    that follows a convolution is no step of its own: a ResNet's first convolution stands for both.
    """
    norms = (_BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm)
    return tuple(name for name in subject.blocks if not isinstance(subject.network.get_submodule(name), norms))


def all_layers(subject: Subject) -> tuple[str, ...]:
    """Every output of a convolution, linear layer, ReLU, or module that joins such, without normalization alone."""
    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.ReLU, torch.nn.ReLU6)

    def counts(name: str) -> bool:
        module = subject.network.get_submodule(name)
        joins = any(isinstance(part, kinds) for part in module.modules() if part is not module)
        return isinstance(module, kinds) or (joins and not isinstance(module, torch.nn.Sequential))

    return tuple(name for name in subject.layers if counts(name))


def check_enough(units: int, per_class: int, natural: NaturalImages) -> None:
    """Raises FeatvisError if path similarity needs more units or more natural images of each."""
    if units < FEWEST_GROUPS or per_class < FEWEST_IMAGES:
        raise FeatvisError(
            f"{units} units and per_class={per_class} were given; path similarity needs at least {FEWEST_GROUPS} units "
            f"and {FEWEST_IMAGES} natural images of each."
        )
    if per_class > len(natural):
        raise FeatvisError(
            f"{per_class} natural images of each class or unit were asked for, but {natural.name} has {len(natural)}."
        )


def check_classes(subject: Subject, units: Sequence[str], per_class: int, natural: NaturalImages) -> None:
    """Raises FeatvisError if a unit's class has fewer natural images than asked; goes by their labels alone."""
    labels = _labels(subject, natural, [subject.unit(unit) for unit in units])
    if labels is None:
        return
    count = Counter(natural.label(index) for index in range(len(natural)))
    for label in labels:
        if count[label] < per_class:
            raise _too_few(natural, label, count[label], per_class)


def path_similarity(
    subject: Subject,
    pictures: Visualizations,
    natural: NaturalImages,
    *,
    layers: Sequence[str] | None = None,
    metric: str | Sequence[str] = "spearman",
    per_class: int = PER_CLASS,
    controls: Mapping[str, Series] | None = None,
    same: str = "class",
    engine: Engine = LOCAL,
    progress: bool = True,
) -> PathSimilarity:
    """Compare the visualizations of units with natural images, layer by layer.

    pictures   of at least 3 units. For logits whose classes `natural` has, "same class" means that; for other
               units it means the unit's `per_class` exemplars in `natural`
    layers     `path_layers(subject)` by default; for other units than logits what comes before their layer, and that
    metric     "spearman", "pearson" or "cosine", or several of them
    per_class  natural images of each class, the first ones of `natural`
    controls   more images to be held against the same natural ones, in the order of `pictures.units`
    same       "class", or "exemplars": what "same class" means for logits, too
    engine     "local", "ray" or `featvis.engine.Ray(...)`: groups of layers are Ray tasks, with the same result

    Pairs of largely overlapping crops do not count. Raises FeatvisError for an unknown layer or metric, a class with
    fewer images than asked, sizes that differ, and activations that are not finite.
    """
    metrics = check_metrics(metric)
    check_enough(len(pictures.units), per_class, natural)
    units = [subject.unit(unit) for unit in pictures.units]
    axis = tuple(dict.fromkeys(layers or path_layers(subject)))
    for layer in axis:
        subject.channels(layer)  # an unknown one is named
    if same not in ("class", "exemplars"):
        raise FeatvisError(f"same={same!r} was given; valid are class and exemplars.")
    labels = _labels(subject, natural, units) if same == "class" else None
    if layers is None and labels is None:
        order = list(subject.layers)
        last = max((unit.layer for unit in units), key=order.index)
        axis = (*(layer for layer in axis if order.index(layer) < order.index(last)), last)
    if labels is None:
        best = exemplars(subject, natural, pictures.units, k=per_class, engine=engine, progress=progress)
        rng = np.random.default_rng(0)  # exemplars come in the order of their rank, but halves are to be alike
        ids = [[str(id) for id in rng.permutation(row) if id] for row in best.top_ids]
    else:
        ids = _of_classes(natural, labels, per_class)
    series = {SHOWN: Series(pictures.images), **(controls or {})}
    _check_sizes(subject, natural, series, len(units))
    items, origins = _items(natural, ids, series, pictures.status == "ok")
    kinds = 2 + len(series)
    leave_out = _overlaps(natural, items, origins, kinds, across=labels is None)
    shown = ("paths", subject, natural, ids, metrics, list(series.values()), pictures.status.tolist())
    key = key_of(*shown) if cluster_of(engine) else None  # which reads every picture
    with tqdm(desc=f"paths {subject.name}", unit="image", disable=not progress, leave=False) as bar:
        found = pair_sums(subject, items, len(ids) * kinds, axis, metrics, leave_out, bar.update, engine, key)
    return PathSimilarity(
        subject.name,
        natural.name,
        "exemplars" if labels is None else "class",
        tuple(subject.label(unit).partition(" ")[2] or str(unit) for unit in units),
        metrics,
        axis,
        tuple(series),
        **_means(found, len(ids)),
        images=_members(items, len(ids) * kinds).reshape(len(ids), kinds),
    )


def _labels(subject: Subject, natural: NaturalImages, units: Sequence[Unit]) -> list[int] | None:
    """The label in `natural` of each logit, by its name or else its number; None where "same class" has no meaning."""
    if any(subject.layers[unit.layer] != (len(subject.classes),) for unit in units) or not natural.classes:
        return None
    names = [subject.classes[unit.index] for unit in units]
    if set(names) <= set(natural.classes):
        return [natural.classes.index(name) for name in names]
    # Folders are called by other names than classes ("n01440764"), but in the same order.
    return [unit.index for unit in units] if len(natural.classes) == len(subject.classes) else None


def class_images(subject: Subject, natural: NaturalImages, units: Sequence[str], per_class: int) -> list[list[str]]:
    """The ids of the first `per_class` natural images of each logit's class. Raises FeatvisError if there are fewer."""
    labels = _labels(subject, natural, [subject.unit(unit) for unit in units])
    if labels is None:
        raise FeatvisError(
            f"{natural.name} has no images of the classes of {subject.name}; its classes are {listed(natural.classes)}."
        )
    return _of_classes(natural, labels, per_class)


def like_images(subject: Subject, natural: NaturalImages, units: Sequence[str], count: int) -> list[list[str]]:
    """The ids of `count` images of each logit's class or, where `natural` knows other classes, of its strongest ones.

    In the order in which `path_similarity` takes them.
    """
    if _labels(subject, natural, [subject.unit(unit) for unit in units]) is not None:
        return class_images(subject, natural, units, count)
    best = exemplars(subject, natural, units, k=count, distinct=False, progress=False)
    return [[str(id) for id in row] for row in best.top_ids]


def _of_classes(natural: NaturalImages, labels: Sequence[int], per_class: int) -> list[list[str]]:
    """The ids of the first `per_class` images with each label."""
    ids: dict[int, list[str]] = {label: [] for label in labels}
    for index in range(len(natural)):
        found = ids.get(natural.label(index))
        if found is None or len(found) == per_class:
            continue
        with suppress(FeatvisError):  # a file that turns out broken is left out
            found.append(natural[index][2])
        if all(len(some) == per_class for some in ids.values()):
            break
    for label, some in ids.items():
        if len(some) < per_class:
            raise _too_few(natural, label, len(some), per_class)
    return [ids[label] for label in labels]


def _too_few(natural: NaturalImages, label: int, count: int, per_class: int) -> FeatvisError:
    return FeatvisError(
        f"{natural.name} has {count} images of class {natural.classes[label]}; {per_class} were asked for."
    )


def _check_sizes(subject: Subject, natural: NaturalImages, series: Mapping[str, Series], groups: int) -> None:
    size = subject.preprocess.size
    for name, (images, _) in series.items():
        if images.dim() != 5 or len(images) != groups or tuple(images.shape[3:]) != size:
            raise FeatvisError(
                f"the images {name!r} have shape {tuple(images.shape)}; {subject.name} needs ({groups}, images of "
                f"each, 3, {size[0]}, {size[1]})."
            )
    if (natural.size, natural.size) != size:
        raise FeatvisError(f"{natural.name} has images of {natural.size} pixels; {subject.name} needs {size[0]}.")


def _items(
    natural: NaturalImages, ids: list[list[str]], series: Mapping[str, Series], usable: np.ndarray
) -> tuple[list[Item], list[str]]:
    """All images, group by group, and the natural image that each is or was made from.

    Set `group * (2 + series) + kind` is a half of the natural images (kinds 0 and 1, in turn) or one of the series.
    """
    kinds = 2 + len(series)
    places: dict[str, list[int]] = {}
    for group, some in enumerate(ids):
        for number, id in enumerate(some):
            places.setdefault(id, []).append(group * kinds + number % 2)
    items, origins = [], []
    for group, some in enumerate(ids):
        for id in some:
            if id in places:  # an exemplar of two units is one image, shown once
                items.append(Item(id, partial(natural.image, id), tuple(places.pop(id))))
                origins.append(id)
        for kind, (name, (images, made_from)) in enumerate(series.items(), start=2):
            for number in range(images.shape[1]):
                if name == SHOWN and not usable[group, number]:
                    continue
                what = f"{name} {number} of group {group}"
                items.append(Item(what, partial(_at, images, group, number), (group * kinds + kind,)))
                origins.append(made_from[group][number] if made_from else "")
    return items, origins


def _at(images: Tensor, group: int, number: int) -> Tensor:
    # Not the image itself: each would take all of the images along to another process.
    return images[group, number]


def _overlaps(
    natural: NaturalImages, items: list[Item], origins: list[str], kinds: int, across: bool
) -> list[tuple[int, int]]:
    """Pairs of items that show largely the same pixels: of one group, or, where groups share images, of any two."""
    clusters: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        if origins[i]:
            clusters.setdefault(0 if across else item.sets[0] // kinds, []).append(i)
    pairs = [pair for some in clusters.values() for pair in combinations(some, 2)]

    def counts(i: int, j: int) -> bool:
        return any(s % kinds < 2 for k in (i, j) for s in items[k].sets)  # series are not compared with each other

    return [(i, j) for i, j in pairs if counts(i, j) and natural.overlap(origins[i], origins[j])]


def _members(items: list[Item], sets: int) -> np.ndarray:
    return np.bincount([s for item in items for s in item.sets], minlength=sets)


def _means(found: Pairs, groups: int) -> dict[str, np.ndarray]:
    """The fields of the result: means over pairs, from sums over pairs of sets."""
    metrics, layers, sets, _ = found.total.shape
    kinds = sets // groups
    split = (metrics, layers, groups, kinds, groups, kinds)
    total, count = (array.reshape(split).transpose(0, 1, 3, 5, 2, 4) for array in (found.total, found.count))
    left = [array.reshape(split).transpose(0, 1, 3, 5, 2, 4) for array in (found.left_total, found.left_count)]

    def mean(*cells: tuple[slice, slice], more: Sequence[np.ndarray] = ()) -> np.ndarray:
        parts = (total + more[0], count + more[1]) if more else (total, count)
        sums, pairs = (sum(part[:, :, first, second].sum((2, 3)) for first, second in cells) for part in parts)
        return np.divide(sums, pairs, out=np.full(sums.shape, np.nan), where=pairs > 0.5)

    nature, a, b = slice(0, 2), slice(0, 1), slice(1, 2)
    shown = np.stack([mean((slice(k, k + 1), nature)) for k in range(2, kinds)], 1)
    return {
        "like": mean((nature, nature)),
        "overlapping": np.diagonal(mean((nature, nature), more=left), axis1=2, axis2=3).copy(),
        "halves": np.stack([mean((a, b)), mean((a, a), (b, b))], 2),
        "shown": np.diagonal(shown, axis1=3, axis2=4).copy(),
        "elsewhere": mean_off_diagonal(shown),
        "undefined": found.undefined.reshape(metrics, layers, groups, kinds).sum(2),
    }
