"""A dozen trials to play in a page, with what machine observers answered."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featvis import sheets
from featvis.images import NaturalImages
from featvis.matching.machines import observers
from featvis.matching.stimuli import Stimuli
from featvis.matching.trials import Trial, design, revived
from featvis.shelf import shelved
from featvis.subjects import Subject

QUALITY = 72


@dataclass(frozen=True)
class Demo:
    """Trials in the order in which they are played.

    answers    trial -> machine observer -> its answer
    synthetic  UNIT#SEED -> the visualization (3, h, w) behind this key
    """

    trials: tuple[Trial, ...] = field(repr=False)
    answers: dict[str, dict[str, list[int]]] = field(repr=False)
    synthetic: dict[str, Tensor] = field(repr=False)

    def pictures(self, natural: NaturalImages) -> dict[str, Tensor]:
        """Every image of the trials by its key; natural ones are taken from where they come from."""
        keys = {key for t in self.trials for side in (t.left, t.right) for row in side for key in row}
        return {key: self.synthetic[key] if key in self.synthetic else natural.image(key) for key in sorted(keys)}

    def widget(self, natural: NaturalImages) -> dict[str, Any]:
        """What `featvis.widgets.Matching` shows: trials, answers of the machines, and pictures as data: URIs."""
        pictures = self.pictures(natural)
        number = {key: f"p{i}" for i, key in enumerate(pictures)}
        trials = []
        for t in self.trials:
            sides = {side: [[number[key] for key in row] for row in getattr(t, side)] for side in ("left", "right")}
            one = {"id": t.id, "part": t.part, "kind": t.kind, "n": t.n, "depth": t.depth, "units": list(t.units)}
            trials.append(one | sides | {"answer": list(t.answer), "machines": self.answers[t.id]})
        uris = {number[key]: data_uri(image) for key, image in pictures.items()}
        return {"trials": trials, "machines": list(next(iter(self.answers.values()))), "pictures": uris}

    def difference(self, again: Demo) -> str:
        """ "" if the same trials are played."""
        return "" if self.trials == again.trials else "other trials are played"

    def save(self, folder: Path) -> None:
        about: dict[str, Any] = {
            "keys": list(self.synthetic),
            "answers": self.answers,
            "trials": [asdict(t) for t in self.trials],
        }
        if self.synthetic:
            images = torch.stack(list(self.synthetic.values()))
            sheets.write(folder / "synthetic.webp", images, QUALITY)
            about["size"] = list(images.shape[-2:])
        (folder / "demo.json").write_text(json.dumps(about))

    @classmethod
    def load(cls, folder: Path) -> Demo:
        about = json.loads((folder / "demo.json").read_text())
        keys = about["keys"]
        images = sheets.read(folder / "synthetic.webp", len(keys), tuple(about["size"])) if keys else torch.empty(0)
        trials = tuple(revived(given) for given in about["trials"])
        return cls(trials, about["answers"], dict(zip(keys, images, strict=True)))


@shelved(2, Demo)
def demo(
    subject: Subject,
    natural: NaturalImages,
    stimuli: Stimuli,
    *,
    another: Subject | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Demo:
    """Both kinds of trial, one and three images in a row, early, middle and late: twelve trials in random order."""
    made = design(stimuli, lists=1, numbers=(1, 3), practice=0, catch=0, seed=seed)
    who = observers(subject, natural, made, stimuli, another)
    order = np.random.default_rng(seed).permutation(len(made.trials))
    trials = tuple(made.trials[i] for i in order)
    answers = {t.id: {name: [int(i) for i in one(t)] for name, one in who.items()} for t in trials}
    keys = {key for t in trials for row in t.right for key in row if "#" in key}
    return Demo(trials, answers, {key: stimuli.picture(key, natural) for key in sorted(keys)})


def data_uri(image: Tensor) -> str:
    """The image (3, h, w) as a small WebP file in a data: URI."""
    buffer = io.BytesIO()
    Image.fromarray(sheets.to_pixels(image[None])[0]).save(buffer, "WEBP", quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
