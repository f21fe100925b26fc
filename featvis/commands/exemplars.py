"""`featvis exemplars`: the natural images that excite units most."""

from __future__ import annotations

import argparse
from typing import Any

from featvis.commands.common import (
    add_engine,
    add_units,
    command,
    engine_of,
    file_name,
    natural_of,
    number,
    subject_of,
    whole_folder,
    whole_number,
    write_report,
)
from featvis.errors import FeatvisError

EXAMPLES = (
    "featvis exemplars photonet inception4b:17 --out pictures\n"
    "  featvis exemplars resnet50 layer4.1:3 --images imagenet/val --k 16 --out pictures"
)


def add(commands: Any) -> None:
    """Enter the command."""
    sub = command(commands, "exemplars", _exemplars, "Find the natural images that excite units most.", EXAMPLES)
    add_units(sub)
    sub.add_argument("--k", type=whole_number(1), default=9, help="exemplars of each unit (default 9)")
    add_engine(sub)


def _exemplars(options: argparse.Namespace) -> None:
    from featvis import sheets
    from featvis.exemplars import exemplars

    subject = subject_of(options)
    units = list(dict.fromkeys(str(subject.unit(unit)) for unit in options.units))
    natural = natural_of(options, subject)
    if natural is None:
        raise FeatvisError(f"exemplars of {subject.name} need natural images: give --images FOLDER.")
    with engine_of(options) as engine, whole_folder(options.out) as out:
        best = exemplars(subject, natural, units, k=options.k, engine=engine, progress=not options.quiet)
        rows = []
        for i, unit in enumerate(units):
            names = []
            for rank, picture in enumerate(best.pictures(natural, unit)):
                names.append(f"{file_name(subject.label(unit))}-exemplar{rank + 1}.png")
                sheets.write_image(out / names[-1], picture)
            rows.append(
                {
                    "unit": unit,
                    "label": subject.label(unit),
                    "images": names,
                    "ids": best.top_ids[i].tolist(),
                    "activations": [number(value) for value in best.top_values[i]],
                }
            )
        write_report(out, options, subject, natural, rows, {"k": options.k})
    for row in rows:
        most = f"activation {row['activations'][0]:.4g} at most"
        print(f"{row['label']}: {len(row['images'])} exemplars in {options.out}, {most}")
