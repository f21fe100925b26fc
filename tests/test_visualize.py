"""The engine: parameterizations, transforms, objectives, and render with all that may go wrong on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featvis as fv
from featvis.visualize import (
    Affine,
    Crops,
    Fourier,
    Maco,
    Nothing,
    Pixels,
    batches,
    channel,
    direction,
    diversity,
    logit,
    mean_magnitude,
    neuron,
)
from featvis.visualize.ascent import generator_for
from featvis.visualize.objectives import unit_means
from featvis.visualize.parameterizations import colour_matrix, recolour
from tests.small import small_subject


class Tiny(nn.Module):
    """(n, 3, 32, 32) -> (n, 4); units 0 and 1 of `conv2` are broken where the tests say so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8)
        self.conv2, self.norm2, self.relu2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return self.fc(self.relu2(self.norm2(self.conv2(x))).mean((2, 3)))


PREPROCESS = fv.Preprocess((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def subject() -> fv.Subject:
    return fv.load(Tiny(), preprocess=PREPROCESS, classes=("ant", "bee", "cow", "dog"), device="cpu")


def render(subject: fv.Subject, units, **options) -> fv.Visualizations:
    return fv.render(subject, units, **({"steps": 24, "progress": False} | options))


def generators(n: int) -> list[torch.Generator]:
    return [generator_for("test", seed) for seed in range(n)]


# --- parameterizations


@pytest.mark.parametrize(
    "parameterization", [Fourier(), Fourier(decorrelate=False), Pixels(), Pixels(decorrelate=True)]
)
@pytest.mark.parametrize("size", [(32, 32), (33, 20), (16, 31)])
def test_images_lie_in_their_range_and_start_near_grey_or_a_given_image(parameterization, size) -> None:
    parameters = parameterization.start(generators(2), size)
    images = parameterization.image(parameters, size)
    assert images.shape == (2, 3, *size)
    assert not torch.equal(images[0], images[1])
    assert (images - 0.5).abs().max() < 0.2
    wild = parameterization.image(100 * parameters, size)
    assert 0 <= wild.min() < 0.2 < 0.8 < wild.max() <= 1
    given = torch.rand(1, 3, *size) * 0.9 + 0.05
    again = parameterization.image(parameterization.start(generators(2), size, given.expand(2, -1, -1, -1)), size)
    assert (again - given).abs().mean() < 0.02


def test_colours_are_mixed_as_lucid_does() -> None:
    x = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(recolour(x, colour_matrix()), torch.einsum("nchw,rc->nrhw", x, colour_matrix()))
    assert colour_matrix().norm(dim=0).max() == pytest.approx(1)


def test_maco_keeps_the_magnitude_of_natural_images() -> None:
    natural = torch.rand(6, 3, 16, 16)
    magnitude = mean_magnitude([natural[:3], natural[3:]])
    before = torch.fft.rfft2(
        recolour(torch.logit(natural.clamp(0.01, 0.99)), torch.linalg.inv(colour_matrix())), norm="ortho"
    )
    torch.testing.assert_close(magnitude, before.abs().mean(0), rtol=1e-4, atol=1e-4)
    maco = Maco(magnitude)
    image = maco.image(3 * maco.start(generators(1), (16, 16)), (16, 16))[0]
    spectrum = torch.fft.rfft2(
        recolour(torch.logit(image)[None], torch.linalg.inv(colour_matrix()))[0], norm="ortho"
    ).abs()
    inside = (slice(None), slice(1, 8), slice(1, 8))  # without the frequencies whose phase a real image cannot choose
    ratio = spectrum[inside] / magnitude[inside]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-3)
    with pytest.raises(fv.FeatvisError, match="another image size"):
        maco.start(generators(1), (32, 32))


# --- transforms


def numbers(**at: float) -> Tensor:
    """Affine's row of numbers, neutral but for x, y (jitter), scale and turn in 0 ... 1."""
    neutral = {"x": 0.5, "y": 0.5, "scale": 0.5, "turn": 0.0} | at
    return torch.tensor([[neutral["x"], neutral["y"], 0.5, 0.5, neutral["scale"], neutral["turn"]]])


def test_affine_does_nothing_with_neutral_numbers() -> None:
    image = torch.rand(1, 3, 20, 30)
    torch.testing.assert_close(Affine().apply(image, numbers()), image, atol=1e-5, rtol=0)


def test_affine_shifts_turns_and_scales() -> None:
    image = torch.rand(1, 3, 224, 224)
    shifted = Affine(jitter=(8, 0)).apply(image, numbers(x=1.0, y=0.0))  # 8 pixels, on an image of 224
    torch.testing.assert_close(shifted[..., 8:, :-8], image[..., :-8, 8:], atol=1e-4, rtol=0)
    torch.testing.assert_close(shifted[..., :8, :], torch.full((1, 3, 8, 224), 0.5), atol=1e-4, rtol=0)  # grey comes in
    turned = Affine(degrees=90, unrotated=0).apply(image, numbers(turn=1.0))
    torch.testing.assert_close(turned, torch.rot90(image, 1, (2, 3)), atol=1e-3, rtol=0)
    disc = (
        torch.hypot(*torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(96.0) - 47.5, indexing="ij")) < 20
    ).float()
    for change in ({"turn": 0.77}, {"scale": 1.0}, {"scale": 0.0}):
        scale = 1 + 0.5 * (2 * numbers(**change)[0, 4].item() - 1)
        seen = Affine(scale=0.5, degrees=45).apply(disc.expand(1, 3, 64, 96), numbers(**change))[0, 0]
        high, wide = ((seen > 0.75).any(1).sum().item(), (seen > 0.75).any(0).sum().item())
        assert abs(high - wide) <= 1, "a disc stays a disc on an image that is no square"
        assert abs(high - 40 * scale) <= 2


