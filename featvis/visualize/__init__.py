"""Activation maximization: parameterization, transform, objective and render, four small ideas that compose."""

from featvis.visualize.accentuate import accentuate, accentuation, balance
from featvis.visualize.ascent import StopRender
from featvis.visualize.diverse import diverse
from featvis.visualize.match import match_activations, matching
from featvis.visualize.objectives import (
    Objective,
    channel,
    direction,
    diversity,
    l2,
    logit,
    matched,
    near,
    neuron,
    total_variation,
)
from featvis.visualize.parameterizations import Fourier, Maco, Pixels, mean_magnitude
from featvis.visualize.render import render
from featvis.visualize.result import Visualizations
from featvis.visualize.transforms import Affine, Crops, Nothing

__all__ = [
    "Affine",
    "Crops",
    "Fourier",
    "Maco",
    "Nothing",
    "Objective",
    "Pixels",
    "StopRender",
    "Visualizations",
    "accentuate",
    "accentuation",
    "balance",
    "channel",
    "direction",
    "diverse",
    "diversity",
    "l2",
    "logit",
    "match_activations",
    "matched",
    "matching",
    "mean_magnitude",
    "near",
    "neuron",
    "render",
    "total_variation",
]
