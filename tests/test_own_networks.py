"""Networks, checkpoints and data sets as readers bring them: what is drawn is what their own network answers to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

import featvis as fv
from featvis._torchvision import torchvision
from featvis.errors import FeatvisError

PREPROCESS = fv.Preprocess((32, 32))
UNITS = ["c:2", "d:1", "fc:0"]


class Own(nn.Module):
    """Two convolutions with something of a reader's own between them."""

    def __init__(self, between: Callable[[Own, Tensor], Tensor], stride: int = 1):
        super().__init__()
        torch.manual_seed(1)
        self.between = between
        self.c, self.relu, self.d = nn.Conv2d(3, 8, 3, stride), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.d(self.between(self, self.c(x))).mean((2, 3)))


def in_place_module(own: Own, x: Tensor) -> Tensor:
    own.relu(x)
    return x


def residual(own: Own, x: Tensor) -> Tensor:
    return x + own.d(own.relu(x))


def in_place_function(own: Own, x: Tensor) -> Tensor:
    torch.relu_(x)
    return x.clamp_(0, 0.1)


def two_names(own: Own, x: Tensor) -> Tensor:
    y = x
    x += 1
    return y


def through_a_view(own: Own, x: Tensor) -> Tensor:
    x[:, :4].mul_(-3)
    return x


def by_its_type(own: Own, x: Tensor) -> Tensor:
    return x * 5 if isinstance(x, torch.Tensor) else x


def no_tensor(own: Own, x: Tensor) -> Tensor:
    return x if isinstance(x, torch.Tensor) else x.tensors


WRITTEN = (in_place_module, residual, in_place_function, two_names, through_a_view, by_its_type, no_tensor)


def answers_as_claimed(network: nn.Module) -> None:
    """The activation that `render` reports is the network's own on the picture."""
    subject = fv.load(network, preprocess=PREPROCESS)
    drawn = fv.render(subject, ["fc:0", "fc:3"], steps=3, progress=False)
    with torch.no_grad():
        given = network(drawn.images[:, 0].clone())
    np.testing.assert_allclose(drawn.activation[:, 0], [given[0, 0], given[1, 3]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("between", WRITTEN, ids=lambda between: between.__name__)
def test_what_tracing_does_not_see_counts(between):
    answers_as_claimed(Own(between))


@pytest.mark.parametrize("layer", ["c", "relu", "d", "fc"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_readers_hooks_count(layer, stride):
    network = Own(lambda own, x: own.relu(x), stride)
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output * 0.25)
    answers_as_claimed(network)
    assert len(network.get_submodule(layer)._forward_hooks) == 1


def test_a_hook_before_the_network_counts():
    network = Own(lambda own, x: own.relu(x))
    network.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2 - 1,))
    answers_as_claimed(network)


def test_a_backward_hook_is_left_alone():
    network, seen = Own(lambda own, x: own.relu(x)), []
    network.c.register_full_backward_hook(lambda *given: seen.append(given))
    answers_as_claimed(network)
    assert not seen


def test_reparameterized_weights_are_not_folded_into_a_norm():
    network = Own(lambda own, x: own.relu(x))
    network.c = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    network(torch.rand(4, 3, 32, 32))
    answers_as_claimed(network.eval())


def test_training_mode_is_left_for_each_pass_and_given_back():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(7200, 5))
    subject = fv.load(network, preprocess=PREPROCESS)
    x = torch.rand(4, 3, 32, 32)
    before = [next(subject.activations(x, ["4"]))["4"], next(subject.logits(x))]
    network.train()
    mean = network[1].running_mean.clone()
    fv.exemplars(subject, fv.natural_images("photos", n=8, size=32), "4", k=2, progress=False)
    after = [next(subject.activations(x, ["4"]))["4"], next(subject.logits(x))]
    assert torch.equal(network[1].running_mean, mean)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(module.training for module in network.modules())


