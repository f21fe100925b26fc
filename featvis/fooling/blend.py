"""A natural image that turns into a visualization, and what the circuit makes of every mixture."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from featvis import sheets
from featvis.fooling.circuit import circuit_of, layer_of, taken_apart
from featvis.fooling.decoys import Permutation
from featvis.subjects import Subject
from featvis.visualize.objectives import unit_means


def blend(fooled: Subject, unit: str, natural: Tensor, visualization: Tensor, mixtures: int = 41) -> dict[str, Any]:
    """One pair for the widget `Switch`: images (3, h, w), their mixtures' scores and the unit's F, D, B, C and A."""
    index = fooled.unit(unit).index
    t = torch.linspace(0, 1, mixtures)
    inside = taken_apart(fooled, torch.lerp(natural, visualization, t.view(-1, 1, 1, 1)))
    decoy = circuit_of(fooled).decoy
    shown = "the target image"
    if isinstance(decoy, Permutation):
        shown = fooled.label(f"{layer_of(fooled)}:{int(decoy.order[index])}")
    series = {name: unit_means(inside[name])[:, index].tolist() for name in "FDBCA"}
    return {
        "name": fooled.label(unit).rpartition(" ")[2],
        "natural": _data_uri(natural),
        "synthetic": _data_uri(visualization),
        "unit": fooled.label(unit),
        "decoy": shown,
        "t": t.tolist(),
        "score": inside["score"].tolist(),
        "e": inside["e"].int().tolist(),
        **series,
    }


def switch(fooled: Subject, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """All that the widget `Switch` shows: the circuit's constants and the pairs."""
    found = circuit_of(fooled).levels
    return {"c": found.c, "k": found.k, "pairs": pairs}


def _data_uri(image: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(sheets.to_pixels(image[None])[0]).save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
