"""A Vision Transformer: its units are MLP neurons and attention outputs, averaged over the tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import featvis as fv
from featvis._torchvision import torchvision
from featvis.paths import all_layers, path_layers
from tests.small import small_images

TOKENS, WIDTH, NEURONS = 17, 16, 24  # 4 x 4 patches and the class token
LAYER = "encoder.layers.encoder_layer_"
UNITS = [f"{LAYER}0.mlp.1:5", f"{LAYER}1.self_attention:3", f"{LAYER}2.mlp.3:2", f"{LAYER}1:7", "heads.head:1"]


@pytest.fixture(scope="module")
def subject() -> fv.Subject:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 8, 3, 2, WIDTH, NEURONS, num_classes=4)
    nn.init.normal_(network.heads.head.weight)  # torchvision starts with a head of zeros
    preprocess = fv.Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3)
    return fv.load(network, preprocess=preprocess, classes=tuple("abcd"), name="vit", device="cpu")


def by_hand(subject: fv.Subject, images: torch.Tensor, unit: str) -> torch.Tensor:
    """The unit's mean over the tokens, from a plain forward pass with one hook."""
    layer, index = subject.unit(unit)
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = subject.network.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        subject.network(subject.preprocess(images))
    handle.remove()
    return seen[0][..., index].reshape(len(images), -1).mean(1)


def test_units_are_mlp_neurons_and_attention_outputs(subject):
    assert subject.layers[f"{LAYER}0.mlp.1"] == (TOKENS, NEURONS)
    assert subject.layers[f"{LAYER}0.self_attention"] == (TOKENS, WIDTH)
    assert subject.channels(f"{LAYER}0.mlp.1") == NEURONS
    assert subject.channels(f"{LAYER}2.self_attention") == WIDTH
    assert subject.blocks == ("conv_proj", *(f"{LAYER}{i}" for i in range(3)), "encoder.ln", "heads.head")


@pytest.mark.parametrize("unit", UNITS)
def test_render_excites_every_kind_of_unit(subject, unit):
    pictures = fv.render(subject, unit, steps=30, seeds=2, progress=False)
    assert (pictures.status == "ok").all()
    assert torch.allclose(by_hand(subject, pictures.images[0], unit), torch.from_numpy(pictures.activation[0]).float())
    grey = by_hand(subject, torch.full((1, 3, 32, 32), 0.5), unit).item()
    least = fv.render(subject, unit, steps=30, minimize=True, progress=False)
    assert least.activation.max() < grey < pictures.activation.min()


def test_exemplars_of_tokens_are_those_of_a_full_sort(subject):
    natural = small_images()
    best = fv.exemplars(subject, natural, UNITS, k=3, distinct=False, progress=False)
    images = torch.stack([natural[i][0] for i in range(len(natural))])
    for i, unit in enumerate(UNITS):
        values, order = by_hand(subject, images, unit).sort(descending=True, stable=True)
        assert best.top_ids[i].tolist() == [natural[j][2] for j in order[:3].tolist()]
        assert np.allclose(best.top_values[i], values[:3], atol=1e-5)
    assert (best.top_at == -1).all()  # tokens are no map


def test_path_similarity_goes_over_tokens(subject):
    natural = small_images(68)
    pictures = fv.render(subject, [f"heads.head:{i}" for i in range(4)], steps=4, seeds=2, progress=False)
    found = fv.path_similarity(subject, pictures, natural, per_class=4, progress=False)
    assert found.layers == path_layers(subject) == ("conv_proj", f"{LAYER}0", f"{LAYER}1", f"{LAYER}2", "heads.head")
    assert np.isfinite(found.frame()["normalized"]).any()
    attention = f"{LAYER}1.self_attention"
    assert attention in all_layers(subject)
    found = fv.path_similarity(subject, pictures, natural, layers=[attention], per_class=4, progress=False)
    # By hand: the mean correlation of each visualization with its logit's exemplars, over all tokens and features.
    best = fv.exemplars(subject, natural, pictures.units, k=4, progress=False)
    means = []
    for i, unit in enumerate(pictures.units):
        shown = torch.cat([pictures.images[i], best.pictures(natural, unit)])
        rows = next(subject.activations([shown], [attention]))[attention].flatten(1).numpy()
        means.append(spearmanr(rows, axis=1).statistic[:2, 2:].mean())
    assert found.frame()["fv_same"].item() == pytest.approx(np.mean(means), abs=1e-6)


def test_neurons_can_be_silent(subject):
    natural = small_images()
    survey = fv.silent_units(subject, natural, natural, steps=3, progress=False)
    layers = [f"{LAYER}{i}.mlp.1" for i in range(3)]
    assert survey.frame()["layer"].tolist() == ["conv_proj", *layers]
    images = torch.stack([natural[i][0] for i in range(len(natural))])
    (found,) = subject.activations([images], layers)
    awake = (found[layers[1]].amax(1) > 0).sum(0)
    assert survey.units.query("layer == @layers[1]")["training"].tolist() == awake.tolist()


def test_torchvision_s_own_transformer_loads_with_random_weights():
    subject = fv.load("vit_b_16", weights="random", device="cpu")
    assert subject.layers[f"{LAYER}11.self_attention"] == (197, 768)
    assert subject.layers[f"{LAYER}11.mlp.1"] == (197, 3072)
    assert len([name for name in subject.blocks if "encoder_layer" in name]) == 12
    assert subject.label("heads.head:1") == "heads.head:1 goldfish"
