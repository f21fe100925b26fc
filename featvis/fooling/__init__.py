"""Ways to fool feature visualizations: other pictures, the same behaviour on natural images."""

from featvis.fooling.blend import blend, switch
from featvis.fooling.circuit import Circuit, Levels, circuit_of, combine, fool, levels, save, taken_apart
from featvis.fooling.gate import Gate, TrainedGate, train_gate
from featvis.fooling.matrix import Matrix, attack_matrix
from featvis.fooling.report import FRAMES, Fooling, behaviour, fooling
from featvis.fooling.targets import NAMES, photograph_targets, read_target

__all__ = [
    "FRAMES",
    "NAMES",
    "Circuit",
    "Fooling",
    "Gate",
    "Levels",
    "Matrix",
    "TrainedGate",
    "attack_matrix",
    "behaviour",
    "blend",
    "circuit_of",
    "combine",
    "fool",
    "fooling",
    "levels",
    "photograph_targets",
    "read_target",
    "save",
    "switch",
    "taken_apart",
    "train_gate",
]
