"""What the page "How far does it scale?" stands on: counts of operations, and the arithmetic."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

import featvis as fv
from benchmarks.cost import blank, count, layers_of
from featvis._torchvision import torchvision
from featvis.scaling import Device, seconds
from tests.conftest import ROOT

COST = json.loads((ROOT / "benchmarks" / "cost.json").read_text())
CONV, FC = 4 * 3 * 9 * 8 * 8, 4 * 5  # multiply-adds of the two layers below


@pytest.fixture
def subject() -> fv.Subject:
    parts = {
        "conv": nn.Conv2d(3, 4, 3, padding=1),
        "relu": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(4, 5),
    }
    network = nn.Sequential(OrderedDict(parts))
    return fv.load(network, preprocess=fv.Preprocess((8, 8)), classes=tuple("abcde"), name="tiny", device="cpu")


def test_counts_are_those_made_by_hand(subject):
    found = count(subject)
    assert found["multiply_adds"] == CONV + FC
    conv, fc = found["layers"]
    assert conv == {"layer": "conv", "units": 4, "step": 2 * 2 * CONV}  # two operations, there and back
    assert fc == {"layer": "fc", "units": 5, "step": 2 * 2 * (CONV + FC)}
    assert 4 * 8 * 8 <= found["kept"] <= 4 * 8 * 8 + 2 * 3 * 8 * 8  # the ReLU's output, and small things


def test_counting_leaves_the_network_as_it_was(subject):
    assert count(subject) == count(subject)
    assert all(parameter.requires_grad for parameter in subject.network.parameters())
    assert not any(module._forward_hooks for module in subject.network.modules())


def test_googlenet_has_as_many_multiply_adds_as_torchvision_says():
    found = count(blank("googlenet"))
    assert found == COST["counts"]["googlenet"]
    assert found["layers"][-1] == {"layer": "fc", "units": 1000, "step": 4 * found["multiply_adds"]}
    assert [row["step"] for row in found["layers"]] == sorted(row["step"] for row in found["layers"])


@pytest.mark.parametrize("name", sorted(COST["counts"]))
def test_the_kept_counts_are_those_of_torchvision(name):
    stated = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta["_ops"]
    assert COST["counts"][name]["multiply_adds"] / 1e9 == pytest.approx(stated, abs=1e-3)


def test_units_of_a_transformer_are_neurons_and_attention_outputs():
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=4)
    vit = fv.load(network, preprocess=fv.Preprocess((32, 32)), classes=tuple("abcd"), name="vit", device="cpu")
    names = [f"encoder.layers.encoder_layer_{i}.{part}" for i in range(2) for part in ("self_attention", "mlp.1")]
    assert layers_of(vit) == [*names, "heads.head"]
    assert [row["units"] for row in count(vit)["layers"]] == [16, 24, 16, 24, 4]


def test_time_is_operations_by_what_the_devices_reach():
    device = Device(rate=100.0, bandwidth=10.0)
    assert seconds(1000, device, 0.25) == 40
    assert seconds(1000, device, 0.25, devices=8) == 5
    assert seconds(1000, device, 0.25, traffic=399) == 40  # the arithmetic takes longer
    assert seconds(1000, device, 0.25, devices=2, traffic=800) == 40  # the memory does
    assert seconds(1000, Device(100.0), 1.0, traffic=1e9) == 10


@pytest.mark.parametrize(
    ("share", "devices", "named"), [(0, 1, "share=0"), (1.5, 1, "share=1.5"), (0.5, 0, "devices=0")]
)
def test_what_is_no_share_or_no_device_is_named(share, devices, named):
    with pytest.raises(fv.FeatvisError, match=re.escape(named)):
        seconds(1.0, Device(1.0), share, devices)


def test_the_page_computes_all_of_its_figures(monkeypatch):
    """Every cell runs, and every figure that the text asks for has been given to it."""
    myst_nb = pytest.importorskip("myst_nb")
    given: dict[str, Any] = {}
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: given.update({name: value}))
    monkeypatch.chdir(ROOT / "book")
    text = (ROOT / "book" / "scaling.md").read_text()
    names: dict[str, Any] = {}
    for cell in re.findall(r"```\{code-cell\} ipython3\n(?::tags:[^\n]*\n)?(.*?)```", text, re.S):
        exec(cell, names)
    assert set(re.findall(r"\{glue:(?:text|md)\}`(\w+)`", text)) == set(given)
    assert names["span"](90, 100_000) == "90 s to 28 h"
    # GoogLeNet's logits at the larger share, by the formula alone: no traffic can make it shorter
    logits = 1000 * 512 * 4 * COST["counts"]["googlenet"]["multiply_adds"]
    shorter, longer = names["between"](logits, "googlenet", 1)
    assert logits / (989e12 * 0.4) <= shorter <= longer
