"""`featvis subjects`: the networks that can be studied, or the layers of one."""

from __future__ import annotations

import argparse
from typing import Any

from featvis.commands.common import command


def add(commands: Any) -> None:
    """Enter the command."""
    text = "List the networks that can be studied, or the layers of one."
    sub = command(commands, "subjects", _subjects, text, "featvis subjects\n  featvis subjects photonet")
    sub.add_argument("subject", nargs="?", help="show this subject's layers")
    sub.add_argument("--weights", help="a weights file, an enum's name, or 'random'")


def _subjects(options: argparse.Namespace) -> None:
    from featvis.zoo import EMBEDDED, load, torchvision_names, trained

    if options.subject is None:
        names = (name if trained(name) else f"{name} (to be trained first)" for name in EMBEDDED)
        print("embedded:    " + ", ".join(names))
        print("torchvision: " + ", ".join(torchvision_names()))
        return
    subject = load(options.subject, options.weights)
    print(subject)
    for layer in subject.blocks:
        print(f"  {layer:<24} {subject.channels(layer):>5} units   output {tuple(subject.layers[layer])}")
    print(f"all {len(subject.layers)} layers: {', '.join(subject.layers)}")
