"""Structured networks keep their structure; path linearity is what it says; twins agree but for one image."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import featvis as fv
from featvis.linearity import DECODERS, MEASURES, SOURCES, Linearity, holm, look, paths, predictions
from featvis.structured import KINDS, SortPairs, Sphere, _measured, build, constrain, slope, structured, train
from featvis.theory.average import average
from featvis.theory.twins import Bend, make_twins, twins
from featvis.visualize import Nothing
from tests.small import PREPROCESS, small_images, small_subject


@pytest.fixture(scope="module")
def crops() -> fv.images.NaturalImages:
    return fv.natural_images("photos", split="train", n=170, size=16)


@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_the_structure_and_learns(kind, crops):
    network = train(kind, crops, 60, 0).double()
    x = torch.rand(200, 3, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    pixels = torch.stack([crops[i][0] for i in range(len(crops))]).double()
    labels = torch.tensor([crops[i][1] for i in range(len(crops))])
    assert (network(pixels).argmax(1) == labels).double().mean() > 2 / 17
    if kind.startswith("ball-"):
        assert torch.allclose(network(0.5 + 0.1 * (x - 0.5)), network(x))
        sphere = network[1](network[0](x))
        assert torch.allclose(sphere.norm(dim=1), torch.tensor(768.0).sqrt().double())
    if kind == "ball-linear":
        rest = network[2](sphere) + network[2](-sphere)
        assert torch.allclose(rest, 2 * network[2](torch.zeros_like(sphere)))
    if kind == "monotone":
        brighter = x + (1 - x) * torch.rand_like(x)
        assert (network(brighter) >= network(x) - 1e-12).all()
    if kind == "lipschitz":
        assert slope(network) == pytest.approx(1, abs=1e-4)
        y = x.flip(0)
        far = (x - y).flatten(1).norm(dim=1)
        assert ((network(x) - network(y)).abs().amax(1) <= 1.001 * far).all()
    if kind == "linear":
        assert torch.allclose(network(x) + network(1 - x), 2 * network(torch.full_like(x, 0.5)))


def test_constraints_are_what_the_names_say():
    torch.manual_seed(0)
    for inputs in (300, 30):
        network = build("lipschitz", inputs, 4)
        constrain("lipschitz", network)
        for layer in network:
            if isinstance(layer, nn.Linear):
                rows = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
                assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-4)
    x = torch.randn(50, 8)
    assert torch.allclose(SortPairs()(x).norm(dim=1), x.norm(dim=1))
    with pytest.raises(fv.FeatvisError, match="there is no structured network 'deep'"):
        build("deep", 3, 2)


def test_the_ball_shows_a_linear_units_weights_and_the_box_their_signs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    subject = fv.load(network, preprocess=fv.Preprocess((16, 16)), device="cpu")
    weights = network[1].weight.detach()[0]
    shown = fv.render(
        subject, "1:0", parameterization=Sphere(), transform=Nothing(), size=16, steps=256, progress=False
    ).images.flatten()
    assert float((shown - 0.5).norm()) == pytest.approx(0.5, abs=1e-4)
    assert float(torch.corrcoef(torch.stack([shown, weights]))[0, 1]) > 0.995


def test_structured_measures_each_network_on_both_domains(crops, tmp_path):
    test = fv.natural_images("photos", n=102, size=16)
    found = structured(small_subject(), crops, test, steps=40, ascent=60, seeds=1, progress=False)
    mean = found.table.groupby(["network", "domain"])[["line", "open", "certified", "error", "outside"]].mean()
    assert len(found.table) == len(KINDS) * 2 * 17
    assert mean.loc[("linear", "ball"), "line"] > 0.99
    assert mean.loc[("linear", "ball"), "certified"] == 0
    assert mean.loc[("linear", "ball"), "error"] < 0.05
    assert mean.loc[("linear", "box"), "certified"] > 1
    for domain in ("box", "ball"):
        assert mean.loc[("ball-linear", domain), "line"] > 0.98
        assert mean.loc[("ball-linear", domain), "error"] < 0.05
        assert mean.loc[("ball-free", domain), "open"] == 1
    assert mean.loc[("linear", "ball"), "open"] == 0
    assert mean.loc[("free", "box"), "open"] == 1
    lipschitz = found.table[(found.table["network"] == "lipschitz") & (found.table["domain"] == "box")]
    assert lipschitz["open"].between(0, 1).all()
    # an error of half of what is open, in units of the range: the same unit's two columns hang together by that range
    free = found.table[(found.table["network"] == "free") & (found.table["domain"] == "box")]
    assert (free["certified"] >= free["error"] - 1e-9).all()
    pairs = found.table.groupby(["network", "domain"])[["line", "other"]].mean()
    assert pairs.loc[("linear", "ball"), "other"] < 0.7 * pairs.loc[("linear", "ball"), "line"]
    assert found.table["other"].between(0, 1).all()
    outside = mean["outside"].xs("box", level=1)
    assert (outside.drop("ball-linear") < 0.02).all()  # whose bounds are a line, which ascent on the box just misses
    assert np.isnan(mean.loc[("free", "ball"), "certified"])
    assert (found.table["line"].between(0, 1)).all()
    assert set(found.pictures) == {f"{kind} {domain}" for kind in KINDS for domain in ("box", "ball")}
    found.save(tmp_path)
    again = structured.recipe.result.load(tmp_path)
    assert found.difference(again) == ""
    assert found.difference(structured.recipe.result(found.table.assign(line=0.0), found.scatter, found.pictures))
    assert float((again.pictures["linear ball"] - found.pictures["linear ball"]).abs().max()) < 0.002
    ball = found.pictures["linear ball"]
    assert torch.allclose((ball - 0.5).abs().amax((1, 2, 3)), torch.tensor(0.5))
    unlabelled = fv.images.DatasetImages([(torch.rand(3, 16, 16), 0)] * 3, size=16)
    with pytest.raises(fv.FeatvisError, match="need 2"):
        structured(small_subject(), unlabelled, test)


def test_errors_are_measured_in_the_range_of_the_unit():
    """A unit of two numbers that is known by hand: 2 a - b, from -1 to 2 on the box, from 0 to 1 on three images."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).double()
    network[1].weight.data[:] = torch.tensor([[2.0, -1.0]])
    x = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, 0.0]], dtype=torch.double)
    at_min, at_max = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 0.0]).double()
    actual = network(x)[:, 0].detach()
    assert actual.tolist() == [0, 0.5, 1]
    row, line = _measured("free", "box", network, 0, at_min, at_max, x, actual)
    scaled = (actual + 1) / 3
    assert row["open"] == 1
    assert row["certified"] == pytest.approx(0.5 / (1 / 3))
    assert row["error"] == pytest.approx(float((scaled - 0.5).abs().mean()) / (1 / 3))
    assert line.tolist() == pytest.approx([0.5, 0.5, 1.25])  # half-way between the extrema, and three quarters
    row, _ = _measured("linear", "box", network, 0, at_min, at_max, x, actual)
    z = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.5, 1.0]])  # distances from the minimum, coordinate by coordinate
    assert row["open"] == pytest.approx(float((z[:, 1] - z[:, 0]).mean()))
    assert row["certified"] == pytest.approx(row["open"] / 2 / (1 / 3))
    steep = 5**0.5 / 3  # the network's slope, where its extrema are 0 and 1; above the least, 1 / sqrt(2)
    low, high = ((x - end).norm(dim=1) for end in (at_min, at_max))
    width = (steep * low).clamp(max=1) - (1 - steep * high).clamp(min=0)
    row, _ = _measured("lipschitz", "box", network, 0, at_min, at_max, x, actual)
    assert row["open"] == pytest.approx(float(width.mean()))
    assert row["outside"] == 0
    shifted, _ = _measured("linear", "box", network, 0, at_min, at_max, x, actual + torch.tensor([0, 0, 3.0]))
    assert shifted["outside"] == pytest.approx(1 / 3)  # one image lies beyond what the class allows
    wrong, _ = _measured("free", "box", network, 0, at_max, at_min, x, actual)
    assert wrong["line"] == pytest.approx(float(torch.corrcoef(torch.stack([line, actual]))[0, 1] ** 2))
    backwards, _ = _measured("free", "box", network, 0, at_min, at_max, x, -actual)
    assert backwards["line"] == 0


