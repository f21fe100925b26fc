"""The cut network computes what the plain network computes, and leaves that one alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from featvis._torchvision import torchvision
from featvis.capture import capture
from featvis.cut import cut
from featvis.networks.photonet import PhotoNet
from featvis.rewrite import Rectifier, _OnBlocks

models = torchvision.models


class Wild(nn.Module):
    """Cannot be traced (it looks at its data); counts what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 1e9:
            raise RuntimeError("never")
        x = self.relu(x)
        self.seen.append("last")
        return self.last(x).mean((2, 3))


class Shared(nn.Module):
    """Calls one block twice, and adds in place to what a layer gave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(inplace=True))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        y += x
        y = F.max_pool2d(F.relu(self.block(y), inplace=True), 2)
        return self.fc(y.mean((2, 3)))


def lively(network: nn.Module) -> nn.Module:
    """In eval mode, with batch-norm statistics that are not the trivial ones, in double precision."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.double().eval()


def value(outputs: dict[str, Tensor]) -> Tensor:
    """A number to which every activation contributes differently."""
    return sum((v * torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view_as(v)).sum() for v in outputs.values())


class Branches(nn.Module):
    """Convolutions of one image: two kinds of which some are alike up to their ReLUs, and one that is wanted itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.seen, self.bare = (nn.Conv2d(3, width, 3) for width in (2, 5, 3, 4, 1))
        self.wide, self.wider = (nn.Conv2d(3, width, 3, dilation=2, padding=1) for width in (6, 7))

    def forward(self, x: Tensor) -> Tensor:
        every = [F.relu(conv(x), inplace=True) for conv in (self.a, self.b, self.c, self.wide, self.wider)]
        return torch.cat([*every, F.relu(self.seen(x)), self.bare(x)], 1)


class Odd(nn.Module):
    """Convolutions of one image of which most can be no part of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.hooked, self.pruned, self.read, self.plain, self.twice, self.changed, self.viewed = (
            nn.Conv2d(3, width, 3) for width in (2, 3, 4, 5, 2, 3, 2)
        )
        self.other = self.plain
        self.hooked.register_forward_hook(lambda _module, _inputs, output: 2 * output)
        prune.l1_unstructured(self.pruned, "weight", 0.5).weight_orig.requires_grad_(False)
        self.pruned(torch.zeros(1, 3, 3, 3))  # now its weights can be copied

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(conv(x)) for conv in (self.hooked, self.pruned, self.read, self.plain, self.twice)]
        parts += [F.relu(self.read.weight.norm() * self.twice(input=x)), self.changed(x).clamp_(min=0), self.other(x)]
        rows = self.viewed(x).permute(0, 2, 3, 1).flatten(1).sum(1)
        return torch.cat(parts, 1).mean((2, 3)) + rows[:, None]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[int, int]]] = {
    "photonet": (PhotoNet, ["inception4a"], (96, 96)),
    "photonet, many layers": (
        PhotoNet,
        ["conv1", "conv1.bn", "maxpool1", "inception3a.branch2.0.conv", "fc"],
        (64, 64),
    ),
    "photonet, odd size": (PhotoNet, ["inception3b"], (75, 97)),
    "googlenet": (
        lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False),
        ["conv1.bn", "inception4a"],
        (64, 64),
    ),
    "resnet18": (models.resnet18, ["layer1.0.bn2", "layer1.0.relu", "layer1.0", "fc"], (64, 65)),
    "mobilenet": (models.mobilenet_v2, ["features.0.1", "features.3", "features.18"], (64, 64)),
    "efficientnet": (models.efficientnet_b0, ["features.0.1", "features.3"], (64, 64)),
    "vit": (
        lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64),
        ["conv_proj", "encoder.layers.encoder_layer_1"],
        (32, 32),
    ),
    "untraceable": (Wild, ["first", "relu"], (16, 16)),
    "shared": (Shared, ["stem", "block.1", "block", "fc"], (32, 32)),
    "odd": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Odd()), ["1.pruned", "1"], (16, 17)),
    "branches": (lambda: nn.Sequential(Branches(), nn.Conv2d(28, 3, 1)), ["0.seen", "1"], (16, 17)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_image_gradients_are_those_of_the_plain_network(name: str) -> None:
    build, layers, size = NETWORKS[name]
    network = lively(build())
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    with capture(network, layers) as run:
        plain = run(x)
    fast = cut(network, layers)
    found = fast(x)
    assert fast.traced == (name != "untraceable")
    assert list(found) == layers
    for layer in layers:
        torch.testing.assert_close(found[layer], plain[layer], rtol=1e-10, atol=1e-10 * plain[layer].abs().max().item())
    (wanted,) = torch.autograd.grad(value(plain), x)
    (gradient,) = torch.autograd.grad(value(found), x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10 * wanted.abs().max().item())


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(16, 16), (17, 22), (15, 13)])
def test_a_stem_on_blocks_is_the_same_convolution(kernel: int, padding: int, size: tuple[int, int]) -> None:
    conv = nn.Conv2d(3, 5, kernel, stride=2, padding=padding).double()
    assert _OnBlocks.suits(conv)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = _OnBlocks(conv).to(memory_format=memory_format)(x.contiguous(memory_format=memory_format))
        torch.testing.assert_close(found, conv(x), rtol=1e-12, atol=1e-12)
        assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 5, 3),
        nn.Conv2d(3, 5, (3, 5), stride=2),
        nn.Conv2d(3, 5, 3, stride=2, padding="valid"),
        nn.Conv2d(3, 5, 3, stride=2, dilation=2),
        nn.Conv2d(3, 6, 3, stride=2, groups=3),
        nn.Conv2d(3, 5, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 5, 3, stride=2),
    ],
)
def test_other_convolutions_stay_as_they_are(conv: nn.Conv2d) -> None:
    assert not _OnBlocks.suits(conv)


