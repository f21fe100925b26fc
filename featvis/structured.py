"""Networks with a structure that extrema can tell about, trained on natural images: does reading them get easier?

linear      one layer
monotone    all weights positive: every output rises with every pixel
lipschitz   orthonormal weights and sorting units (Anil et al. 2019): every output has slope 1 at most
free        as large, without any constraint
ball-...    linear or free, but blind to contrast: sees each image's point on the sphere around grey

Their outputs are visualized on the box of all images, and on the Euclidean ball inside it. Natural images lie in the
box and far outside of the ball; only the last two kinds are trained on, and asked about, points of the ball itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from featvis import sheets, zoo
from featvis.errors import FeatvisError, listed
from featvis.images import NaturalImages
from featvis.networks.training import in_memory
from featvis.shelf import shelved
from featvis.subjects import Preprocess, Subject
from featvis.theory import AffineOnBox, Ball, Extrema, Lipschitz
from featvis.theory.base import anywhere
from featvis.theory.extrema import MIDDLE
from featvis.theory.functions import Along
from featvis.visualize import Nothing, Pixels, render
from featvis.visualize.parameterizations import Size

KINDS = ("linear", "lipschitz", "monotone", "free", "ball-linear", "ball-free")
DOMAINS = ("box", "ball")
HIDDEN, BATCH, RATE = 96, 128, 2e-3
USUAL = 3 * 32 * 32  # inputs for which RATE is meant
FOUND = 0.01  # of a unit's range: how far extrema that ascent has found may be from the true ones
UNTIED = ("lipschitz", "monotone", "free")  # what they do on the ball binds them nowhere else, where the images are
SHARPNESS = 8.0  # of the softmax of outputs that cannot rise fast by themselves


class SortPairs(nn.Module):
    """Each two neighbours in order: keeps every length, unlike a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


class OnSphere(nn.Module):
    """Images as their directions from grey, all of the length that a pattern of ±1 would have: (n, d) -> (n, d)."""

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(x.shape[1]) * F.normalize(x - MIDDLE, dim=1)


def build(kind: str, inputs: int, outputs: int) -> nn.Sequential:
    """An untrained network on images of `inputs` numbers. Raises FeatvisError for an unknown kind."""
    if kind not in KINDS:
        raise FeatvisError(f"there is no structured network {kind!r}; there are {listed(KINDS)}.")
    if kind.startswith("ball-"):
        flatten, *rest = build(kind.removeprefix("ball-"), inputs, outputs)
        return nn.Sequential(flatten, OnSphere(), *rest)
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))
    unit = {"free": nn.ReLU, "lipschitz": SortPairs, "monotone": nn.Tanh}[kind]
    sizes = (inputs, HIDDEN, HIDDEN, outputs)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    if kind == "monotone":
        with torch.no_grad():
            for layer in layers:  # as many inputs as there are, their weighted sum is about as large
                layer.weight.copy_(layer.weight.normal_(0, 1).exp() / layer.in_features)
                layer.bias.copy_(-0.5 * layer.weight.sum(1) + 0.1 * torch.randn(layer.out_features))
    return nn.Sequential(nn.Flatten(), layers[0], unit(), layers[1], unit(), layers[2])


def constrain(kind: str, network: nn.Module) -> None:
    """Put weights back where the structure wants them, in place."""
    with torch.no_grad():
        for layer in network.modules():
            if not isinstance(layer, nn.Linear):
                continue
            if kind == "monotone":
                layer.weight.clamp_(min=0)
            if kind == "lipschitz":
                layer.weight.copy_(_orthonormal(layer.weight))