def test_crops_are_views_of_the_image_with_noise() -> None:
    image = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)
    crops = Crops(views=3, noise=0.0)
    row = crops.draw(generators(2), 5)[0]
    seen = crops.apply(image, row)
    assert seen.shape == (6, 3, 32, 32)
    sides = 0.4 + 0.5 * row.view(6, 4)[:, 0]
    torch.testing.assert_close(seen[:, 0, 0, -1] - seen[:, 0, 0, 0], sides * 31 / 31, atol=0.02, rtol=0)
    noisy = Crops(views=3).apply(image, row)
    assert 0.04 < (noisy - seen).std() < 0.08
    assert torch.equal(noisy, Crops(views=3).apply(image, row))


@pytest.mark.parametrize("transform", [Affine(), Crops(), Nothing()])
def test_random_numbers_do_not_depend_on_the_batch_or_the_number_of_steps(transform) -> None:
    many = transform.draw(generators(3), 7)
    torch.testing.assert_close(transform.draw(generators(3)[1:2], 4), many[:4, 1:2])


# --- objectives


def test_objectives_are_functions_of_activations_that_add() -> None:
    a = {"conv": torch.rand(3, 4, 5, 7), "tokens": torch.rand(3, 6, 4), "fc": torch.rand(3, 4)}
    torch.testing.assert_close(channel("conv:2").value(a), a["conv"][:, 2].mean((1, 2)))
    torch.testing.assert_close(channel("tokens:2").value(a), a["tokens"][:, :, 2].mean(1))
    torch.testing.assert_close(logit("fc:3").value(a), a["fc"][:, 3])
    torch.testing.assert_close(neuron("conv:2").value(a), a["conv"][:, 2, 2, 3])
    torch.testing.assert_close(neuron("conv:2", 0, 6).value(a), a["conv"][:, 2, 0, 6])
    torch.testing.assert_close(direction("fc", [0, 1, 0, -1]).value(a), a["fc"][:, 1] - a["fc"][:, 3])
    both = 2 * channel("conv:2") - logit("fc:3") + (-logit("fc:0"))
    torch.testing.assert_close(both.value(a), 2 * a["conv"][:, 2].mean((1, 2)) - a["fc"][:, 3] - a["fc"][:, 0])
    assert both.layers == ("conv", "fc")
    with pytest.raises(fv.FeatvisError, match="LAYER:INDEX"):
        channel("conv")


