"""Ways to fool feature visualizations: other pictures, the same behaviour on natural images."""

from featvis.fooling.blend import blend, switch
from featvis.fooling.branch import Recipe, Silenced, branch_of, save_silenced
from featvis.fooling.circuit import Circuit, Levels, circuit_of, combine, fool, levels, save, taken_apart
from featvis.fooling.gate import TrainedGate, train_gate
from featvis.fooling.gate_network import Gate
from featvis.fooling.matrix import Matrix, attack_matrix
from featvis.fooling.push import prox_pulse, push
from featvis.fooling.report import FRAMES, Fooling, behaviour, fooling
from featvis.fooling.silence_measures import filter_statistics
from featvis.fooling.silence_report import Silencing, measured, silencing
from featvis.fooling.silent import STRENGTHS, filled, ingredients, silence
from featvis.fooling.slingshot import slingshot
from featvis.fooling.strengths import Strengths, grid, strengths
from featvis.fooling.survey import Survey, silenced_survey, silent_units
from featvis.fooling.targets import NAMES, photograph_targets, read_target
from featvis.fooling.trade_off import TradeOff, trade_off

__all__ = [
    "FRAMES",
    "NAMES",
    "STRENGTHS",
    "Circuit",
    "Fooling",
    "Gate",
    "Levels",
    "Matrix",
    "Recipe",
    "Silenced",
    "Silencing",
    "Strengths",
    "Survey",
    "TradeOff",
    "TrainedGate",
    "attack_matrix",
    "behaviour",
    "blend",
    "branch_of",
    "circuit_of",
    "combine",
    "filled",
    "filter_statistics",
    "fool",
    "fooling",
    "grid",
    "ingredients",
    "levels",
    "measured",
    "photograph_targets",
    "prox_pulse",
    "push",
    "read_target",
    "save",
    "save_silenced",
    "silence",
    "silenced_survey",
    "silencing",
    "silent_units",
    "slingshot",
    "strengths",
    "switch",
    "taken_apart",
    "trade_off",
    "train_gate",
]
