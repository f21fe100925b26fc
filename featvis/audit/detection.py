"""Who finds what: false alarms on honest networks, and attacks against checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor

from featvis import sheets
from featvis.audit.calibration import LEVEL, Calibration
from featvis.audit.cases import ATTACKS
from featvis.audit.checks import CHECKS
from featvis.audit.study import CONTROLS, HONEST, KEPT, Trials, case_name

RESAMPLES = 1000
TOGETHER = "all checks"
TILE = 8  # pictures in a row of the widget's sheet


def false_alarms(trials: Trials, calibration: Calibration) -> pd.DataFrame:
    """How many units of honest networks stand out: one row a network, and `all` of them.

    `alarms` of `units` have p <= 0.05, all checks together; `rate` with its 95% interval (`low`, `high`: Clopper and
    Pearson 1934, which takes units for independent); `odd`, the checks that find the network as a whole unlike honest
    ones; `excess`, how probable as many alarms are.
    """
    honest = trials.frame[trials.frame["attack"] == HONEST]
    rows: list[dict[str, Any]] = []
    for network, part in honest.groupby("network", sort=False):
        p = calibration.units(part)["p"].dropna()
        checks = calibration.checks(part)
        names = ", ".join(checks.loc[checks["p_holm"] <= LEVEL, "check"])
        counts = {"alarms": int((p <= LEVEL).sum()), "units": len(p)}
        rows.append({"network": network, **counts, "odd": names, "excess": calibration.excess(p.to_numpy())})
    whole = {key: sum(row[key] for row in rows) for key in ("alarms", "units")}
    rows.append({"network": "all", **whole, "odd": "", "excess": np.nan})
    bounds = [binomtest(row["alarms"], row["units"]).proportion_ci(method="exact") for row in rows]
    frame = pd.DataFrame(rows)
    frame.insert(3, "rate", frame["alarms"] / frame["units"])
    frame.insert(4, "low", [b.low for b in bounds])
    frame.insert(5, "high", [b.high for b in bounds])
    return frame


def detection(trials: Trials, calibration: Calibration) -> pd.DataFrame:
    """How well each check tells attacked units from the very same units before: the area under the ROC curve.

    One row for each attack, at its standard strength, and each check, and all together: `auc`, the mean of the areas in
    each network apart (`each`, in the order of `trials.natural`; nan where it has no score), as only units of one
    network were the same before; its 95% percentile bootstrap over units of either group in each network (`low`,
    `high`), how many units there are of each group (`units`), and the share of attacked (`found`) and of unattacked
    ones (`alarms`) with p <= 0.05. Two networks stand for no others: the intervals are of these networks, and where all
    units agree they have no width at all.
    """
    rng, rows = np.random.default_rng(0), []
    standard = {attack.name: attack for attack in ATTACKS}
    for name, attack in standard.items():
        strength = attack.strengths[-1]
        odd_units = trials.frame[(trials.frame["attack"] == name) & (trials.frame["strength"] == strength)]
        if not len(odd_units):
            continue
        control = next(one.name for one in CONTROLS if one.hidden == attack.hidden)
        before = trials.frame[trials.frame["attack"] == control]
        before = before[before["network"].isin(odd_units["network"].unique())]
        odd, usual = (_oddness(group, calibration) for group in (odd_units, before))
        p = [calibration.units(group) for group in (odd_units, before)]
        for check in odd.columns:
            groups = [
                [
                    one.loc[of["network"] == network, check].dropna().to_numpy()
                    for one, of in ((odd, odd_units), (usual, before))
                ]
                for network in trials.natural["network"].unique()
            ]
            column = "p" if check == TOGETHER else f"p {check}"
            shares = {
                key: float((one[column] <= LEVEL).mean()) for key, one in zip(("found", "alarms"), p, strict=True)
            }
            units = sum(len(a) for a, _ in groups)
            rows.append({"attack": name, "check": check, "units": units, **shares, **_area(groups, rng)})
    return pd.DataFrame(rows)


def _oddness(scores: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    tails = calibration.tails(scores).apply(np.log10).mul(-1)
    return tails.assign(**{TOGETHER: tails.max(axis=1)})


def _area(groups: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> dict[str, Any]:
    """The share of pairs (a, b) of a network in which a is larger, ties by half: the mean over networks."""
    each, draws = [], []
    for a, b in groups:
        if not len(a) or not len(b):
            each.append(np.nan)
            continue
        larger = (a[:, None] > b) + 0.5 * (a[:, None] == b)
        drawn = [rng.multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES) / len(x) for x in (a, b)]
        each.append(float(larger.mean()))
        draws.append(((drawn[0] @ larger) * drawn[1]).sum(1))
    if not draws:
        return {"auc": np.nan, "low": np.nan, "high": np.nan, "each": tuple(each)}
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return {"auc": float(np.nanmean(each)), "low": float(low), "high": float(high), "each": tuple(each)}


def verdicts(trials: Trials, calibration: Calibration) -> pd.DataFrame:
    """What an audit of the attacked units says, and of the same units without an attack.

    One row for each network, attack and strength: the behaviour on natural images and `shown` from `Trials.natural`,
    the share `found` of units that stand out and how probable as many are (`excess`), the corrected p of every check,
    and the `alarms`.
    """
    rows = []
    for row in trials.natural.to_dict("records"):
        part = _case(trials, row["network"], row["attack"], row["strength"])
        checks = calibration.checks(part)
        alarms = checks.loc[checks["p_holm"] <= LEVEL, "check"].tolist()
        found = calibration.units(part)["p"]
        rows.append(
            {
                **{name: row[name] for name in ("network", "attack", "strength")},
                "same": row["same"] / row["images"],
                "accuracy change": (row["after"] - row["before"]) / row["images"],
                "shown": row["shown"],
                "found": float((found <= LEVEL).mean()),
                "excess": calibration.excess(found.to_numpy()),
                "alarms": ", ".join(alarms),
                **dict(zip(checks["check"], checks["p_holm"], strict=True)),
            }
        )
    return pd.DataFrame(rows)


def _case(trials: Trials, network: str, attack: str, strength: float) -> pd.DataFrame:
    f = trials.frame
    return f[(f["network"] == network) & (f["attack"] == attack) & np.isclose(f["strength"], strength)]


def playground(trials: Trials, calibration: Calibration, network: str, label: Mapping[str, str]) -> dict[str, Any]:
    """The data of `widgets.Auditor`, of the attacks on one network; `label` names its units."""
    tiles: list[Tensor] = []
    attacks = []
    own = trials.natural[trials.natural["network"] == network].to_dict("records")
    for attack in ATTACKS:
        cases: list[dict[str, Any]] = []
        for row in own:
            if row["attack"] != attack.name:
                continue
            part = _case(trials, network, attack.name, row["strength"]).reset_index(drop=True)
            p, pictures = calibration.units(part), trials.pictures[case_name(network, attack.name, row["strength"])]
            units = []
            for i in range(min(KEPT, len(part))):
                units.append(
                    {
                        "name": label.get(part["unit"][i], part["unit"][i]),
                        "p": [_plain(p[f"p {check.name}"][i]) for check in CHECKS],
                        "all": _plain(p["p"][i]),
                        "pictures": list(range(len(tiles), len(tiles) + 3)),
                    }
                )
                tiles += list(pictures[i])
            cases.append({**{name: row[name] for name in ("strength", "same", "images")}, "units": units})
        if cases:
            cases.sort(key=lambda case: case["strength"])
            attacks.append({"name": attack.name, "strength": attack.strength, "cases": cases})
    return {
        "checks": [check.name for check in CHECKS],
        "level": LEVEL,
        "smallest": 1 / (1 + len(calibration.honest)),
        "sheet": sheets.uri(torch.stack(tiles), TILE),
        "columns": TILE,
        "tiles": len(tiles),
        "attacks": attacks,
    }


def _plain(p: float) -> float | None:
    return None if np.isnan(p) else float(p)
