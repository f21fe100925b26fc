"""What an observer of extrema can know, and two functions for everything that it cannot."""

from featvis.theory.base import MARGIN, FunctionClass, Pair
from featvis.theory.certain import AffineOnBall, AffineOnLine, ConstantFunctions
from featvis.theory.extrema import Ball, Box, Certificate, Extrema, least_slope
from featvis.theory.hats import Anything, Minimizers, MorePictures, PiecewiseAffine, ReluNetworks
from featvis.theory.lipschitz import Lipschitz
from featvis.theory.shapes import AffineOnBox, Convex, Monotone

__all__ = [
    "MARGIN",
    "AffineOnBall",
    "AffineOnBox",
    "AffineOnLine",
    "Anything",
    "Ball",
    "Box",
    "Certificate",
    "ConstantFunctions",
    "Convex",
    "Extrema",
    "FunctionClass",
    "Lipschitz",
    "Minimizers",
    "Monotone",
    "MorePictures",
    "Pair",
    "PiecewiseAffine",
    "ReluNetworks",
    "least_slope",
]
