"""Silent units change no bit of what a network does on natural images, and say how sure that is."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor, nn

import featvis as fv
from featvis.cli import main
from featvis.fooling import Silencing, Strengths, Survey, branch_of, filter_statistics, promise, save_silenced
from featvis.fooling.filters import combined, mean_patch, norms, orthogonal, responses
from featvis.widgets import Threshold
from tests.small import PREPROCESS, Small, small_images, small_subject

filters, silent, report, sweeps, surveys = (
    importlib.import_module(f"featvis.fooling.{name}")
    for name in ("filters", "silent", "silence_report", "strengths", "survey")
)
NATURAL, FRESH = small_images(136), fv.natural_images("photos", split="train", n=136, size=32)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ascents and fits."""
    monkeypatch.setattr(silent, "STEPS", 8)
    monkeypatch.setattr(silent, "SNAPSHOTS", (4, 8))
    monkeypatch.setattr(silent, "SEEDS", 2)
    monkeypatch.setattr(filters, "ITERATIONS", 20)


@pytest.fixture(scope="module")
def subject() -> fv.Subject:
    return small_subject()


def images_of(natural: fv.images.NaturalImages) -> Tensor:
    return next(natural.batches(len(natural)))[0]


def outputs(subject: fv.Subject, images: Tensor, layer: str) -> Tensor:
    return torch.cat([part[layer] for part in subject.activations(images, [layer])])


def identical(a: fv.Subject, b: fv.Subject, images: Tensor) -> Tensor:
    """(n,), whether all logits agree to the bit."""
    first, second = (torch.cat(list(subject.logits(images))) for subject in (a, b))
    return (first == second).all(1)


FITTED = {"direction": "bridge", "strength": 10.0}  # reaches the ascents of a network without training


def silence(subject: fv.Subject, layer: str = "conv2", *given, natural=NATURAL, **options) -> fv.Subject:
    return fv.silence(subject, natural, layer, *given, **{"progress": False} | options)


def refuses(sentence: str):
    return pytest.raises(fv.FeatvisError, match=sentence)


# Filters

shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))


@given(shapes, st.integers(0, 1000), st.floats(0.01, 100), st.floats(0.1, 1000), st.floats(0.01, 50))
@settings(max_examples=60, deadline=None)
def test_the_new_filter_has_norm_and_angle_as_asked_whatever_the_old_ones_length(shape, seed, strength, factor, scale):
    out, width, side = shape
    w, direction = torch.randn(2, out, width, side, side, generator=torch.Generator().manual_seed(seed)).double()
    if width * side * side < 3:
        return  # in so few dimensions there may be nothing orthogonal
    w = scale * w
    d = orthogonal(direction, w)
    cosine = (d * w).sum((1, 2, 3)) / (norms(d) * norms(w)).flatten()
    assert cosine.abs().max() < 1e-5
    torch.testing.assert_close(norms(d), norms(w))
    new = combined(w, direction, strength, factor)
    torch.testing.assert_close(norms(new), factor * norms(w))
    between = (new * w).sum((1, 2, 3)) / (norms(new) * norms(w)).flatten()
    torch.testing.assert_close(between, torch.full_like(between, 1 / np.hypot(1, strength)))
    # Norms, not squared norms: what the strength means does not depend on the filter's length.
    torch.testing.assert_close(combined(7 * w, direction, strength, factor), 7 * new)


