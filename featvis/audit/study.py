"""What the audit finds in networks whose truth is known: honest ones that it was not calibrated on, and attacked ones.

`python -m featvis.audit.study` trains the siblings, scores them and writes the calibration, `honest.csv`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featvis import sheets
from featvis.audit.audit import STEPS
from featvis.audit.calibration import TABLE, Calibration
from featvis.audit.cases import ATTACKS, attacked
from featvis.audit.checks import scored
from featvis.audit.evidence import Evidence, gather
from featvis.audit.sample import sampled
from featvis.fooling import TrainedGate
from featvis.images import NaturalImages, natural_images
from featvis.networks.photonet import SIZE
from featvis.networks.siblings import sibling
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject

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
HONEST = "no attack"  # "none" would be read as a missing value
KEPT = 4  # units whose pictures are kept for each attack
SAMPLE = 7  # seed of the sample of units


def images(n: int = NATURAL) -> NaturalImages:
    """The natural images of all that is done here."""
    return natural_images("photos", split="all", n=n, size=SIZE)


def honest_scores(subject: Subject, count: int, folder: Path | None = None) -> pd.DataFrame:
    """The scores of `count` units of an honest network, with its name as `network`."""
    evidence = gather(subject, images(), sampled(subject, count, seed=SAMPLE), steps=STEPS, folder=folder)
    frame = scored(evidence)
    frame.insert(0, "network", subject.name)
    return frame


@dataclass(frozen=True)
class Trials:
    """Scores of units that the calibration never saw.

    frame     one row a unit: `network`, `attack` (`HONEST` for none), `strength`, `unit`, `kind`, all scores
    natural   one row an attacked network: `network`, `attack`, `strength`, the `same` of `images` held-out crops whose
              top class is as before, how many are right `before` and `after`, and `shown`, the share of the attacked
              units whose visualization the network before the attack gives another class than that of their own
    pictures  "network/attack/strength" -> (units, 3, 3, h, w): the visualization before the attack, the one after it,
              and the strongest exemplar after it, of the first units
    """

    frame: pd.DataFrame = field(repr=False)
    natural: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def difference(self, again: Trials) -> str:
        """ "" if the attacked networks behave about the same on natural images."""
        columns = ["same", "before", "after"]
        old, new = ((t.natural[columns].div(t.natural["images"], axis=0)).to_numpy().ravel() for t in (self, again))
        return shares_differ(old.tolist(), new.tolist())

    def save(self, folder: Path) -> None:
        self.frame.to_csv(folder / "scores.csv", index=False, float_format="%.5g")
        self.natural.to_csv(folder / "natural.csv", index=False)
        every = torch.stack(list(self.pictures.values()))
        (folder / "about.json").write_text(json.dumps({"names": list(self.pictures), "shape": list(every.shape)}))
        sheets.write(folder / "pictures.webp", every.flatten(0, 2), 60)

    @classmethod
    def load(cls, folder: Path) -> Trials:
        about = json.loads((folder / "about.json").read_text())
        cases, units, kinds, _, height, width = about["shape"]
        tiles = sheets.read(folder / "pictures.webp", cases * units * kinds, (height, width))
        parts = tiles.unflatten(0, (cases, units, kinds))
        scores, natural = (pd.read_csv(folder / f"{name}.csv") for name in ("scores", "natural"))
        return cls(scores, natural, dict(zip(about["names"], parts, strict=True)))


@shelved(1, Trials, free=("siblings", "progress"))
def trials(
    subject: Subject,
    natural: NaturalImages,
    heldout: NaturalImages,
    gate: TrainedGate,
    *,
    others: Sequence[tuple[str, int]] = (("plain", 3),),
    siblings: Path = Path("siblings"),
    progress: bool = True,
) -> Trials:
    """Attack `subject` and some siblings in all ways, audit the attacked units, and audit honest networks.

    natural   images that attacks are made with; `heldout` those that behaviour is measured on
    gate      the fooling circuits' gate, for all networks
    others    siblings that are attacked too, at the standard strength of each attack
    siblings  the folder of the siblings' weights, where missing ones are trained
    """
    calibration = Calibration.read()
    rows, behaviour, pictures = [], [], {}
    tested = [subject, *(sibling(name, seed, siblings) for name, seed in TESTED)]
    for network in tqdm(tested, "honest", disable=not progress, leave=False):
        rows.append(honest_scores(network, UNITS["tested"]).assign(attack=HONEST, strength=0.0))
    cases = [(subject, attack, strength) for attack in ATTACKS for strength in attack.strengths]
    cases += [(sibling(*other, siblings), attack, attack.strengths[-1]) for other in others for attack in ATTACKS]
    for network, attack, strength in tqdm(cases, "attacked", disable=not progress, leave=False):
        changed, units = attacked(network, attack, strength, natural, gate, calibration)
        evidence = gather(changed, images(), units, steps=STEPS)
        rows.append(scored(evidence).assign(network=network.name, attack=attack.name, strength=strength))
        before = gather_pictures(network, units)
        key = {"network": network.name, "attack": attack.name, "strength": strength}
        behaviour.append(key | _behaviour(network, changed, heldout) | {"shown": _shown(network, before, evidence)})
        pictures["/".join(map(str, key.values()))] = torch.stack(
            [before[:KEPT], evidence.pictures["fourier"].images[:KEPT, 0], evidence.exemplars[:KEPT, 0]], 1
        )
    frame = pd.concat(rows, ignore_index=True)
    return Trials(frame, pd.DataFrame(behaviour), pictures)


def gather_pictures(subject: Subject, units: Sequence[str]) -> Tensor:
    """The standard visualization of each unit (units, 3, h, w), as an audit makes it first."""
    from featvis.visualize import render

    return render(subject, list(units), steps=STEPS, progress=False).images[:, 0]


def _shown(before: Subject, pictures: Tensor, after: Evidence) -> float:
    """The share of units whose picture the unattacked network sees as another class than their picture before."""
    seen = [torch.cat(list(before.logits(p))).argmax(1) for p in (pictures, after.pictures["fourier"].images[:, 0])]
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
