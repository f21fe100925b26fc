"""`featvis audit`: all checks on one network, and a report of what to believe."""

from __future__ import annotations

import argparse
import json
from typing import Any

from featvis.commands.common import (
    SPLITS,
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
)
from featvis.errors import FeatvisError

EXAMPLES = (
    "featvis audit photonet --out audited\n"
    "  featvis audit photonet --weights fooled/fooled.safetensors --layers fc --out audited\n"
    "  featvis audit resnet50 --images imagenet/val --units 100 --out audited\n"
    "  featvis audit my_package.models:build --weights mine.pth --size 128 --images photographs --out audited"
)
NATURAL = 2000
UNREADABLE = 0.2  # share of natural images beyond which there is no audit


def add(commands: Any) -> None:
    """Enter the command."""
    text = "Look for signs that a network's visualizations do not tell the truth; writes report.html and report.json."
    sub = command(commands, "audit", _audit, text, EXAMPLES)
    add_subject(sub, "--size")
    sub.add_argument(
        "--layers", nargs="+", metavar="LAYER", help="layers whose units are sampled (default: all blocks)"
    )
    sub.add_argument("--units", type=whole_number(1), metavar="N", help="how many units are sampled (default 24)")
    sub.add_argument(
        "--natural", type=whole_number(1), default=NATURAL, metavar="N", help=f"natural images (default {NATURAL})"
    )
    sub.add_argument("--seed", type=whole_number(0), default=0, help="of the sample and the visualizations (default 0)")
    add_sources(sub)
    add_engine(sub)


def _audit(options: argparse.Namespace) -> None:
    from featvis.audit import COUNT, audit
    from featvis.images import natural_images

    subject = subject_of(options)
    source = source_of(options, subject, "auditing")
    natural = natural_images(
        source,
        split=SPLITS.get(source, "val"),
        n=options.natural,
        size=subject.preprocess.size[0],
        workers=options.image_workers,
    )
    say_skipped(natural.skipped)
    broken, every = len(natural.skipped), len(natural) + len(natural.skipped)
    if broken > UNREADABLE * every:
        raise FeatvisError(f"{broken} of {every} files in {source} cannot be used; up to {UNREADABLE:.0%} may not.")
    count = COUNT if options.units is None else options.units
    with engine_of(options) as engine, whole_folder(options.out) as out:
        found = audit(
            subject,
            natural,
            layers=options.layers,
            units=count,
            seed=options.seed,
            engine=engine,
            progress=not options.quiet,
        )
        found.write(out)
    report = json.loads((options.out / "report.json").read_text())
    print(f"{subject.name}: {report['verdict']}. {report['summary']}")
    if report["caution"]:
        print(report["caution"])
    for check in report["checks"]:
        print(f"  {check['name']:<10} {check['finding']}")
    print(f"{options.out}: report.html, report.json, units.csv, checks.csv, pictures")
