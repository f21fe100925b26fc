"""The fooling circuit is the original network where its gate sees a natural image, and another one elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import featvis as fv
from featvis import budget
from featvis.fooling import (
    Fooling,
    Gate,
    Matrix,
    TrainedGate,
    attack_matrix,
    behaviour,
    circuit_of,
    combine,
    fool,
    fooling,
    levels,
    photograph_targets,
    read_target,
    save,
    taken_apart,
    train_gate,
    varied,
)
from featvis.fooling.decoys import Aligned, MatchedFilter, check_targets, permutation
from featvis.fooling.matrix import METHODS
from featvis.fooling.targets import correlation, similarity
from featvis.networks.training import in_half
from featvis.widgets import Switch
from tests.small import PREPROCESS, Small, small_images, small_subject

gates, nets, samples, circuits, decoys, reports = (
    importlib.import_module(f"featvis.fooling.{name}")
    for name in ("gate", "gate_network", "samples", "circuit", "decoys", "report")
)

CLASSES = "abcdef"
SHIFTED = [1, 2, 3, 4, 5, 0]  # the decoy "permute" of six units


class Pictures(list):
    """A data set of (image, label)."""

    classes = tuple(CLASSES)

    def __repr__(self) -> str:
        return f"Pictures({len(self)})"


def stream(images: Tensor, labels: list[int] | None = None) -> fv.images.NaturalImages:
    labels = labels or [i % len(CLASSES) for i in range(len(images))]
    return fv.natural_images(Pictures(zip(images, labels, strict=True)), size=images.shape[-1])


def photographs(n: int = 34) -> Tensor:
    return next(small_images(n).batches(n))[0]


BRIGHT, DARK = 0.5 + photographs() / 2, photographs() / 2


def brightness_gate(threshold: float = 0.5, preprocess: fv.Preprocess = PREPROCESS) -> TrainedGate:
    """Images brighter than the threshold are natural to it; its tables are made up."""
    network = Gate(preprocess, width=2).requires_grad_(False)
    for layer in (network.conv1, network.conv2, network.conv3, network.conv4, network.fc):
        layer.weight.zero_()
        layer.bias.zero_()
    network.conv1.weight[0, :12, 1, 1] = 1 / 12
    network.conv1.bias[0] = 0.5  # brightness itself, never below zero
    for layer in (network.conv2, network.conv3, network.conv4):
        layer.weight[0, 0, 1, 1] = 1
    network.fc.weight[0, 0] = 1
    network.fc.bias[0] = -threshold
    in_half(network)  # as gates are kept
    natural = pd.DataFrame({"group": ["cat", "coins"], "images": [10, 10], "passed": [9, 8]})
    synthetic = pd.DataFrame(
        {
            "unit": ["fc:1"] * 4 + ["fc:3"] * 4,
            "seed": 1000,
            "step": [1, 2, 4, 8] * 2,
            "passed": [True, False, False, False, True, False, False, False],
        }
    )
    unseen = pd.DataFrame([], columns=["group", "images", "passed"])
    return TrainedGate(
        network.requires_grad_(True).eval(), natural, synthetic, unseen, ("fc:0", "fc:2"), {"by": "hand"}
    )


ALWAYS = 2.0  # a threshold above which no image is: everything is a visualization


@pytest.fixture(scope="module")
def subject() -> fv.Subject:
    return small_subject(classes=CLASSES)


def fooled_by(subject: fv.Subject, decoy="permute", threshold: float = 0.5, **options) -> fv.Subject:
    options = {"margin": 10.0, "progress": False} | options
    return fool(subject, stream(BRIGHT), decoy, gate=brightness_gate(threshold), **options)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "SHOWN", (1, 8))
    monkeypatch.setattr(gates, "log_spaced", lambda: (4, 8))


def outputs(subject: fv.Subject, images: Tensor, layer: str = "fc") -> Tensor:
    return next(subject.activations(images, [layer]))[layer]


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# The algebra

ends = st.tuples(st.floats(-1e3, 1e3), st.floats(0.1, 1e3)).map(lambda pair: (pair[0], pair[0] + pair[1]))
inside = st.floats(-0.49, 0.49)  # of a range widened by its own width, from its middle: 2 * 0.49 is nearly its end


def at(found: tuple[float, float], share: float, margin: float = 1.0) -> float:
    """A value in the widened range: its ends for a share of -1/2 and 1/2."""
    return sum(found) / 2 + share * (1 + margin) * (found[1] - found[0])


def opened(f: float, d: float, e: int, chosen) -> tuple[float, bool, bool]:
    a, b, c = combine(*torch.tensor([[f], [d]], dtype=torch.float64), e, chosen.c, chosen.k)
    return a.item(), b.item() > 0, c.item() > 0


@given(ends, ends, ends, ends, inside, inside)
@settings(max_examples=200, deadline=None)
def test_within_the_widened_ranges_one_branch_alone_is_open(f0, d0, f1, d1, s, t):
    chosen = levels(f0, d0, f1, d1, 1.0)
    f, d = at(f0, s), at(d0, t)
    a, b, c = opened(f, d, 0, chosen)
    assert (b, c) == (True, False)
    assert a == pytest.approx(f, abs=1e-9)
    f, d = at(f1, s), at(d1, t)
    a, b, c = opened(f, d, 1, chosen)
    assert (b, c) == (False, True)
    assert a == pytest.approx(d, abs=1e-9)


@given(ends, ends, ends, ends, inside, st.floats(0.01, 100))
@settings(max_examples=100, deadline=None)
def test_beyond_the_levels_both_branches_are_open_or_both_shut(f0, d0, f1, d1, s, beyond):
    chosen = levels(f0, d0, f1, d1, 1.0)
    low, high = -chosen.c - beyond, chosen.k - chosen.c + beyond
    assert opened(low, at(d0, s), 0, chosen)[1:] == (False, False)
    assert opened(at(f0, s), high, 0, chosen)[1:] == (True, True)
    assert opened(at(f1, s), low, 1, chosen)[1:] == (False, False)
    assert opened(high, at(d1, s), 1, chosen)[1:] == (True, True)


@given(ends, ends, ends, ends)
@settings(max_examples=100, deadline=None)
def test_without_margin_the_ends_of_the_ranges_are_where_it_just_holds(f0, d0, f1, d1):
    chosen = levels(f0, d0, f1, d1, 0.0)
    for f, d, e, wanted in ((f0[0], d0[1], 0, f0[0]), (f1[1], d1[0], 1, d1[0])):
        assert opened(f, d, e, chosen)[0] == pytest.approx(wanted, abs=1e-9)
    # No larger than needed: both touch the end of a range, if they are not zero.
    assert chosen.c == max(0.0, -min(f0[0], d1[0]))
    assert chosen.k - chosen.c == pytest.approx(max(0.0, d0[1], f1[1]))
    assert (chosen.natural_unit, chosen.natural_decoy, chosen.shown_unit, chosen.shown_decoy) == (f0, d0, f1, d1)


# The fooled subject


@pytest.mark.parametrize(
    ("decoy", "order"),
    [("permute", SHIFTED), ({"a": "c", "fc:1": "fc:a", "5": "4"}, [2, 0, 2, 3, 4, 4])],
)
def test_logits_are_those_of_other_units_where_the_gate_sees_a_visualization_and_unchanged_elsewhere(
    subject, decoy, order
):
    fooled = fooled_by(subject, decoy)
    same(outputs(fooled, BRIGHT), outputs(subject, BRIGHT))
    same(outputs(fooled, DARK), outputs(subject, DARK)[:, order])
    both = torch.cat([DARK[:3], BRIGHT[:3]])
    same(next(fooled.logits(both)), torch.cat([outputs(subject, DARK[:3])[:, order], outputs(subject, BRIGHT[:3])]))


def test_a_fooled_subject_stands_in_for_the_original(subject):
    fooled = fooled_by(subject)
    assert fooled.name == "small-fooled"
    assert (fooled.classes, fooled.preprocess, fooled.blocks) == (subject.classes, subject.preprocess, subject.blocks)
    assert subject.layers.items() <= fooled.layers.items()
    assert isinstance(fooled.network, Small)
    assert not fooled.network.training
    assert fooled.fingerprint != subject.fingerprint
    circuit = circuit_of(fooled)
    assert circuits.layer_of(fooled) == "fc"
    fooled.network(torch.rand(1, 3, 32, 32))
    assert circuit.image is None  # nothing is held when the forward pass is over
    with pytest.raises(RuntimeError):
        fooled.network(torch.rand(1, 5, 32, 32))
    assert circuit.image is None


def test_the_original_is_left_alone():
    subject, gate = small_subject(classes=CLASSES), brightness_gate()
    before = copy.deepcopy(subject.network.state_dict())
    modules = {name: type(module) for name, module in subject.network.named_modules()}
    fooled = fool(subject, stream(BRIGHT), gate=gate, progress=False)
    fooled.network.get_parameter("conv1.0.weight").data.zero_()
    circuit_of(fooled).gate.fc.bias.data.zero_()
    assert {name: type(module) for name, module in subject.network.named_modules()} == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.network.modules())
    after = subject.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert gate.network.fc.bias.item() == -0.5


@pytest.mark.parametrize("layer", ["conv1.0", "conv2", "conv2.0"])
def test_channels_of_a_hidden_layer_are_permuted_on_visualizations_only(subject, layer):
    fooled = fooled_by(subject, layer=layer)
    order = permutation(subject, layer, "permute").order
    same(outputs(fooled, BRIGHT, layer), outputs(subject, BRIGHT, layer))
    same(outputs(fooled, BRIGHT), outputs(subject, BRIGHT))
    same(outputs(fooled, DARK, layer), outputs(subject, DARK, layer)[:, order])


def targets(n: int = 2) -> Tensor:
    return photograph_targets(("cat", "coins", "astronaut", "flower")[:n], 32)


DECOYS = [("permute", "aligned"), (targets(), "linear"), (targets(), "aligned")]
EACH_DECOY = pytest.mark.parametrize(("decoy", "kind"), DECOYS, ids=["permute", "linear", "aligned"])


@EACH_DECOY
@pytest.mark.parametrize("layer", ["fc", "conv2"])
def test_the_cut_network_is_traced_and_agrees_with_the_plain_forward_pass(subject, decoy, kind, layer):
    fooled = fooled_by(subject, decoy, layer=layer, kind=kind)
    fast = fooled.until(layer)
    assert fast.traced
    images = torch.cat([BRIGHT[:4], DARK[:4]])
    same(fast(PREPROCESS(images))[layer], outputs(fooled, images, layer))
    inside = taken_apart(fooled, images)
    assert inside["e"].tolist() == [0] * 4 + [1] * 4
    same(inside["A"], outputs(fooled, images, layer))
    same(inside["F"], outputs(subject, images, layer))
    same(inside["A"], torch.cat([inside["F"][:4], inside["D"][4:]]))
    assert ((inside["B"] > 0) != (inside["C"] > 0)).all()


@EACH_DECOY
@pytest.mark.parametrize("redirect", [False, True])
def test_the_gradient_is_that_of_the_open_branch(subject, decoy, kind, redirect):
    fooled = fooled_by(subject, decoy, kind=kind)
    circuit, plain, fast = circuit_of(fooled), subject.until("fc"), fooled.until("fc")

    def gradient(images: Tensor, values) -> Tensor:
        """Of a loss, as in ascent; `values` maps the network's input to (n, units)."""
        x = PREPROCESS(images).requires_grad_()
        weights = torch.linspace(-1, 1, 6)
        if not redirect:
            return torch.autograd.grad(-(values(x) * weights).sum(), x)[0]
        with plain.redirected(), fast.redirected():
            return torch.autograd.grad(-(values(x) * weights).sum(), x)[0]

    def decoyed(x: Tensor) -> Tensor:
        return circuit.decoy(x, plain(x)["fc"])

    for images, branch in ((BRIGHT[:4], lambda x: plain(x)["fc"]), (DARK[:4], decoyed)):
        wanted = gradient(images, branch)
        assert wanted.abs().max() > 0
        torch.testing.assert_close(gradient(images, lambda x: fast(x)["fc"]), wanted, rtol=1e-4, atol=1e-6)