def _orthonormal(weight: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows, or columns where there are fewer of them."""
    if weight.shape[0] > weight.shape[1]:
        return _orthonormal(weight.T).T
    exact = weight.double()  # a square matrix may have rows that nearly depend on each other
    values, vectors = torch.linalg.eigh(exact @ exact.T)
    return (vectors @ torch.diag(values.clamp(min=1e-14).rsqrt()) @ vectors.T @ exact).float()


def slope(network: nn.Module) -> float:
    """An upper bound of the Lipschitz constant of any output: the product of the layers' largest singular values."""
    norms = [
        torch.linalg.matrix_norm(m.weight.detach().double(), 2) for m in network.modules() if isinstance(m, nn.Linear)
    ]
    return math.prod(float(norm) for norm in norms)


def train(kind: str, images: NaturalImages, steps: int, seed: int) -> nn.Sequential:
    """A network of this kind, trained to name the class of (or photograph behind) each image."""
    torch.manual_seed(seed)
    pixels, labels = in_memory(images, progress=False)
    network = build(kind, pixels[0].numel(), len(images.classes))
    sharpness = SHARPNESS if kind in ("lipschitz", "monotone") else 1.0
    # Each step moves all weights of a sum by about as much: the more inputs, the smaller the steps.
    optimizer = torch.optim.Adam(network.parameters(), RATE * min(1.0, USUAL / pixels[0].numel()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (BATCH,), generator=generator)
        loss = F.cross_entropy(sharpness * network(pixels[chosen].float() / 255), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        constrain(kind, network)
    return network.eval()


@dataclass(frozen=True)
class Sphere:
    """Images on the surface of the Euclidean ball inside the box: grey plus a pattern of fixed length."""

    rate: float = 0.05

    def start(self, generators: Sequence[torch.Generator], size: Size, image: Tensor | None = None) -> Tensor:
        return torch.stack([0.01 * torch.randn((3, *size), generator=generator) for generator in generators])

    def image(self, parameters: Tensor, size: Size) -> Tensor:
        length = parameters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return MIDDLE + Ball.RADIUS * parameters / length


PARAMETERIZATIONS: dict[str, Any] = {"box": Pixels(rate=0.2), "ball": Sphere()}


@dataclass(frozen=True)
class Structured:
    """What visualizations tell of each output.

    table     one row for each network (`network`, `seed`), domain of its visualizations (`domain`) and `unit`:
              `accuracy` of the network on the test images; `line`, the squared correlation there with what the affine
              function with these extrema gives (0 where that runs the wrong way); `other`, the same with the next
              output's extrema, as a control; and, where its class has bounds, `open`, their mean width over the test
              images on the scale of the extrema, `certified`, the error that they allow, and `error`, that of their
              middle, both as means in units of the output's range on the test images, and `outside`, the share of test
              images beyond the bounds
    scatter   `network`, `domain`, `actual` and `predicted` (by that affine function) for one unit, on 400 images
    pictures  "network domain" -> visualizations (2, 3, h, w) of that unit's maximum and minimum; those on the ball,
              which hardly differ from grey, with their contrast stretched as far as it goes
    """

    table: pd.DataFrame = field(repr=False)
    scatter: pd.DataFrame = field(repr=False)
    pictures: dict[str, Tensor] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        return self.table

    def difference(self, again: Structured) -> str:
        """ "" if squared correlations and accuracies are about the same, each as a mean over units."""
        old, new = (r.table.groupby(["network", "domain"])[["line", "accuracy"]].mean() for r in (self, again))
        change = float((old - new).abs().to_numpy().max())
        return "" if change <= 0.1 else f"a mean differs by {change:.2f}"

    def save(self, folder: Path) -> None:
        for name in ("table", "scatter"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False, float_format="%.4g")
        every = torch.cat(list(self.pictures.values()))
        (folder / "about.json").write_text(json.dumps({"names": list(self.pictures), "size": list(every.shape[-2:])}))
        sheets.write(folder / "pictures.webp", every, sheets.LOSSLESS)  # what looks like noise shows the weights

    @classmethod
    def load(cls, folder: Path) -> Structured:
        about = json.loads((folder / "about.json").read_text())
        images = sheets.read(folder / "pictures.webp", 2 * len(about["names"]), tuple(about["size"]))
        pictures = dict(zip(about["names"], images.split(2), strict=True))
        return cls(pd.read_csv(folder / "table.csv"), pd.read_csv(folder / "scatter.csv"), pictures)


@shelved(3, Structured)
def structured(
    subject: Subject,
    train_images: NaturalImages,
    test_images: NaturalImages,
    *,
    kinds: Sequence[str] = KINDS,
    unit: int = 1,
    steps: int = 400,
    ascent: int = 128,
    seeds: int = 3,
    progress: bool = True,
) -> Structured:
    """Train every kind of network from `seeds` starts, visualize all outputs, predict them on `test_images`.

    `subject` only names the shelf. `unit` is the output whose pictures and predictions are kept.
    """
    classes, size = train_images.classes, train_images.size
    if len(classes) < 2:
        raise FeatvisError(f"{train_images.name} has {len(classes)} classes; structured networks need 2 to tell apart.")
    pixels, labels = in_memory(test_images, progress=False)
    x = (pixels.float() / 255).flatten(1).double()
    rows, scatters, pictures = [], [], {}
    runs = [(kind, seed) for kind in kinds for seed in range(seeds)]
    for kind, seed in tqdm(runs, "structured networks", unit="network", disable=not progress, leave=False):
        network = train(kind, train_images, steps, seed)
        named = zoo.load(network, preprocess=Preprocess((size, size)), classes=classes, name=f"{kind}-{seed}")
        exact = network.double()
        with torch.no_grad():
            actual = exact(x)
        accuracy = float((actual.argmax(1) == labels).double().mean())
        for domain in DOMAINS:
            high, low = _extrema(named, domain, ascent)
            found = [_measured(kind, domain, exact, i, low[i], high[i], x, actual[:, i]) for i in range(len(classes))]
            for i, (row, line) in enumerate(found):
                row["other"] = _explained(found[(i + 1) % len(found)][1], actual[:, i])
                rows.append({"network": kind, "domain": domain, "seed": seed, "unit": i, "accuracy": accuracy, **row})
                if i == unit and seed == 0:
                    scatters.append(_kept(kind, domain, actual[:, i], line))
                    pictures[f"{kind} {domain}"] = _stretched(torch.stack([high[i], low[i]]).float(), domain)
        named.network.float()
    return Structured(pd.DataFrame(rows), pd.concat(scatters, ignore_index=True), pictures)


def _extrema(network: Subject, domain: str, steps: int) -> tuple[Tensor, Tensor]:
    """Visualizations (units, 3, h, w) of all maxima, and of all minima, on a domain."""
    layer = list(network.layers)[-1]
    options: dict[str, Any] = {"transform": Nothing(), "steps": steps, "progress": False}
    network.network.float()
    found = []
    for minimize in (False, True):
        drawn = render(
            network, network.units(layer), parameterization=PARAMETERIZATIONS[domain], minimize=minimize, **options
        )
        found.append(drawn.images[:, 0].double())
    network.network.double()
    return found[0], found[1]


def _measured(
    kind: str, domain: str, network: nn.Module, i: int, at_min: Tensor, at_max: Tensor, x: Tensor, actual: Tensor
) -> tuple[dict[str, float], Tensor]:
    """One unit's row, and what the affine function with its extrema predicts, both in the unit's own scale."""
    ends = torch.stack([at_min, at_max]).flatten(1)
    with torch.no_grad():
        low, high = network(ends)[:, i].tolist()
    if kind.startswith("ball-"):  # the points that the rest of the network sees
        ends, x = OnSphere()(ends), OnSphere()(x)
    line = low + (high - low) * Along(ends[0], ends[1])(x)
    row = {"line": _explained(line, actual)}
    if domain == "ball" and kind in UNTIED:
        return row, line
    scaled = (actual - low) / (high - low)
    least, most = _bounds(kind, domain, network, ends, high - low, x)
    reach = float(actual.max() - actual.min()) / (high - low)
    beyond = torch.maximum(least - scaled, scaled - most) / reach
    row |= {
        "open": float((most - least).mean()),
        "certified": float((most - least).mean()) / 2 / reach,
        "error": float(((least + most) / 2 - scaled).abs().mean()) / reach,
        "outside": float((beyond > FOUND).double().mean()),
    }
    return row, line


def _bounds(kind: str, domain: str, network: nn.Module, ends: Tensor, rise: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the network's class allows at x (n, d), on the scale of the extrema."""
    if kind == "ball-linear" or (kind == "linear" and domain == "ball"):  # known on a ball, it is known everywhere
        known = Along(ends[0], ends[1])(x)
        return known, known
    if kind == "linear":
        corner = (ends[1] > ends[0]).double()
        found = AffineOnBox().bounds(Extrema(1 - corner, corner), x)
    elif kind == "lipschitz":
        steepness = max(slope(network) / rise, 1 / float((ends[1] - ends[0]).norm()))
        found = Lipschitz(steepness).bounds(Extrema(ends[0], ends[1]), x)
    else:
        return anywhere(x)
    return found.low, found.high


def _stretched(pictures: Tensor, domain: str) -> Tensor:
    if domain == "box":
        return pictures
    return MIDDLE + 0.5 * (pictures - MIDDLE) / (pictures - MIDDLE).abs().amax((1, 2, 3), keepdim=True)


def _explained(predicted: Tensor, actual: Tensor) -> float:
    """Squared correlation; 0 where the prediction runs the wrong way."""
    return float(torch.corrcoef(torch.stack([predicted, actual]))[0, 1].clamp(min=0) ** 2)


def _kept(kind: str, domain: str, actual: Tensor, line: Tensor) -> pd.DataFrame:
    some = torch.linspace(0, len(actual) - 1, min(400, len(actual))).long()
    values = {"actual": actual[some].numpy(), "predicted": line[some].numpy()}
    return pd.DataFrame({"network": kind, "domain": domain, **values})