def test_diversity_is_highest_for_images_that_differ() -> None:
    features = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, 3, 3)
    assert (diversity("conv").value({"conv": features}) == 0).all()
    torch.testing.assert_close(diversity("conv").value({"conv": features[:1].expand(4, -1, -1, -1)}), -torch.ones(4))


# --- render


def test_activation_rises_and_is_that_of_the_plain_network(subject: fv.Subject) -> None:
    pictures = render(subject, ["conv2:3", "fc:bee", "conv1:1", "fc:0"], seeds=2)
    assert pictures.images.shape == (4, 2, 3, 32, 32)
    assert pictures.units == ("conv2:3", "fc:1", "conv1:1", "fc:0")
    assert 0 <= pictures.images.min() <= pictures.images.max() <= 1
    assert (pictures.curve[..., -4:].mean(-1) > pictures.curve[..., :4].mean(-1)).all()
    assert (pictures.status == "ok").all()
    for i, unit in enumerate(pictures.units):
        layer, index = subject.unit(unit)
        (found,) = subject.activations(pictures[unit], [layer])
        np.testing.assert_allclose(
            unit_means(found[layer])[:, index].numpy(), pictures.activation[i], rtol=1e-4, atol=1e-5
        )


def test_the_same_seed_gives_the_same_images_in_every_batch(subject: fv.Subject) -> None:
    units = ["conv2:2", "conv2:3", "conv2:4"]
    first, again, alone = (render(subject, units, seeds=2, batch=batch) for batch in (6, 6, 1))
    assert torch.equal(first.images, again.images)
    # Sums in another order differ in the last digits, and ascent carries them on.
    torch.testing.assert_close(first.images, alone.images, atol=0.02, rtol=0)
    np.testing.assert_allclose(first.curve[..., 0], alone.curve[..., 0], rtol=1e-4, atol=1e-6)
    other = render(subject, units, seeds=[7, 1], batch=6)
    assert torch.equal(other["conv2:3"][1], first["conv2:3"][1])
    assert not torch.equal(other["conv2:3"][0], first["conv2:3"][0])


def test_minimum_and_maximum(subject: fv.Subject) -> None:
    high, low = (render(subject, "fc:2", minimize=minimize) for minimize in (False, True))
    assert low.activation[0, 0] < low.curve[0, 0, 0] < high.activation[0, 0]
    assert low.minimize


def test_snapshots_and_the_start(subject: fv.Subject) -> None:
    pictures = render(subject, "fc:2", snapshots=(1, 5, 24))
    assert list(pictures.snapshots) == [1, 5, 24]
    assert torch.equal(pictures.snapshots[24], pictures.images)
    assert not torch.equal(pictures.snapshots[5], pictures.images)
    photograph = torch.rand(3, 32, 32) * 0.8 + 0.1
    near = render(subject, "fc:2", start=photograph, steps=1, rate=1e-6)
    assert (near.images[0, 0] - photograph).abs().mean() < 0.02


def test_every_unit_and_seed_has_its_own_start(subject: fv.Subject) -> None:
    units = ["conv2:3", "fc:1", "conv2:2"]  # not in the order in which layers are rendered
    starts = torch.rand(3, 2, 3, 32, 32) * 0.8 + 0.1
    near = render(subject, units, seeds=2, start=starts, steps=1, rate=1e-6)
    assert (near.images - starts).abs().mean((2, 3, 4)).max() < 0.02
    every = render(subject, units, seeds=[0, 5], start=starts)
    each = render(subject, units, seeds=[0, 5], start=starts[:, 0])
    one = render(subject, units, seeds=[0, 5], start=starts[1, 0])
    in_ones = render(subject, units, seeds=[0, 5], start=starts, batch=1)
    # Sums in another order differ in the last digits, and ascent carries them on.
    torch.testing.assert_close(every.images, in_ones.images, atol=0.02, rtol=0)
    for i, unit in enumerate(units):
        for j, seed in enumerate([0, 5]):
            alone = render(subject, unit, seeds=[seed], start=starts[i, j]).images[0, 0]
            assert torch.equal(in_ones.images[i, j], alone)
            for found, start in ((every, starts[i, j]), (each, starts[i, 0]), (one, starts[1, 0])):
                alone = render(subject, unit, seeds=[seed], start=start).images[0, 0]
                torch.testing.assert_close(found.images[i, j], alone, atol=0.02, rtol=0)


