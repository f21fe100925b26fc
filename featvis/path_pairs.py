"""What the widget `Paths` shows: pairs of images, how alike they are in each layer, and maps that agree or not."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from featvis import sheets
from featvis.damage import blurred, scrambled
from featvis.images import NaturalImages
from featvis.path_result import PathSimilarity
from featvis.paths import like_images
from featvis.similarity import pairwise
from featvis.subjects import Subject
from featvis.visualize import Visualizations

SIDE = 8  # of a map at most
CHANNELS = 4


def path_pairs(
    subject: Subject,
    pictures: Visualizations,
    natural: NaturalImages,
    result: PathSimilarity,
    groups: Sequence[int],
) -> dict[str, Any]:
    """Of each group (its number in `pictures` and `result`) six images: two natural ones, a visualization, the first
    natural one blurred and with scrambled phases, and a natural image of the next group.

    Similarities are Spearman's; the maps are of the `CHANNELS` channels that all six images excite most.
    """
    ids = like_images(subject, natural, pictures.units, 12)
    chosen = [(row[0], next((id for id in row[1:] if not natural.overlap(id, row[0])), row[1])) for row in ids]
    m = result.metrics.index("spearman")
    anchors = np.diagonal(result.like[m], axis1=1, axis2=2), result.like[m]
    classes = []
    for group in groups:
        one, two = (natural.image(id) for id in chosen[group])
        following = (group + 1) % len(ids)
        generator = torch.Generator().manual_seed(group)
        images = {
            "natural": ("natural", one),
            "natural, too": ("natural", two),
            "visualization": ("synthetic", pictures.images[group, 0]),
            "the first, blurred": ("damaged", blurred(one[None])[0]),
            "the first, phases scrambled": ("damaged", scrambled(one[None], generator)[0]),
            f"natural, {result.groups[following]}": ("natural", natural.image(chosen[following][0])),
        }
        every = torch.stack([image for _, image in images.values()])
        found = next(subject.activations([every], result.layers))
        alike = torch.stack([pairwise(found[layer].flatten(1).cpu()) for layer in result.layers], -1)
        others = [c for c in range(len(ids)) if c != group]
        classes.append(
            {
                "name": result.groups[group],
                "images": [
                    {"label": label, "kind": kind, "src": _data_uri(image)} for label, (kind, image) in images.items()
                ],
                "same": _rounded(anchors[0][:, group]),
                "different": _rounded(np.nanmean(anchors[1][:, group][:, others], 1)),
                "similarity": [[_rounded(curve) for curve in row] for row in alike.numpy()],
                "maps": [_maps(found[layer].cpu().float()) for layer in result.layers],
            }
        )
    return {"layers": list(result.layers), "classes": classes}


def _maps(activation: Tensor) -> dict[str, Any]:
    """The strongest channels of (n, c, h, w); logits (n, c) are one map of a single row."""
    if activation.dim() != 4:
        activation, channels = activation.flatten(1)[:, None, None], [0]
    else:
        channels = activation.clamp(min=0).mean((0, 2, 3)).topk(min(CHANNELS, activation.shape[1])).indices.tolist()
        activation = activation[:, channels]
    height, width = activation.shape[-2:]
    alike = torch.stack([pairwise(activation[:, i].flatten(1)) for i in range(len(channels))], -1)
    if height > 1:
        height, width = min(height, SIDE), min(width, SIDE)
        activation = F.adaptive_avg_pool2d(activation, (height, width))
    low, high = activation.amin((0, 2, 3), keepdim=True), activation.amax((0, 2, 3), keepdim=True)
    pixels = ((activation - low) / (high - low).clamp(min=1e-12) * 255).round().byte().numpy()
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "alike": [[_rounded(values) for values in row] for row in alike.numpy()],
        "values": base64.b64encode(pixels.tobytes()).decode(),
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 3) for value in values]


def _data_uri(image: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(sheets.to_pixels(image[None])[0]).save(file, "WEBP", quality=65)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
