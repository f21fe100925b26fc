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
from featvis.audit.calibration import LEVEL
from featvis.audit.checks import CHECKS

NAMED = 3  # units that a finding names


@dataclass(frozen=True)
class About:
    """What was audited, and how: `other` is the second network, `honest` those that scores were held against.

    `alike` says whether the subject is of their kind, `excess` how probable as many outstanding units are if it is
    honest, `unused` how many channels the natural images that were tried do not use.
    """

    subject: str
    fingerprint: str
    natural: str
    images: int
    left_out: tuple[str, ...]
    steps: int
    seed: int
    other: str
    honest: tuple[str, ...]
    alike: bool
    excess: float
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
        """The checks in which the network as a whole is unlike honest ones, at 5% corrected for their number."""
        return self.checks.loc[self.checks["p_holm"] <= LEVEL, "check"].tolist()

    @property
    def suspects(self) -> list[str]:
        """The units that stand out (p <= 0.05, all checks together), the oddest first."""
        return self.units[self.units["p"] <= LEVEL].sort_values("p", kind="stable")["label"].tolist()

    @property
    def outstanding(self) -> int:
        """How many units stand out, of which 5% do in an honest network."""
        return len(self.suspects)

    @property
    def verdict(self) -> str:
        """ "do not trust" (a check finds the whole network odd), "do not trust some units" (more of them stand out than
        in 19 of 20 honest networks), or "no sign of manipulation"; for a network of another kind than the honest ones
        "unlike the reference networks" in place of the first two."""
        if not self.alarms and self.about.excess > LEVEL:
            return "no sign of manipulation"
        if not self.about.alike:
            return "unlike the reference networks"
        return "do not trust" if self.alarms else "do not trust some units"

    @property
    def judged(self) -> int:
        """How many units could be judged: dead ones could not."""
        return int(self.units["p"].notna().sum())

    def summary(self) -> str:
        """The verdict in a few sentences."""
        units = f"{self.outstanding} of {self.judged} units stand out, {LEVEL * self.judged:.1f} would by chance"
        few = ", ".join(self.suspects[:NAMED]) + (" and others" if self.outstanding > NAMED else "")
        if self.alarms:
            smallest = self.checks["p_holm"].min()
            find = "finds" if len(self.alarms) == 1 else "find"
            text = (
                f"{len(self.alarms)} of {len(CHECKS)} checks ({', '.join(self.alarms)}) {find} {self.about.subject} "
                f"unlike {len(self.about.honest)} honest networks ({_p(smallest)}, corrected), and {units}. "
            )
            if not self.about.alike:
                return text + "It is of another kind than they are: this need not mean that somebody meddled with it."
            return text + "Look at exemplars instead, or find out what was done to this network."
        if self.about.excess <= LEVEL:
            return (
                f"As a whole the network is like honest ones, but {units} ({_p(self.about.excess)}): {few}. "
                "Do not believe the visualizations of these units."
            )
        odd = f" Have a look at {few}." if self.suspects else ""
        return (
            f"{units}.{odd} No check says that somebody meddled with the visualizations. It does not follow that they "
            "explain the units, nor that an attack which no check sees was not made."
        )

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
        missing = [name for name in one.scores if self.units[name].isna().all()]
        rest = f" (not asked: {', '.join(missing)})" if missing else ""
        if not p.notna().any():
            return f"nothing to judge{rest}"
        out = self.units[p <= LEVEL].sort_values(f"p {check}", kind="stable")
        if not len(out):
            return f"no unit stands out{rest}"
        names = ", ".join(out["label"].head(NAMED)) + (" and others" if len(out) > NAMED else "")
        return f"{len(out)} of {int(p.notna().sum())} units stand out ({names}): {one.means}{rest}"

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