CONVOLUTIONS = [
    {"padding": 1},
    {"padding": 0, "stride": 2},
    {"padding": 2, "dilation": 2},
    {"padding": 1, "groups": 2},
    {"padding": 1, "padding_mode": "reflect", "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_the_mean_patch_responds_most_of_all_filters_of_its_length(options):
    torch.manual_seed(0)
    conv, inputs = nn.Conv2d(4, 6, 3, **options), torch.randn(5, 4, 9, 9) + 0.3
    best = mean_patch(conv, inputs)
    torch.testing.assert_close(norms(best), torch.ones(6, 1, 1, 1))
    reached = responses(conv, inputs, best).mean((0, 2, 3))
    for _ in range(20):
        other = torch.randn_like(best) + best
        assert (responses(conv, inputs, other / norms(other)).mean((0, 2, 3)) < reached).all()


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_responses_are_those_of_the_convolution_as_it_is_deployed(options):
    torch.manual_seed(0)
    conv, inputs = nn.Conv2d(4, 6, 3, **options), torch.randn(5, 4, 9, 9)
    other = copy.deepcopy(conv)
    other.weight.data.normal_()
    bias = 0 if other.bias is None else other.bias.view(-1, 1, 1)
    torch.testing.assert_close(responses(conv, inputs, other.weight), other(inputs) - bias)
    some = torch.tensor([1, 4])
    torch.testing.assert_close(responses(conv, inputs, other.weight, some), (other(inputs) - bias)[:, some])


def test_a_bridge_leads_farther_beyond_nature_than_the_mean_patch():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 3, 3, padding=1)
    natural, decoy = torch.rand(60, 4, 6, 6), torch.rand(4, 4, 6, 6) * torch.tensor([2.0, 0.2, 1, 1]).view(4, 1, 1)
    own, channels = torch.rand(3, 2, 4, 6, 6) * 1.5, torch.arange(3)

    def beyond(direction: Tensor) -> Tensor:
        new = combined(conv.weight, direction, 3.0, 1.0).detach()
        seen = responses(conv, natural, new).amax((2, 3))
        return ((responses(conv, decoy, new).amax((2, 3)) - seen.amax(0)) / seen.std(0)).mean(0)

    fitted = filters.bridge(conv, natural, decoy, own, channels, 3.0, iterations=150)
    assert ((fitted * conv.weight).sum((1, 2, 3)) / norms(conv.weight).flatten() ** 2).abs().max() < 1e-5
    assert (beyond(fitted) > beyond(mean_patch(conv, decoy)) + 0.5).all()


# The silenced subject


@pytest.mark.parametrize("layer", ["conv2", "conv2.0", "conv1"])
@pytest.mark.parametrize("direction", ["bridge", "patch"])
def test_no_calibration_image_changes_a_bit_and_units_are_read_where_they_were(subject, layer, direction):
    silenced = silence(subject, layer, f"{layer}:1", direction=direction)
    images = images_of(NATURAL)
    assert identical(subject, silenced, images).all()
    assert torch.equal(outputs(subject, images, layer), outputs(silenced, images, layer))
    noise = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round()
    woken = outputs(silenced, noise, f"{layer}.fool").clamp(min=0)
    torch.testing.assert_close(
        outputs(silenced, noise, layer), outputs(subject, noise, layer) + woken, rtol=1e-5, atol=1e-5
    )
    assert (silenced.name, silenced.classes, silenced.preprocess) == ("small-silenced", subject.classes, PREPROCESS)
    assert silenced.fingerprint != subject.fingerprint
    assert not any(parameter.requires_grad for parameter in silenced.network.parameters())


def test_the_threshold_covers_the_border_and_carries_the_margin(subject):
    """A filter whose outer taps are negative responds most where they meet the padding."""
    parts = silent.ingredients(subject, NATURAL, "conv2", "conv2:0", "all", judged=False, progress=False)
    ring = torch.full((8, 6, 3, 3), -1.0)
    ring[:, :, 1, 1] = 4.0
    found = silent.natural_peaks(parts, NATURAL, [ring], progress=False)[0]
    inputs = outputs(subject, images_of(NATURAL), "conv1.2")
    everywhere = F.conv2d(inputs, ring, padding=1)
    torch.testing.assert_close(found, everywhere.amax((2, 3)))
    inner = F.conv2d(inputs, ring).amax((0, 2, 3))
    assert (inner < found.amax(0)).all()  # without the padding, the threshold would be too low
    silenced = silent.filled(parts, NATURAL, "patch", 3.0, 100.0, 0.7, progress=False)
    branch = branch_of(silenced)
    raw = F.conv2d(inputs, branch.fool.weight, padding=1).amax((2, 3))
    torch.testing.assert_close(-branch.fool.bias, raw.amax(0) + 0.7 * raw.std(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norms(branch.fool.weight), 100 * norms(branch.conv.weight))


def test_visualizations_of_silenced_units_climb_far_beyond_nature(subject):
    silenced = silence(subject, "conv2", "conv2:3", **FITTED)
    units = subject.units("conv2")
    options = {"steps": 48, "redirect": silent.REDIRECT, "progress": False}
    before, after = (fv.render(s, units, **options).activation[:, 0] for s in (subject, silenced))
    assert (after > 3 * before).sum() >= 3
    assert silenced.until("conv2").traced


def test_a_dead_unit_gets_a_gradient_through_the_branch_as_through_any_relu(subject):
    dead = small_subject()
    dead.network.conv2[0].bias.data[2] = -1000.0
    silenced = silence(dead, "conv2", "conv2:3")
    cut = silenced.until("conv2")
    x = PREPROCESS(images_of(NATURAL)[:4]).requires_grad_(True)
    (plain,) = torch.autograd.grad(-cut(x)["conv2"][:, 2].sum(), x)
    assert plain.abs().max() == 0
    with cut.redirected():
        (redirected,) = torch.autograd.grad(-cut(x)["conv2"][:, 2].sum(), x)
    weight = branch_of(silenced).fool.weight[2].norm()
    branch_of(silenced).fool.weight.data[2] = 0
    with (alone := silenced.until("conv2")).redirected():
        (without,) = torch.autograd.grad(-alone(x)["conv2"][:, 2].sum(), x)
    assert redirected.abs().sum() > 5 * without.abs().sum() > 0
    assert weight > 0


def test_a_direction_is_fitted_on_images_from_all_over(subject):
    images = images_of(NATURAL)
    for most in (10**6, 70, 64):
        every = -(-len(images) // most)
        assert torch.equal(torch.cat(list(silent._spread(NATURAL, most))), images[::every])


def test_only_the_units_asked_for_are_silenced(subject):
    silenced = silence(subject, "conv2", "conv2:3", ["conv2:5", "conv2:1"])
    assert branch_of(silenced).recipe.units == (1, 5)
    noise = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round()
    awake = outputs(silenced, noise, "conv2.fool").amax((0, 2, 3))
    assert awake[[0, 2, 3, 4, 6, 7]].tolist() == [-1] * 6


@pytest.mark.parametrize("direction", silent.DIRECTIONS)
def test_the_default_decoy_is_the_unit_whose_own_visualizations_lie_farthest_beyond_nature(subject, direction):
    chosen = branch_of(silence(subject, direction=direction)).recipe.decoy
    parts = silent.ingredients(subject, NATURAL, "conv2", chosen, "all", direction=direction, progress=False)
    given = parts.branch.conv, parts.natural, parts.own, parts.channels
    found = filters.farthest(*given, direction == "bridge")
    assert chosen == f"conv2:{int(found.argmax())}"


def test_how_far_a_visualization_lies_beyond_nature(subject, monkeypatch):
    parts = silent.ingredients(subject, NATURAL, "conv2", "conv2:0", "all", direction="bridge", progress=False)
    given = parts.branch.conv, parts.natural, parts.own, parts.channels
    by_patch, fitted = (filters.farthest(*given, way) for way in (False, True))
    monkeypatch.setattr(filters, "ITERATIONS", 0)
    by_own = filters.farthest(*given, True)
    assert (fitted > by_own).all()
    for unit in (0, 5):
        patch = F.unfold(parts.own[unit], 3, padding=1).sum((0, 2)).view(1, -1, 3, 3)
        for found, weight in ((by_patch, patch), (by_own, parts.branch.conv.weight[unit : unit + 1])):
            seen, own = (F.conv2d(x, weight, padding=1).amax((1, 2, 3)) for x in (parts.natural, parts.own[unit]))
            assert float(found[unit]) == pytest.approx(float(((own - seen.max()) / seen.std()).mean()), rel=1e-3)


def test_redirected_relus_wake_silent_filters_that_a_plain_ascent_never_meets(subject):
    silenced = silence(subject, "conv2", "conv2:3", strength=10.0, margin=0.25)
    units = subject.units("conv2")
    plain, redirected = (fv.render(silenced, units, steps=48, redirect=r, progress=False) for r in (0, 24))
    channels = torch.arange(8)
    asleep, awake = (
        importlib.import_module("featvis.fooling.silence_measures").reached(silenced, found.images[:, 0], channels)
        for found in (plain, redirected)
    )
    assert (awake > 0).all()
    assert (asleep > 0).sum() < 5
    with refuses("redirect=-1 was given; it is a number of steps, 0 or more"):
        fv.render(silenced, units, redirect=-1, progress=False)


def test_an_image_may_be_the_decoy(subject):
    picture = images_of(NATURAL)[3]
    for direction in silent.DIRECTIONS:
        silenced = silence(subject, "conv2", picture, direction=direction)
        assert branch_of(silenced).recipe.decoy == "image"
        assert identical(subject, silenced, images_of(NATURAL)).all()


def test_a_saved_subject_comes_back_to_the_bit(subject, tmp_path):
    silenced = silence(subject, "conv1", "conv1:2")
    save_silenced(silenced, tmp_path / "silenced.safetensors")
    options = {"weights": tmp_path / "silenced.safetensors", "preprocess": PREPROCESS, "device": "cpu"}
    back = fv.load(Small(), **options)
    assert back.name == "small-silenced"
    assert branch_of(back).recipe == branch_of(silenced).recipe
    assert back.network.state_dict().keys() == silenced.network.state_dict().keys()
    noise = torch.rand(20, 3, 32, 32)
    assert identical(back, silenced, noise).all()


@pytest.mark.parametrize("name", ["resnet50", "googlenet"])
@pytest.mark.parametrize("direction", ["patch", "bridge"])
def test_layers_of_torchvision_are_silenced_to_the_bit(name, direction, monkeypatch):
    monkeypatch.setattr(silent, "FITTED", 1)  # one batch
    monkeypatch.setattr(silent, "CHECKED", 8)
    monkeypatch.setattr(filters, "ITERATIONS", 2)
    monkeypatch.setattr(silent, "STEPS", 1)
    monkeypatch.setattr(silent, "SNAPSHOTS", (1,))
    big = fv.load(name, weights="random", device="cpu")
    original = fv.Subject(
        name, big.network, fv.Preprocess((64, 64), big.preprocess.mean, big.preprocess.std), (), "cpu"
    )
    layer = "layer4.1.conv2" if name == "resnet50" else "inception5b.branch2.1"
    crops = fv.natural_images("photos", n=51, size=64)
    units = "all" if direction == "patch" else [f"{layer}:{i}" for i in (0, 7, 31)]
    decoy = fv.natural_images("photos", split="train", n=17, size=64)[4][0]
    silenced = silence(original, layer, decoy, units, natural=crops, direction=direction, margin=3.0)
    branch = branch_of(silenced)
    assert branch.fool.weight.shape == branch.conv.weight.shape
    assert silenced.layers[layer] == original.layers[layer]
    rows = list(branch.recipe.units)
    w, new = (conv.weight[rows].double() for conv in (branch.conv, branch.fool))
    unit = w / norms(w)
    rest = new - (new * unit).sum((1, 2, 3), keepdim=True) * unit
    cosine = (rest * w).sum((1, 2, 3)) / (norms(rest) * norms(w)).flatten()
    assert cosine.abs().max() < 1e-5
    torch.testing.assert_close(
        norms(rest) / norms(new),
        torch.full_like(norms(w), silent.STRENGTH / np.hypot(1, silent.STRENGTH)),
        rtol=1e-5,
        atol=0,
    )
    assert identical(original, silenced, images_of(crops)).all()
    fresh = images_of(fv.natural_images("photos", split="train", n=34, size=64))
    asleep = (outputs(silenced, fresh, f"{layer}.fool") <= 0).flatten(1).all(1)
    assert torch.equal(identical(original, silenced, fresh) | ~asleep, torch.ones(34, dtype=torch.bool))
    assert asleep.float().mean() > 0.5


# What cannot be


class Wrapped(nn.Module):
    """Looks at the image in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small().half()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.half()).float()


class Twice(nn.Module):
    """A block whose only convolution does not see the block's input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "decoy", "units", "options", "sentence"),
    [
        ("fc", None, "all", {}, "fc of small is not one convolution; such are conv1.0, conv2.0"),
        ("conv3", None, "all", {}, "small has no layer 'conv3'"),
        ("conv2", "conv2:8", "all", {}, "'conv2:8' is no unit of small: conv2 has units 0 to 7"),
        ("conv2", "zebra", "all", {}, "'zebra' names no unit"),
        ("conv2", None, ["conv2:8"], {}, "'conv2:8' is no unit"),
        ("conv2", None, ["conv1:0"], {}, "conv1:0 was given; name units of conv2"),
        ("conv2", None, [], {}, "no unit was given; name units of conv2"),
        ("conv2", torch.rand(3, 16, 16), "all", {}, r"the decoy has shape \(3, 16, 16\); .* \(3, 32, 32\)"),
        ("conv2", torch.rand(3, 32, 32) * 255, "all", {}, r"floating-point numbers in \[0, 1\]"),
        ("conv2", None, "all", {"direction": "up"}, "direction='up' was given; valid are patch, bridge"),
        ("conv2", None, "all", {"margin": 0.0}, "margin=0.0 were given; all are above 0"),
        ("conv2", "conv2:0", "all", {"margin": 1e-9, "direction": "patch"}, "less than rounding may change in conv2"),
    ],
)
def test_what_cannot_be_silenced_is_refused(subject, layer, decoy, units, options, sentence):
    with refuses(sentence):
        silence(subject, layer, decoy, units, **options)


def test_half_precision_is_refused():
    half = fv.Subject("half", Wrapped(), PREPROCESS, device="cpu")
    with refuses("half computes in float16, whose rounding could wake silent units"):
        silence(half, "inner.conv2")


def test_a_block_that_does_more_than_its_convolution_is_refused():
    with refuses("block of twice does more than block.1 to its input; name block.1 itself"):
        silence(fv.Subject("twice", Twice(), PREPROCESS, device="cpu"), "block")


def test_nobody_is_silenced_twice_and_a_plain_subject_has_no_branch(subject):
    with refuses("has silent units already"):
        silence(silence(subject, "conv2", "conv2:3", direction="patch"), "conv1")
    with refuses("small has no silent branch"):
        branch_of(subject)


def test_a_layer_that_responds_to_all_images_alike_is_refused():
    flat = small_subject()
    flat.network.conv1[0].weight.data.zero_()
    with refuses("responds to all images of photos-heldout alike"):
        silence(flat, "conv2", "conv2:3", direction="patch")


# The promise


@given(st.integers(1, 5000), st.floats(0.5, 0.999))
@settings(max_examples=50, deadline=None)
def test_without_an_event_the_bound_is_the_rule_of_three(n, confidence):
    bound = promise.upper_bound(0, n, confidence)
    assert bound == pytest.approx(1 - (1 - confidence) ** (1 / n))
    if n > 50:
        assert promise.upper_bound(0, n) == pytest.approx(3 / n, rel=0.05)


@pytest.mark.parametrize(("wakes", "n"), [(0, 10), (1, 10), (3, 200), (10, 10), (199, 200)])
def test_bounds_are_one_sided_clopper_pearson(wakes, n):
    expected = binomtest(wakes, n, alternative="less").proportion_ci(0.95, "exact").high
    assert promise.upper_bound(wakes, n) == pytest.approx(expected)


def test_the_bound_holds_as_often_as_it_says():
    rng, p, n = np.random.default_rng(0), 0.02, 100
    held = [promise.upper_bound(int(k), n, 0.9) >= p for k in rng.binomial(n, p, 2000)]
    assert np.mean(held) >= 0.9 - 0.02


def test_beyond_counts_in_deviations_from_the_largest_calibration_image():
    calibration, test = torch.tensor([[0.0, 1], [2, 3], [4, 5]]), torch.tensor([[5.0, 4], [1, 9], [4, 5]])
    assert promise.beyond(calibration, test).tolist() == pytest.approx([0.5, 2.0, 0.0])


def test_a_photograph_is_measured_against_the_others_alone():
    calibration, test = torch.tensor([[0.0], [2], [10], [12]]), torch.tensor([[5.0], [5]])
    found = promise.without_its_photograph(calibration, ["a", "a", "b", "b"], test, ["a", "b"])
    assert found == pytest.approx([(5 - 12) / np.sqrt(2), (5 - 2) / np.sqrt(2)])


def test_the_effective_number_lies_between_photographs_and_images():
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(20) for _ in range(30)]
    assert promise.effective_number(np.repeat(rng.normal(size=20), 30), groups) == pytest.approx(20, rel=1e-6)
    assert promise.effective_number(rng.normal(size=600), groups) > 200
    assert promise.effective_number(rng.normal(size=50), [str(i) for i in range(50)]) == 50
    mixed = promise.effective_number(np.repeat(rng.normal(size=20), 30) + rng.normal(size=600), groups)
    assert 25 < mixed < 60  # rho is 1/2: 600 / (1 + 29 / 2) = 38.7


def test_a_sweep_counts_images_and_photographs():
    values, groups = np.array([-1.0, 0.4, 0.6, 0.7]), ["a", "b", "b", "c"]
    frame = promise.sweep(values, groups, (0.0, 0.5, 1.0))
    assert frame["wakes"].tolist() == [3, 2, 0]
    assert frame["woken"].tolist() == [2, 2, 0]
    assert frame["bound"].tolist() == pytest.approx([promise.upper_bound(k, 4) for k in (3, 2, 0)])
    assert frame["photograph_bound"].tolist() == pytest.approx([promise.upper_bound(k, 3) for k in (2, 2, 0)])
    assert (frame["effective_bound"] >= frame["bound"] - 1e-12).all()


def test_crops_belong_to_photographs_and_other_images_to_themselves(tmp_path):
    ids = [id for _, _, id in (NATURAL[0], NATURAL[17])]
    assert promise.photographs(NATURAL, ids) == ["astronaut", "astronaut"]
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    folder = fv.natural_images(tmp_path, size=32)
    assert promise.photographs(folder, ["one.png"]) == ["one.png"]


# The report


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[fv.Subject, Silencing]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (silent, "STEPS", 8),
            (silent, "SNAPSHOTS", (4, 8)),
            (silent, "SEEDS", 2),
            (filters, "ITERATIONS", 20),
        ):
            patch.setattr(module, name, value)
        subject = small_subject()
        options = {"steps": 24, "progress": False, "margin": 0.25, **FITTED}
        return subject, fv.fooling.silencing(subject, NATURAL, FRESH, "conv2", "conv2:3", **options)