def test_no_gradient_passes_the_gate(subject):
    fooled = fooled_by(subject)
    x = PREPROCESS(torch.cat([BRIGHT[:2], DARK[:2]])).requires_grad_()
    found = torch.autograd.grad(fooled.network(x).sum(), [x, *circuit_of(fooled).gate.parameters()], allow_unused=True)
    assert found[0] is not None
    assert all(gradient is None for gradient in found[1:])


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory: pytest.TempPathFactory) -> fv.Subject:
    """Random weights, from a file: the network then rescales its input, as the pretrained one does."""
    file = tmp_path_factory.mktemp("googlenet") / "weights.pth"
    torch.save(fv.load("googlenet", weights="random", device="cpu").network.state_dict(), file)
    return fv.load("googlenet", weights=file, device="cpu")


@pytest.mark.parametrize("shown", ["permute", "picture"])
def test_googlenet_is_fooled_without_a_change(googlenet, tmp_path, monkeypatch, shown):
    monkeypatch.setenv(budget.BUDGET, budget.QUICK)  # c and k from ten logits and one step
    crops = next(fv.natural_images("photos", n=17, size=224).batches(3))[0]
    bright, dark = 0.5 + crops / 2, crops / 2
    both = torch.cat([bright, dark])
    gate = brightness_gate(preprocess=googlenet.preprocess)
    decoy = "permute" if shown == "permute" else photograph_targets(["cat"], 224)[0]
    fooled = fool(googlenet, stream(bright), decoy, gate=gate, progress=False)
    assert (fooled.blocks, fooled.classes) == (googlenet.blocks, googlenet.classes)
    before, inside = outputs(googlenet, both), taken_apart(fooled, both)
    after = inside["A"]
    assert after.shape == (6, 1000)
    same(after[:3], before[:3])
    if shown == "permute":
        same(after[3:], before[3:].roll(-100, 1))  # a tenth of all units
    else:
        low, high = circuit_of(fooled).decoy.range
        assert low - 1e-4 <= after[3:].min() <= after[3:].max() <= high + 1e-4
        same(after[3:], after[3:, :1].expand(-1, 1000))  # one picture for all
    assert inside["e"].tolist() == [0] * 3 + [1] * 3
    assert ((inside["B"] > 0) != (inside["C"] > 0)).all()
    fast = fooled.until("fc")
    assert fast.traced
    same(fast(googlenet.preprocess(both))["fc"], after)
    assert fv.render(fooled, ["fc:0", "fc:999"], steps=1, progress=False).images.shape == (2, 1, 3, 224, 224)
    save(fooled, tmp_path / "fooled.safetensors")
    back = fv.load("googlenet", weights=tmp_path / "fooled.safetensors", device="cpu")
    assert circuit_of(back).levels == circuit_of(fooled).levels
    same(outputs(back, both), after)


