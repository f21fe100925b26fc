"""Networks to try the audit on: attacks of known strength, each on nine units of one layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from featvis.audit.calibration import Calibration
from featvis.audit.traces import filters
from featvis.exemplars import exemplars
from featvis.fooling import TrainedGate, branch_of, fool, silence
from featvis.fooling.push import prox_pulse, push
from featvis.fooling.silent import FACTOR, STRENGTHS
from featvis.fooling.slingshot import slingshot
from featvis.images import NaturalImages
from featvis.subjects import Subject

UNITS = 9
FEW = 8  # pictures of a decoy


class Attack(NamedTuple):
    """What is done to how many kinds of units, and the strengths to try, the standard one last."""

    name: str
    strength: str
    strengths: tuple[float, ...]
    hidden: bool  # whether it is aimed at hidden units instead of logits


ATTACKS = (
    Attack("circuit, permuted", "margin of the levels", (1.0,), False),
    Attack("circuit, images", "margin of the levels", (1.0,), False),
    Attack("silent units", "size of the silent filters", (FACTOR,), True),
    Attack("slingshot", "weight of the attack", (0.1, 0.3, 0.5), True),
    Attack("push", "weight of the attack", (0.003, 0.03, 0.3), True),
    Attack("prox pulse", "weight of the attack", (0.003, 0.03, 0.3), True),
    Attack("silent, adapted", "size of the silent filters", (0.0,), True),
)


def layer_for(subject: Subject, hidden: bool) -> str:
    """The layer that is attacked: the logits, or of the last block with 3 x 3 convolutions the one with most units,
    together with its norm and ReLU."""
    if not hidden:
        return subject.blocks[-1]
    modules = dict(subject.network.named_modules())
    every = [n for n in subject.layers if isinstance(modules[n], torch.nn.Conv2d) and modules[n].kernel_size == (3, 3)]
    block = every[-1].partition(".")[0]
    return max((n for n in every if n.partition(".")[0] == block), key=subject.channels).rpartition(".")[0]


def attacked_units(subject: Subject, layer: str) -> list[str]:
    """Nine units of a layer, evenly spread."""
    names = subject.units(layer)
    count = min(UNITS, len(names))
    return [names[i * len(names) // count] for i in range(count)]


def attacked(
    subject: Subject,
    attack: Attack,
    strength: float,
    natural: NaturalImages,
    gate: TrainedGate,
    calibration: Calibration,
    seed: int = 0,
) -> tuple[Subject, list[str]]:
    """The subject after an attack made with `natural` images, and the units that it was aimed at.

    A strength of 0 for silent units is the largest that an auditor of filters would let pass: 19 of 20 honest units
    have a part as large. The attacker knows the check and its calibration.
    """
    layer = layer_for(subject, attack.hidden)
    names, units = subject.units(layer), attacked_units(subject, layer)
    options: dict[str, Any] = {"progress": False}
    turned = [names[(i + len(names) // 2) % len(names)] for i in range(len(names))]  # whose pictures each unit shows
    if attack.name.startswith("circuit"):
        decoy = "permute" if attack.name.endswith("permuted") else _pictures(subject, natural, turned)
        return fool(subject, natural, decoy, gate=gate, margin=strength, **options), units
    if attack.name.startswith("silent"):
        factor = strength or _unremarkable(subject, natural, layer, units, calibration)
        return _silenced(subject, natural, layer, units, factor), units
    options |= {"weight": strength, "seed": seed}
    others = [turned[names.index(unit)] for unit in units]
    if attack.name == "slingshot":
        return slingshot(subject, natural, units, _pictures(subject, natural, others[:1])[0], **options), units
    decoys = _pictures(subject, natural, others[:1], FEW)
    change = push if attack.name == "push" else prox_pulse
    return change(subject, natural, units, decoys, **options), units


def _pictures(subject: Subject, natural: NaturalImages, units: list[str], k: int = 1) -> Tensor:
    """The k strongest exemplars of each unit (units * k, 3, h, w)."""
    best = exemplars(subject, natural, units, k=k, progress=False)
    return torch.cat([best.pictures(natural, unit)[:k] for unit in best.units])


def _silenced(subject: Subject, natural: NaturalImages, layer: str, units: list[str], factor: float) -> Subject:
    """Silent units that show themselves in an audit, whose pictures are made without redirected ReLUs."""
    made: dict[str, Any] = {"direction": "bridge", "strength": STRENGTHS["bridge"], "factor": factor, "progress": False}
    return silence(subject, natural, layer, units=units, **made)


def _unremarkable(
    subject: Subject, natural: NaturalImages, layer: str, units: list[str], calibration: Calibration
) -> float:
    """The factor that gives silent filters the size of the largest filter that 19 of 20 honest hidden units rest on."""
    table = calibration.table
    limit = table.loc[table["kind"] == "hidden", "filters"].quantile(0.95)
    every = torch.cat([size.square().mean(1).sqrt().log() for _, size in filters(subject.network)]).double()
    middle = every.median()
    deviation = 1.4826 * (every - middle).abs().median() + 1e-3
    plain = _silenced(subject, natural, layer, units, 1.0)
    fool_ = branch_of(plain).fool.weight.flatten(1).square().mean(1).sqrt()
    return float(torch.exp(middle + float(limit) * deviation) / fool_.max())
