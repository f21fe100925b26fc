from . import (
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
    shelf,
    theory,
    visualize,
    zoo,
)
from .atlas import Atlas, atlas
from .audit import Audit, audit
from .errors import FeatvisError
from .exemplars import Exemplars, exemplars
from .fooling import fool, silence, silent_units, train_gate
from .images import natural_images
from .linearity import linearity
from .notice import notice
from .path_result import PathSimilarity
from .paths import path_similarity
from .shelf import Shelf
from .structured import structured
from .subjects import Preprocess, Subject, Unit
from .visualize import StopRender, Visualizations, render
from .zoo import load

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
    "shelf",
    "silence",
    "silent_units",
    "structured",
    "theory",
    "train_gate",
    "visualize",
    "zoo",
]