# ---------------------------------------------------------------- twins


def test_a_bend_moves_one_output_inside_of_its_hat_and_never_too_far():
    at = torch.full((1, 3, 4, 4), 0.5)
    bend = Bend(at, radius=2.0, unit=1, units=3, value=-1.0, reach=10.0)
    steps = torch.linspace(0, 3, 31) / 48  # of every pixel
    x = at + steps.view(-1, 1, 1, 1)
    outputs = torch.tensor([[0.0, 4.0, 7.0]]).expand(31, 3)
    moved = bend(outputs, x)
    hat = (1 - steps * 48 / 2).clamp(min=0)
    assert torch.allclose(moved[:, 1], 4 - torch.minimum(10 * hat, torch.tensor(5.0)), atol=1e-4)
    assert moved[0, 1] == -1
    assert torch.equal(moved[:, ::2], outputs[:, ::2])
    assert torch.equal(moved[21:], outputs[21:])
    below = torch.tensor([[0.0, -3.0, 7.0]]).expand(31, 3)
    raised = bend(below, x)[:, 1]
    assert raised[0] == -1
    assert (raised <= -1).all()


@pytest.fixture(scope="module")
def pair() -> object:
    subject = small_subject(classes="abcdefghijklmnopq")
    train = fv.natural_images("photos", split="train", n=34, size=32)
    return twins(subject, train, small_images(34), "fc:b", steps=20, progress=False)


