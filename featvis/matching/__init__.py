"""The matching experiment: which pictures belong to the same unit? Trials, observers, analysis, data of people."""

from featvis.matching import analysis, human_data, observers, simulation, stimuli, trials
from featvis.matching.demo import Demo, demo
from featvis.matching.human_data import Humans, humans
from featvis.matching.machines import Answers, Polysemy, machine_answers, other_network, polysemy
from featvis.matching.simulation import Plan, Studies, pooled, studies
from featvis.matching.stimuli import Stimuli, gather, images_of
from featvis.matching.trials import Design, Trial, design

__all__ = [
    "Answers",
    "Demo",
    "Design",
    "Humans",
    "Plan",
    "Polysemy",
    "Stimuli",
    "Studies",
    "Trial",
    "analysis",
    "demo",
    "design",
    "gather",
    "human_data",
    "humans",
    "images_of",
    "machine_answers",
    "observers",
    "other_network",
    "polysemy",
    "pooled",
    "simulation",
    "stimuli",
    "studies",
    "trials",
]
