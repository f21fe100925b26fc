"""Mean similarity of activations between sets of images, layer by layer, in one pass and little memory.

Spearman, Pearson and cosine are all the inner product of two rows that were standardized before: ranked once or
not, centred or not, scaled to length 1. The mean over all pairs of two sets of images is therefore the inner product of
their mean rows: one row a set is kept instead of one row an image, and no pair is ever looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from featvis.engine import LOCAL, Engine, cluster_of, outcomes
from featvis.errors import FeatvisError, listed
from featvis.subjects import Subject
from featvis.threads import side_by_side

METRICS = ("spearman", "pearson", "cosine")
BUDGET = 256 * 2**20  # bytes for the sums that are kept at once
BATCH = 16
GROUPS = 8  # tasks, about, that Ray divides the layers into: each sees all of the images again
NAMES = ("total", "count", "left_total", "left_count")
CHUNK = 2**13  # features that are multiplied at once, in double precision


def check_metrics(metric: str | Sequence[str]) -> tuple[str, ...]:
    """One metric or several as a tuple. Raises FeatvisError for an unknown one."""
    metrics = (metric,) if isinstance(metric, str) else tuple(metric)
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise FeatvisError(f"there is no metric {listed(unknown) or 'without a name'}; there are {listed(METRICS)}.")
    return metrics


def ranks(rows: Tensor) -> Tensor:
    """The rank of each entry in its row, from 1; equal entries share the mean of theirs: (n, f) -> (n, f)."""
    rows = rows.float() + 0.0  # -0.0 and 0.0 are equal, but their bits are not
    if rows.device.type != "cpu":
        return _ranks_by_torch(rows)
    found = np.empty(rows.shape, np.float32)
    for row, out in zip(rows.contiguous().numpy(), found, strict=True):
        positive = np.flatnonzero(row > 0)
        zeros = len(row) - len(positive)
        if zeros > 1 and row.min() == 0:  # behind a ReLU half of a row or more is 0: one rank, and nothing to sort
            out.fill((zeros + 1) / 2)
            inner = np.empty(len(positive), np.float32)
            _rank(row[positive], inner)
            out[positive] = inner + np.float32(zeros)
        else:
            _rank(row, out)
    return torch.from_numpy(found)


def _rank(row: np.ndarray, out: np.ndarray) -> None:
    # Value and position in one integer: numpy sorts those several times faster than it sorts positions by value.
    bits = row.view(np.uint32)
    order = np.where(bits >> 31, ~bits, bits | np.uint32(2**31))  # ascends as the values do
    keys = order.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(row), dtype=np.uint64)
    keys.sort()
    values, places = (keys >> np.uint64(32)).astype(np.uint32), keys.astype(np.uint32)
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    counts = np.diff(starts, append=len(row))
    out[places] = np.repeat((starts + (counts + 1) / 2).astype(np.float32), counts)


def _ranks_by_torch(rows: Tensor) -> Tensor:
    values, places = torch.sort(rows, dim=1)
    new = torch.ones_like(values, dtype=torch.bool)
    new[:, 1:] = values[:, 1:] != values[:, :-1]
    group = new.flatten().cumsum(0) - 1  # equal entries of one row are one group
    position = torch.arange(1, rows.shape[1] + 1, device=rows.device).expand_as(rows).flatten().double()
    total = torch.zeros(int(group[-1]) + 1, dtype=torch.float64, device=rows.device)
    count = total.clone().index_add_(0, group, torch.ones_like(position))
    mean = total.index_add_(0, group, position) / count
    return torch.empty_like(rows).scatter_(1, places, mean[group].view_as(rows).to(rows.dtype))


def standardized(rows: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Rows (n, f) whose inner products are the similarities, and which of them (n,) have any.

    A constant row has no correlation, a row of zeros no cosine: these come back as zeros.
    """
    rows = rows.float()
    if metric == "cosine":
        centred, defined = rows, (rows != 0).any(1)
    else:
        defined = rows.amax(1) > rows.amin(1)
        if metric == "spearman":
            centred = ranks(rows) - (rows.shape[1] + 1) / 2
        else:
            centred = rows - rows.double().mean(1, keepdim=True).to(rows.dtype)
    length = torch.linalg.vector_norm(centred, dim=1, dtype=torch.float64)
    scale = torch.where(defined, 1 / length.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    return centred * scale.to(rows.dtype)[:, None], defined


def products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows (n, f) and (m, f) as doubles (n, m).

    Summed in single precision, a row of many equal entries is off by several 1e-6.
    """
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for first in range(0, a.shape[1], CHUNK):
        part = slice(first, first + CHUNK)
        total += a[:, part].double() @ b[:, part].double().T
    return total


def pairwise(rows: Tensor, metric: str = "spearman") -> Tensor:
    """The similarity of every two rows of (n, f) as (n, n); not a number where a row has none."""
    check_metrics(metric)
    scaled = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    defined = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
    for i in range(len(rows)):  # one by one: ranking needs several times the memory of a row
        scaled[i : i + 1], defined[i : i + 1] = standardized(rows[i : i + 1], metric)
    found = products(scaled, scaled)
    found[~defined] = found[:, ~defined] = torch.nan
    return found


@dataclass(frozen=True)
class Item:
    """An image, where it is shown (`load` gives it as (3, h, w)), and the sets that it belongs to."""

    name: str
    load: Callable[[], Tensor]
    sets: tuple[int, ...]


@dataclass(frozen=True)
class Pairs:
    """Sums over ordered pairs of two different images, of every two sets: (metrics, layers, sets, sets).

    `total` and `count` leave out the pairs that were to be left out, which have `left_total` and `left_count`.
    `undefined` (metrics, layers, sets) counts images without a similarity, whose pairs are not counted anywhere.
    """

    total: np.ndarray
    count: np.ndarray
    left_total: np.ndarray
    left_count: np.ndarray
    undefined: np.ndarray


def pair_sums(
    subject: Subject,
    items: Sequence[Item],
    sets: int,
    layers: Sequence[str],
    metrics: Sequence[str],
    leave_out: Sequence[tuple[int, int]] = (),
    tick: Callable[[int], object] = lambda _: None,
    engine: Engine = LOCAL,
    key: str | None = None,
) -> Pairs:
    """Compare all sets with each other in all layers; `leave_out` names pairs of items that do not count.

    Layers whose sums fit into `BUDGET` share a pass over the images. Where not even one layer's do, a pass takes two
    blocks of sets. `tick` is told how many images were seen. With the `engine` "ray" groups of layers are Ray tasks,
    kept in its folder by `key`, which says what the items show. Raises FeatvisError for infinite activations.
    """
    shape = (len(metrics), len(layers), sets, sets)
    arrays = [np.zeros(shape) for _ in range(4)]
    undefined = np.zeros(shape[:3], int)
    cluster = cluster_of(engine)
    passes = [
        (tuple(part), tuple(sorted(block)))
        for part, blocks in _passes(subject, layers, sets, len(metrics), 1 if cluster is None else GROUPS)
        for block in blocks
    ]
    shared = (subject, list(items), tuple(metrics), tuple(leave_out))
    if cluster is None:
        every: Iterable[tuple[int, dict[str, Tensor]]] = ((i, _sums(*shared, p, tick)) for i, p in enumerate(passes))
    else:
        keys = [None if key is None else f"{key} {p}" for p in passes]
        every = outcomes(cluster, _sums, shared, passes, keys)
    for number, found in every:
        part, block = passes[number]
        depth = [layers.index(layer) for layer in part]
        cell = np.ix_(range(len(metrics)), depth, block, block)
        for array, name in zip(arrays, NAMES, strict=True):
            array[cell] = found[name].numpy()
        undefined[np.ix_(range(len(metrics)), depth, block)] = found["undefined"].numpy()
        if cluster is not None:
            tick(sum(not set(block).isdisjoint(item.sets) for item in items))
    total, count, left_total, left_count = arrays
    return Pairs(total, count, left_total, left_count, undefined)


def _sums(
    subject: Subject,
    items: Sequence[Item],
    metrics: Sequence[str],
    leave_out: Sequence[tuple[int, int]],
    which: tuple[tuple[str, ...], tuple[int, ...]],
    tick: Callable[[int], object] = lambda _: None,
) -> dict[str, Tensor]:
    """One pass, for some layers and sets: the fields of `Pairs` as tensors (metrics, these layers, these sets, ...)."""
    layers, order = which
    inside = [i for i, item in enumerate(items) if not set(order).isdisjoint(item.sets)]
    number = {i: k for k, i in enumerate(inside)}
    pairs = [(number[i], number[j]) for i, j in leave_out if i in number and j in number]
    members = torch.zeros(len(inside), len(order), dtype=torch.float64)
    for i, k in number.items():
        members[k, [order.index(s) for s in items[i].sets if s in order]] = 1
    sums = _Pass(subject, list(layers), metrics, members, pairs)
    for first in range(0, len(inside), BATCH):
        some = [items[i] for i in inside[first : first + BATCH]]
        sums.add(some, first)
        tick(len(some))
    rows = [[sums.outcome(m, k) for k in range(len(layers))] for m in range(len(metrics))]
    found = {
        name: torch.stack([torch.stack([torch.from_numpy(cell[n]) for cell in row]) for row in rows])
        for n, name in enumerate(NAMES)
    }
    undefined = torch.einsum("is,mki->mks", members, (~sums.defined).double())
    return found | {"undefined": undefined.round().long()}


def _passes(
    subject: Subject, layers: Sequence[str], sets: int, metrics: int, groups: int = 1
) -> Iterator[tuple[list[str], list[set[int]]]]:
    """Layers that share a pass over the images, and the blocks of sets that they need one each for.

    There are about `groups` passes or more. How layers are grouped changes numbers by rounding alone; how sets are, may
    do more.
    """
    size = {layer: 4 * metrics * int(np.prod(subject.layers[layer])) for layer in layers}
    most = min(BUDGET, sets * sum(size.values()) / groups)
    part: list[str] = []
    for layer in layers:
        if part and sets * sum(size[name] for name in [*part, layer]) > most:
            yield part, [set(range(sets))]
            part = []
        if sets * size[layer] > BUDGET:
            step = max(1, BUDGET // (2 * size[layer]))
            blocks = [set(range(first, min(first + step, sets))) for first in range(0, sets, step)]
            yield [layer], [a | b for a, b in combinations(blocks, 2)]
        else:
            part.append(layer)
    if part:
        yield part, [set(range(sets))]


class _Pass:
    """The sums of one pass: a row for each set, and the few rows that pairs to be left out still wait for."""

    def __init__(
        self,
        subject: Subject,
        layers: list[str],
        metrics: Sequence[str],
        members: Tensor,
        leave_out: list[tuple[int, int]],
    ):
        self.subject, self.layers, self.metrics, self.members = subject, layers, metrics, members
        images, sets = members.shape
        self.apart = torch.zeros(images, images, dtype=torch.bool)
        for i, j in leave_out:
            self.apart[i, j] = self.apart[j, i] = True
        # The last image that an image is compared with by itself; its row is kept until then.
        self.until = (self.apart * torch.arange(images)).amax(1) if images else torch.zeros(0)
        keys = [(m, k) for m in range(len(metrics)) for k in range(len(layers))]
        features = [int(np.prod(subject.layers[layer])) for layer in layers]
        self.sums = {(m, k): torch.zeros(sets, features[k], device=subject.device) for m, k in keys}
        self.held = {(m, k): torch.zeros(0, features[k], device=subject.device) for m, k in keys}
        self.left = {key: torch.zeros(sets, sets, dtype=torch.float64) for key in keys}
        self.held_items = torch.zeros(0, dtype=torch.long)
        self.defined = torch.zeros(len(metrics), len(layers), images, dtype=torch.bool)

    def add(self, items: list[Item], first: int) -> None:
        here = torch.arange(first, first + len(items))
        found = next(self.subject.activations([torch.stack([item.load() for item in items])], self.layers))
        earlier = torch.cat([self.held_items, here])
        pairs = self.apart[earlier][:, here] & (earlier[:, None] < here)
        kept = torch.nonzero(self.until[earlier] >= first + len(items))[:, 0]
        for layer in self.layers:
            finite = torch.isfinite(found[layer]).flatten(1).all(1)
            if not bool(finite.all()):
                worst = items[int((~finite).nonzero()[0])].name
                raise FeatvisError(f"{layer} of {self.subject.name} gives activations that are not finite for {worst}.")

        def compare(k: int, check: Callable[[], None] = lambda: None) -> None:
            check()
            flat = found.pop(self.layers[k]).flatten(1).float()
            for m in range(len(self.metrics)):
                self._add(m, k, flat, here, earlier, pairs, kept)

        if self.subject.device.type == "cpu":
            side_by_side([partial(compare, k) for k in range(len(self.layers))])
        else:
            for k in range(len(self.layers)):
                compare(k)
        self.held_items = earlier[kept]

    def _add(self, m: int, k: int, flat: Tensor, here: Tensor, earlier: Tensor, pairs: Tensor, kept: Tensor) -> None:
        """Rows of one layer, for one metric: images `here`, of which `earlier` ones are still held, or `kept`."""
        rows, defined = standardized(flat, self.metrics[m])
        self.defined[m, k, here] = defined.cpu()
        image, column = torch.nonzero(self.members[here], as_tuple=True)
        self.sums[m, k].index_add_(0, column.to(rows.device), rows[image])
        if len(kept) or pairs.any():
            every = torch.cat([self.held[m, k], rows])
            if pairs.any():
                left = self.members[earlier].T @ (products(every, rows).cpu() * pairs) @ self.members[here]
                self.left[m, k] += left + left.T
            self.held[m, k] = every[kept]
        else:
            self.held[m, k] = rows[:0]

    def outcome(self, m: int, k: int) -> tuple[np.ndarray, ...]:
        """The four sums of `Pairs` for one metric and layer, each (sets, sets)."""
        rows, members = self.sums[m, k], self.members * self.defined[m, k][:, None]
        own = members.T @ members  # an image is no pair with itself
        apart = members.T @ self.apart.double() @ members
        total = products(rows, rows).cpu() - own - self.left[m, k]
        count = members.sum(0)[:, None] * members.sum(0) - own - apart
        return total.numpy(), count.numpy(), self.left[m, k].numpy(), apart.numpy()
