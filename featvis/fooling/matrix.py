"""Attack against method: one fooled subject, visualized in ways that its gate was not trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from featvis import sheets
from featvis.exemplars import exemplars
from featvis.fooling.circuit import circuit_of, fool, layer_of
from featvis.fooling.decoys import Permutation
from featvis.fooling.gate import TrainedGate
from featvis.images import NaturalImages
from featvis.shelf import shares_differ, shelved
from featvis.subjects import Subject
from featvis.visualize import Crops, Fourier, Maco, Nothing, Pixels, mean_magnitude, render

KEPT = 6  # units whose pictures are kept

# Ascent takes steps of the optimizer's rate; a tenth of it from an exemplar stays near the natural image.
METHODS = (
    "Fourier (default)",
    "pixels",
    "MACO",
    "crops and noise",
    "no transform",
    "4 x rate",
    "rate / 4",
    "from an exemplar",
    "from an exemplar, rate / 10",
)


@dataclass(frozen=True)
class Matrix:
    """What each method of visualization finds in a fooled subject.

    frame     one row for each method: `n` pictures of the fooled subject, and the shares that the gate caught
              (`caught`), that the original subject gives the decoy's class (`decoy`), and the unit's own (`truth`);
              `untouched` is the share of the original's own pictures, drawn alike, that it gives the unit's own class
    pictures  method -> images (units, 3, h, w) of the fooled subject's first units
    """

    frame: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def difference(self, again: Matrix) -> str:
        """ "" if the shares are about the same; each is of few pictures."""
        old, new = (
            m.frame[["caught", "decoy", "truth", "untouched"]].to_numpy().ravel().tolist() for m in (self, again)
        )
        return shares_differ(old, new, allowed=0.2)

    def save(self, folder: Path) -> None:
        self.frame.to_csv(folder / "matrix.csv", index=False)
        every = torch.cat(list(self.pictures.values()))
        (folder / "about.json").write_text(json.dumps({"shape": list(every.shape), "methods": list(self.pictures)}))
        sheets.write(folder / "pictures.webp", every, 80)

    @classmethod
    def load(cls, folder: Path) -> Matrix:
        about = json.loads((folder / "about.json").read_text())
        n, _, height, width = about["shape"]
        parts = sheets.read(folder / "pictures.webp", n, (height, width)).chunk(len(about["methods"]))
        return cls(pd.read_csv(folder / "matrix.csv"), dict(zip(about["methods"], parts, strict=True)))


@shelved(5, Matrix)
def attack_matrix(
    subject: Subject,
    natural: NaturalImages,
    test: NaturalImages,
    gate: TrainedGate,
    *,
    steps: int = 128,
    progress: bool = True,
) -> Matrix:
    """Permute all logits of a subject, and visualize every one, of both subjects, with each of `METHODS`.

    natural, test  natural images to choose c and k with, and those whose exemplars are starts: other images than the
                   gate was trained on, as an auditor's would be
    """
    fooled = fool(subject, natural, gate=gate, progress=progress)
    layer, decoy = layer_of(fooled), circuit_of(fooled).decoy
    assert isinstance(decoy, Permutation)
    units = subject.units(layer)
    best = exemplars(subject, test, units, k=1, progress=progress)
    starts = torch.stack([best.pictures(test, unit)[0] for unit in units])
    maco = Maco(mean_magnitude(natural))
    rate = Fourier().rate
    ways: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
    ways |= {
        "pixels": {"parameterization": Pixels()},
        "MACO": {"parameterization": maco},
        "crops and noise": {"transform": Crops(views=4)},  # each view costs as much as a whole other row
        "no transform": {"transform": Nothing()},
        "4 x rate": {"rate": 4 * rate},
        "rate / 4": {"rate": rate / 4},
        "from an exemplar": {"start": starts},
        "from an exemplar, rate / 10": {"start": starts, "rate": rate / 10},
    }
    rows, pictures = [], {}
    own = torch.arange(len(units))
    for method, options in ways.items():
        original, images = (
            render(which, units, steps=steps, progress=progress, **options).images[:, 0] for which in (subject, fooled)
        )
        usual, seen = (torch.cat(list(subject.logits(shown))).argmax(1).cpu() for shown in (original, images))
        with torch.inference_mode():
            caught = gate.network(subject.preprocess(images))[:, 0] <= 0
        rows.append(
            {
                "method": method,
                "n": len(units),
                "caught": float(caught.float().mean()),
                "decoy": float((seen == decoy.order.cpu()).float().mean()),
                "truth": float((seen == own).float().mean()),
                "untouched": float((usual == own).float().mean()),
            }
        )
        pictures[method] = images[:KEPT]
    return Matrix(pd.DataFrame(rows), pictures)
