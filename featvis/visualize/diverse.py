"""Several pictures of one unit that are asked to differ (Olah et al. 2017, "Feature Visualization")."""

from __future__ import annotations

from featvis.shelf import shelved
from featvis.subjects import Subject
from featvis.visualize.objectives import channel, diversity
from featvis.visualize.render import render
from featvis.visualize.result import Visualizations

WEIGHT = 4.0


@shelved(1, Visualizations)
def diverse(
    subject: Subject, unit: str, *, weight: float = WEIGHT, seeds: int = 4, steps: int = 96, progress: bool = True
) -> Visualizations:
    """`seeds` pictures of a unit, which maximize channel(unit) + weight * diversity(its layer).

    Raises FeatvisError for an unknown unit.
    """
    name = str(subject.unit(unit))
    goal = channel(name) + weight * diversity(name.rpartition(":")[0])
    return render(subject, goal, seeds=seeds, steps=steps, progress=progress)