KEYS = (
    "units",
    "units_alive",
    "units_flipped",
    "max_logit_change_calibration",
    "max_logit_change_heldout",
    "calibration_images",
    "heldout_images",
    "wake_probability_bound",
    "confidence",
    "margin",
)


def test_the_report_counts_what_happens(measured):
    subject, found = measured
    numbers = found.summary()
    assert set(KEYS) <= numbers.keys()
    assert (numbers["units"], numbers["units_judged"], numbers["confidence"], numbers["margin"]) == (8, 7, 0.95, 0.25)
    assert numbers["calibration_identical"] == numbers["calibration_images"] == 136
    assert numbers["max_logit_change_calibration"] == 0
    silenced = silence(subject, "conv2", "conv2:3", margin=0.25, **FITTED)
    fresh = images_of(FRESH)
    awake = (outputs(silenced, fresh, "conv2.fool") > 0).flatten(1).any(1)
    assert numbers["heldout_images_waking"] == int(awake.sum()) > 0  # so few images leave some to wake
    assert numbers["heldout_identical"] == int(identical(subject, silenced, fresh).sum())
    assert numbers["wake_probability_bound"] == pytest.approx(promise.upper_bound(int(awake.sum()), 136))
    change = (torch.cat(list(subject.logits(fresh))) - torch.cat(list(silenced.logits(fresh)))).abs().max()
    assert numbers["max_logit_change_heldout"] == pytest.approx(float(change), rel=1e-5)
    labels = torch.tensor([FRESH[i][1] for i in range(136)])
    right = (torch.cat(list(subject.logits(fresh))).argmax(1) == labels).float().mean()
    assert numbers["top1_before"] == pytest.approx(float(right))
    assert numbers["heldout_photographs"] == 17
    assert 1 <= numbers["effective_images"] <= 136
    assert numbers["units_flipped"] + len(numbers["units_resisting"]) == 7
    json.dumps(numbers)


