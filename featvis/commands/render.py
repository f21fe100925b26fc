"""`featvis render`: visualizations of units, each beside its best natural activation."""

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

EXAMPLES = (
    "featvis render photonet fc:coins fc:cat --out pictures\n"
    "  featvis render photonet inception4b:17 --steps 512 --seeds 3 --out pictures\n"
    "  featvis render googlenet fc:281 --weights googlenet-1378be20.pth --images imagenet/val --out pictures"
)

TEXT = (
    "Visualize units by activation maximization, and look for the natural image that excites each unit most: "
    "of thousands of images, which takes longer than a few pictures (--images none leaves it out)."
)


def add(commands: Any) -> None:
    """Enter the command."""
    sub = command(commands, "render", _render, TEXT, EXAMPLES)
    add_units(sub)
    sub.add_argument("--steps", type=whole_number(1), default=256, help="steps of gradient ascent (default 256)")
    sub.add_argument("--size", type=whole_number(16), help="side of the pictures in pixels (default: the subject's)")
    sub.add_argument("--seeds", type=whole_number(1), default=1, help="pictures of each unit (default 1)")
    sub.add_argument("--parameterization", default="fourier", help="fourier, pixels or maco (default fourier)")
    sub.add_argument("--minimize", action="store_true", help="look for what the unit responds to least")
    sub.add_argument("--precision", default="fp32", help="fp32 or bf16 (default fp32)")
    sub.add_argument(
        "--redirect",
        type=whole_number(0),
        default=0,
        metavar="STEPS",
        help="first steps in which a shut ReLU lets gradients through, 16 in Lucid (default: for dead images only)",
    )
    add_engine(sub)


def _render(options: argparse.Namespace) -> None:
    from featvis import sheets
    from featvis.exemplars import exemplars
    from featvis.visualize import render

    subject = subject_of(options)
    units = list(dict.fromkeys(str(subject.unit(unit)) for unit in options.units))
    natural = natural_of(options, subject)
    with engine_of(options) as engine, whole_folder(options.out) as out:
        show: dict[str, Any] = {"engine": engine, "progress": not options.quiet}
        pictures = render(
            subject,
            units,
            steps=options.steps,
            size=options.size,
            seeds=options.seeds,
            parameterization=options.parameterization,
            minimize=options.minimize,
            precision=options.precision,
            redirect=options.redirect,
            **show,
        )
        side = "bottom" if options.minimize else "top"
        best = None if natural is None else exemplars(subject, natural, units, k=1, **show)
        rows = []
        for i, unit in enumerate(units):
            for j, seed in enumerate(pictures.seeds):
                name = f"{file_name(subject.label(unit))}-seed{seed}{'-min' if options.minimize else ''}.png"
                sheets.write_image(out / name, pictures.images[i, j])
                rows.append(
                    {
                        "unit": unit,
                        "label": subject.label(unit),
                        "seed": seed,
                        "image": name,
                        "activation": number(pictures.activation[i, j]),
                        "best_natural_activation": best and number(getattr(best, f"{side}_values")[i, 0]),
                        "steps": pictures.steps,
                        "status": str(pictures.status[i, j]),
                    }
                )
        names = ("steps", "parameterization", "minimize", "precision", "redirect")
        recipe = {name: getattr(options, name) for name in names} | {"size": list(pictures.images.shape[-2:])}
        write_report(out, options, subject, natural, rows, recipe)
    for row in rows:
        best_text = "" if row["best_natural_activation"] is None else f", natural {row['best_natural_activation']:.4g}"
        note = "" if row["status"] == "ok" else f"  [{row['status']}]"
        value = "not finite" if row["activation"] is None else f"{row['activation']:.4g}"
        print(f"{options.out / row['image']}: activation {value}{best_text}{note}")
