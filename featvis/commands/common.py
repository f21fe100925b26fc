"""What the commands share: their options, natural images, a folder that is whole or not there."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featvis.errors import FeatvisError, listed

if TYPE_CHECKING:
    from featvis.engine import Engine
    from featvis.images import NaturalImages
    from featvis.subjects import Subject

SPLITS = {"photos": "all", "cifar10": "heldout", "imagenette": "heldout"}  # of a folder, its subfolder "val"


def command(commands: Any, name: str, run: Callable, text: str, examples: str) -> argparse.ArgumentParser:
    """Enter a command: its name, the function that runs it, one line of help, examples."""
    sub = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=run)
    return sub


def add_units(sub: argparse.ArgumentParser) -> None:
    """A subject, its units, and the sources."""
    add_subject(sub)
    sub.add_argument("units", nargs="+", metavar="UNIT", help="LAYER:INDEX or LAYER:CLASS, such as fc:coins")
    add_sources(sub)


def add_subject(sub: argparse.ArgumentParser) -> None:
    """The subject."""
    sub.add_argument("subject", help="photonet, cifarnet, or a torchvision classifier such as googlenet")


def add_sources(sub: argparse.ArgumentParser) -> None:
    """Where weights and natural images come from, and where results go."""
    sub.add_argument("--weights", help="a weights file, an enum's name, or 'random'")
    sub.add_argument(
        "--images",
        help="folder of natural images, photos (default for photonet), cifar10 (default for cifarnet) or imagenette",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder for pictures and report.json")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def add_engine(sub: argparse.ArgumentParser) -> None:
    """Where the work is done."""
    sub.add_argument("--engine", default="local", help="local or ray, many processes or machines (default local)")
    sub.add_argument("--workers", type=int, metavar="N", help="tasks at a time (default: as many as there is room for)")
    sub.add_argument(
        "--ray-address", metavar="ADDRESS", help="a Ray head, HOST:PORT or auto (default: Ray starts here)"
    )
    sub.add_argument(
        "--image-workers", type=int, default=0, metavar="N", help="processes that read a folder's images ahead"
    )


@contextmanager
def engine_of(options: argparse.Namespace) -> Iterator[Engine]:
    """The engine that was asked for. What Ray finishes is kept beside the results until they are whole."""
    from featvis.engine import Ray, chosen, ready

    given = {"--workers": options.workers, "--ray-address": options.ray_address}
    named = [name for name, value in given.items() if value is not None]
    if options.engine != "ray":
        if named:
            raise FeatvisError(f"{listed(named)} belongs to --engine ray, but --engine is {options.engine}.")
        chosen(options.engine)
        yield options.engine
        return
    work = options.out / ".work"
    engine = Ray(options.workers, options.ray_address, work)
    with ready(engine):
        yield engine
    shutil.rmtree(work, ignore_errors=True)


def source_of(options: argparse.Namespace, subject: Subject, what: str) -> str:
    """The source of natural images; raises FeatvisError, naming `what` needs them, where none is known."""
    from featvis.images import USUAL

    source = options.images or USUAL.get(options.subject)
    if source is None:
        raise FeatvisError(f"{what} {subject.name} needs natural images: give --images FOLDER.")
    return source


def natural_of(options: argparse.Namespace, subject: Subject) -> NaturalImages | None:
    """The natural images that were asked for, or that suit the subject; None where neither is known."""
    from featvis.images import USUAL, natural_images

    source = options.images or USUAL.get(options.subject)
    if source is None:
        return None
    size = subject.preprocess.size[0]
    natural = natural_images(source, split=SPLITS.get(source, "val"), size=size, workers=options.image_workers)
    say_skipped(natural.skipped)
    return natural


def say_skipped(skipped: list[str]) -> None:
    """Name files that were left out, on standard error."""
    if skipped:
        shown = "; ".join(skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        print(f"featvis: {len(skipped)} files were left out ({shown})", file=sys.stderr)


def write_report(out: Path, subject: Subject, natural: NaturalImages | None, rows: list[dict]) -> None:
    """report.json about some units."""
    report = {
        "subject": subject.name,
        "fingerprint": subject.fingerprint,
        "images": None
        if natural is None
        else {"source": natural.name, "count": len(natural), "left_out": natural.skipped},
        "units": rows,
    }
    (out / "report.json").write_text(json.dumps(report, indent=1))


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A scratch folder whose files move to `out` only when all is done: nothing half-written."""
    if out.exists() and not out.is_dir():
        raise FeatvisError(f"--out {str(out)!r} is a file; give a folder.")
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    try:
        yield scratch
        for file in sorted(scratch.rglob("*")):
            place = out / file.relative_to(scratch)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            else:
                file.replace(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def file_name(label: str) -> str:
    """A unit's label as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


def number(value: float) -> float | None:
    """A number as JSON may hold it: None if it is not finite."""
    return float(value) if np.isfinite(value) else None