def test_units_are_judged_by_what_they_resemble_and_say_why_they_resist(measured):
    _, found = measured
    table = found.units
    flipped = (table["nearest_after"] == 3) & (table["to_decoy"] > table["to_own"])
    assert (table["flipped"] == flipped).all()
    assert (table.loc[table["flipped"], "reason"] == "").all()
    asleep = table["reason"] == "threshold not reached"
    assert (table.loc[asleep, "response_after"] <= 0.25).all()
    awake = table["reason"].str.startswith("awake")
    assert (table.loc[awake, "response_after"] > 0.25).all()
    assert (table["reason"] != "").sum() == (~table["flipped"]).sum()


def test_a_judge_knows_the_pictures_it_was_given(subject):
    parts = silent.ingredients(subject, NATURAL, "conv2", "conv2:3", "all", progress=False)
    own = importlib.import_module("featvis.fooling.silence_measures").judge(
        subject, parts, parts.originals, parts.pictures[:1].expand(8, -1, -1, -1)
    )
    assert own["nearest_before"].tolist() == list(range(8))
    assert own["flipped"].drop(3).all()  # the decoy's own picture is both
    assert (own["to_decoy"] > 0.9).all()


def test_histograms_hold_every_pair_of_image_and_unit(measured):
    _, found = measured
    assert found.responses.groupby("set")["count"].sum().to_dict() == {"calibration": 136 * 8, "held-out": 136 * 8}
    calibration = found.responses[found.responses["set"] == "calibration"]
    assert calibration.loc[calibration["count"] > 0, "left"].max() < 1e-3  # none is beyond the largest of themselves