def test_on_step_sees_the_images_and_may_end_the_run(subject: fv.Subject) -> None:
    seen: list[int] = []

    def watch(step: int, images: Tensor) -> None:
        assert images.shape == (2, 3, 32, 32)
        seen.append(step)
        if step == 4:
            raise fv.StopRender

    pictures = render(subject, ["fc:2", "conv1:0", "conv1:3"], snapshots=(2, 4, 6), on_step=watch)
    assert seen == [2, 4]
    assert pictures.steps == 4
    assert list(pictures.snapshots) == [2, 4]
    assert pictures.curve.shape == (3, 1, 4)
    assert pictures.status[:, 0].tolist() == ["not run", "ok", "ok"]


@pytest.mark.parametrize("mishap", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_cut_short_leaves_the_network_alone(subject: fv.Subject, mishap: type[BaseException]) -> None:
    network = subject.network.train()
    network.norm1.eval()
    network.conv1.weight.requires_grad_(False)

    def state() -> list[object]:
        flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), type(m)) for m in network.modules()]
        return [flags, [(p.requires_grad, p.grad, p.sum().item()) for p in network.parameters()]]

    def interrupt(*_: object) -> None:
        raise mishap

    before = state()
    with pytest.raises(mishap):
        render(subject, "conv2:3", snapshots=(2,), on_step=interrupt)
    assert state() == before
    render(subject, ["conv2:3", "fc:0"], steps=2)
    assert state() == before


def test_a_dead_start_wakes_up_and_a_dead_unit_is_reported(subject: fv.Subject) -> None:
    norm = subject.network.norm2
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0, -1  # dead for good
        norm.bias[1] -= 0.6  # silent on grey, but not on everything
    grey = next(subject.activations(torch.full((1, 3, 32, 32), 0.5), ["relu2"]))["relu2"]
    assert grey[0, :2].abs().max() == 0
    pictures = render(subject, ["relu2:0", "relu2:1", "relu2:2", "norm2:0"], steps=64)
    assert pictures.status[:, 0].tolist() == ["dead", "ok", "ok", "dead"]
    assert pictures.curve[1, 0, 0] == 0 < pictures.activation[1, 0]
    assert render(subject, "relu2:1", minimize=True).status[0, 0] == "ok"


def test_a_unit_that_is_not_finite_stops_alone(subject: fv.Subject) -> None:
    class Fragile(nn.Module):
        """Unit 0 is not finite once its activation is above 0.2."""

        def forward(self, x: Tensor) -> Tensor:
            factor = torch.where(x[:, :1] > 0.2, float("inf"), 1.0)
            return torch.cat([x[:, :1] * factor, x[:, 1:]], 1)

    network = nn.Sequential(subject.network, Fragile())
    fragile = fv.load(network, preprocess=PREPROCESS, device="cpu")
    pictures = render(fragile, ["1:0", "1:1"], steps=48, rate=0.2)
    status = pictures.status[:, 0]
    assert status[0].startswith("stopped ")
    at = int(status[0].split()[1])
    assert 1 < at < 48
    assert status[1] == "ok"
    assert pictures.images.isfinite().all()
    assert np.isfinite(pictures.activation[1, 0])
    stopped = render(fragile, "1:0", steps=48, rate=0.2, snapshots=(at, 48)).snapshots
    assert torch.equal(stopped[at], stopped[48])
    alone = render(fragile, "1:1", steps=48, rate=0.2)
    torch.testing.assert_close(alone.images, pictures.images[1:], atol=0.02, rtol=0)


