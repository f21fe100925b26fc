"""The commands of `featvis`, one module each; `add(commands)` enters it in the parser."""

from featvis.commands import audit, exemplars, fool, match, render, silence, similarity, subjects

COMMANDS = (subjects, render, exemplars, fool, silence, similarity, audit, match)