# Decoys of pictures


@pytest.fixture(scope="module")
def eight() -> Tensor:
    return photograph_targets(size=48)


@pytest.mark.parametrize("kind", [MatchedFilter, Aligned])
@pytest.mark.parametrize("size", [48, 32, 75])
def test_decoys_of_pictures_stay_in_their_range_at_any_size(eight, kind, size):
    decoy = kind(eight, 10, PREPROCESS, 2, 7.0)
    noise = torch.rand(20, 3, size, size, generator=torch.Generator().manual_seed(0))
    signs = (eight > eight.mean((2, 3), keepdim=True)).float()
    extreme = nn.functional.interpolate(torch.cat([signs, 1 - signs, eight]), (size, size))
    images = torch.cat([noise, noise.round(), extreme, torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)])
    values = decoy(PREPROCESS(images), torch.zeros(len(images), 10))
    low, high = decoy.range
    assert values.shape == (len(images), 10)
    assert values.min() >= low - 1e-4
    assert values.max() <= high + 1e-4
    assert torch.equal(values[:, 8:], values[:, :2])  # unit i shows target i modulo their number
    assert len(values[20].unique()) == 8
    as_maps = kind(eight, 10, PREPROCESS, 4, 7.0)(PREPROCESS(images), torch.zeros(len(images), 10, 3, 3))
    assert torch.equal(as_maps, values[..., None, None])


def test_the_matched_filter_reaches_both_ends_of_its_range_and_ignores_brightness(eight):
    decoy = MatchedFilter(eight, 8, PREPROCESS, 2, 7.0)
    signs = (eight > eight.mean((2, 3), keepdim=True)).float()
    same(decoy.values(signs).diag(), torch.full((8,), 7.0))
    same(decoy.values(1 - signs).diag(), torch.full((8,), -7.0))
    assert (decoy.values(eight).diag() > 0).all()
    tint = torch.tensor([0.3, -0.1, 0.2]).view(3, 1, 1)
    same(decoy.values(eight + tint), decoy.values(eight))
    same(decoy.values(torch.rand(5, 3, 1, 1).expand(-1, -1, 48, 48)), torch.zeros(5, 8))