def test_objectives_of_several_layers_and_diversity(subject: fv.Subject) -> None:
    joint = render(
        subject, [channel("conv2:3") + 0.5 * logit("fc:1"), direction("conv1", torch.ones(8)), neuron("conv2:3", 0, 0)]
    )
    assert (joint.curve[..., -1] > joint.curve[..., 0]).all()
    plain, varied = (
        render(subject, objective, seeds=3)
        for objective in (channel("conv2:3"), channel("conv2:3") + 3 * diversity("conv2"))
    )

    def spread(pictures: fv.Visualizations) -> float:
        (found,) = subject.activations(pictures.images[0], ["conv2"])
        return diversity("conv2").value(found).mean().item()

    assert spread(varied) > spread(plain) + 0.05


def test_pixels_maco_sizes_and_precision(subject: fv.Subject) -> None:
    magnitude = mean_magnitude([torch.rand(4, 3, 40, 40)])
    for options in (
        {"parameterization": "pixels"},
        {"parameterization": Maco(magnitude), "transform": Crops(views=2), "size": 40},
        {"size": 47},
        {"precision": "bf16"},
        {"transform": Nothing()},
    ):
        pictures = render(subject, ["conv2:3"], **options)
        assert pictures.curve[0, 0, -3:].mean() > pictures.curve[0, 0, :3].mean(), options
        assert pictures.images.shape[-1] == options.get("size", 32)


@pytest.mark.parametrize("parameterization", [Pixels(), Pixels(decorrelate=True), Fourier()])
def test_ascent_takes_the_steps_of_plain_adam(subject: fv.Subject, parameterization: Pixels | Fourier) -> None:
    """However the gradient lies in memory: through channels last, that of free pixels alone is not as they are."""
    start = parameterization.start([generator_for("fc:1", 0)], (32, 32))
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=parameterization.rate)
    for _ in range(12):
        logits = subject.network(subject.preprocess(parameterization.image(parameters, (32, 32))))
        optimizer.zero_grad()
        (-logits[0, 1]).backward()
        optimizer.step()
    found = render(subject, "fc:1", parameterization=parameterization, transform=Nothing(), steps=12)
    expected = parameterization.image(parameters, (32, 32)).detach()
    torch.testing.assert_close(found.images[0], expected, atol=2e-3, rtol=0)
    assert found.activation[0, 0] > found.curve[0, 0, 0]


@pytest.mark.parametrize(
    ("name", "unit", "size"),
    [
        ("resnet18", "layer2:5", 64),
        ("mobilenet_v2", "features.5:3", 64),
        ("vit_b_16", "encoder.layers.encoder_layer_1:7", None),
    ],
)
def test_torchvision_networks(name: str, unit: str, size: int | None) -> None:
    pictures = render(fv.load(name, weights="random", device="cpu"), unit, steps=4, size=size, transform=Nothing())
    assert pictures.activation[0, 0] > pictures.curve[0, 0, 0]
    assert pictures.status[0, 0] == "ok"