def test_twins_look_alike_cost_the_same_and_disagree_at_x(pair, tmp_path):
    table = pair.table.set_index("network")
    assert (table["pixels"] == 0).all()
    for name in ("at_max", "at_min", "loss", "accuracy"):
        assert table[name].nunique() == 1
    scaled = pair.scaled()
    assert scaled["down"] == pytest.approx(0.05, abs=1e-4)
    assert scaled["up"] == pytest.approx(0.95, abs=1e-4)
    assert pair.facts["unit"] == "fc:b"
    pair.save(tmp_path)
    again = type(pair).load(tmp_path)
    assert pair.difference(again) == ""
    assert again.facts["radius"] == pair.facts["radius"]
    other = type(pair)(pair.table.assign(at_x=pair.table["at_x"] * 2), pair.facts, pair.pictures)
    assert "differ" in pair.difference(other)


def test_twins_agree_on_every_image_outside_of_the_hat():
    subject = small_subject()
    images = torch.stack([small_images(34)[i][0] for i in range(34)])
    made = make_twins(subject, "fc:2", images[0], images[1:], (-1.0, 1.0))
    logits = torch.cat(list(subject.logits(images)))
    for name, value in (("down", -0.9), ("up", 0.9)):
        found = torch.cat(list(made[name].logits(images)))
        assert torch.equal(found[1:], logits[1:])
        assert float(found[0, 2]) == pytest.approx(value, abs=1e-5)
        assert torch.equal(found[0, [0, 1, 3]], logits[0, [0, 1, 3]])
    with pytest.raises(fv.FeatvisError, match="must agree"):
        make_twins(subject, "fc:2", images[0], images, (-1.0, 1.0))
    with pytest.raises(fv.FeatvisError, match="is no output"):
        make_twins(subject, "conv2:2", images[0], images[1:], (-1.0, 1.0))


def test_the_average_is_taken_over_photographs(tmp_path):
    subject = small_subject()
    train = fv.natural_images("photos", split="train", n=8, size=32)
    found = average(subject, train, small_images(51), "fc:a", steps=10, progress=False)
    assert list(found.table["row"]) == ["D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D8", "D8", "D11"]
    found.save(tmp_path)
    again = type(found).load(tmp_path)
    assert found.difference(again) == ""
    assert found.difference(type(found)(found.table.assign(one=found.table["one"] + 0.2)))


# ---------------------------------------------------------------- path linearity