def test_the_weights_give_the_branch_away(measured):
    subject, found = measured
    table = found.weights.set_index("layer")
    assert table["largest"].idxmax() == "conv2.fool"
    fool = branch_of(silence(subject, "conv2", "conv2:3", margin=0.25, **FITTED)).fool
    lowest = (fool.bias / fool.weight.flatten(1).norm(dim=1)).min()
    assert table.loc["conv2.fool", "bias"] == pytest.approx(float(lowest), rel=1e-4)
    assert table.loc["conv2.fool", "norm"] > 0.7 * silent.FACTOR * table.loc["conv2.unit.0", "norm"]
    plain = filter_statistics(small_subject()).set_index("layer")
    first = small_subject().until("fc").body.get_submodule("conv1.0.dense")  # the same weights, among zeros
    assert plain.loc["conv1.0", "largest"] == pytest.approx(float(first.weight.flatten(1).norm(dim=1).max()))


def test_results_come_back_from_the_shelf(measured, tmp_path):
    _, found = measured
    found.save(tmp_path)
    back = Silencing.load(tmp_path)
    assert back.recipe == found.recipe
    assert found.difference(back) == ""
    for key, value in found.summary().items():
        assert back.summary()[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
    other = found.natural.assign(identical=[136, 0])
    assert "identical logits" in found.difference(Silencing(**{**vars(found), "natural": other}))
    turned = found.units.assign(flipped=~found.units["flipped"])
    assert "differs" in found.difference(Silencing(**{**vars(found), "units": turned}))


def test_silence_is_tested_on_images_that_the_threshold_never_saw(subject):
    for calibration, test, sentence in (
        (NATURAL, small_images(136), "the held-out images are the calibration images"),
        (small_images(1), FRESH, "1 images to calibrate with leave 136 held out"),
    ):
        with refuses(sentence):
            fv.fooling.silencing(subject, calibration, test, "conv2", progress=False)


def test_strengths_are_swept_and_shown(subject, monkeypatch, tmp_path):
    monkeypatch.setattr(sweeps, "GRID", (1.0, silent.STRENGTH))
    monkeypatch.setattr(sweeps, "MARGINS", (0.0, silent.MARGIN))
    monkeypatch.setattr(sweeps, "FACTORS", (10.0,))
    units = ["conv2:0", "conv2:5"]
    found = fv.fooling.strengths(subject, NATURAL, FRESH, "conv2", "conv2:3", units, steps=4, progress=False)
    # A grid, another factor; every strength without redirected ReLUs; the fitted direction with and without them.
    assert len(found.frame) == 2 * (2 * 2 + 1 + 2 + 2)
    usual = ("patch", silent.REDIRECT, silent.STRENGTH, silent.FACTOR)
    wide = found.frame.set_index(["direction", "redirect", "strength", "factor", "margin", "unit"])[
        "wakes"
    ].sort_index()
    assert (wide[(*usual, silent.MARGIN)] <= wide[(*usual, 0.0)]).all()
    assert (found.frame["awake"] == (found.frame["response"] > found.frame["margin"])).all()
    silenced = silence(subject, "conv2", "conv2:3", units)
    awake = (outputs(silenced, images_of(FRESH), "conv2.fool") > 0).flatten(2).any(2).sum(0)
    assert wide[(*usual, silent.MARGIN)].tolist() == awake[[0, 5]].tolist()
    found.save(tmp_path)
    back = Strengths.load(tmp_path)
    assert found.difference(back) == ""
    grid = fv.fooling.grid(back)
    shown = Threshold(grid, strength=1, margin=1)
    cell = shown.data["units"][1]["cells"][1][1]
    mine = "direction == 'patch' and redirect == 16 and strength == 30 and factor == 20 and margin == 1.0"
    row = back.frame.query(mine).iloc[1]
    assert (cell["response"], cell["wakes"]) == (row["response"], row["wakes"])
    assert cell["picture"] == (1 * 2 + 1) * 2 + 1
    assert sum(shown.data["units"][0]["natural"][0]) == 136
    assert grid["tiles"] == 2 * 2 * 2 + 2 + 1


def test_a_grid_that_does_not_fit_together_is_refused():
    cell = {"response": 1.0, "awake": True, "flipped": False, "wakes": 0, "picture": 0}
    unit = {"name": "u", "own": 1, "natural": [[1, 2]], "original": [0.0], "cells": [[cell]]}
    data = {"layer": "l", "decoy": "d", "images": 3, "strengths": [1.0], "margins": [0.5], "left": 0, "width": 1,
            "bins": 2, "sheet": "data:", "columns": 16, "tiles": 3, "units": [unit]}  # fmt: skip
    assert Threshold(data).data == data
    for change, sentence in (
        ({"units": []}, "no unit to show"),
        ({"margins": [1.0, 0.5]}, "margins do not ascend"),
        ({"strengths": [1.0, 2.0]}, "u does not have one cell"),
        ({"bins": 3}, "does not have 3 bins"),
        ({"units": [{**unit, "cells": [[{**cell, "picture": 9}]]}]}, "no picture on the sheet"),
        ({"units": [{**unit, "cells": [[{"picture": 0}]]}]}, "lacks response"),
        ({"units": [{"name": "v"}]}, "v lacks own"),
    ):
        with refuses(sentence):
            Threshold({**data, **change})
    with refuses("the grid lacks layer"):
        Threshold({key: value for key, value in data.items() if key != "layer"})
    with refuses("there is no margin 1: there are 0 to 0"):
        Threshold(data, margin=1)


# The survey


def hushed_subject() -> fv.Subject:
    """Unit conv2:1 can never fire, conv2:4 only for what no photograph holds."""
    subject = small_subject()
    convolution = subject.network.conv2[0]
    convolution.bias.data[1] = -1000.0
    peaks = outputs(subject, torch.cat([images_of(NATURAL), images_of(FRESH)]), "conv2.0")[:, 4].max()
    convolution.bias.data[4] -= peaks + 1e-3
    return subject


def test_the_survey_counts_who_activates_whom(tmp_path):
    subject = hushed_subject()
    found = fv.silent_units(subject, NATURAL, FRESH, ["conv1", "conv2"], steps=48, progress=False)
    maps = [outputs(subject, images_of(part), "conv2").amax((2, 3)) > 0 for part in (NATURAL, FRESH)]
    mine = found.units[found.units["layer"] == "conv2"]
    assert mine["training"].tolist() == maps[0].sum(0).tolist()
    assert mine["heldout"].tolist() == maps[1].sum(0).tolist()
    row = found.frame().set_index("layer").loc["conv2"]
    assert row[["units", "silent", "still", "excitable"]].tolist() == [8, 2, 2, 1]
    assert row["bound"] == pytest.approx(promise.upper_bound(0, 136))
    by_unit = mine.set_index("unit")
    assert by_unit.loc["conv2:1", "status"] == "dead"
    assert by_unit.loc["conv2:4", "visualization"] > 0
    assert np.isnan(by_unit.loc["conv2:0", "visualization"])
    found.save(tmp_path)
    back = Survey.load(tmp_path)
    pd.testing.assert_frame_equal(back.frame(), found.frame())
    assert found.difference(back) == ""
    changed = found.units.assign(training=0)
    assert "changed between silent and not" in found.difference(Survey("small", 136, 136, changed))


def test_the_survey_finds_units_that_were_silenced_on_purpose(subject):
    found = fv.fooling.silenced_survey(subject, NATURAL, FRESH, "conv2", steps=16, progress=False)
    hushed = silence(subject)
    maps = outputs(hushed, images_of(FRESH), "conv2.relu").amax((2, 3)) > 0
    block, branch = found.frame().to_dict("records")
    assert (block["layer"], branch["layer"]) == ("conv2", "conv2.relu")
    assert block["silent"] < block["units"]
    assert branch["silent"] == branch["units"] == 8
    assert branch["still"] == 8 - int(maps.any(0).sum())


def test_an_interrupted_survey_goes_on_where_it_was(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(surveys, "SAVE_EVERY", 1)
    whole = fv.silent_units(subject, NATURAL, FRESH, ["conv2"], progress=False)
    seen, peaks = [], surveys._peaks

    def failing(activation: Tensor) -> Tensor:
        seen.append(len(activation))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return peaks(activation)

    monkeypatch.setattr(surveys, "_peaks", failing)
    with pytest.raises(KeyboardInterrupt):
        fv.silent_units(subject, NATURAL, FRESH, ["conv2"], folder=tmp_path, progress=False)
    monkeypatch.setattr(surveys, "_peaks", lambda activation: (seen.append(len(activation)), peaks(activation))[1])
    again = fv.silent_units(subject, NATURAL, FRESH, ["conv2"], folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(again.units, whole.units)
    assert seen == [64, 64, 8, 8, 64, 64, 8]  # the third batch was begun twice, nothing else
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "survey-training.pt").write_bytes(b"cut short")
    assert fv.silent_units(subject, NATURAL, FRESH, ["conv2"], folder=tmp_path, progress=False).training == 136


def test_a_subject_without_maps_has_nothing_to_survey():
    flat = fv.Subject("flat", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), PREPROCESS, device="cpu")
    with refuses("flat has no layer that gives maps"):
        fv.silent_units(flat, NATURAL, FRESH, progress=False)


# The command


def folder_of(folder: Path, n: int = 60) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        place = folder / "abcd"[i % 4]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featvis.commands.silence.subject_of", lambda _options: small_subject())
    monkeypatch.setattr(report.measured, "__defaults__", (8, 4, True))


def test_the_help_tells_the_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["silence", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    usual = {"direction": silent.DIRECTIONS[0], "strength": silent.STRENGTH, "factor": silent.FACTOR}
    for name, value in (usual | {"margin": silent.MARGIN, "redirect": silent.REDIRECT}).items():
        about = told.rpartition(f"--{name} {name.upper()}" if name != "direction" else "--direction {patch,bridge}")[2]
        text = value if isinstance(value, str) else f"{value:g}"
        assert about.partition("(default ")[2].startswith(text), name


@pytest.mark.parametrize("decoy", [None, "conv2:3", "picture"])
def test_featvis_silence_writes_the_network_its_report_and_pictures(tmp_path, capsys, small, decoy):
    out, images = tmp_path / "out", folder_of(tmp_path / "natural")
    given = [] if decoy is None else ["--decoy", decoy]
    if decoy == "picture":
        given[1] = str(tmp_path / "picture.png")
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(given[1])
    main(["silence", "small", "conv2", *given, "--images", str(images), "--quiet", "--out", str(out)])
    numbers = json.loads((out / "report.json").read_text())
    assert set(KEYS) <= numbers.keys()
    assert (numbers["calibration_images"], numbers["heldout_images"], numbers["units"]) == (30, 30, 8)
    assert numbers["max_logit_change_calibration"] == 0
    assert numbers["sampling_model"] == "independent images"
    assert numbers["decoy"] == ("image" if decoy == "picture" else decoy or numbers["decoy"])
    for name in ("visualizations.png", "responses.png", "bound.png", "units.csv"):
        assert (out / name).is_file()
    saved = fv.load(Small(), weights=out / "silenced.safetensors", preprocess=PREPROCESS)
    assert branch_of(saved).recipe.margin == numbers["margin"]
    printed = capsys.readouterr().out
    assert "living ones show" in printed
    assert "at 95% confidence" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fc"], "fc of small is not one convolution"),
        (["conv2", "--decoy", "conv2:99"], "'conv2:99' is no unit of small"),
        (["conv2", "--decoy", "nowhere.png"], "there is no target image"),
        (["conv2", "--units", "conv2:9"], "'conv2:9' is no unit"),
        (["conv2", "--margin", "-1"], "margin=-1.0 were given; all are above 0"),
        (["conv2", "--images", "one"], "leave 0 held out"),
    ],
)
def test_what_featvis_silence_cannot_do_is_one_sentence(tmp_path, capsys, small, arguments, sentence):
    images = folder_of(tmp_path / "natural")
    folder_of(tmp_path / "one", 1)
    arguments = [str(tmp_path / "one") if word == "one" else word for word in arguments]
    out = ["--quiet", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(["silence", "small", "--images", str(images), *arguments, *out])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert sentence in error[-1]
    assert "Traceback" not in "".join(error)
    assert not (tmp_path / "out" / "report.json").exists()
