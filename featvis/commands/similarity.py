"""`featvis similarity`: are visualizations processed like natural images?"""

from __future__ import annotations

import argparse
from typing import Any

from featvis.commands.common import (
    add_engine,
    add_sources,
    add_subject,
    command,
    engine_of,
    say_skipped,
    source_of,
    subject_of,
    whole_folder,
    whole_number,
    write_json,
)

EXAMPLES = (
    "featvis similarity photonet --out paths\n"
    "  featvis similarity photonet --units inception4b:0 inception4b:17 inception4b:40 --metric pearson --out paths\n"
    "  featvis similarity googlenet --units fc:1 fc:7 fc:281 fc:950 --weights googlenet-1378be20.pth --images imagenet "
    "--out paths"
)

LEFT_OUT = {"undefined": "visualizations", "undefined_natural": "natural images"}


def add(commands: Any) -> None:
    """Enter the command."""
    text = "Compare visualizations with natural images, layer by layer."
    sub = command(commands, "similarity", _similarity, text, EXAMPLES)
    add_subject(sub)
    sub.add_argument(
        "--units", nargs="+", metavar="UNIT", help="LAYER:INDEX or LAYER:CLASS (default: logits, 40 at most)"
    )
    sub.add_argument("--metric", default="spearman", help="spearman, pearson or cosine (default spearman)")
    sub.add_argument("--layers", nargs="+", metavar="LAYER", help="where to compare (default: the subject's blocks)")
    sub.add_argument(
        "--per-class", type=whole_number(1), default=40, help="natural images of a class or unit (default 40)"
    )
    sub.add_argument("--seeds", type=whole_number(1), default=10, help="visualizations of each unit (default 10)")
    sub.add_argument("--steps", type=whole_number(1), default=128, help="steps of gradient ascent (default 128)")
    add_sources(sub)
    add_engine(sub)


def _similarity(options: argparse.Namespace) -> None:
    from featvis import plots_similarity
    from featvis.controls import some_logits
    from featvis.images import OWN, natural_images
    from featvis.paths import check_classes, check_enough, path_similarity
    from featvis.similarity import check_metrics
    from featvis.visualize import render

    subject = subject_of(options)
    check_metrics(options.metric)  # before the long work
    for layer in options.layers or ():
        subject.channels(layer)
    units = options.units or some_logits(subject)
    units = list(dict.fromkeys(str(subject.unit(unit)) for unit in units))
    source = source_of(options, subject, "path similarity of")
    split = "heldout" if source in ("photos", *OWN) else "val"
    natural = natural_images(source, split=split, size=subject.preprocess.size[0], workers=options.image_workers)
    say_skipped(natural.skipped)
    check_enough(len(units), options.per_class, natural)
    check_classes(subject, units, options.per_class, natural)
    with engine_of(options) as engine, whole_folder(options.out) as out:
        show: dict[str, Any] = {"engine": engine, "progress": not options.quiet}
        pictures = render(subject, units, steps=options.steps, seeds=options.seeds, **show)
        found = path_similarity(
            subject,
            pictures,
            natural,
            layers=options.layers,
            metric=options.metric,
            per_class=options.per_class,
            **show,
        )
        found.frame().to_csv(out / "similarity.csv", index=False)
        plots_similarity.paths(found).savefig(out / "similarity.png", dpi=150)
        report: dict[str, Any] = {"subject": subject.name, "fingerprint": subject.fingerprint}
        report |= {"natural": natural.name, "left_out": natural.skipped, **found.summary()}
        write_json(out / "report.json", report)
    print(
        f"layers at or below 0: {report['layers_at_or_below_zero']} of {len(found.layers)}; the curve leaves 0 for "
        f"good at: {report['leaves_zero'] or 'no layer'}"
    )
    print(f"halves of natural images: {_halves(report, 'same', 1)}, {_halves(report, 'different', 0)}")
    left_out = {what: sum(report[name]) for name, what in LEFT_OUT.items() if any(report[name])}
    if left_out:
        print("constant activations, left out: " + ", ".join(f"{count} of {what}" for what, count in left_out.items()))
    print(f"{options.out}: similarity.csv, similarity.png, report.json")


def _halves(report: dict[str, Any], name: str, true: int) -> str:
    """What the check of the check says of one kind of pairs."""
    value, group = report[f"diagnostic_{name}"], report["same"]
    if value is None:
        return f"{name} {group} undefined (no two halves could be compared)"
    missed, layers = report["diagnostic_misses"][name], len(report["layers"])
    return f"{name} {group} {value:.3f} (should be {true}; missed by the intervals of {missed} of {layers} layers)"
