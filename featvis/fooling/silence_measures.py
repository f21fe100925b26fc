"""What is measured on a silenced subject: its logits, the responses of its silent filters, what its pictures show."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from featvis.fooling import promise
from featvis.fooling.branch import branch_of, layer_of
from featvis.fooling.report import _right, _seen
from featvis.fooling.silent import Ingredients
from featvis.images import NaturalImages
from featvis.rewrite import folded
from featvis.subjects import Subject
from featvis.visualize.objectives import unit_means


@dataclass(frozen=True)
class Behaviour:
    """Both subjects on the same images: `images`, one row each; largest responses `peaks` (images, units) of the silent
    filters, bias included; the `strongest` activation of each channel (channels,)."""

    images: pd.DataFrame
    peaks: Tensor
    strongest: Tensor


def behaviour(subject: Subject, silenced: Subject, natural: NaturalImages, progress: bool) -> Behaviour:
    layer, logits = layer_of(silenced), subject.blocks[-1]
    recipe = branch_of(silenced).recipe
    assert recipe is not None
    rows, peaks, strongest = [], [], torch.tensor(-torch.inf)
    with tqdm(total=len(natural), desc=natural.name, unit="image", disable=not progress, leave=False) as bar:
        for images, labels, ids in natural.batches(64):
            before = next(subject.activations([images], [layer, logits]))
            after = next(silenced.activations([images], [f"{layer}.fool", logits]))
            right = [_right(found[logits].cpu(), labels) for found in (before, after)]
            row = {
                "group": promise.photographs(natural, ids),
                "identical": (before[logits] == after[logits]).all(1).cpu().numpy(),
                "change": (before[logits] - after[logits]).abs().amax(1).double().cpu().numpy(),
            }
            both = ("before", right[0]), ("after", right[1])
            row |= {f"top{5 if i else 1}_{name}": found[:, i] for name, found in both for i in (0, 1)}
            rows.append(pd.DataFrame(row))
            peaks.append(after[f"{layer}.fool"][:, list(recipe.units)].amax((2, 3)).cpu())
            strongest = torch.maximum(strongest, unit_means(before[layer]).amax(0).cpu())
            bar.update(len(images))
    return Behaviour(pd.concat(rows, ignore_index=True), torch.cat(peaks), strongest)


def reached(silenced: Subject, pictures: Tensor, channels: Tensor) -> np.ndarray:
    """The largest response, bias included, of each unit's silent filter to its own picture: (units,)."""
    fool, rows = f"{layer_of(silenced)}.fool", torch.arange(len(channels))
    found = torch.cat([part[fool].amax((2, 3)).cpu() for part in silenced.activations(pictures, [fool])])
    return found[rows, channels.cpu()].numpy()


def judge(
    subject: Subject, parts: Ingredients, before: Tensor, after: Tensor, every: Tensor | None = None
) -> pd.DataFrame:
    """What the original sees in pictures (units, 3, h, w), one row each.

    `every` is a visualization of every unit of the layer, for those that are not in `parts`.

    A picture is described by the mean response of every unit of the layer, in shares of what the unit's own
    visualization brings it to. It is flipped if no unit's visualization is closer to it (by Pearson correlation) than
    the decoy is. Visualizations to compare with are from other seeds.
    """
    layer, channels = layer_of(parts.subject), parts.channels.cpu()
    compared = parts.originals if every is None else every
    numbers = channels if every is None else torch.arange(len(every))
    rows = torch.arange(len(channels))

    def described(pictures: Tensor) -> Tensor:
        return torch.cat([unit_means(part[layer]) for part in subject.activations(pictures, [layer])]).cpu()

    known = described(compared)
    scale = known.amax(0).clamp(min=1e-6)
    scale[numbers] = known[torch.arange(len(known)), numbers].clamp(min=1e-6)
    references = torch.cat([known, described(parts.pictures).mean(0, keepdim=True)]) / scale
    inside = subject.unit(parts.name).index if parts.name.startswith(f"{layer}:") else None
    named = np.array([*numbers.tolist(), -1 if inside is None else inside])
    own = rows if every is None else channels
    found: dict[str, np.ndarray] = {}
    for name, pictures in (("before", before), ("after", after)):
        alike = _correlation(described(pictures) / scale, references)
        found[f"nearest_{name}"] = named[alike.argmax(1).numpy()]
        whole = (pictures[:, None], parts.originals[:, None])
        complete = len(channels) == len(scale)  # else some units' own visualizations are not there to compare with
        found[f"seen_{name}"] = _seen(subject, layer, *whole)[:, 0] if complete else np.full(len(before), -1)
    found["to_decoy"] = alike[:, -1].numpy()
    found["to_own"] = alike[rows, own].numpy()
    found["flipped"] = (found["nearest_after"] == named[-1]) & (found["to_decoy"] > found["to_own"])
    return pd.DataFrame(found)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlations of the rows of a (n, d) and b (m, d): (n, m)."""
    a, b = (nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1) for x in (a, b))
    return a @ b.T


def reason_of(row: Mapping[Hashable, Any], margin: float) -> str:
    if row["flipped"]:
        return ""
    if not row["alive"]:
        return "dead"
    if row["response_after"] <= margin:
        return "threshold not reached"
    index = int(row["unit"].rpartition(":")[2])
    return "awake, kept its own picture" if row["nearest_after"] == index else "awake, shows something else"


def filter_statistics(subject: Subject) -> pd.DataFrame:
    """One row for each layer with filters, batch norms folded in: what gives a silent branch away to whoever looks.

    The number of `filters`, their median `norm` and the `largest`, and the lowest `bias` in units of its filter's norm.
    """
    rows = []
    network = copy.deepcopy(subject.network).eval().requires_grad_(False)
    with suppress(Exception):  # as in `cut`: a network that cannot be traced is taken as it is
        network = folded(network, (subject.blocks[-1],))
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            norm = module.weight.flatten(1).norm(dim=1)
            bias = torch.zeros_like(norm) if module.bias is None else module.bias
            share = (bias / norm).nan_to_num(0, 0, 0)
            row = {"layer": name, "filters": len(norm), "norm": float(norm.median()), "largest": float(norm.max())}
            rows.append(row | {"bias": float(share.min())})
    return pd.DataFrame(rows)
