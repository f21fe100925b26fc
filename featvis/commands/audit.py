"""`featvis audit`: all checks on one network, and a report of what to believe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featvis.commands.common import (
    SPLITS,
    add_engine,
    add_sources,
    command,
    engine_of,
    say_skipped,
    source_of,
    whole_folder,
)
from featvis.errors import FeatvisError

if TYPE_CHECKING:
    from featvis.subjects import Subject

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
    sub.add_argument("subject", help="photonet, cifarnet, a torchvision classifier, or MODULE:FUNCTION that builds one")
    sub.add_argument(
        "--layers", nargs="+", metavar="LAYER", help="layers whose units are sampled (default: all blocks)"
    )
    sub.add_argument("--units", type=int, metavar="N", help="how many units are sampled (default 24)")
    sub.add_argument("--natural", type=int, default=NATURAL, metavar="N", help=f"natural images (default {NATURAL})")
    sub.add_argument("--seed", type=int, default=0, help="of the sample and the visualizations (default 0)")
    sub.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    own = sub.add_argument_group("for a network of your own")
    own.add_argument("--size", type=int, help="side of its input in pixels (default 224)")
    own.add_argument("--mean", type=float, nargs=3, help="of its preprocessing (default 0 0 0: images in 0 to 1)")
    own.add_argument("--std", type=float, nargs=3, help="of its preprocessing (default 1 1 1)")
    add_sources(sub)
    add_engine(sub)


def _audit(options: argparse.Namespace) -> None:
    from featvis.audit import COUNT, audit
    from featvis.images import natural_images

    subject = _subject(options)
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
    unfinished = options.out / ".parts"
    with engine_of(options) as engine, whole_folder(options.out) as out:
        found = audit(
            subject,
            natural,
            layers=options.layers,
            units=count,
            seed=options.seed,
            folder=unfinished,
            engine=engine,
            progress=not options.quiet,
        )
        found.write(out)
    _forget(unfinished)
    report = json.loads((options.out / "report.json").read_text())
    print(f"{subject.name}: {report['verdict']}. {report['summary']}")
    if report["caution"]:
        print(report["caution"])
    for check in report["checks"]:
        print(f"  {check['name']:<10} {check['finding']}")
    print(f"{options.out}: report.html, report.json, units.csv, checks.csv, pictures")


def _subject(options: argparse.Namespace) -> Subject:
    from featvis.subjects import Preprocess
    from featvis.zoo import imported, load

    given = [name for name in ("size", "mean", "std") if getattr(options, name) is not None]
    if ":" not in options.subject:
        if given:
            raise FeatvisError(f"--{given[0]} is for a network of your own; {options.subject} knows its preprocessing.")
        return load(options.subject, options.weights, options.device)
    size = options.size or 224
    preprocess = Preprocess((size, size), tuple(options.mean or (0.0,) * 3), tuple(options.std or (1.0,) * 3))
    network = imported(options.subject)
    name = options.subject.rpartition(":")[2].lower()
    return load(network, options.weights, options.device, preprocess=preprocess, name=name)


def _forget(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
