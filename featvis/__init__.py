"""featvis: are feature visualizations reliable? Activation maximization, natural exemplars, and checks of both."""

from featvis import (
    agreement,
    budget,
    engine,
    fooling,
    images,
    matching,
    plots,
    plots_attacks,
    plots_fooling,
    plots_matching,
    plots_silent,
    plots_similarity,
    plots_theory,
    theory,
    visualize,
)
from featvis.atlas import Atlas, atlas
from featvis.audit import Audit, audit
from featvis.errors import FeatvisError
from featvis.exemplars import Exemplars, exemplars
from featvis.fooling import fool, silence, silent_units, train_gate
from featvis.images import natural_images
from featvis.linearity import linearity
from featvis.notice import notice
from featvis.path_result import PathSimilarity
from featvis.paths import path_similarity
from featvis.shelf import Shelf
from featvis.structured import structured
from featvis.subjects import Preprocess, Subject, Unit
from featvis.visualize import StopRender, Visualizations, render
from featvis.zoo import load

__all__ = [
    "Atlas",
    "Audit",
    "Exemplars",
    "FeatvisError",
    "PathSimilarity",
    "Preprocess",
    "Shelf",
    "StopRender",
    "Subject",
    "Unit",
    "Visualizations",
    "agreement",
    "atlas",
    "audit",
    "budget",
    "engine",
    "exemplars",
    "fool",
    "fooling",
    "images",
    "linearity",
    "load",
    "matching",
    "natural_images",
    "notice",
    "path_similarity",
    "plots",
    "plots_attacks",
    "plots_fooling",
    "plots_matching",
    "plots_silent",
    "plots_similarity",
    "plots_theory",
    "render",
    "silence",
    "silent_units",
    "structured",
    "theory",
    "train_gate",
    "visualize",
]