def test_a_network_that_cannot_be_traced() -> None:
    class Wild(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.mean() < 1e9 else x * 2)

    wild = fv.load(Wild(), preprocess=PREPROCESS, device="cpu")
    tame = fv.load(Tiny(), preprocess=PREPROCESS, device="cpu")
    assert not wild.until("conv2").traced
    torch.testing.assert_close(render(wild, "conv2:3").images, render(tame, "conv2:3").images, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": []}, ["no unit"]),
        ({"units": "conv9:3"}, ["conv9", "conv1"]),
        ({"units": "fc:17"}, ["fc:17", "0 to 3"]),
        ({"units": channel("conv9:3")}, ["conv9"]),
        ({"units": channel("conv2:99")}, ["conv2:99", "0 to 5"]),
        ({"steps": 0}, ["steps=0"]),
        ({"steps": -3}, ["steps=-3"]),
        ({"seeds": 0}, ["seed"]),
        ({"size": 3}, ["size=3", "16"]),
        ({"precision": "fp8"}, ["fp8", "bf16"]),
        ({"snapshots": (1, 99)}, ["99"]),
        ({"parameterization": "wavelets"}, ["wavelets", "fourier"]),
        ({"start": torch.rand(3, 8, 8)}, ["(3, 8, 8)", "(3, 32, 32)", "(1, 3, 32, 32)", "(1, 1, 3, 32, 32)"]),
        ({"start": torch.rand(2, 3, 32, 32)}, ["(2, 3, 32, 32)", "one for each unit (1, 3, 32, 32)"]),
        ({"start": torch.full((3, 32, 32), 255.0)}, ["255", "[0, 1]"]),
        ({"start": torch.full((3, 32, 32), float("nan"))}, ["nan", "[0, 1]"]),
        ({"batch": 0}, ["batch=0"]),
    ],
)
def test_one_sentence_for_what_cannot_be(subject: fv.Subject, options: dict, words: list[str]) -> None:
    with pytest.raises(fv.FeatvisError) as error:
        render(subject, **({"units": "fc:0"} | options))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_size_that_the_network_cannot_take() -> None:
    subject = fv.load("vit_b_16", weights="random", device="cpu")
    with pytest.raises(fv.FeatvisError, match="100 x 100"):
        render(subject, "heads:0", size=100)


@pytest.fixture
def small_memory(monkeypatch):
    """Memory for `most` images at once, as a GPU tells it or as the processor does."""
    sizes: list[int] = []

    def limit(most: int, error: RuntimeError) -> list[int]:
        def ascend(network, preprocess, objective, generators, **options):
            sizes.append(len(generators))
            if len(generators) > most:
                raise error
            return plain(network, preprocess, objective, generators, **options)

        plain = batches.ascend
        monkeypatch.setattr(batches, "ascend", ascend)
        return sizes

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "processor"],
)
def test_out_of_memory_halves_the_batch_and_says_so(subject: fv.Subject, small_memory, error: RuntimeError) -> None:
    units = [f"conv2:{i}" for i in range(2, 6)]
    expected = render(subject, units, seeds=2, steps=5, batch=2)
    sizes = small_memory(2, error)
    with pytest.warns(RuntimeWarning, match=r"8 images of 32 x 32 pixels do not fit .* going on with 4 at once"):
        found = render(subject, units, seeds=2, steps=5, batch=8)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert torch.equal(found.images, expected.images)
    assert np.array_equal(found.activation, expected.activation)
    assert np.array_equal(found.curve, expected.curve)


def test_what_cannot_be_halved_is_one_sentence(subject: fv.Subject, small_memory) -> None:
    small_memory(0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(fv.FeatvisError, match="one image of 32 x 32 pixels of tiny does not fit"):
        render(subject, "fc:0", steps=2)
    with pytest.raises(fv.FeatvisError, match=r"3 images of .* of the objective .* do not fit .* fewer seeds"):
        render(subject, diversity("conv1"), seeds=3, steps=2)


def test_other_errors_of_the_network_are_not_taken_for_it(subject: fv.Subject, small_memory) -> None:
    sizes = small_memory(0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        render(subject, ["fc:0", "fc:1"], steps=2)
    assert sizes == [2]


def test_pictures_that_are_asked_to_differ(tmp_path):
    subject, shelf = small_subject(), fv.Shelf(tmp_path)
    made = fv.visualize.diverse(subject, "conv2:3", seeds=3, steps=4, progress=False, shelf=shelf)
    goal = fv.visualize.channel("conv2:3") + 4 * fv.visualize.diversity("conv2")
    plain = fv.render(subject, goal, seeds=3, steps=4, progress=False)
    assert made.activation == pytest.approx(plain.activation)
    assert made.images.shape == (1, 3, 3, 32, 32)
    with pytest.raises(fv.FeatvisError, match="conv2 has units 0 to 7"):
        fv.visualize.diverse(subject, "conv2:8")
