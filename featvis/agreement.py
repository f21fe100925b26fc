"""First measures of whether a visualization tells the truth: how far it out-activates nature, what the network sees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featvis.atlas import Atlas
from featvis.scan import LEVELS


def high_frequency_share(images: Tensor) -> np.ndarray:
    """Share of spectral power above a quarter of a cycle per pixel, the mean excluded: (n, 3, h, w) -> (n,)."""
    height, width = images.shape[-2:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :])
    power = torch.fft.fft2(images).abs().square().sum(1)
    power[:, 0, 0] = 0
    return (power[:, frequency > 0.25].sum(1) / power.flatten(1).sum(1)).numpy()


def gaps(atlas: Atlas) -> pd.DataFrame:
    """One row for each unit: layer, unit, activation of its best visualization and of its best exemplar, their ratio.

    `typical` is the median of natural images, `lead` the same ratio with both measured from there: that of a logit,
    whose zero means nothing, does not change if a constant is added. The ratio is missing where no natural image
    activates the unit at all (not above 1e-6), the lead where all of them activate it alike.
    """
    parts = []
    for layer, pictures in atlas.maxima.items():
        frame = pd.DataFrame(
            {
                "layer": layer,
                "unit": pictures.units,
                "visualization": pictures.activation.max(1),
                "natural": atlas.exemplars[layer].quantiles[:, -1],
                "typical": atlas.exemplars[layer].quantiles[:, LEVELS.index(0.5)],
            }
        )
        parts.append(frame)
    frame = pd.concat(parts, ignore_index=True)
    frame["ratio"] = (frame["visualization"] / frame["natural"]).where(frame["natural"] > 1e-6)
    reach = frame["natural"] - frame["typical"]
    frame["lead"] = ((frame["visualization"] - frame["typical"]) / reach).where(reach > 1e-6)
    return frame


def same_class(atlas: Atlas, k: int = 9) -> pd.DataFrame:
    """Does the network see the same thing in a unit's visualization as in its exemplars?

    One row for each unit: `seen`, the class that the network gives the best visualization; `expected`, the share of the
    unit's k exemplars that it gives this class; `chance`, the mean share over the exemplars of the layer's other units.
    """
    subject, parts = atlas.subject, []
    everything = sorted({str(id) for best in atlas.exemplars.values() for id in best.top_ids[:, :k].ravel() if id})
    images = (
        torch.stack([atlas.natural.image(id) for id in everything[i : i + 64]]) for i in range(0, len(everything), 64)
    )
    answers = dict(
        zip(everything, torch.cat([logits.argmax(1) for logits in subject.logits(images)]).tolist(), strict=True)
    )
    for layer, pictures in atlas.maxima.items():
        seen = torch.cat([logits.argmax(1) for logits in subject.logits(pictures.best())]).cpu().numpy()
        given = np.array([[answers.get(str(id), -1) for id in row[:k]] for row in atlas.exemplars[layer].top_ids])
        match = (given[None, :, :] == seen[:, None, None]).mean(2)  # visualization of i, exemplars of j
        others = (match.sum(1) - match.diagonal()) / max(len(match) - 1, 1)
        parts.append(
            pd.DataFrame(
                {"layer": layer, "unit": pictures.units, "seen": seen, "expected": match.diagonal(), "chance": others}
            )
        )
    return pd.concat(parts, ignore_index=True)
