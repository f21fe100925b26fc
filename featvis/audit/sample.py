"""Which units an audit looks at: a random sample, stratified over the depth of the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featvis.errors import FeatvisError
from featvis.subjects import Subject

LOGITS = 1 / 3  # share of the sample that is taken from the last layer


def sampled(subject: Subject, count: int, layers: Sequence[str] | None = None, seed: int = 0) -> list[str]:
    """`count` units: a third of them logits, the others evenly from all blocks; or evenly from `layers`.

    A layer with fewer units gives all that it has. The units come in the order of the network. Raises FeatvisError for
    an unknown layer and for a count below 3: units are compared with each other.
    """
    if count < 3:
        raise FeatvisError(f"{count} units were asked for; an audit compares units with each other and needs 3.")
    rng = np.random.default_rng(seed)
    if layers:
        shares = dict.fromkeys(layers, count / len(layers))
    else:
        *hidden, logits = subject.blocks
        shares = dict.fromkeys(hidden, (1 - LOGITS) * count / max(len(hidden), 1)) | {logits: LOGITS * count}
    every = {layer: rng.permutation(subject.units(layer)).tolist() for layer in shares}
    wanted = np.array([min(share, len(every[layer])) for layer, share in shares.items()])
    # Whole numbers that add up: the fractions left over go to layers drawn with just these chances.
    take = np.floor(wanted).astype(int)
    left = min(count, sum(map(len, every.values()))) - int(take.sum())
    room = np.array([len(units) for units in every.values()]) - take
    for _ in range(left):
        chance = np.where(room > 0, wanted - np.floor(wanted) + 1e-6, 0)
        i = rng.choice(len(take), p=chance / chance.sum())
        take[i] += 1
        room[i] -= 1
    order = list(subject.layers)
    chosen = [unit for layer, n in zip(shares, take, strict=True) for unit in every[layer][:n]]
    return sorted(chosen, key=lambda unit: (order.index(subject.unit(unit).layer), subject.unit(unit).index))
