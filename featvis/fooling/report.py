"""What a fooling circuit does, measured: next to nothing on natural images, everything on visualizations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featvis import budget, sheets
from featvis.fooling.circuit import Levels, circuit_of, fool, layer_of, taken_apart
from featvis.fooling.decoys import Permutation
from featvis.fooling.gate import TrainedGate
from featvis.fooling.targets import correlation, photograph_targets, similarity
from featvis.images import NaturalImages
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.visualize import Visualizations, render
from featvis.visualize.objectives import unit_means

FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TARGET_STEPS = (2, 4, 8, 16, 32, 128)
# What `_drawn` gave last for a subject, and for which units and options: one is compared with several fooled ones.
_DRAWN: WeakKeyDictionary[Subject, tuple[Any, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def behaviour(subject: Subject, fooled: Subject, natural: NaturalImages) -> pd.DataFrame:
    """Both subjects on the same natural images; one row for each class (or photograph) of them.

    `images`; `positives`, which the gate takes for visualizations; `top1_before`, `top1_after`, `top5_before`,
    `top5_after`: how many are right; `top1_lost`: how many of the positives alone are right before minus after;
    `change_passed`: the largest change of a logit where the gate passes the image; `leaks`: pairs of image and
    unit for which both branches are open or both shut.
    """
    logits, parts = subject.blocks[-1], []
    for images, labels, _ in natural.batches(64):  # as `taken_apart` divides them, too
        before = next(subject.activations([images], [logits]))[logits]
        inside = taken_apart(fooled, images, [logits])
        after = inside[logits]
        right = [_right(found.cpu(), labels) for found in (before, after)]
        positive = inside["e"].cpu() > 0
        leak = ((inside["B"] > 0) == (inside["C"] > 0)).flatten(2 if inside["B"].dim() > 2 else 1)
        change = (after - before).abs().amax(1).double().cpu()
        parts.append(
            pd.DataFrame(
                {
                    "group": [natural.classes[i] if natural.classes and i >= 0 else "all" for i in labels.tolist()],
                    "images": 1,
                    "positives": positive.numpy().astype(int),
                    "top1_before": right[0][:, 0],
                    "top1_after": right[1][:, 0],
                    "top5_before": right[0][:, 1],
                    "top5_after": right[1][:, 1],
                    "top1_lost": np.where(positive, right[0][:, 0] - right[1][:, 0], 0),
                    "change_passed": np.where(positive, 0.0, change),
                    "leaks": (leak.any(2) if leak.dim() > 2 else leak).sum(1).cpu().numpy(),
                }
            )
        )
    table = pd.concat(parts)
    how = {str(name): "max" if name == "change_passed" else "sum" for name in table if name != "group"}
    return table.groupby("group", sort=False).agg(how).reset_index()


def _right(logits: Tensor, labels: Tensor) -> np.ndarray:
    """(n, 2): whether the label has the largest logit, and one of the five largest."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0], best.any(1)], 1).numpy().astype(int)