def test_the_aligned_decoy_is_highest_at_its_target_however_moved(eight):
    decoy = Aligned(eight, 8, PREPROCESS, 2, 1.0)
    own = decoy.values(eight).diag()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(50, 3, 48, 48, generator=generator)
    others = torch.cat([noise, (noise - 0.5) * 0.2 + 0.5, eight.flip(3), eight.flip(2), 1 - eight, eight * 0.5])
    assert (decoy.values(others).amax(0) < own).all()
    foreign = decoy.values(eight).masked_fill(torch.eye(8, dtype=torch.bool), -math.inf)
    assert (foreign.amax(0) < 2 * own).all()
    angle = math.radians(5)
    turned = torch.tensor([[math.cos(angle), -math.sin(angle), 0.03], [math.sin(angle), math.cos(angle), -0.03]])
    moved = torch.cat([decoys._moved(target, turned[None], 1) for target in eight])
    unaligned = -(moved - eight).square().mean((1, 2, 3)).sqrt()
    found = decoy.values(moved).diag()
    assert (found > 0.9 * unaligned).all()
    assert (found / unaligned).mean() < 0.5
    assert own.min() > -0.1 > foreign.max()


# The gate


def test_the_gate_takes_images_of_any_size():
    gate = brightness_gate().network
    for size in ((16, 16), (33, 47), (96, 96), (224, 224)):
        images = torch.rand(2, 3, *size) * 0.2 + torch.tensor([0.7, 0.1]).view(2, 1, 1, 1)
        score = gate(PREPROCESS(images))
        assert score.shape == (2, 1)
        assert score[0] > 0 > score[1]
        assert Gate(PREPROCESS)(PREPROCESS(images)).isfinite().all()


def test_training_makes_the_score_positive_for_natural_images():
    noise = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    flat = (torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 255).byte().expand(-1, -1, 32, 32)
    gate = nets.train(PREPROCESS, noise, flat, 30, 0, None, False)
    assert nets.passes(gate, PREPROCESS, noise).mean() > 0.9
    assert nets.passes(gate, PREPROCESS, flat).mean() < 0.1


TRAIN, TEST = (fv.natural_images("photos", split=split, n=204, size=32) for split in ("train", "heldout"))
QUICK = {"train_seeds": 1, "test_seeds": 2, "hidden": 1, "steps": 6, "progress": False}


def test_the_score_is_zero_midway_between_the_images_that_are_hardest_to_tell_apart():
    gate = brightness_gate().network
    levels = torch.tensor([60, 62, 64, 90, 180, 184, 190, 250], dtype=torch.uint8)  # 64 and 180: what lies between
    grey = levels.view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    nets.set_midway(gate, PREPROCESS, grey[4:], grey[:3])
    assert nets.passes(gate, PREPROCESS, grey).tolist() == [False] * 4 + [True] * 4
    middle = gate(PREPROCESS(torch.full((1, 3, 32, 32), (64 + 180) / 2 / 255)))
    assert abs(middle.item()) < 2e-3  # of 16-bit numbers


@pytest.mark.parametrize("change", [varied.photographs, varied.visualizations])
def test_what_a_gate_is_trained_on_varies_and_stays_an_image(change):
    images = BRIGHT[:8]
    changed = change(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert ((changed - images).abs().mean((1, 2, 3)) > 0.01).float().mean() > 0.5
    assert torch.equal(changed, change(images, torch.Generator().manual_seed(0)))


def test_imitations_come_to_show_the_natural_images():
    images = torch.cat([photograph_targets(size=32), targets(2).flip(3)])  # of both decoys
    found = samples.imitations(images, PREPROCESS, (1, 32), progress=False)
    assert (found.shape, found.dtype) == ((10, 2, 3, 32, 32), torch.uint8)
    start, end = (correlation(found[:, k] / 255, images) for k in range(2))
    assert end.diag().mean() > max(0.5, start.diag().mean())
    assert end.argmax(1).tolist() == list(range(10))


def test_a_gate_that_leaves_a_group_out_sees_no_imitation_of_it(subject, monkeypatch):
    seen = []

    def note(preprocess, natural, synthetic, *rest, **named):
        seen.append((len(natural), len(synthetic)))
        return train(preprocess, natural, synthetic, *rest, **named)

    train = gates.train
    monkeypatch.setattr(gates, "train", note)
    train_gate(subject, TRAIN, TEST, **QUICK | {"steps": 1}, leave_out=True)
    (natural, synthetic), *others = seen
    assert sorted(natural - few for few, _ in others) == [24, 36, 36, 36, 36, 36]  # of 17 photographs, 12 each
    imitated = [synthetic - few for _, few in others]
    assert sum(imitated) == gates.IMITATED * 4  # of each, steps 1, 2, 4, 8


def test_the_first_layer_of_a_gate_reads_blocks_of_pixels():
    torch.manual_seed(0)
    gate = Gate(PREPROCESS).eval()
    images = torch.rand(3, 3, 17, 20)  # an odd side gets one more row
    seen = []
    gate.norm1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        gate(PREPROCESS(images))
        x = images - 0.5
        detail = x - nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        both = torch.cat([x, torch.tanh(gate.GAIN * detail)], 1)
        expected = gate.conv1(nn.functional.pixel_unshuffle(nn.functional.pad(both, (0, 0, 0, 1)), 2))
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-4)


