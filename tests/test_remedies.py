"""Visualizations that stay close to natural images: MACO from an image, feature accentuation, activation matching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import featvis as fv
from featvis.visualize import (
    Affine,
    Crops,
    Maco,
    Nothing,
    accentuate,
    accentuation,
    balance,
    channel,
    l2,
    match_activations,
    matched,
    matching,
    mean_magnitude,
    near,
    total_variation,
)
from featvis.visualize.ascent import generator_for
from featvis.visualize.natural import VIEWS
from featvis.visualize.objectives import BESIDE, IMAGE, sorted_maps, stacked, unit_means
from tests.small import PREPROCESS, Small, small_images, small_subject

UNITS = ["fc:b", "conv2:3", "fc:a"]
NAMES = ("fc:1", "conv2:3", "fc:0")


@pytest.fixture
def subject() -> fv.Subject:
    return small_subject()


@pytest.fixture
def photographs() -> Tensor:
    """(17, 3, 32, 32), one of each photograph."""
    return next(iter(small_images(17).batches(17)))[0]


def activation(subject: fv.Subject, images: Tensor, unit: str) -> Tensor:
    layer, index = subject.unit(unit)
    (found,) = subject.activations(images, [layer])
    return unit_means(found[layer])[:, index].clone()


def features(subject: fv.Subject, images: Tensor, layer: str) -> Tensor:
    return next(iter(subject.activations(images, [layer])))[layer].flatten(1).clone()


# --- the parts


def test_every_image_of_a_batch_has_crops_of_its_own(subject: fv.Subject) -> None:
    together = fv.render(subject, UNITS, seeds=2, steps=8, transform=Crops(views=3), progress=False)
    for i, unit in enumerate(UNITS):
        alone = fv.render(subject, unit, seeds=2, steps=8, transform=Crops(views=3), progress=False)
        torch.testing.assert_close(together.images[i], alone.images[0], atol=0.02, rtol=0)
        np.testing.assert_allclose(together.curve[i, :, 0], alone.curve[0, :, 0], rtol=1e-4, atol=1e-6)
    crops, images = Crops(views=3), torch.rand(4, 3, 16, 16)
    row = crops.draw([generator_for("test", seed) for seed in range(4)], 1)[0]
    torch.testing.assert_close(crops.apply(images, row)[3:6], crops.apply(images[1:2], row[1:2]))


def test_the_first_crop_is_not_all_that_counts(subject: fv.Subject) -> None:
    """The value at a step is the mean over all views."""
    pictures = fv.render(subject, "fc:1", steps=1, transform=Crops(views=3), progress=False)
    start = fv.visualize.Fourier().start([generator_for("fc:1", 0)], (32, 32))
    generator = generator_for("fc:1", 0)
    fv.visualize.Fourier().start([generator], (32, 32))
    views = Crops(views=3).apply(fv.visualize.Fourier().image(start, (32, 32)), Crops(views=3).draw([generator], 1)[0])
    assert pictures.curve[0, 0, 0] == pytest.approx(activation(subject, views, "fc:1").mean().item(), abs=1e-5)


def test_stacked_objectives_see_their_own_images_and_views() -> None:
    a = {IMAGE: torch.rand(12, 3, 4, 4), "conv": torch.rand(12, 5, 4, 4)}
    both = stacked([channel("conv:1"), 2 * channel("conv:4")], [1, 2])  # 3 images, 4 views of each
    expected = torch.cat([a["conv"][:4, 1], 2 * a["conv"][4:, 4]]).mean((1, 2))
    torch.testing.assert_close(both.value(a), expected)


def test_objectives_that_read_the_same_layers_share_a_batch(subject: fv.Subject) -> None:
    wanted = [channel("fc:1") + 0.1 * channel("conv2:3"), channel("fc:2") - 0.1 * channel("conv2:1"), channel("fc:0")]
    batches: list[int] = []
    together = fv.render(
        subject, wanted, seeds=2, steps=8, snapshots=(1,), on_step=lambda _, x: batches.append(len(x)), progress=False
    )
    assert sorted(set(batches)) == [2, 4]
    for i, what in enumerate(wanted):
        alone = fv.render(subject, what, seeds=2, steps=8, progress=False)
        torch.testing.assert_close(together.images[i], alone.images[0], atol=0.02, rtol=0)


def test_total_variation_and_l2_are_those_of_the_image(subject: fv.Subject) -> None:
    ramp = torch.linspace(0, 1, 5).expand(2, 3, 7, 5)
    torch.testing.assert_close(total_variation().value({IMAGE: ramp}), torch.full((2,), 0.25))
    torch.testing.assert_close(l2().value({IMAGE: torch.full((2, 3, 4, 4), 0.8)}), torch.full((2,), 0.09))
    rough, smooth, flat = (
        fv.render(subject, channel("fc:1") - weight, steps=32, progress=False).images[0]
        for weight in (0 * l2(), 100 * total_variation(), 100 * l2())
    )
    assert total_variation().value({IMAGE: smooth}) < 0.5 * total_variation().value({IMAGE: rough})
    assert l2().value({IMAGE: flat}) < 0.5 * l2().value({IMAGE: rough})


# --- MACO


@pytest.mark.parametrize("size", [32, 96, 224])
def test_maco_goes_with_all_transforms_and_starts(subject: fv.Subject, size: int) -> None:
    maco = Maco(mean_magnitude(fv.natural_images("photos", n=17, size=size)))
    start = fv.natural_images("photos", n=1, size=size)[0][0]
    for transform in (Affine(), Crops(views=2)):
        options = {"steps": 8, "size": size, "parameterization": maco, "transform": transform, "progress": False}
        pictures = fv.render(subject, UNITS[:2], **options)
        assert (pictures.activation > pictures.curve[..., 0]).all()
        fv.render(subject, UNITS[:2], start=start, **options)
    near_start = fv.render(subject, "fc:1", start=start, rate=1e-6, **options).images[0, 0]
    wrong = fv.render(subject, "fc:1", rate=1e-6, **options).images[0, 0]

    def likeness(image: Tensor) -> float:
        return torch.corrcoef(torch.stack([image.mean(0).flatten(), start.mean(0).flatten()]))[0, 1].item()

    assert likeness(near_start) > 0.5 > likeness(wrong)


def test_maco_by_name_suits_every_subject(subject: fv.Subject) -> None:
    by_name, given = (
        fv.render(subject, "fc:1", steps=2, parameterization=form, progress=False).images
        for form in ("maco", Maco(mean_magnitude(fv.natural_images("photos", split="train", size=32))))
    )
    assert torch.equal(by_name, given)


# --- feature accentuation


@dataclass(frozen=True)
class Plain:
    """Parameters are the pixels themselves; a start is off by a known step."""

    step: Tensor
    rate: float = 0.01

    def start(self, generators, size, image=None) -> Tensor:
        return image + self.step

    def image(self, parameters: Tensor, size) -> Tensor:
        return parameters


def test_rho_is_the_ratio_of_the_l1_norms_of_both_gradients() -> None:
    torch.manual_seed(0)
    h, fc = nn.Linear(3 * 16 * 16, 5, bias=False), nn.Linear(5, 2, bias=False)
    network = nn.Sequential()
    for name, module in (("flat", nn.Flatten()), ("h", h), ("fc", fc)):
        network.add_module(name, module)
    linear = fv.Subject("linear", network, fv.Preprocess((16, 16)), device="cpu")
    seeds, step = torch.rand(1, 2, 3, 16, 16), 0.01 * torch.randn(3, 16, 16)
    with torch.no_grad():
        away = h(step.flatten())
        gain = (fc.weight[1] @ h.weight).abs().sum()
        penalty = (away / away.norm() @ h.weight).abs().sum()
    options = {"parameterization": Plain(step), "transform": Nothing(), "seeds": (0, 1)}
    rho = balance(linear, [channel("fc:1")], [near("h", seeds[0])], seeds, **options)
    torch.testing.assert_close(rho, (gain / penalty).detach().expand(1, 2), rtol=1e-3, atol=0)

    objective = accentuation(linear, "fc:1", seeds[0], layer="h", strength=3.0, **options)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        seen = {"h": h(x.flatten(1)), BESIDE + "h": h(seeds[0].flatten(1)), "fc": fc(h(x.flatten(1)))}
        apart = (seen["h"] - seen[BESIDE + "h"]).norm(dim=1)
        torch.testing.assert_close(objective.value(seen), seen["fc"][:, 1] - 3 * rho[0] * apart, rtol=1e-4, atol=1e-4)
    dead = balance(linear, [0 * channel("fc:1")], [near("h", seeds[0])], seeds, **options)
    assert (dead == 0).all()
    at_seed = options | {"parameterization": Plain(torch.zeros(3, 16, 16))}
    assert (balance(linear, [channel("fc:1")], [near("h", seeds[0])], seeds, **at_seed) == 0).all()


def test_strength_keeps_features_near_the_seed_while_the_activation_rises(
    subject: fv.Subject, photographs: Tensor
) -> None:
    starts = photographs[:3]
    before = torch.stack([activation(subject, starts[i : i + 1], unit) for i, unit in enumerate(NAMES)])[:, 0]
    apart, rise = [], []
    for strength in (0.0, 0.7, 20.0):
        found = accentuate(subject, starts, UNITS, layer="conv1", strength=strength, steps=48, progress=False)
        assert found.units == NAMES
        distance = features(subject, found.images[:, 0], "conv1") - features(subject, starts, "conv1")
        apart.append(distance.norm(dim=1))
        rise.append(torch.from_numpy(found.activation[:, 0]) - before)
    assert (apart[0] > apart[1]).all()
    assert (apart[1] > 1.5 * apart[2]).all()
    assert (rise[0] > 0).all()
    assert (rise[1] > 0).all()


def test_many_units_are_accentuated_as_each_alone(subject: fv.Subject, photographs: Tensor) -> None:
    starts = photographs[:6].view(3, 2, 3, 32, 32)
    options = {"seeds": [4, 1], "steps": 12, "progress": False}
    together = accentuate(subject, starts, UNITS, **options)
    ones = accentuate(subject, starts, UNITS, batch=1, **options)
    for i, unit in enumerate(UNITS):
        alone = accentuate(subject, starts[i : i + 1], unit, **options)
        torch.testing.assert_close(together.images[i], alone.images[0], atol=0.02, rtol=0)
        torch.testing.assert_close(ones.images[i], alone.images[0], atol=0.02, rtol=0)
        objective = accentuation(subject, NAMES[i], starts[i], seeds=[4, 1])
        by_hand = fv.render(
            subject,
            objective,
            start=starts[i : i + 1],
            transform=VIEWS,
            **options,
        )
        torch.testing.assert_close(by_hand.images[0], alone.images[0], atol=0.02, rtol=0)
        np.testing.assert_allclose(
            together.activation[i], activation(subject, together.images[i], NAMES[i]), rtol=1e-4, atol=1e-5
        )


def test_the_best_exemplars_are_accentuated_and_the_result_goes_on_the_shelf(subject: fv.Subject, tmp_path) -> None:
    natural = small_images(17)
    best = fv.exemplars(subject, natural, UNITS, k=2, progress=False)
    options = {"seeds": 2, "steps": 3, "progress": False}
    given = torch.stack([best.pictures(natural, unit) for unit in best.units])
    found = accentuate(subject, natural, UNITS, **options)
    assert torch.equal(found.images, accentuate(subject, given, UNITS, **options).images)
    shelf = fv.Shelf(tmp_path)
    first, again = (accentuate(subject, natural, UNITS, shelf=shelf, **options) for _ in range(2))
    assert len(list(shelf.entries())) == 1
    assert again.units == NAMES
    assert first.difference(again) == ""


# --- activation matching


def test_a_shuffled_reference_matches_and_another_does_not() -> None:
    torch.manual_seed(0)
    reference = torch.rand(1, 4, 5, 6)
    shuffled = torch.stack([maps.flatten()[torch.randperm(30)] for maps in reference[0]]).view(1, 4, 5, 6)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0])
    match = matched("conv", sorted_maps(reference)[0], weights)
    other = shuffled + torch.tensor([0.3, 0, 0, 0]).view(4, 1, 1)
    unseen = shuffled + torch.tensor([0, 0.3, 0, 0]).view(4, 1, 1)  # a channel of no weight
    assert match.value({"conv": shuffled}) == 0 == match.value({"conv": unseen})
    scale = (weights * reference[0].square().mean((1, 2))).sum()
    torch.testing.assert_close(match.value({"conv": other}), -(0.3**2 / scale).view(1))
    torch.testing.assert_close(match.value({"conv": torch.zeros(1, 4, 5, 6)}), torch.tensor([-1.0]))


def test_an_image_matches_itself_in_all_layers(subject: fv.Subject, photographs: Tensor) -> None:
    objective = matching(subject, "fc:b", photographs[:1])
    assert objective.layers == ("conv1.0", "conv2.0")
    assert objective.name == "fc:1"
    with torch.no_grad():
        same, other = (
            objective.value(subject.until(*objective.layers)(PREPROCESS(photographs[i : i + 1]))) for i in (0, 1)
        )
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert other.item() < -0.01


def test_relevance_is_gradient_times_activation() -> None:
    subject = small_subject()
    with torch.no_grad():
        subject.network.fc.weight[2] = torch.tensor([1.0, -1.0, 0, 0, 0, 0, 0, 3.0])
    subject = fv.Subject("small", subject.network, PREPROCESS, tuple("abcd"), "cpu")
    images = small_images(4).batches(4)
    references = next(iter(images))[0]
    objective = matching(subject, "fc:2", references, layers=["conv2"])
    (seen,) = subject.activations(references, ["conv2"])
    mean = unit_means(seen["conv2"]).mean(0)
    weights = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 3.0]) * mean / 1
    target = sorted_maps(seen["conv2"]).mean(0)
    test = {"conv2": torch.rand(3, 8, 16, 16)}
    torch.testing.assert_close(
        objective.value(test), matched("conv2", target, weights).value(test), rtol=1e-4, atol=1e-5
    )
    alike = matching(subject, "fc:2", references, layers=["conv2"], relevance=False)
    torch.testing.assert_close(
        alike.value(test), matched("conv2", target, torch.ones(8)).value(test), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("traceable", [True, False])
def test_many_units_are_matched_as_each_alone_and_the_network_is_left_alone(
    photographs: Tensor, traceable: bool
) -> None:
    class Wild(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.mean() < 1e9 else x * 2)

    torch.manual_seed(0)
    subject = fv.Subject("small", Small() if traceable else Wild(), PREPROCESS, tuple("abcd"), "cpu")
    network = subject.network.train()
    network.conv1[0].weight.requires_grad_(False)

    def state() -> list[object]:
        flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
        return [flags, [(p.requires_grad, p.grad, p.sum().item()) for p in network.parameters()]]

    before = state()
    references = photographs[:12].view(3, 4, 3, 32, 32)
    options = {"seeds": 2, "steps": 24, "progress": False}
    network.eval()  # exemplars and activations are those of a network at rest
    at_rest = state()
    together = match_activations(subject, references, UNITS, **options)
    accentuate(subject, photographs[:3], UNITS, steps=2, progress=False)
    with pytest.raises(fv.FeatvisError):
        match_activations(subject, references, UNITS, layers=["fc"], **options)
    assert state() == at_rest
    network.train()
    assert state() == before
    network.eval()
    assert together.units == NAMES
    assert (together.curve[..., -1] > together.curve[..., 0]).all()
    for i, unit in enumerate(UNITS):
        alone = match_activations(subject, references[i : i + 1], unit, **options)
        torch.testing.assert_close(together.images[i], alone.images[0], atol=0.02, rtol=0)
        np.testing.assert_allclose(
            together.activation[i], activation(subject, together.images[i], NAMES[i]), rtol=1e-4, atol=1e-5
        )


# --- bad input

ROW = torch.full((1, 4, 3, 32, 32), 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: accentuation(s, "fc:1", ROW[0, 0], layer="conv9"), ["conv9", "conv1"]),
        (lambda s: accentuation(s, "fc:9", ROW[0, 0]), ["fc:9"]),
        (lambda s: accentuation(s, "fc:1", ROW[0, 0], strength=-1), ["strength=-1", "0 or more"]),
        (lambda s: accentuation(s, "fc:1", ROW[0, 0], strength=float("nan")), ["strength=nan"]),
        (lambda s: accentuation(s, "fc:1", ROW[0]), ["(4, 3, 32, 32)", "(1, 3, h, w)"]),
        (lambda s: accentuate(s, ROW[0, 0, 0], "fc:1"), ["(32, 32)"]),
        (lambda s: accentuate(s, ROW[0], UNITS), ["(4, 3, 32, 32)", "(3, 3, h, w)"]),
        (lambda s: accentuate(s, ROW[0], []), ["no unit"]),
        (lambda s: accentuate(s, ROW[0, 0], "fc:1", seeds=0), ["no seed"]),
        (lambda s: fv.render(s, near("conv1", torch.rand(3, 8, 8))), ["(3, 8, 8)", "(3, 32, 32)"]),
        (lambda s: near("conv1", ROW[0, 0]) + near("conv2", 0 * ROW[0, 0]), ["near(conv1)", "near(conv2)", "one"]),
        (lambda s: fv.render(s, total_variation()), ["total variation", "no layer"]),
        (lambda s: matching(s, "fc:1", ROW[0], layers=["conv9"]), ["conv9", "conv1"]),
        (lambda s: matching(s, "conv1:1", ROW[0], layers=["conv2"]), ["conv2", "conv1:1"]),
        (lambda s: matching(s, "fc:1", ROW[0, 0]), ["(3, 32, 32)", "(k, 3, h, w)"]),
        (lambda s: matching(s, "fc:1", ROW[0, :0]), ["(0, 3, 32, 32)"]),
        (lambda s: match_activations(s, ROW[0], "fc:1"), ["(4, 3, 32, 32)", "(1, k, 3, h, w)"]),
        (
            lambda s: fv.render(s, matching(s, "fc:1", torch.rand(2, 3, 48, 48)), progress=False),
            ["conv1.0", "(6, 576)", "(6, 256)"],
        ),
    ],
)
def test_one_sentence_for_what_cannot_be(subject: fv.Subject, call, words: list[str]) -> None:
    with pytest.raises(fv.FeatvisError) as error:
        call(subject)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