class Last(nn.Module):
    """Maps (n, h, w, c), as Swin and ConvNeXt have them, between a convolution and logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.patches, self.norm, self.mix = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.Linear(12, 12)
        self.act, self.fc = nn.GELU(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        return self.fc(self.act(self.mix(x)).mean((1, 2)))


def test_units_of_a_map_with_channels_last_are_its_channels():
    network = Last()
    subject = fv.load(network, preprocess=PREPROCESS)
    assert subject.layers["patches"] == (12, 8, 8)
    assert subject.channels_last == {"norm", "mix", "act"}
    assert subject.layers["act"] == (64, 12)
    drawn = fv.render(subject, ["act:3", "act:11", "norm:2"], steps=3, progress=False)
    with torch.no_grad():
        norm = network.norm(network.patches(drawn.images[:, 0]).permute(0, 2, 3, 1))
        act = network.act(network.mix(norm))
    expected = [act[0, ..., 3].mean(), act[1, ..., 11].mean(), norm[2, ..., 2].mean()]
    np.testing.assert_allclose(drawn.activation[:, 0], expected, rtol=1e-4, atol=1e-5)
    natural = fv.natural_images("photos", n=8, size=32)
    best = fv.exemplars(subject, natural, "act:3", k=1, progress=False)
    with torch.no_grad():
        maps = network.patches(torch.stack([image for image, *_ in natural])).permute(0, 2, 3, 1)
        every = network.act(network.mix(network.norm(maps)))[..., 3].mean((1, 2))
    assert best.top_values[0, 0] == pytest.approx(every.max().item(), rel=1e-4)


def test_a_norm_of_usual_maps_leaves_them_as_they_are():
    norms = [torchvision.models.convnext.LayerNorm2d(6) for _ in range(2)]
    network = nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), norms[0], nn.AdaptiveAvgPool2d(1), norms[1], nn.Flatten(), nn.Linear(6, 5)
    )
    subject = fv.load(network, preprocess=PREPROCESS)
    assert not subject.channels_last
    assert subject.layers["3"] == (6, 1, 1)


def test_a_linear_layer_beside_a_map_says_nothing_of_the_map():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.gate, self.last, self.fc = (
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.Linear(8, 16),
                nn.Identity(),
                nn.Linear(8, 5),
            )

        def forward(self, x):
            x = self.c(x)  # as wide as the gate
            x = self.last(x * self.gate(x.mean((2, 3))).sigmoid().mean(1)[:, None, None, None])
            return self.fc(x.mean((2, 3)))

    subject = fv.load(Gated(), preprocess=PREPROCESS)
    assert not subject.channels_last
    assert subject.layers["last"] == (8, 16, 16)


@pytest.mark.parametrize("name", ["photonet", "resnet18", "shufflenet_v2_x0_5"])
def test_a_network_without_surprises_is_still_rewritten(name):
    subject = fv.load(name, weights="random", device="cpu")
    for before_relu in (False, True):
        assert subject.until(subject.blocks[-2], before_relu=before_relu).traced


class First(nn.Module):
    """A transformer whose tokens come before the images."""

    def __init__(self):
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoderLayer(16, 2, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))


def test_a_layer_that_does_not_go_by_images_has_no_units():
    subject = fv.load(First(), preprocess=PREPROCESS)
    assert "block" not in subject.layers
    with pytest.raises(FeatvisError, match="has no layer 'block'"):
        subject.unit("block:0")


def test_grey_networks_get_the_luminance():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    subject = fv.load(network, preprocess=fv.Preprocess((32, 32), (0.5,), (0.25,)))
    x = torch.rand(2, 3, 32, 32)
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    torch.testing.assert_close(next(subject.logits(x)), network((grey - 0.5) / 0.25))
    drawn = fv.render(subject, "4:1", steps=4, progress=False)
    assert drawn.curve[0, 0, -1] > drawn.curve[0, 0, 0]
    fv.exemplars(subject, fv.natural_images("photos", n=8, size=32), "4", k=2, progress=False)


def test_what_cannot_be_studied_is_said_at_once():
    network = Own(lambda own, x: x)
    with pytest.raises(FeatvisError, match=r"weights in torch.float16 \(network.float\(\) makes"):
        fv.load(Own(lambda own, x: x).half(), preprocess=PREPROCESS)
    with pytest.raises(FeatvisError, match=r"size=32 was given; valid is \(height, width\)"):
        fv.Preprocess(32)
    with pytest.raises(FeatvisError, match="as many of both"):
        fv.Preprocess((32, 32), (0.5,))
    with pytest.raises(FeatvisError, match="photonet has its own preprocessing"):
        fv.load("photonet", preprocess=PREPROCESS)
    wide = fv.load(network, preprocess=fv.Preprocess((32, 48)))
    with pytest.raises(FeatvisError, match="natural images are square; own needs 32 x 48 pixels"):
        fv.exemplars(wide, fv.natural_images("photos", n=8, size=32), "fc", k=2, progress=False)
    drawn = fv.render(fv.load(network, preprocess=PREPROCESS), "fc:0", steps=1, progress=False)
    with pytest.raises(FeatvisError, match="'fc:4' is not among the units of this result: fc:0"):
        drawn["fc:4"]


def test_other_weights_and_other_code_have_other_fingerprints():
    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.c = nn.Conv2d(3, 4, 3)

    class A(Base):
        def forward(self, x):
            return self.c(x).mean((2, 3))

    plain = A

    class A(Base):  # printed, it is the same
        def forward(self, x):
            return self.c(-x).mean((2, 3))

    one, other = (fv.load(kind(), preprocess=PREPROCESS) for kind in (plain, A))
    assert str(one.network) == str(other.network)
    assert one.fingerprint != other.fingerprint
    before = one.fingerprint
    assert before == fv.load(plain(), preprocess=PREPROCESS).fingerprint
    with torch.no_grad():
        one.network.c.weight += 1
    assert one.fingerprint != before


@pytest.mark.parametrize("key", ["", "state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_checkpoints_of_common_forms_are_read(key, prefix, tmp_path):
    state = {prefix + name: tensor for name, tensor in Own(residual).state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "w.pth")
    network = Own(residual)
    nn.init.zeros_(network.fc.weight)
    fv.load(network, tmp_path / "w.pth", preprocess=PREPROCESS)
    assert torch.equal(network.fc.weight, Own(residual).fc.weight)


def test_a_module_of_that_name_keeps_its_name(tmp_path):
    network = nn.Sequential()
    network.add_module("module", Own(residual))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    fv.load(network, tmp_path / "w.pth", preprocess=PREPROCESS)
    torch.save({"weights": network.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(FeatvisError, match=r"holds no state dict .* but epoch, weights; checkpoints keep one under"):
        fv.load(network, tmp_path / "w.pth", preprocess=PREPROCESS)


# ---------------------------------------------------------------- data sets


def test_another_picture_is_another_data_set():
    images = [(torch.rand(3, 40, 40), 0) for _ in range(20)]
    changed = [(image.clone(), label) for image, label in images]
    changed[3][0][:, 10:30, 10:30] = 0
    prints = [fv.natural_images(part, size=32).fingerprint for part in (images, list(images), changed)]
    assert prints[0] == prints[1] != prints[2]


def test_arrays_are_images_and_what_is_none_is_named():
    array = np.full((40, 40, 3), 90, np.uint8)
    assert fv.natural_images([(array, 1)], size=32)[0][0].mean().item() == pytest.approx(90 / 255)
    with pytest.raises(FeatvisError, match=r"values from -2 to 2; valid are 0 to 1"):
        fv.natural_images([(torch.tensor([-2.0, 2.0]).repeat(3, 40, 20), 0)], size=32)[0]
    with pytest.raises(FeatvisError, match="gives a Tensor for an image; valid is a pair"):
        fv.natural_images([torch.rand(3, 40, 40)], size=32)[0]
    with pytest.raises(FeatvisError, match="a str came for an image"):
        fv.natural_images([("cat.png", 0)], size=32)[0]


class Broken(list):
    """A data set of files, one of which is cut short."""

    def __getitem__(self, index):
        if index == 1:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def test_a_broken_image_of_a_data_set_is_left_out_and_named():
    natural = fv.natural_images(Broken([(torch.rand(3, 40, 40), 0)] * 4), size=32)
    assert sum(len(ids) for *_, ids in natural.batches(2)) == 3
    assert natural.skipped == ["1: not a readable image (image file is truncated)"]


def test_a_photograph_is_upright(tmp_path):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is the right side as it is stored
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "a.png", exif=exif)
    image = fv.natural_images(tmp_path, size=40)[0][0]
    assert image[:, :10].mean() > 0.9 > 0.1 > image[:, -10:].mean()


def test_so_many_images_are_usable_ones(tmp_path):
    for i in range(20):
        if i % 2:
            (tmp_path / f"{i:02}.png").write_bytes(b"broken")
        else:
            Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / f"{i:02}.png")
    assert len(fv.natural_images(tmp_path, n=8, size=32)) == 8
    assert len(fv.natural_images(tmp_path, n=15, size=32)) == 10