@dataclass(frozen=True)
class Fooling:
    """One fooled subject, measured.

    natural   what `behaviour` found on natural images that neither the gate nor c and k have seen
    units     one row for each unit and seed: `unit`, `seed`, the class (or unit) that the original subject sees in the
              visualization `before` and `after`, `decoy`, whether it is `fooled` (the original subject does not see
              the unit's own class, and sees the decoy; for pictures: no other target is closer), `leaks` in the ascent
    targets   one row for each target, seed and step: `correlation` and `ssim` with the target, `closest`: whether no
              other target is closer, `passed`: whether the gate takes it for natural; empty for a permutation
    pictures  "before" and "after" (units, 3, h, w) from the first seed; "frames before" and "frames after"
              (frames, 3, h, w) of the first unit; for targets "targets" and "after N" (targets, 3, h, w)
    """

    decoy: str
    layer: str
    levels: Levels
    gate: dict[str, float]
    natural: pd.DataFrame = field(repr=False)
    units: pd.DataFrame = field(repr=False)
    targets: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The numbers of `report.json`: accuracies, what explains their drop, units fooled, leaks, c and k."""
        sums = self.natural.drop(columns=["group", "change_passed"]).sum()
        n = sums["images"]
        by_unit = self.units.groupby("unit", sort=False)["fooled"].mean()
        found = {
            "gate": self.gate,
            "decoy": self.decoy,
            "layer": self.layer,
            "units": len(by_unit),
            "units_fooled": int((by_unit > 0.5).sum()),
            "visualizations_fooled": float(self.units["fooled"].mean()),
            "images": int(n),
            **{name: float(sums[name] / n) for name in ("top1_before", "top1_after", "top5_before", "top5_after")},
            "top1_drop": float((sums["top1_before"] - sums["top1_after"]) / n),
            "top1_drop_explained_by_fpr": float(sums["top1_lost"] / n),
            "false_positives": int(sums["positives"]),
            "max_logit_change_passed": float(self.natural["change_passed"].max()),
            "leak_rate": float(sums["leaks"] / (n * len(by_unit))),
            "leak_rate_along_ascent": float(self.units["leaks"].mean()),
            "c": self.levels.c,
            "k": self.levels.k,
            "margin": self.levels.margin,
        }
        if len(self.targets):
            by_step = self.targets.groupby("step")
            found["target_correlation"] = {str(s): float(part["correlation"].mean()) for s, part in by_step}
            found["target_ssim"] = {str(s): float(part["ssim"].mean()) for s, part in by_step}
            found["target_closest"] = {str(s): float(part["closest"].mean()) for s, part in by_step}
        return found

    def save(self, folder: Path) -> None:
        about = {"decoy": self.decoy, "layer": self.layer, "levels": asdict(self.levels), "gate": self.gate}
        sizes = {name: list(images.shape) for name, images in self.pictures.items()}
        (folder / "about.json").write_text(json.dumps(about | {"pictures": sizes}))
        for name in ("natural", "units", "targets"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False)
        for name, images in self.pictures.items():
            sheets.write(folder / f"{name.replace(' ', '-')}.webp", images, 85)

    def difference(self, again: Fooling) -> str:
        """ "" if accuracy, pictures fooled, leaks and correlations with targets are about the same."""
        return shares_differ(self._shares(), again._shares())

    def _shares(self) -> list[float]:
        found = self.summary()
        shares = [found[name] for name in ("top1_before", "top1_after", "visualizations_fooled", "leak_rate")]
        return shares + list(found.get("target_correlation", {}).values())

    @classmethod
    def load(cls, folder: Path) -> Fooling:
        about = json.loads((folder / "about.json").read_text())
        tables = {name: _table(folder / f"{name}.csv") for name in ("natural", "units", "targets")}
        pictures = {
            name: sheets.read(folder / f"{name.replace(' ', '-')}.webp", n, (height, width))
            for name, (n, _, height, width) in about["pictures"].items()
        }
        return cls(
            about["decoy"], about["layer"], Levels.read(about["levels"]), about["gate"], **tables, pictures=pictures
        )


def _table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


@shelved(2, Fooling)
def fooling(
    subject: Subject,
    natural: NaturalImages,
    test: NaturalImages,
    gate: TrainedGate,
    decoy: str | Sequence[str] | Tensor = "permute",
    *,
    kind: str = "aligned",
    layer: str | None = None,
    seeds: int = 3,
    steps: int = FRAMES[-1],
    progress: bool = True,
) -> Fooling:
    """Fool a subject and measure what comes of it.

    natural, test  natural images to choose c and k with, and to test with
    decoy          "permute", target images, or names of embedded photographs to be targets
    seeds          visualizations of each unit
    """
    subject.check_size(natural, test)
    if not isinstance(decoy, (str, Tensor)):
        decoy = photograph_targets(decoy, subject.preprocess.size[0])
    fooled = fool(subject, natural, decoy, gate=gate, layer=layer, kind=kind, progress=progress)
    layer = layer_of(fooled)
    units = subject.units(layer)
    frames = [frame for frame in FRAMES if frame <= steps]
    options: dict[str, Any] = {"steps": steps, "seeds": seeds, "snapshots": tuple(frames)}
    before, frames_before = _drawn(subject, units, options, progress)
    after = render(fooled, units, progress=progress, **options)
    pictures = {
        "before": before[:, 0],
        "after": after.images[:, 0],
        "frames before": frames_before,
        "frames after": _frames(after),
    }
    targets = pd.DataFrame()
    if isinstance(decoy, Tensor):
        shown = decoy[None] if decoy.dim() == 3 else decoy
        count, at = min(len(shown), len(units)), budget.within(TARGET_STEPS)
        climbed = after
        if not set(at) <= set(frames):
            climbed = render(fooled, units[:count], seeds=seeds, steps=at[-1], snapshots=at, progress=progress)
        on_the_way = {step: climbed.snapshots[step][:count] for step in at}
        targets = _against(fooled, shown[:count], on_the_way)
        pictures["targets"] = shown[:count]
        pictures |= {f"after {step}": images[:, 0] for step, images in on_the_way.items()}
    seen = [_seen(subject, layer, images, before) for images in (before, after.images)]
    module = circuit_of(fooled).decoy
    meant = module.order.tolist() if isinstance(module, Permutation) else [-1] * len(units)
    shows_decoy = seen[1] == np.array(meant)[:, None]
    if isinstance(decoy, Tensor):
        likeness = correlation(after.images.flatten(0, 1), shown).argmax(1).view(shows_decoy.shape).numpy()
        shows_decoy = likeness == np.arange(len(units))[:, None] % len(shown)
    leaks = _leaks(fooled, after.snapshots)
    rows = [
        {
            "unit": unit,
            "seed": j,
            "before": int(seen[0][i, j]),
            "after": int(seen[1][i, j]),
            "decoy": meant[i],
            "fooled": bool(seen[1][i, j] != i and shows_decoy[i, j]),
            "leaks": float(leaks[i, j]),
        }
        for i, unit in enumerate(units)
        for j in range(seeds)
    ]
    name = "permute" if isinstance(decoy, str) else kind
    table = behaviour(subject, fooled, test)
    return Fooling(name, layer, circuit_of(fooled).levels, gate.rates(), table, pd.DataFrame(rows), targets, pictures)


def _drawn(subject: Subject, units: list[str], options: dict[str, Any], progress: bool) -> tuple[Tensor, Tensor]:
    """The original's visualizations (units, seeds, 3, h, w) and `_frames`, drawn once for all that is made of it."""
    key = units, options
    if subject not in _DRAWN or _DRAWN[subject][0] != key:
        drawn = render(subject, units, progress=progress, **options)
        _DRAWN[subject] = key, (drawn.images, _frames(drawn))
    images, frames = _DRAWN[subject][1]
    return images.clone(), frames.clone()