def test_convolutions_that_read_one_input_alike_become_one() -> None:
    def convolutions(network: nn.Module) -> list[int]:
        return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]

    assert sorted(convolutions(cut(nn.Sequential(Branches()), ["0.seen", "0"]))) == [1, 4, 10, 13]
    blocks = sum(name.startswith("inception") for name, _ in PhotoNet().named_children())
    assert len(convolutions(PhotoNet())) - len(convolutions(cut(PhotoNet(), ["fc"]))) == 2 * blocks == 18


def state(network: nn.Module) -> list[object]:
    """Everything about a network that a render could leave changed."""
    return [
        [
            (name, p.requires_grad, p.grad, p.dtype, p.stride(), p.double().sum().item())
            for name, p in network.named_parameters()
        ],
        [
            (name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), type(m))
            for name, m in network.named_modules()
        ],
        [getattr(m, "inplace", None) for m in network.modules()],
    ]


@pytest.mark.parametrize("build", [models.resnet18, Wild])
def test_the_original_stays_as_it_was(build: Callable[[], nn.Module]) -> None:
    network = build().train()
    next(iter(network.children())).eval()  # flags need not be the same everywhere
    next(iter(network.parameters())).requires_grad_(False)
    before = state(network)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)][:2]
    copied = cut(network, layers)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    torch.autograd.grad(value(copied(x)), x)
    with pytest.raises(RuntimeError):
        copied(torch.rand(1, 5, 64, 64))
    assert str(state(network)) == str(before)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert not own & {parameter.data_ptr() for parameter in copied.parameters()}


def test_nothing_after_the_layer_is_computed() -> None:
    whole, half = (cut(PhotoNet(), [layer]) for layer in ("fc", "inception3a"))
    assert sum(p.numel() for p in half.parameters()) < sum(p.numel() for p in whole.parameters()) / 4
    network = Wild().eval()
    cut(network, ["relu"])(torch.rand(1, 3, 16, 16))
    with capture(network, ["first"]) as run:
        run(torch.rand(1, 3, 16, 16))
    assert network.seen == []


def test_hooks_go_when_the_network_fails() -> None:
    network = Wild().eval()
    with pytest.raises(RuntimeError), capture(network, ["first", "relu"]) as run:
        run(torch.rand(1, 7, 16, 16))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_silent_image_gets_a_gradient_that_wakes_it_and_others_keep_theirs() -> None:
    conv = nn.Conv2d(1, 1, 1)
    nn.init.ones_(conv.weight)
    nn.init.constant_(conv.bias, -0.5)
    fast = cut(nn.Sequential(conv, nn.ReLU()), ["1"])
    x = torch.stack([torch.zeros(1, 4, 4), torch.linspace(0, 1, 16).view(1, 4, 4)]).requires_grad_()

    def gradient() -> Tensor:
        return torch.autograd.grad(-fast(x)["1"].sum(), x)[0]

    plain = gradient()
    with fast.redirected():
        redirected = gradient()
    assert (plain[0] == 0).all()
    assert (redirected[0] < 0).all()  # of a loss: to descend is to raise the input
    assert torch.equal(redirected[1], plain[1])
    assert torch.equal(gradient(), plain)


def test_relu6_is_redirected_below_zero_only() -> None:
    rectifier = Rectifier(6.0)
    rectifier.redirect = True
    low, high = (torch.full((1, 2), level, requires_grad=True) for level in (-1.0, 7.0))
    assert torch.autograd.grad(-rectifier(low).sum(), low)[0].tolist() == [[-1, -1]]
    assert torch.autograd.grad(-rectifier(high).sum(), high)[0].tolist() == [[0, 0]]
    assert rectifier(high).tolist() == [[6, 6]]
