"""Activation maximization: parameterization, transform, objective and render, four small ideas that compose."""

from featvis.visualize.ascent import StopRender
from featvis.visualize.objectives import Objective, channel, direction, diversity, logit, neuron
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
    "channel",
    "direction",
    "diversity",
    "logit",
    "mean_magnitude",
    "neuron",
    "render",
]