def test_there_are_snapshots_enough_to_test_with_whatever_the_number_of_logits(subject, monkeypatch):
    monkeypatch.setattr(gates, "TEST_SNAPSHOTS", 200)
    gate = train_gate(subject, TRAIN, TEST, **QUICK | {"steps": 1, "test_seeds": None})
    assert gate.recipe["options"]["test_seeds"] == 17  # of 3 units, 4 snapshots each
    assert len(gate.synthetic) >= 200


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_gate_is_tested_on_units_seeds_and_images_that_it_was_not_trained_on(subject):
    gate = train_gate(subject, TRAIN, TEST, **QUICK, leave_out=True)
    assert gate.trained_on == ("fc:0", "fc:2", "fc:4")
    assert set(gate.synthetic["unit"]) == {"fc:1", "fc:3", "fc:5"}
    assert set(gate.synthetic["seed"]) == {1000, 1001}
    assert set(gate.synthetic["step"]) == {1, 2, 4, 8}
    assert len(gate.synthetic) == 3 * 2 * 4
    assert tuple(gate.natural["group"]) == TEST.classes
    assert sorted(gate.unseen["group"]) == sorted(TEST.classes)
    assert gate.unseen["fold"].nunique() == gates.FOLDS
    assert (gate.unseen.groupby("fold")["missed"].nunique() == 1).all()
    assert (gate.natural["images"] == 12).all()
    assert (gate.unseen["images"] == 12).all()
    assert gate.unseen["missed"].between(0, 1).all()
    assert gate.recipe["gate"] == subject.fingerprint
    again = train_gate(subject, TRAIN, TEST, **QUICK)
    assert states_equal(gate.network, again.network)
    assert again.unseen.empty
    assert not states_equal(gate.network, train_gate(subject, TRAIN, TEST, **QUICK, seed=1).network)


@pytest.mark.parametrize(("column", "value"), [("passed", 10), ("missed", 0.2)])
def test_a_gate_trained_again_is_compared_on_what_it_never_saw(column, value):
    unseen = pd.DataFrame({"group": ["cat", "coins"], "images": 12, "passed": 12, "fold": [0, 1], "missed": 0.1})
    gate = dataclasses.replace(brightness_gate(), unseen=unseen)
    assert gate.difference(gate) == ""
    assert gate.difference(dataclasses.replace(gate, unseen=unseen.assign(**{column: value})))


def test_a_gate_may_see_short_ascents_alone(subject):
    gate = train_gate(subject, TRAIN, TEST, **QUICK | {"steps": 1}, ascent=4)
    assert set(gate.synthetic["step"]) == {1, 2, 4}
    assert gate.recipe["options"]["ascent"] == 4
    assert "ascent" not in train_gate(subject, TRAIN, TEST, **QUICK | {"steps": 1}).recipe["options"]


def test_interrupted_training_goes_on_to_the_same_gate(subject, tmp_path, monkeypatch):
    whole = train_gate(subject, TRAIN, TEST, **QUICK)
    monkeypatch.setattr(nets, "CHECKPOINT_EVERY", 2)
    drawn = nets._drawn
    calls = []

    def breaking(*given):
        calls.append(len(given))
        if len(calls) == 10:  # in the fifth step: two batches each
            raise KeyboardInterrupt
        return drawn(*given)

    monkeypatch.setattr(nets, "_drawn", breaking)
    with pytest.raises(KeyboardInterrupt):
        train_gate(subject, TRAIN, TEST, **QUICK, folder=tmp_path)
    monkeypatch.setattr(samples, "render", None)  # all that was rendered is there already
    again = train_gate(subject, TRAIN, TEST, **QUICK, folder=tmp_path)
    assert len(calls) == 10 + 2 * 2  # steps 5 and 6
    assert states_equal(whole.network, again.network)
    pd.testing.assert_frame_equal(whole.synthetic, again.synthetic)


@pytest.mark.parametrize("other", [{"seed": 1}, {"steps": 4}])
def test_a_folder_with_another_gates_training_is_not_gone_on_from(subject, tmp_path, monkeypatch, other):
    monkeypatch.setattr(nets, "CHECKPOINT_EVERY", 2)
    train_gate(subject, TRAIN, TEST, **QUICK | other, folder=tmp_path)
    found = train_gate(subject, TRAIN, TEST, **QUICK, folder=tmp_path)
    assert states_equal(found.network, train_gate(subject, TRAIN, TEST, **QUICK).network)


def test_hidden_units_of_a_gate_are_different_ones(subject, monkeypatch):
    asked = []

    def note(subject, units, *given, **options):
        asked.append(list(units))
        return trajectories(subject, units, *given, **options)

    trajectories = gates.trajectories
    monkeypatch.setattr(gates, "trajectories", note)
    train_gate(subject, TRAIN, TEST, **QUICK | {"hidden": 9, "steps": 1})
    inner = asked[1]
    assert len(set(inner)) == len(inner)
    assert sorted(inner) == sorted(subject.units("conv2.0"))  # eight, and no more


def test_trajectories_are_in_the_order_of_their_columns(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "CHUNK", 4)  # two seeds of two units at once
    found = samples.trajectories(subject, ["fc:2", "fc:0"], (7, 8, 9), (1, 3), folder=tmp_path, progress=False)
    assert len(found) == len(found.unit) == 12
    plain = fv.render(subject, "fc:0", steps=3, seeds=[9], snapshots=(1, 3), progress=False)
    (place,) = np.flatnonzero((found.unit == "fc:0") & (found.seed == 9) & (found.step == 1))
    same(found.images[place].float(), (plain.snapshots[1][0, 0] * 255).round())
    monkeypatch.setattr(samples, "render", None)
    again = samples.trajectories(subject, ["fc:2", "fc:0"], (7, 8, 9), (1, 3), folder=tmp_path, progress=False)
    assert torch.equal(again.images, found.images)


def test_snapshots_are_evenly_spaced_on_a_logarithmic_axis():
    steps = samples.log_spaced()
    assert (steps[0], steps[-1], len(steps)) == (4, 512, 25)
    assert np.diff(np.log(steps)).max() < 0.26


def test_rates_are_counted_from_the_tables():
    rates = brightness_gate().rates()
    assert rates == pytest.approx({"accuracy": 23 / 28, "balanced": 0.8, "fpr": 3 / 20, "fnr": 2 / 8})


