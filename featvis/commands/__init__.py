"""The commands of `featvis`, one module each; `add(commands)` enters it in the parser."""

from featvis.commands import exemplars, fool, render, silence, subjects

COMMANDS = (subjects, render, exemplars, fool, silence)
