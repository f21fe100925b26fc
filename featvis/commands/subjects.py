"""`featvis subjects`: the networks that can be studied, or the layers of one."""

from __future__ import annotations

import argparse
from typing import Any

from featvis.commands.common import add_own, add_weights, command, subject_of

EXAMPLES = (
    "featvis subjects\n"
    "  featvis subjects photonet\n"
    "  featvis subjects my_package.models:build --weights mine.pth --input-size 128"
)


def add(commands: Any) -> None:
    """Enter the command."""
    text = "List the networks that can be studied, or the layers of one."
    sub = command(commands, "subjects", _subjects, text, EXAMPLES)
    sub.add_argument("subject", nargs="?", help="show the layers of this one, or of what MODULE:FUNCTION builds")
    add_weights(sub)
    add_own(sub)


def _subjects(options: argparse.Namespace) -> None:
    from featvis.zoo import EMBEDDED, torchvision_names, trained

    if options.subject is None:
        names = (name if trained(name) else f"{name} (to be trained first)" for name in EMBEDDED)
        print("embedded:    " + ", ".join(names))
        print("torchvision: " + ", ".join(torchvision_names()))
        return
    subject = subject_of(options)
    print(subject)
    for layer in subject.blocks:
        print(f"  {layer:<24} {subject.channels(layer):>5} units   output {tuple(subject.layers[layer])}")
    print(f"all {len(subject.layers)} layers: {', '.join(subject.layers)}")