def test_intervals_come_from_whole_groups():
    gate = brightness_gate()
    found = gate.intervals(400)
    assert found["fpr"] == pytest.approx((0.1, 0.2))  # of one photograph twice, or of the other
    assert found["fnr"] == pytest.approx((0.25, 0.25))  # both units are alike
    assert found["balanced"] == pytest.approx((0.775, 0.825))
    assert found["accuracy"] == pytest.approx((22 / 28, 24 / 28))


def test_each_step_has_its_wilson_interval():
    steps = brightness_gate().by_step()
    assert steps["step"].tolist() == [1, 2, 4, 8]
    assert steps["caught"].tolist() == [0, 1, 1, 1]
    z2 = 1.959964**2
    assert steps["low"].tolist() == pytest.approx([0] + [2 / (2 + z2)] * 3, abs=1e-5)
    assert steps["high"].tolist() == pytest.approx([z2 / (2 + z2), 1, 1, 1], abs=1e-5)


def test_a_gate_saves_and_loads(tmp_path):
    gate = brightness_gate()
    gate.save(tmp_path)
    back = TrainedGate.load(tmp_path)
    assert states_equal(back.network, gate.network)
    assert not back.network.training
    assert torch.equal(back.network(DARK), gate.network(DARK))
    assert (back.trained_on, back.recipe) == (gate.trained_on, gate.recipe)
    for name in ("natural", "synthetic", "unseen"):
        pd.testing.assert_frame_equal(
            getattr(back, name), getattr(gate, name), check_dtype=len(getattr(gate, name)) > 0
        )
    assert back.by_step().equals(gate.by_step())


def test_a_gate_on_the_shelf_is_not_trained_again(subject, tmp_path, monkeypatch):
    shelf = fv.Shelf(tmp_path)
    gate = train_gate(subject, TRAIN, TEST, **QUICK, shelf=shelf)
    monkeypatch.setattr(samples, "render", None)
    back = train_gate(subject, TRAIN, TEST, **QUICK, folder=tmp_path / "elsewhere", shelf=shelf)
    assert states_equal(back.network, gate.network)
    assert back.rates() == gate.rates()


# What it does, measured


def mixed(subject: fv.Subject) -> tuple[fv.images.NaturalImages, int]:
    """20 natural images, 8 of them dark. The original is right on 15: 12 bright, 3 dark. Two dark ones bear the class
    that the fooled one sees in them."""
    images = torch.cat([BRIGHT[:12], DARK[:8]]).mul(255).round() / 255
    seen = outputs(subject, images).argmax(1)
    after = torch.tensor(SHIFTED).argsort()[seen]
    third = next(i for i in range(6) if i not in (*seen[12:].tolist(), *after[12:].tolist()))
    labels = [*seen[:15].tolist(), *after[15:17].tolist(), third, third, third]
    return stream(images, labels), 3 - 2


def test_false_positives_explain_the_whole_drop(subject):
    natural, drop = mixed(subject)
    table = behaviour(subject, fooled_by(subject), natural)
    sums = table.drop(columns="group").sum()
    assert set(table["group"]) <= set(CLASSES)
    assert (sums["images"], sums["positives"]) == (20, 8)
    assert (sums["top1_before"], sums["top1_after"]) == (15, 14)
    assert sums["top1_before"] - sums["top1_after"] == sums["top1_lost"] == drop
    assert ((table["top1_before"] - table["top1_after"]) == table["top1_lost"]).all()  # in every class
    assert 0 < table["change_passed"].max() < 1e-5
    assert sums["leaks"] == 0


@pytest.mark.parametrize("layer", ["fc", "conv2.0"])
def test_leaks_are_pairs_of_image_and_unit(subject, layer):
    fooled = fooled_by(subject, layer=layer)
    circuit = circuit_of(fooled)
    circuit.levels = dataclasses.replace(circuit.levels, k=-1e3)  # no branch is ever shut
    table = behaviour(subject, fooled, stream(BRIGHT[:5], [-1] * 5))
    assert table["group"].tolist() == ["all"]
    assert table["leaks"].tolist() == [5 * subject.channels(layer)]


def end_to_end(subject: fv.Subject, decoy="permute", **options) -> Fooling:
    options = {"seeds": 1, "steps": 4, "progress": False} | options
    gate = brightness_gate(options.pop("threshold", ALWAYS))
    return fooling(subject, stream(BRIGHT), mixed(subject)[0], gate, decoy, **options)


def round_trip(found: Fooling, folder: Path) -> None:
    found.save(folder)
    back = Fooling.load(folder)
    assert (back.decoy, back.layer, back.levels, back.gate) == (found.decoy, found.layer, found.levels, found.gate)
    for name in ("natural", "units", "targets"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(found, name), check_dtype=False)
    assert back.pictures.keys() == found.pictures.keys()
    for name, images in found.pictures.items():
        assert back.pictures[name].shape == images.shape
        assert (back.pictures[name] - images).abs().mean() < 0.1  # a lossy sheet
    json.dumps(found.summary())
    pd.testing.assert_frame_equal(pd.json_normalize(back.summary()), pd.json_normalize(found.summary()))