def _frames(drawn: Visualizations) -> Tensor:
    """The first unit and seed along its ascent: (frames, 3, h, w)."""
    return torch.stack([images[0, 0] for images in drawn.snapshots.values()])


def _seen(subject: Subject, layer: str, images: Tensor, own: Tensor) -> np.ndarray:
    """(units, seeds): which unit of the original subject an image (units, seeds, 3, h, w) excites most.

    Logits are compared as they are, as the network's own decision; channels each by what its own visualizations `own`
    bring it to.
    """
    found = []
    for stack in (images, own):
        parts = subject.activations(stack.flatten(0, 1), [layer])
        found.append(torch.cat([unit_means(part[layer]) for part in parts]).cpu())
    values, scale = found
    if layer != subject.blocks[-1]:
        n, seeds = own.shape[:2]
        reached = scale.view(n, seeds, -1)[torch.arange(n), :, torch.arange(n)].amax(1)
        values = values / reached.clamp(min=1e-6)
    return values.argmax(1).view(images.shape[:2]).numpy()


def _leaks(fooled: Subject, snapshots: Mapping[int, Tensor]) -> np.ndarray:
    """(units, seeds): the share of snapshots for which the unit's own two branches are both open or both shut."""
    shares = []
    for images in snapshots.values():
        inside = taken_apart(fooled, images.flatten(0, 1))
        leak = (inside["B"] > 0) == (inside["C"] > 0)
        leak = leak.flatten(2).any(2) if leak.dim() > 2 else leak
        n, seeds = images.shape[:2]
        shares.append(leak.view(n, seeds, -1)[torch.arange(n), :, torch.arange(n)].float().cpu().numpy())
    return np.mean(shares, axis=0)


def _against(fooled: Subject, targets: Tensor, snapshots: Mapping[int, Tensor]) -> pd.DataFrame:
    rows = []
    for step, images in snapshots.items():
        for seed in range(images.shape[1]):
            table = correlation(images[:, seed], targets)
            alike = similarity(images[:, seed], targets)
            passed = taken_apart(fooled, images[:, seed])["e"] == 0
            for i in range(len(targets)):
                rows.append(
                    {
                        "target": i,
                        "seed": seed,
                        "step": step,
                        "correlation": float(table[i, i]),
                        "ssim": float(alike[i]),
                        "closest": bool(table[i].argmax() == i),
                        "passed": bool(passed[i]),
                    }
                )
    return pd.DataFrame(rows)
