"""What the commands share: their options, natural images, a folder that is whole or not there."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featvis.errors import DiskFull, FeatvisError, listed

if TYPE_CHECKING:
    from featvis.engine import Engine
    from featvis.images import NaturalImages
    from featvis.subjects import Subject

NONE = "none"  # instead of natural images
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


def add_subject(sub: argparse.ArgumentParser, *size: str) -> None:
    """The subject, and how a network of the reader's own takes its images; `size` are other names of that option."""
    text = "photonet, cifarnet, a torchvision classifier such as googlenet, or MODULE:FUNCTION that builds your own"
    sub.add_argument("subject", help=text)
    add_own(sub, *size)


def add_own(sub: argparse.ArgumentParser, *size: str) -> None:
    """Where the network is run, and what has to be known of one of the reader's own."""
    sub.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    own = sub.add_argument_group("for a network of your own")
    own.add_argument(
        "--input-size",
        *size,
        dest="input_size",
        type=whole_number(1),
        metavar="PIXELS",
        help="side of its images (default 224)",
    )
    own.add_argument("--mean", type=float, nargs=3, help="of its preprocessing (default 0 0 0: images in 0 to 1)")
    own.add_argument("--std", type=float, nargs=3, help="of its preprocessing (default 1 1 1)")
    own.add_argument("--grey", action="store_true", help="it takes grey images; of --mean and --std the first counts")


def subject_of(options: argparse.Namespace) -> Subject:
    """The subject that was asked for: by its name, or built by MODULE:FUNCTION."""
    from featvis.subjects import Preprocess
    from featvis.zoo import imported, load

    given = [name for name in ("input_size", "mean", "std", "grey") if getattr(options, name) not in (None, False)]
    if ":" not in options.subject:
        if given:
            option = "--" + given[0].replace("_", "-")
            raise FeatvisError(f"{option} is for a network of your own; {options.subject} knows its preprocessing.")
        return load(options.subject, options.weights, options.device)
    size = options.input_size or 224
    mean, std, channels = options.mean or (0.0,) * 3, options.std or (1.0,) * 3, 1 if options.grey else 3
    preprocess = Preprocess((size, size), tuple(mean[:channels]), tuple(std[:channels]))
    name = options.subject.rpartition(":")[2].lower()
    return load(imported(options.subject), options.weights, options.device, preprocess=preprocess, name=name)


def add_weights(sub: argparse.ArgumentParser) -> None:
    """Where weights come from."""
    text = "a .safetensors or .pth file, the name of torchvision weights such as IMAGENET1K_V2, or 'random'"
    sub.add_argument("--weights", help=text)


def add_sources(sub: argparse.ArgumentParser) -> None:
    """Where weights and natural images come from, and where results go."""
    add_weights(sub)
    sub.add_argument(
        "--images",
        help="folder of natural images, photos (default for photonet), cifar10 (default for cifarnet), imagenette, or "
        "none where a command can do without",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder for what is made, with report.json")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """What an option's `type` may be: a whole number from `least` to `most`."""

    def read(text: str) -> int:
        valid = f"{least} to {most}" if most is not None else f"{least} and more"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number; valid are {valid}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} was given; valid are {valid}")
        return value

    return read


def add_engine(sub: argparse.ArgumentParser) -> None:
    """Where the work is done."""
    sub.add_argument("--engine", default="local", help="local or ray, many processes or machines (default local)")
    sub.add_argument(
        "--workers", type=whole_number(1), metavar="N", help="tasks at a time (default: all there is room for)"
    )
    sub.add_argument(
        "--ray-address", metavar="ADDRESS", help="a Ray head, HOST:PORT or auto (default: Ray starts here)"
    )
    sub.add_argument(
        "--image-workers",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="processes that read images ahead",
    )


