"""The commands of `featvis`, one module each; `add(commands)` enters it in the parser."""

from featvis.commands import exemplars, fool, match, render, subjects

COMMANDS = (subjects, render, exemplars, fool, match)
from featvis.commands import exemplars, fool, render, similarity, subjects

COMMANDS = (subjects, render, exemplars, fool, similarity)
from featvis.commands import exemplars, fool, render, silence, subjects

COMMANDS = (subjects, render, exemplars, fool, silence)
