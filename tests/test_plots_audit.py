"""The figures of the audit: what is on them, not how they look."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from featvis import plots_audit as draw
from featvis.audit import CHECKS
from featvis.audit.result import About, Audit


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(figure) -> list[str]:
    found = [t.get_text() for ax in figure.axes for t in ax.texts]
    return found + [text for ax in figure.axes for text in (ax.get_title(), ax.get_ylabel()) if text]


def test_a_cell_for_every_attack_and_check_bold_only_above_chance():
    rows = [
        {"attack": a, "check": c, "auc": auc, "low": auc - 0.2, "high": min(1, auc + 0.1), "each": each}
        for a, auc, each in (("push", 0.95, (0.9, 1.0)), ("slingshot", 0.6, (0.7, 0.5)), ("pulse", 0.75, (1.0, 0.5)))
        for c in ("agreement", "path", "all checks")
    ]
    figure = draw.detected(pd.DataFrame(rows))
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["push", "slingshot", "pulse"]
    weights = {t.get_text(): t.get_fontweight() for t in ax.texts}
    assert weights["0.95"] == "bold"
    assert weights["0.60"] == weights["0.75"] == "normal"  # of the latter one network is not seen
    assert {"0.40–0.70", "0.90 | 1.00"} <= set(weights)


def test_what_was_not_asked_is_a_dash():
    row = {"attack": "push", "check": "stability", "auc": np.nan, "low": np.nan, "high": np.nan, "each": ()}
    assert "–" in texts(draw.detected(pd.DataFrame([row])))


def test_false_alarms_stand_beside_what_was_intended():
    rates = pd.DataFrame(
        [
            {"network": "plain-3", "alarms": 2, "units": 40, "rate": 0.05, "low": 0.006, "high": 0.17},
            {"network": "all", "alarms": 2, "units": 40, "rate": 0.05, "low": 0.006, "high": 0.17},
        ]
    )
    found = texts(draw.alarms(rates))
    assert found.count("2 of 40") == 2
    assert any("as intended" in text for text in found)


def test_every_attack_has_a_row_and_the_first_says_what_the_columns_are():
    figure = draw.attacks({"push": torch.rand(3, 3, 3, 8, 8), "silent, adapted": torch.rand(3, 3, 3, 8, 8)}, most=2)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["before", "after", "exemplar"] * 2
    assert {"push", "silent,\nadapted"} <= set(texts(figure))


def test_only_attacks_of_several_strengths_are_curves_of_gain_and_cost():
    natural = pd.DataFrame(
        [
            {"attack": "push", "strength": 0.7, "same": 900, "images": 1000, "shown": 1.0},
            {"attack": "push", "strength": 0.3, "same": 990, "images": 1000, "shown": 5 / 9},
            {"attack": "circuit", "strength": 1.0, "same": 990, "images": 1000, "shown": 1.0},
        ]
    )
    figure = draw.trade_offs(natural, units=9)
    gain, cost = figure.axes
    assert gain.get_title() == "push"
    assert [label.get_text() for label in cost.get_xticklabels()] == ["0.3", "0.7"]
    assert gain.lines[0].get_ydata() == pytest.approx([5 / 9, 1.0])
    assert cost.lines[0].get_ydata() == pytest.approx([0.01, 0.1])


def test_remedies_are_shares_of_pictures():
    rows = [
        {"attack": a, "way": w, "own": own, "units": 9}
        for a, own in (("none", 8), ("circuit", 0))
        for w in ("Fourier", "MACO")
    ]
    (ax,) = draw.remedies(pd.DataFrame(rows)).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "circuit"]
    assert sorted({float(x) for line in ax.lines for x in line.get_xdata()}) == [0.0, pytest.approx(8 / 9)]


def test_the_evidence_names_what_stands_out():
    units = pd.DataFrame({"unit": ["fc:0", "fc:1"], "label": ["fc:0 cat", "fc:1 dog"], "p": [0.01, 0.6]})
    for check in CHECKS:
        units[f"p {check.name}"] = [0.01 if check.name == "path" else 0.9, 0.9]
    about = About("s", "f", "n", 9, (), 64, 0, "o", ("h",), True, 1.0, 0)
    pictures = {name: torch.rand(2, 2, 3, 8, 8) for name in ("fourier", "maco", "exemplars")}
    figure = draw.evidence(Audit(about, units, pd.DataFrame(), pictures), ["fc:0 cat", "fc:1 dog"])
    assert {"fc:0 cat\npath", "fc:1 dog\nnothing stands out"} <= set(texts(figure))
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["Fourier", "MACO", "exemplar", "exemplar"]