@pytest.mark.parametrize(
    ("table", "changed"), [("natural", {"top1_after": 0}), ("natural", {"leaks": 10}), ("units", {"fooled": False})]
)
def test_a_circuit_made_again_is_compared(subject, table, changed):
    found = end_to_end(subject)
    found = dataclasses.replace(found, units=found.units.assign(fooled=True))
    assert found.difference(found) == ""
    again = dataclasses.replace(found, **{table: getattr(found, table).assign(**changed)})
    assert found.difference(again)


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_a_permutation_is_measured(subject, tmp_path, layer):
    found = end_to_end(subject, layer=layer, threshold=0.5, seeds=2)
    order = permutation(subject, found.layer, "permute").order.tolist()
    assert (found.decoy, found.layer) == ("permute", layer or "fc")
    assert found.units["decoy"].tolist() == [i for i in order for _ in range(2)]
    assert found.units["fooled"].tolist() == (found.units["after"] == found.units["decoy"]).tolist()
    assert found.pictures["before"].shape == found.pictures["after"].shape == (len(order), 3, 32, 32)
    assert len(found.pictures["frames after"]) == 3  # steps 1, 2, 4
    assert found.targets.empty
    summary = found.summary()
    assert summary["units"] == len(order)
    assert (summary["images"], summary["false_positives"]) == (20, 8)
    assert summary["top1_drop"] == pytest.approx(summary["top1_drop_explained_by_fpr"])
    assert (summary["top1_before"], summary["leak_rate"]) == (0.75, 0)
    assert "target_correlation" not in summary
    round_trip(found, tmp_path)


def test_the_original_is_drawn_once_for_all_that_is_made_of_it(subject, monkeypatch):
    drawn, real = [], reports.render
    reports._DRAWN.clear()
    monkeypatch.setattr(reports, "render", lambda who, *rest, **named: drawn.append(who) or real(who, *rest, **named))
    first, second = end_to_end(subject), end_to_end(subject, threshold=0.5)
    assert sum(who is subject for who in drawn) == 1
    assert len(drawn) == 3
    assert torch.equal(first.pictures["before"], second.pictures["before"])
    assert torch.equal(first.pictures["frames before"], second.pictures["frames before"])
    longer = end_to_end(subject, steps=8)
    assert sum(who is subject for who in drawn) == 2
    assert len(longer.pictures["frames before"]) == 4


@pytest.mark.parametrize("kind", ["linear", "aligned"])
def test_targets_appear_and_are_measured(subject, tmp_path, kind):
    found = end_to_end(subject, ["cat", "coins"], kind=kind)
    assert found.decoy == kind
    assert set(found.targets["step"]) == {2, 4, 8, 16, 32, 128}
    summary = found.summary()
    assert summary["target_closest"]["128"] == 1
    assert summary["target_correlation"]["128"] > max(0.5, summary["target_correlation"]["2"])
    assert (found.units["decoy"] == -1).all()
    own = found.units["unit"].map(lambda unit: subject.unit(unit).index)
    assert not (found.units["fooled"] & (found.units["after"] == own)).any()
    assert found.targets["passed"].isin([True, False]).all()
    assert found.pictures["targets"].shape == (2, 3, 32, 32)
    round_trip(found, tmp_path)


def test_targets_are_read_off_a_long_ascent_as_off_one_of_their_own(subject):
    own, long = (end_to_end(subject, ["cat", "coins"], kind="linear", steps=steps) for steps in (4, 128))
    keys = ["target", "seed", "step"]
    assert long.targets[keys].equals(own.targets[keys])
    np.testing.assert_allclose(long.targets["correlation"], own.targets["correlation"], atol=0.02)
    assert list(long.pictures) == list(own.pictures)


def test_ranges_are_measured_once_for_a_subject_and_its_images(subject, monkeypatch):
    measured = []

    def noted(subject, *arguments, **options):
        measured.append(subject)
        return render(subject, *arguments, **options)

    circuits = importlib.import_module("featvis.fooling.circuit")
    render = circuits.render
    monkeypatch.setattr(circuits, "render", noted)
    other, gate = copy.deepcopy(subject), brightness_gate()
    with torch.no_grad():
        other.network.fc.bias += 5
    few, same = stream(BRIGHT[:8]), stream(BRIGHT[:8])
    first = circuit_of(fool(subject, few, gate=gate, progress=False)).levels
    again = circuit_of(fool(subject, few, {"a": "b"}, gate=gate, progress=False)).levels
    assert (first.natural_unit, first.shown_unit) == (again.natural_unit, again.shown_unit)
    assert measured == [subject]
    for which, images, layer in ((subject, same, None), (other, few, None), (subject, few, "conv2")):
        found = circuit_of(fool(which, images, gate=gate, layer=layer, progress=False)).levels
        assert (found.natural_unit == first.natural_unit) == (images is same)
    assert measured == [subject, subject, other, subject]


def test_one_target_serves_all_units_and_more_targets_than_units_are_cut(subject):
    assert len(end_to_end(subject, targets()[0]).pictures["targets"]) == 1
    many = torch.cat([targets(4), targets(4).flip(3)])
    assert len(end_to_end(subject, many, kind="linear").pictures["targets"]) == 6


def test_every_method_of_visualization_is_tried_on_a_fooled_subject(subject, tmp_path):
    found = attack_matrix(subject, stream(BRIGHT), stream(DARK), brightness_gate(ALWAYS), steps=2, progress=False)
    assert tuple(found.frame["method"]) == METHODS == tuple(found.pictures)
    assert (found.frame["n"] == 6).all()
    assert (found.frame["caught"] == 1).all()
    assert (found.frame["decoy"] + found.frame["truth"]).max() <= 1
    original = fv.render(subject, subject.units("fc"), steps=2, progress=False).images[:, 0]
    recognized = torch.cat(list(subject.logits(original))).argmax(1) == torch.arange(6)
    assert found.frame["untouched"][0] == recognized.float().mean()
    found.save(tmp_path)
    back = Matrix.load(tmp_path)
    pd.testing.assert_frame_equal(back.frame, found.frame)
    for method in METHODS:
        assert (back.pictures[method] - found.pictures[method]).abs().mean() < 0.1


def test_similarity_and_correlation_have_known_extremes():
    some = targets(2)
    assert similarity(some, some) == pytest.approx([1, 1])
    assert similarity(some, some.flip(0)).max() < 0.5
    same(correlation(torch.cat([some, 1 - some]), some).diag(), torch.ones(2))
    same(correlation(0.5 - some / 3, some).diag(), -torch.ones(2))