def straight_subject(power: float) -> fv.Subject:
    """One channel: the mean brightness to a power, and its mirror image."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1)
            self.power = Power(power)
            self.conv.weight, self.conv.bias = (
                nn.Parameter(torch.full((1, 3, 1, 1), 1 / 3)),
                nn.Parameter(torch.zeros(1)),
            )

        def forward(self, x):
            return self.power(self.conv(x).mean((2, 3)))

    class Power(nn.Module):
        def __init__(self, power: float) -> None:
            super().__init__()
            self.exponent = power

        def forward(self, x):
            return torch.cat([x**self.exponent, 1 - x], 1)

    return fv.Subject("straight", Net(), fv.Preprocess((16, 16)), device="cpu")


def test_paths_of_straight_and_bent_units():
    low, high = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    straight = paths(straight_subject(1.0), "power:0", low, high)
    assert straight["bend"] == pytest.approx(0, abs=1e-5)
    assert straight["unexplained"] == pytest.approx(0, abs=1e-6)
    assert straight["turn"] == pytest.approx(0, abs=0.1)
    bent = paths(straight_subject(2.0), "power:0", low, high)
    t = np.linspace(0, 1, 33)
    assert bent["bend"] == pytest.approx(np.mean(t - t**2), abs=1e-5)
    assert bent["unexplained"] == pytest.approx(1 - np.corrcoef(t, t**2)[0, 1] ** 2, abs=1e-5)
    assert bent["turn"] == pytest.approx(0, abs=0.1)  # longer and longer, always the same way
    falling = paths(straight_subject(1.0), "power:1", high, low)
    assert falling["bend"] == pytest.approx(0, abs=1e-5)


def test_the_turn_of_a_gradient_is_an_angle():
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pick = nn.Identity()

        def forward(self, x):
            a, b = x[:, 0].mean((1, 2)), x[:, 1].mean((1, 2))
            return self.pick(torch.stack([torch.maximum(a, b)], 1))

    subject = fv.Subject("corner", Corner(), fv.Preprocess((16, 16)), device="cpu")
    low, high = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    low[:, 0] = 0.4
    high[:, 1] = 1.0  # b overtakes a once: one right angle among eight
    assert paths(subject, "pick:0", low, high)["turn"] == pytest.approx(90 / 8, abs=0.1)


def test_a_gradient_that_turns_round_turns_by_180_degrees():
    class Valley(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth = nn.Identity()

        def forward(self, x):
            return self.depth((x.mean((1, 2, 3)) - 0.3).abs()[:, None])

    subject = fv.Subject("valley", Valley(), fv.Preprocess((16, 16)), device="cpu")
    low, high = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert paths(subject, "depth:0", low, high)["turn"] == pytest.approx(180 / 8, abs=0.1)


def test_looks_and_predictions():
    images = torch.stack([small_images(34)[i][0] for i in range(34)])
    assert look(images).shape == (34, 30)
    assert torch.allclose(look(images)[:, :6], look(images.roll((3, 5), (2, 3)))[:, :6], atol=1e-5)
    a, b = torch.rand(2, 7)
    assert torch.allclose(predictions(a, b, torch.stack([a, b, (a + b) / 2])), torch.tensor([0, 1, 0.5]), atol=1e-6)


def made_up(n: int = 60, helps: bool = True) -> Linearity:
    rng = np.random.default_rng(1)
    layers = np.repeat(["a", "b", "c"], n // 3)
    table = pd.DataFrame({"unit": [f"{name}:{i}" for i, name in enumerate(layers)], "layer": layers, "status": "ok"})
    names = [f"{source} {decoder}" for source in SOURCES for decoder in DECODERS]
    for name in (*MEASURES, *names):
        table[name] = 10 + rng.normal(size=n) + 3 * (layers == "b") - 3 * (layers == "c")
    if helps:
        table["exemplar look"] = -table["bend"] + rng.normal(scale=0.5, size=n)
    return Linearity(table)


def test_correlations_leave_depth_out_and_are_corrected():
    found = made_up().correlations().set_index(["measure", "success"])
    assert len(found) == 12
    real = found.loc[("bend", "exemplar look")]
    assert real["rho"] < -0.5
    assert real["low"] < real["rho"] < real["high"] < 0
    assert real["adjusted"] < 0.05
    rest = found.drop(("bend", "exemplar look"))
    assert (rest["adjusted"] > 0.05).all()
    assert (rest.drop("exemplar look", level=1)["across layers"] > 0.5).all()  # depth alone
    assert (rest["rho"].abs() < 0.5).all()
    assert (found["adjusted"] >= found["p"]).all()
    assert made_up(helps=False).correlations()["adjusted"].min() > 0.05


def test_affine_units_take_no_part():
    found = made_up()
    affine = found.table["layer"] == "a"
    table = found.table.assign(bend=found.table["bend"].where(~affine, 1e-7 * found.table["bend"].abs()))
    assert set(Linearity(table).used["layer"]) == {"b", "c"}
    assert (Linearity(table).correlations()["units"] == 40).all()


def test_holm_against_statsmodels_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.6])) == pytest.approx([1.0, 1.0])


def test_linearity_of_a_small_subject(tmp_path):
    train = fv.natural_images("photos", split="train", n=68, size=32)
    subject = small_subject()
    found = fv.linearity(subject, train, small_images(51), per_layer=2, lines=2, steps=6, progress=False)
    assert list(found.table["layer"].unique()) == list(subject.blocks)
    ok = found.table[found.table["status"] == "ok"]
    assert len(ok) >= 4
    assert ok[list(MEASURES[:2])].notna().all(axis=None)
    successes = ok[[f"{source} {decoder}" for source in SOURCES for decoder in DECODERS]]
    assert successes.abs().max(axis=None) <= 1
    found.save(tmp_path)
    again = Linearity.load(tmp_path)
    assert found.difference(again) == ""
    assert "bend" in found.difference(Linearity(found.table.assign(bend=found.table["bend"] + 1)))
    assert PREPROCESS.size == (32, 32)


def test_a_silent_unit_is_named():
    subject = small_subject()
    with torch.no_grad():
        subject.network.conv2[0].weight[0] = 0
        subject.network.conv2[0].bias[0] = -1
    train = fv.natural_images("photos", split="train", n=34, size=32)
    found = fv.linearity(subject, train, small_images(34), per_layer=1, lines=2, steps=3, progress=False)
    assert found.table.set_index("unit")["status"].to_dict()["conv2.0:0"] == "silent"
