"""The Python side of the adversary; tests/browser/ has what happens in a browser."""

from __future__ import annotations

import pytest

from featvis.errors import FeatvisError
from featvis.widgets import Adversary
from tests.conftest import ROOT


def test_what_is_set_is_kept():
    found = Adversary(kind="lipschitz", x=0.3, guess=0.7, slope=4.0, width=0.2, answered=True)
    state = found.get_state(["kind", "x", "guess", "slope", "width", "answered"])
    assert state == {"kind": "lipschitz", "x": 0.3, "guess": 0.7, "slope": 4.0, "width": 0.2, "answered": True}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "smooth"}, "there is no class 'smooth'"),
        ({"x": 1.2}, "x = 1.2 was given; it lies between 0 and 1"),
        ({"guess": -0.1}, "guess = -0.1 was given"),
        ({"slope": 1.0}, "between 1.818, which it takes"),
        ({"slope": 50.0}, "and 12"),
        ({"width": 0.0}, "between 0.02 and 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(given, words):
    with pytest.raises(FeatvisError, match=words) as caught:
        Adversary(**given)
    assert str(caught.value).endswith(".")


def test_the_module_survives_a_script_tag():
    for name in ("adversary.js", "adversary.css"):
        source = (ROOT / "featvis" / "widgets" / name).read_text()
        assert "</script" not in source.lower()
        assert "<!--" not in source
        assert "fetch(" not in source