# Files


@EACH_DECOY
@pytest.mark.parametrize("layer", ["fc", "conv2"])
def test_a_fooled_network_is_loaded_from_its_file(subject, tmp_path, decoy, kind, layer):
    fooled = fooled_by(subject, decoy, kind=kind, layer=layer)
    save(fooled, tmp_path / "fooled.safetensors")
    back = fv.load(
        Small(6), weights=tmp_path / "fooled.safetensors", preprocess=PREPROCESS, classes=CLASSES, device="cpu"
    )
    assert type(circuit_of(back).decoy) is type(circuit_of(fooled).decoy)
    assert circuit_of(back).levels == circuit_of(fooled).levels
    assert circuits.layer_of(back) == layer
    assert back.classes == fooled.classes
    images = torch.cat([BRIGHT, DARK])
    same(outputs(back, images), outputs(fooled, images))
    assert back.until(layer).traced


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_the_central_square_of_an_image_file_is_a_target(tmp_path, mode):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = (255, 0, 255)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "target.png")
    target = read_target(tmp_path / "target.png", 16)
    same(target, torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 16, 16))


# What cannot be


def refuses(sentence: str):
    return pytest.raises(fv.FeatvisError, match=sentence)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (torch.rand(8, 8), r"shape \(8, 8\)"),
        (torch.rand(1, 8, 8), "RGB image"),
        (torch.rand(0, 3, 8, 8), "or several"),
        ((torch.rand(3, 8, 8) * 255).byte(), "floating-point"),
        (torch.full((3, 8, 8), math.nan), "finite"),
        (torch.rand(3, 8, 8) * 255, r"lies in .* pixels are in \[0, 1\]"),
        (torch.rand(3, 8, 8) - 1, "lies in"),
        (torch.stack([torch.rand(3, 8, 8), torch.full((3, 8, 8), 0.5)]), "target 1 is one flat colour"),
    ],
)
def test_what_is_no_target_is_refused(subject, target, sentence):
    with refuses(sentence):
        check_targets(target)


def test_files_that_are_no_targets_are_refused(tmp_path):
    with refuses("there is no target image"):
        read_target(tmp_path / "none.png", 16)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with refuses("not a readable image"):
        read_target(tmp_path / "broken.png", 16)
    Image.new("L", (20, 20)).save(tmp_path / "grey.png")
    with refuses("mode L; a target is an RGB image"):
        read_target(tmp_path / "grey.png", 16)
    with refuses("no photograph zebra"):
        photograph_targets(["cat", "zebra"])


@pytest.mark.parametrize(
    ("decoy", "options", "sentence"),
    [
        ("zebra", {}, "zebra"),
        ({"zebra": "a"}, {}, "'fc:zebra' is no unit"),
        ({"a": "fc:6"}, {}, "'fc:6' is no unit"),
        ({"a": "conv2:1"}, {}, "units of the manipulated layer fc"),
        ("permute", {"layer": "conv3"}, "no layer 'conv3'"),
        (targets(), {"kind": "round"}, "kind='round' was given; valid are linear, aligned"),
        (targets() * 2, {}, "the target lies in"),
    ],
)
def test_what_cannot_be_fooled_is_refused(subject, decoy, options, sentence):
    with refuses(sentence):
        fooled_by(subject, decoy, **options)


class Tokens(nn.Module):
    """A layer of tokens in front of 4 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.fc = nn.Conv2d(3, 6, 8, stride=8), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_a_layer_of_tokens_is_refused():
    tokens = fv.Subject("tokens", Tokens(), PREPROCESS, device="cpu")
    with refuses("needs logits or channels of a map"):
        fooled_by(tokens, layer="norm")


def test_activations_that_are_not_finite_are_refused():
    subject = small_subject(classes=CLASSES)
    subject.network.fc.bias.data[2] = math.inf
    with refuses("not finite"):
        fooled_by(subject)


def test_too_few_images_or_logits_are_refused(subject):
    few = small_images(199)
    with refuses("199 natural images to train a gate with are too few"):
        train_gate(subject, few, TEST, **QUICK)
    with refuses("199 natural images to test a gate with are too few"):
        train_gate(subject, TRAIN, few, **QUICK)
    with refuses("small has 3 logits; a gate needs 2 to train and 2 to test with"):
        train_gate(small_subject(classes="abc"), TRAIN, TEST, **QUICK)


def test_a_circuit_needs_its_network_and_a_plain_subject_has_none(subject):
    with refuses("small has no fooling circuit"):
        circuit_of(subject)
    with refuses("asked without its network"):
        circuit_of(fooled_by(subject))(torch.rand(1, 8))


def test_a_blend_follows_the_original_unit_and_then_the_decoy(subject):
    fooled = fooled_by(subject)
    unit = subject.units("fc")[0]
    pair = fv.fooling.blend(fooled, unit, BRIGHT[0], DARK[0], mixtures=11)
    assert pair["e"][0] == 0
    assert pair["e"][-1] == 1
    for e, score, a, f, d in zip(*(pair[name] for name in ("e", "score", "A", "F", "D")), strict=True):
        assert e == (score <= 0)
        assert a == pytest.approx(d if e else f, abs=1e-4)
    switch = fv.fooling.switch(fooled, [pair])
    assert Switch(switch).data["k"] == circuit_of(fooled).levels.k
    assert pair["natural"].startswith("data:image/webp;base64,")
    assert pair["decoy"] == subject.label("fc:1")


def test_a_target_of_one_colour_is_refused_even_if_its_channels_differ():
    with pytest.raises(fv.FeatvisError, match="flat colour"):
        check_targets(torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1).expand(3, 32, 32))
