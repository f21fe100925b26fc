"""featvis: are feature visualizations reliable? Activation maximization, natural exemplars, and checks of both."""

from featvis import agreement, fooling, images, plots, plots_fooling, plots_theory, theory, visualize
from featvis.atlas import Atlas, atlas
from featvis.errors import FeatvisError
from featvis.exemplars import Exemplars, exemplars
from featvis.fooling import fool, train_gate
from featvis.images import natural_images
from featvis.linearity import linearity
from featvis.shelf import Shelf
from featvis.structured import structured
from featvis.subjects import Preprocess, Subject, Unit
from featvis.visualize import StopRender, Visualizations, render
from featvis.zoo import load

__all__ = [
    "Atlas",
    "Exemplars",
    "FeatvisError",
    "Preprocess",
    "Shelf",
    "StopRender",
    "Subject",
    "Unit",
    "Visualizations",
    "agreement",
    "atlas",
    "exemplars",
    "fool",
    "fooling",
    "images",
    "linearity",
    "load",
    "natural_images",
    "plots",
    "plots_fooling",
    "plots_theory",
    "render",
    "structured",
    "theory",
    "train_gate",
    "visualize",
]