@contextmanager
def engine_of(options: argparse.Namespace) -> Iterator[Engine]:
    """The engine that was asked for. What is finished is kept beside the results until they are in their place.

    Every command has a folder of its own there, which another one into the same `--out` leaves alone: `options.kept`.
    """
    from featvis.engine import Local, Ray, chosen, ready

    given = {"--workers": options.workers, "--ray-address": options.ray_address}
    named = [name for name, value in given.items() if value is not None]
    if options.engine != "ray":
        if named:
            raise FeatvisError(f"{listed(named)} belongs to --engine ray, but --engine is {options.engine}.")
        chosen(options.engine)
    said = sorted((name, str(value)) for name, value in vars(options).items() if name not in ("run", "quiet", "out"))
    made = not options.out.exists()
    options.kept = work = options.out / ".work" / hashlib.sha256(repr(said).encode()).hexdigest()[:12]
    try:
        if options.engine == "ray":
            engine = Ray(options.workers, options.ray_address, work)
            with ready(engine):
                yield engine
        else:
            yield Local(work)
        shutil.rmtree(work, ignore_errors=True)
    except FeatvisError as error:
        if options.engine != "ray" and not isinstance(error, DiskFull):  # Ray's errors name what it keeps
            shutil.rmtree(work, ignore_errors=True)  # nothing is left of what was refused
        raise
    finally:
        for folder in (work.parent, *([options.out] if made else [])):
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def source_of(options: argparse.Namespace, subject: Subject, what: str) -> str:
    """The source of natural images; raises FeatvisError, naming `what` needs them, where none is known."""
    from featvis.images import USUAL

    source = options.images or USUAL.get(options.subject)
    if source in (None, NONE):
        raise FeatvisError(f"{what} {subject.name} needs natural images: give --images FOLDER.")
    return source


def natural_of(options: argparse.Namespace, subject: Subject) -> NaturalImages | None:
    """The natural images that were asked for, or that suit the subject; None where neither is at hand."""
    from featvis import cifar
    from featvis.images import USUAL, natural_images

    source = options.images or USUAL.get(options.subject)
    if source in (None, NONE) or (options.images is None and source == "cifar10" and not cifar.at_hand()):
        return None
    size = subject.preprocess.size[0]
    natural = natural_images(source, split=SPLITS.get(source, "val"), size=size, workers=options.image_workers)
    say_skipped(natural.skipped)
    options.left_out = len(natural.skipped)  # which have been named; while they are read there may be more
    return natural


def say_skipped(skipped: list[str], more: str = "") -> None:
    """Name files that were left out, on standard error."""
    if skipped:
        shown = "; ".join(skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        print(f"featvis: {len(skipped)} {more}files were left out ({shown})", file=sys.stderr)


def write_report(
    out: Path,
    options: argparse.Namespace,
    subject: Subject,
    natural: NaturalImages | None,
    rows: list[dict],
    recipe: dict[str, Any],
) -> None:
    """report.json about some units, and the `recipe` by which they were made; names images that could not be read."""
    if natural is not None:
        say_skipped(natural.skipped[options.left_out :], "more ")
    report = {
        "subject": subject.name,
        "fingerprint": subject.fingerprint,
        "recipe": recipe,
        "images": None
        if natural is None
        else {"source": natural.name, "count": len(natural), "left_out": natural.skipped},
        "units": rows,
    }
    write_json(out / "report.json", report)


def write_json(file: Path, content: Any) -> None:
    """Write JSON that every reader of JSON can read: numbers that are not finite become null."""
    file.write_text(json.dumps(_finite(content), indent=1, allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(part) for name, part in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(part) for part in content]
    return number(content) if isinstance(content, float) else content


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A scratch folder whose files move to `out` only when all is done: nothing half-written."""
    if out.exists() and not out.is_dir():
        raise FeatvisError(f"--out {str(out)!r} is a file; give a folder.")
    made = not out.exists()
    os.umask(mask := os.umask(0))
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    try:
        yield scratch
        for file in sorted(scratch.rglob("*")):
            place = out / file.relative_to(scratch)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            else:
                file.chmod(0o666 & ~mask)  # safetensors keeps its files from everybody else
                file.replace(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if made and not any(out.iterdir()):
            out.rmdir()


def file_name(label: str) -> str:
    """A unit's label as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


def number(value: float) -> float | None:
    """A number as JSON may hold it: None if it is not finite."""
    return float(value) if np.isfinite(value) else None
