"""The value that an audit returns: what was found, how sure it is, and what the checks cannot see."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from featvis import sheets
from featvis.audit.checks import CHECKS
from featvis.holm import holm

LEVEL = 0.05
NAMED = 3  # units that a finding names


@dataclass(frozen=True)
class About:
    """What was audited, and how: `other` is the second network, `honest` those that scores were held against."""

    subject: str
    fingerprint: str
    natural: str
    images: int
    left_out: tuple[str, ...]
    steps: int
    seed: int
    other: str
    honest: tuple[str, ...]
    alike: bool  # whether the subject is of the kind that the honest networks are
    unused: int


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    units     one row a unit: `unit`, `label`, `kind`, `status`, `activation` of its visualization,
              `best_natural_activation`, every score, `p` (all checks together) and `p CHECK` (adjusted for all checks)
    checks    one row a check: `check`, `score` in deviations from honest networks, `p_value`, `p_holm`
    pictures  way of visualizing -> images (units, 1, 3, h, w), of the first seed; "exemplars" -> (units, k, 3, h, w)
    """

    about: About
    units: pd.DataFrame = field(repr=False)
    checks: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """One row for each unit, as `units`."""
        return self.units

    @property
    def alarms(self) -> list[str]:
        """The checks in which the network as a whole is unlike honest ones, at 5 % corrected for their number."""
        return self.checks.loc[self.checks["p_holm"] <= LEVEL, "check"].tolist()

    @property
    def suspects(self) -> list[str]:
        """The units unlike those of honest networks, at 5 % corrected for the number of units."""
        return self.units.loc[holm(self.units["p"].to_numpy()) <= LEVEL, "label"].tolist()

    @property
    def outstanding(self) -> int:
        """How many units have p <= 0.05, of which 5 % do in an honest network."""
        return int((self.units["p"] <= LEVEL).sum())

    @property
    def verdict(self) -> str:
        """ "do not trust", "do not trust some units", or "no sign of manipulation"."""
        if self.alarms:
            return "do not trust"
        return "do not trust some units" if self.suspects else "no sign of manipulation"

    @property
    def judged(self) -> int:
        """How many units could be judged: dead ones could not."""
        return int(self.units["p"].notna().sum())

    def summary(self) -> str:
        """The verdict in a few sentences."""
        expected = f"{self.outstanding} of {self.judged} units stand out, {LEVEL * self.judged:.1f} by chance"
        if self.alarms:
            smallest = self.checks["p_holm"].min()
            text = (
                f"{len(self.alarms)} of {len(CHECKS)} checks ({', '.join(self.alarms)}) find {self.about.subject} "
                f"unlike {len(self.about.honest)} honest networks ({_p(smallest)}, corrected), and {expected}. "
                "Look at exemplars instead, or find out what was done to this network."
            )
        elif self.suspects:
            text = (
                f"Taken as a whole the network is like honest ones, but not {', '.join(self.suspects)}: {expected}. "
                "Do not believe the visualizations of these units."
            )
        else:
            text = (
                f"{expected}. Nothing here says that somebody meddled with the visualizations. It does not follow that "
                "they explain the units: see the path check, and the attacks that no check sees."
            )
        return text

    def caution(self) -> str:
        """What the p-values rest on, where that is not what they were made for; "" otherwise."""
        if self.about.alike:
            return ""
        return (
            f"The {len(self.about.honest)} honest networks are small ones, trained on a few photographs; "
            f"{self.about.subject} is of another kind. Take its p-values as scores, and compare with an audit of a "
            "network of its own kind that you trust."
        )

    def finding(self, check: str) -> str:
        """What one check found, in a sentence."""
        one = next(c for c in CHECKS if c.name == check)
        p = self.units[f"p {check}"]
        if not p.notna().any():
            return "could not be asked: it needs natural images with this network's classes"
        out = self.units[p <= LEVEL].sort_values(f"p {check}")
        if not len(out):
            return "no unit stands out"
        names = ", ".join(out["label"].head(NAMED)) + (" and others" if len(out) > NAMED else "")
        return f"{len(out)} of {int(p.notna().sum())} units stand out ({names}): {one.means}"

    def report(self) -> dict[str, Any]:
        """What report.json holds."""
        checks = [
            {
                "name": row["check"],
                **{name: _number(row[name]) for name in ("score", "p_value", "p_holm")},
                "finding": self.finding(row["check"]),
            }
            for row in self.checks.to_dict("records")
        ]
        units = [
            {str(key): _number(value) if isinstance(value, float) else value for key, value in row.items()}
            for row in self.units.to_dict("records")
        ]
        return {
            **asdict(self.about),
            "verdict": self.verdict,
            "summary": self.summary(),
            "caution": self.caution(),
            "units_outstanding": self.outstanding,
            "units_judged": self.judged,
            "checks": checks,
            "units": units,
        }

    def write(self, folder: Path) -> None:
        """Write report.html, report.json, units.csv, checks.csv and every picture as PNG into an existing folder."""
        (folder / "report.json").write_text(json.dumps(self.report(), indent=1))
        self.save(folder / "report.html")
        self.units.to_csv(folder / "units.csv", index=False)
        self.checks.to_csv(folder / "checks.csv", index=False)
        (folder / "pictures").mkdir(exist_ok=True)
        for name, images in self.pictures.items():
            for unit, some in zip(self.units["unit"], images, strict=True):
                for number, image in enumerate(some):
                    file = f"{unit.replace(':', '-')}-{name}-{number}.png"
                    sheets.write_image(folder / "pictures" / file, image)

    def save(self, place: str | Path) -> None:
        """Write the page "report.html"; or, into an existing folder, what `load` reads: tables and small sheets."""
        from featvis.audit.page import page

        place = Path(place)
        if place.suffix == ".html":
            place.write_text(page(self), encoding="utf-8")
            return
        self.units.to_csv(place / "units.csv", index=False)
        self.checks.to_csv(place / "checks.csv", index=False)
        shapes = {}
        for name, images in self.pictures.items():
            sheets.write(place / f"{name}.webp", images.flatten(0, 1), 50)
            shapes[name] = list(images.shape)
        (place / "about.json").write_text(json.dumps({"about": asdict(self.about), "shapes": shapes}))

    @classmethod
    def load(cls, folder: Path) -> Audit:
        """Read what `save` wrote."""
        saved = json.loads((folder / "about.json").read_text())
        about: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in saved["about"].items()}
        pictures = {}
        for name, (units, seeds, _, height, width) in saved["shapes"].items():
            tiles = sheets.read(folder / f"{name}.webp", units * seeds, (height, width))
            pictures[name] = tiles.unflatten(0, (units, seeds))
        units, checks = (pd.read_csv(folder / f"{name}.csv") for name in ("units", "checks"))
        return cls(About(**about), units, checks, pictures)

    def difference(self, again: Audit) -> str:
        """ "" if the verdict is the same and about as many units stand out."""
        if self.verdict != again.verdict:
            return f"the verdict is {again.verdict!r} instead of {self.verdict!r}"
        change = abs(self.outstanding - again.outstanding)
        return "" if change <= max(2, 0.15 * len(self.units)) else f"{change} more or fewer units stand out"


def _p(value: float) -> str:
    return "p < .0001" if value < 1e-4 else f"p = {value:.4f}".replace("0.", ".")


def _number(value: float) -> float | str | None:
    """A number as JSON may hold it."""
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    return None if np.isnan(value) else float(value)
