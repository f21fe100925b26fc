"""The Python side of the widgets; tests/browser/ has what happens in a browser."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featvis.errors import FeatvisError
from featvis.visualize import Affine, Nothing
from featvis.widgets import Explorer, Knobs, Switch
from featvis.widgets.knobs import moments
from tests.browser import mock
from tests.browser.fakes import SUBJECT, FakeRender
from tests.conftest import ROOT

SMALL = {"conv1": 5, "fc": 17}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Path]]:
    return mock.make(tmp_path_factory.mktemp("small"), SMALL)


# ---------------------------------------------------------------- the explorer's Python side


def sent_by(widget: Any) -> list[tuple[Any, Any]]:
    """Collect what the widget sends to its browser side from now on."""
    sent: list[tuple[Any, Any]] = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    return sent


def test_the_kernel_serves_known_sheets_and_refuses_others(small):
    data, files = small
    explorer = Explorer(data, files=files)
    sent = sent_by(explorer)
    explorer._handle_custom_msg({"want": "max-fc.webp"}, [])
    explorer._handle_custom_msg({"want": "../../etc/passwd"}, [])
    explorer._handle_custom_msg({"want": ["max-fc.webp"]}, [])
    explorer._handle_custom_msg("max-fc.webp", [])
    assert sent[0] == ({"sheet": "max-fc.webp"}, [files["max-fc.webp"].read_bytes()])
    assert [content["error"] for content, _ in sent[1:]] == [
        "'../../etc/passwd' is not one of this explorer's sheets",
        "['max-fc.webp'] is not one of this explorer's sheets",
        "None is not one of this explorer's sheets",
    ]
    assert not any(buffers for _, buffers in sent[1:])


def test_a_sheet_that_vanished_is_reported(small, tmp_path):
    explorer = Explorer(small[0], files={"max-fc.webp": tmp_path / "gone.webp"})
    sent = sent_by(explorer)
    explorer._handle_custom_msg({"want": "max-fc.webp"}, [])
    assert sent == [({"sheet": "max-fc.webp", "error": "max-fc.webp cannot be read: No such file or directory"}, None)]


def test_explorer_traits_round_trip(small):
    data, _ = small
    explorer = Explorer(data, base="sheets/", unit="fc:coins")
    state = explorer.get_state(["data", "base", "unit"])
    assert json.loads(json.dumps(state)) == {"data": data, "base": "sheets/", "unit": "fc:12"}
    explorer.set_state({"unit": "conv1:4"})
    assert explorer.unit == "conv1:4"
    assert Explorer(data).unit == "conv1:0"


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ("conv9:1", "'conv9:1' is not in this explorer; its layers are conv1, fc."),
        ("fc:17", "'fc:17' is not in this explorer: fc has units 0 to 16."),
        ("fc:-1", "'fc:-1' is not in this explorer: fc has units 0 to 16."),
        ("coins", "'coins' is not in this explorer; its layers are conv1, fc."),
    ],
)
def test_a_unit_that_is_not_there_is_named(small, unit, sentence):
    with pytest.raises(FeatvisError) as caught:
        Explorer(small[0], unit=unit)
    assert str(caught.value) == sentence


def test_data_is_checked_and_made_fit_for_json(small):
    with pytest.raises(FeatvisError, match="no layer to explore"):
        Explorer({"layers": []})
    data = json.loads(json.dumps(small[0]))
    data["layers"][0]["rows"][0]["a"] = [float("nan"), float("inf")]
    assert Explorer(data).data["layers"][0]["rows"][0]["a"] == [None, None]
    data["layers"][0]["rows"].pop()
    with pytest.raises(FeatvisError, match="conv1 has 5 units, but 4 rows"):
        Explorer(data)


def test_modules_survive_a_script_tag():
    for name in ("explorer.js", "explorer.css", "knobs.js", "knobs.css", "switch.js", "switch.css"):
        source = (ROOT / "featvis" / "widgets" / name).read_text()
        assert "</script" not in source.lower()
        assert "<!--" not in source
        assert "fetch(" not in source


# ---------------------------------------------------------------- the knobs' Python side


def finished(knobs: Knobs) -> Knobs:
    knobs.run()
    knobs.wait(20)
    assert not knobs.running
    return knobs


def test_a_run_shows_frames_and_keeps_the_result():
    render = FakeRender()
    knobs = Knobs(SUBJECT, render=render, steps=100, seed=3, jitter=6.0, rate=0.1)
    assert knobs.units == ["fc:cat", "fc:coins", "conv1:0"]
    frames: list[int] = []
    knobs.observe(lambda change: frames.append(len(change.new)), "frame")
    finished(knobs)
    assert (knobs.result, knobs.message, knobs.step, knobs.total, knobs.shown) == ("done", "", 100, 100, "fc:1 coins")
    assert len(frames) >= 50
    assert np.asarray(Image.open(io.BytesIO(knobs.frame))).mean() > 250
    steps, values = zip(*knobs.curve, strict=True)
    assert steps == moments(100)
    assert values == pytest.approx([step / 10 for step in steps], rel=1e-5)
    assert render.asked["transform"] == Affine((4.0, 2.0), 0.1, 10.0)
    assert (render.asked["seeds"], render.asked["rate"]) == ((3,), 0.1)


def test_transforms_can_be_turned_off_and_belong_to_maco():
    render = FakeRender()
    finished(Knobs(SUBJECT, render=render, steps=2, jitter=0.0, scale=0.0, degrees=0.0))
    assert render.asked["transform"] == Nothing()
    finished(Knobs(SUBJECT, render=render, steps=2, parameterization="maco"))
    assert render.asked["transform"] is None


def test_stop_ends_the_run_at_the_next_frame_and_the_kernel_stays_free():
    knobs = Knobs(SUBJECT, render=FakeRender(0.01), steps=3000)
    seen = threading.Event()
    knobs.observe(lambda _: seen.set(), "step")
    started = time.monotonic()
    knobs._handle_custom_msg({"do": "run", "knobs": {}}, [])
    assert time.monotonic() - started < 1
    knobs.run()  # one at a time: this changes nothing
    assert seen.wait(10)
    assert knobs.running
    knobs._handle_custom_msg({"do": "stop"}, [])
    knobs.wait(20)
    assert (knobs.result, knobs.message) == ("stopped", f"Stopped at step {knobs.step}.")
    assert knobs.step < 300
    finished(knobs.set_trait("steps", 3) or knobs)  # and it runs again
    assert (knobs.result, knobs.message) == ("done", "")


def test_the_knobs_travel_with_the_order_to_run():
    render = FakeRender()
    knobs = Knobs(SUBJECT, render=render)
    knobs._handle_custom_msg({"do": "run", "knobs": {"unit": "fc:cat", "steps": 3, "result": "not a knob"}}, [])
    knobs.wait(20)
    assert (knobs.shown, knobs.total, knobs.result) == ("fc:0 cat", 3, "done")
    knobs._handle_custom_msg({"do": "run", "knobs": {"steps": "many"}}, [])
    assert not knobs.running
    assert "'steps' trait" in knobs.message


def test_what_goes_wrong_is_one_sentence():
    knobs = finished(Knobs(SUBJECT, "fc:unicorn", render=FakeRender()))
    assert knobs.message == "'fc:unicorn' names no unit."

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory\nand a long tail")

    assert finished(Knobs(SUBJECT, render=broken)).message == "The run failed (RuntimeError: out of memory)."


@pytest.mark.parametrize("steps", [1, 2, 7, 60, 4096])
def test_moments_lie_in_the_run_and_end_it(steps):
    found = moments(steps)
    assert found[0] == 1
    assert found[-1] == steps
    assert len(set(found)) == len(found) <= 66


# ---------------------------------------------------------------- the switch's Python side


def test_switch_traits_round_trip():
    data = mock.circuit()
    switch = Switch(data, t=0.5, pair=1)
    assert json.loads(json.dumps(switch.get_state(["data", "t", "pair"]))) == {"data": data, "t": 0.5, "pair": 1}
    switch.set_state({"t": 0.25, "pair": 0})
    assert (switch.t, switch.pair) == (0.25, 0)
    arrays = [pair | {"F": np.float32(pair["F"])} for pair in data["pairs"]]
    json.dumps(Switch(data | {"pairs": arrays}).data)  # a result's arrays need no conversion


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"A": [0.0] * 40}, "coins -> moon has 41 blend weights t, but 40 values of A."),
        ({"t": [0.0] * 41}, "the blend weights t of coins -> moon do not ascend from 0 to 1."),
        (
            {"t": [0.1 + 0.9 * i / 40 for i in range(41)]},
            "the blend weights t of coins -> moon do not ascend from 0 to 1.",
        ),
        ({"F": [float("nan")] * 41}, "coins -> moon has a value of F that is not a finite number."),
        ({"e": [0.5] * 41}, "coins -> moon has a value of e that is neither 0 (natural) nor 1 (visualization)."),
    ],
)
def test_switch_names_what_does_not_fit(change, sentence):
    data = mock.circuit()
    data["pairs"][0] |= change
    with pytest.raises(FeatvisError) as caught:
        Switch(data)
    assert str(caught.value) == sentence


def test_switch_needs_pairs_and_stays_in_them():
    data = mock.circuit()
    for nothing in ({}, {"pairs": []}):
        with pytest.raises(FeatvisError, match="there is no pair of pictures to blend"):
            Switch(nothing)
    with pytest.raises(FeatvisError, match=r"the circuit lacks its constant c and k\."):
        Switch({"pairs": data["pairs"]})
    with pytest.raises(FeatvisError, match=r"t = 1.5 is no share of the visualization: it goes from 0 to 1\."):
        Switch(data, t=1.5)
    with pytest.raises(FeatvisError, match=r"there is no pair 2: there are pairs 0 to 1\."):
        Switch(data, pair=2)
    del data["pairs"][0]["score"], data["pairs"][0]["unit"]
    with pytest.raises(FeatvisError, match=r"coins -> moon lacks unit, score\."):
        Switch(data)


def test_no_class_of_a_widget_is_styled_by_the_page() -> None:
    """Names such as "card" and "progress" belong to Bootstrap, which painted parts of the game white on a dark page."""
    theme = importlib.util.find_spec("pydata_sphinx_theme")
    if theme is None or theme.origin is None:
        pytest.skip("THE CLASSES OF WIDGETS ARE NOT CHECKED: the book's theme is not installed")
    sheets = list((Path(theme.origin).parent / "theme").rglob("*.css"))
    styled = {name for s in sheets for name in re.findall(r"(?:^|[},])\s*\.([a-zA-Z][\w-]*)\s*(?=[,{])", s.read_text())}
    assert {"card", "progress"} <= styled
    scripts = [file for file in (ROOT / "featvis").rglob("*.js") if not file.name.startswith("jspsych")]
    assert {"explorer.js", "matching.js"} <= {file.name for file in scripts}
    for file in scripts:
        texts = re.findall(r'(?:class: |classList\.\w+\()"([^"\n]*)"', file.read_text())
        assert {name for text in texts for name in text.split()} & styled == set(), file.name
