"""What the audit finds in networks whose truth is known: honest ones that it was not calibrated on, and attacked ones.

`python -m featvis.audit.study` trains the siblings, scores them and writes the calibration, `honest.csv`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis import budget, sheets
from featvis.audit.audit import STEPS
from featvis.audit.calibration import TABLE, Calibration, version
from featvis.audit.cases import ATTACKS, Attack, attacked, attacked_units, layer_for
from featvis.audit.checks import scored
from featvis.audit.evidence import gather
from featvis.audit.sample import sampled
from featvis.fooling import TrainedGate
from featvis.images import NaturalImages, natural_images
from featvis.networks.photonet import SIZE
from featvis.networks.siblings import sibling
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.visualize import Maco, accentuate, match_activations, mean_magnitude, render

# (architecture, seed): those that scores are calibrated on, and those that show whether that holds for others.
CALIBRATED = (
    ("photonet", 1),
    ("plain", 1),
    ("resnet", 1),
    ("shufflenet", 1),
    ("mobilenet", 1),
    ("photonet", 2),
    ("plain", 2),
    ("shufflenet", 2),
)
TESTED = (("photonet", 3), ("plain", 3), ("shufflenet", 3), ("mobilenet", 2))
UNITS = {"calibrated": 30, "tested": 40}
NATURAL = 2000  # photographs' crops, as the command line takes them
ATTACKING, JUDGED = 3400, 3400  # crops that attacks are made with, and those that behaviour is judged on
HONEST = "no attack"  # "none" would be read as a missing value
CONTROLS = (Attack("none, logits", "", (0.0,), False), Attack("none, hidden units", "", (0.0,), True))
KEPT = 3  # units whose pictures are kept for each attack
SAMPLE = 7  # seed of the sample of units
MADE = 3  # to be raised when an attack changes: finished results of earlier ones are not used again


def case_name(network: str, attack: str, strength: float) -> str:
    """What `Trials.pictures` calls an attacked network."""
    return f"{network}/{attack}/{strength:g}"


def images(n: int = NATURAL) -> NaturalImages:
    """The natural images of all that is done here."""
    return natural_images("photos", split="all", n=n, size=SIZE)


def honest_scores(subject: Subject, count: int) -> pd.DataFrame:
    """The scores of `count` units of an honest network, with its name as `network`."""
    evidence = gather(subject, images(), sampled(subject, count, seed=SAMPLE), steps=STEPS)
    frame = scored(evidence)
    frame.insert(0, "network", subject.name)
    return frame


@dataclass(frozen=True)
class Trials:
    """Scores of units that the calibration never saw.

    frame     one row a unit: `network`, `attack` (`HONEST` for none, or one of `CONTROLS` for none on the very units
              that attacks are aimed at), `strength`, `unit`, `kind`, all scores
    natural   one row an attacked network, or a control: `network`, `attack`, `strength`, the `same` of `images`
              held-out crops whose top class is as before, how many are right `before` and `after`, and `shown`, the
              share of the units whose visualization the network before the attack gives another class than that of
              their own (of a control: than that of their own after a little more training)
    remedies  one row for each attack on the logits of `subject`, or its control, and each `way` of visualizing: of
              `units`, how many give a picture that the network before the attack takes for the unit's `own` class
    pictures  "network/attack/strength" -> (units, 3, 3, h, w): the visualization before the attack, the one after it,
              and the strongest exemplar after it, of the first units
    """

    frame: pd.DataFrame = field(repr=False)
    natural: pd.DataFrame = field(repr=False)
    remedies: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def difference(self, again: Trials) -> str:
        """ "" if the attacked networks behave about the same on natural images."""
        columns = ["same", "before", "after"]
        old, new = ((t.natural[columns].div(t.natural["images"], axis=0)).to_numpy().ravel() for t in (self, again))
        return shares_differ(old.tolist(), new.tolist())

    def save(self, folder: Path) -> None:
        self.frame.to_csv(folder / "scores.csv", index=False, float_format="%.5g")
        self.natural.to_csv(folder / "natural.csv", index=False)
        self.remedies.to_csv(folder / "remedies.csv", index=False)
        every = torch.stack(list(self.pictures.values()))
        (folder / "about.json").write_text(json.dumps({"names": list(self.pictures), "shape": list(every.shape)}))
        sheets.write(folder / "pictures.webp", every.flatten(0, 2), 50)

    @classmethod
    def load(cls, folder: Path) -> Trials:
        about = json.loads((folder / "about.json").read_text())
        cases, units, kinds, _, height, width = about["shape"]
        tiles = sheets.read(folder / "pictures.webp", cases * units * kinds, (height, width))
        parts = tiles.unflatten(0, (cases, units, kinds))
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("scores", "natural", "remedies")}
        return cls(
            tables["scores"], tables["natural"], tables["remedies"], dict(zip(about["names"], parts, strict=True))
        )


@shelved(version() + MADE, Trials, free=("folder", "progress"))
def trials(
    subject: Subject,
    natural: NaturalImages,
    heldout: NaturalImages,
    gate: TrainedGate,
    *,
    others: Sequence[tuple[str, int]] = (("plain", 3),),
    folder: Path = Path("siblings"),
    progress: bool = True,
) -> Trials:
    """Attack `subject` and some siblings in all ways, audit the attacked units, and audit honest networks.

    natural  images that attacks are made with; `heldout` those that behaviour is measured on
    gate     the fooling circuits' gate, for all networks
    others   siblings that are attacked too, at the standard strength of each attack
    folder   of the siblings' weights, where missing ones are trained, and of finished parts: interrupted work goes on
    """
    calibration = Calibration.read()
    others = [(name, seed) for name, seed in others]
    made_of = (MADE, version(), budget.quick(), subject.fingerprint, natural.recipe, heldout.recipe, gate.recipe)
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()
    place = folder / f"trials-{key[:12]}"
    place.mkdir(parents=True, exist_ok=True)
    every = [subject, *(sibling(*one, folder) for one in dict.fromkeys([*TESTED, *others]))]
    networks = {network.name: network for network in every}
    jobs: list[tuple[str, Attack | None, float]] = [(network.name, None, 0.0) for network in every[: 1 + len(TESTED)]]
    every_attack = (*CONTROLS, *ATTACKS)
    jobs += [(subject.name, attack, strength) for attack in every_attack for strength in attack.strengths]
    jobs += [(f"{name}-{seed}", attack, attack.strengths[-1]) for name, seed in others for attack in every_attack]
    parts = []
    for name, attack, strength in tqdm(jobs, "trials", disable=not progress, leave=False):
        file = place / f"{name}-{attack.name if attack else HONEST}-{strength:g}.pt"
        if not file.is_file():
            if attack is None:
                part = _honest(networks[name])
            else:
                remedied = name == subject.name and not attack.hidden and strength == attack.strengths[-1]
                part = _attacked(networks[name], attack, strength, natural, heldout, gate, calibration, remedied)
            _keep(file, part)
        parts.append(_kept(file))
    pictures = {key: images[:KEPT] for part in parts for key, images in part.pictures.items()}
    tables = [
        pd.concat([getattr(part, name) for part in parts], ignore_index=True)
        for name in ("frame", "natural", "remedies")
    ]
    return Trials(tables[0], tables[1], tables[2], pictures)


def _keep(file: Path, part: Trials) -> None:
    tables = {
        name: getattr(part, name).to_json(orient="records", double_precision=15)
        for name in ("frame", "natural", "remedies")
    }
    unfinished = file.with_suffix(".tmp")
    torch.save({"tables": tables, "pictures": part.pictures}, unfinished)
    unfinished.replace(file)


def _kept(file: Path) -> Trials:
    saved = torch.load(file, weights_only=True)
    tables = [
        pd.read_json(io.StringIO(saved["tables"][name]), orient="records", precise_float=True)
        for name in ("frame", "natural", "remedies")
    ]
    return Trials(tables[0], tables[1], tables[2], saved["pictures"])


def _honest(network: Subject) -> Trials:
    frame = honest_scores(network, UNITS["tested"]).assign(attack=HONEST, strength=0.0)
    return Trials(frame, pd.DataFrame(), pd.DataFrame(), {})


def _attacked(
    network: Subject,
    attack: Attack,
    strength: float,
    natural: NaturalImages,
    heldout: NaturalImages,
    gate: TrainedGate,
    calibration: Calibration,
    remedied: bool,
) -> Trials:
    if attack in CONTROLS:
        changed, units = network, attacked_units(network, layer_for(network, attack.hidden))
    else:
        changed, units = attacked(network, attack, strength, natural, gate, calibration)
    evidence = gather(changed, images(), units, steps=STEPS)
    key: dict[str, Any] = {"network": network.name, "attack": attack.name, "strength": strength}
    before = render(network, units, steps=STEPS, progress=False).images[:, 0]
    compared = "tuned" if attack in CONTROLS else "fourier"
    shown = _shown(network, before, evidence.pictures[compared].images[:, 0])
    row = key | {**_behaviour(network, changed, heldout), "shown": shown}
    after = evidence.pictures["fourier"].images[:KEPT, 0]
    pictures = torch.stack([before[:KEPT], after, evidence.exemplars[:KEPT, 0]], 1)
    ways = _remedies(network, changed, units, attack.name) if remedied else []
    frame = scored(evidence).assign(**key)
    kept = {} if attack in CONTROLS else {case_name(**key): pictures}
    return Trials(frame, pd.DataFrame([row]), pd.DataFrame(ways), kept)


def _remedies(before: Subject, after: Subject, units: list[str], attack: str) -> list[dict[str, Any]]:
    """How often each way of visualizing logits of `after` shows what `before` takes for their own class."""
    natural = images()
    options: dict[str, Any] = {"steps": STEPS, "progress": False}
    found = {
        "Fourier": render(after, units, **options),
        "MACO": render(after, units, parameterization=Maco(mean_magnitude(natural)), **options),
        "accentuation": accentuate(after, natural, units, **options),
        "activation matching": match_activations(after, natural, units, **options),
    }
    own = torch.tensor([before.unit(unit).index for unit in units])
    rows = []
    for way, result in found.items():
        seen = torch.cat(list(before.logits(result.images[:, 0]))).argmax(1).cpu()
        rows.append({"attack": attack, "way": way, "own": int((seen == own).sum()), "units": len(units)})
    return rows


def _shown(before: Subject, pictures: Tensor, after: Tensor) -> float:
    """The share of units whose picture the unattacked network sees as another class than their picture before."""
    seen = [torch.cat(list(before.logits(images))).argmax(1) for images in (pictures, after)]
    return float((seen[0] != seen[1]).double().mean())


def _behaviour(before: Subject, after: Subject, heldout: NaturalImages) -> dict[str, int]:
    counts = np.zeros(4, int)
    for batch, labels, _ in heldout.batches(64):
        first, second = (next(subject.logits([batch])).argmax(1).cpu() for subject in (before, after))
        for i, hit in enumerate((first == second, first == labels, second == labels)):
            counts[i] += int(hit.sum())
        counts[3] += len(batch)
    return dict(zip(("same", "before", "after", "images"), counts.tolist(), strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Write the calibration anew: `python -m featvis.audit.study [--siblings FOLDER] [--out FILE]`."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m featvis.audit.study", description="Calibrate the audit again.")
    parser.add_argument("--siblings", type=Path, default=Path("siblings"), help="folder of the siblings' weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(TABLE))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    parts = []
    for name, seed in tqdm(CALIBRATED, "calibrate"):
        file = options.siblings / f"{name}-{seed}-scores.csv"
        if not file.is_file():  # what is finished is kept
            honest_scores(sibling(name, seed, options.siblings), UNITS["calibrated"]).to_csv(file, index=False)
        parts.append(pd.read_csv(file))
    pd.concat(parts, ignore_index=True).to_csv(options.out, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
