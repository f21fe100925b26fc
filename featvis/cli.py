"""The command line: `featvis subjects | render | exemplars`. A reader's mistake is one sentence and exit status 2."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featvis import sheets
from featvis.errors import FeatvisError

if TYPE_CHECKING:
    from featvis.images import NaturalImages
    from featvis.subjects import Subject

DEFAULT_IMAGES = {"photonet": "photos", "cifarnet": "cifar10"}
SPLITS = {"photos": "all", "cifar10": "heldout"}  # of a folder, its subfolder "val"
EXAMPLES = {
    "subjects": "featvis subjects\n  featvis subjects photonet",
    "render": (
        "featvis render photonet fc:coins fc:cat --out pictures\n"
        "  featvis render photonet inception4b:17 --steps 512 --seeds 3 --out pictures\n"
        "  featvis render googlenet fc:281 --weights googlenet-1378be20.pth --images imagenet/val --out pictures"
    ),
    "exemplars": (
        "featvis exemplars photonet inception4b:17 --out pictures\n"
        "  featvis exemplars resnet50 layer4.1:3 --images imagenet/val --k 16 --out pictures"
    ),
    "fool": (
        "featvis fool photonet --out fooled\n"
        "  featvis fool photonet --decoy picture.jpg --out fooled\n"
        "  featvis fool googlenet --weights googlenet-1378be20.pth --images imagenet --out fooled"
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with 0, or with 2 and one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except FeatvisError as error:
        print(f"featvis: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"featvis: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("featvis: interrupted; nothing half-written was left.", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="featvis", description="Are feature visualizations reliable?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"examples:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command("subjects", _subjects, "List the networks that can be studied, or the layers of one.")
    sub.add_argument("subject", nargs="?", help="show this subject's layers")
    sub.add_argument("--weights", help="a weights file, an enum's name, or 'random'")

    sub = command("render", _render, "Visualize units by activation maximization.")
    _common(sub)
    sub.add_argument("--steps", type=int, default=256, help="steps of gradient ascent (default 256)")
    sub.add_argument("--size", type=int, help="side of the pictures in pixels (default: the subject's)")
    sub.add_argument("--seeds", type=int, default=1, help="pictures of each unit (default 1)")
    sub.add_argument("--parameterization", default="fourier", help="fourier, pixels or maco (default fourier)")
    sub.add_argument("--minimize", action="store_true", help="look for what the unit responds to least")
    sub.add_argument("--precision", default="fp32", help="fp32 or bf16 (default fp32)")

    sub = command("exemplars", _exemplars, "Find the natural images that excite units most.")
    _common(sub)
    sub.add_argument("--k", type=int, default=9, help="exemplars of each unit (default 9)")

    sub = command("fool", _fool, "Make a network whose visualizations of all logits show something else.")
    sub.add_argument("subject", help="photonet, cifarnet, or a torchvision classifier such as googlenet")
    sub.add_argument("--decoy", default="permute", help="'permute', or an image file to be shown (default permute)")
    sub.add_argument(
        "--kind",
        default="aligned",
        choices=("linear", "aligned"),
        help="how an image is shown: linear or aligned (default aligned)",
    )
    sub.add_argument("--seed", type=int, default=0, help="of the gate's training (default 0)")
    _sources(sub)
    return parser


def _common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("subject", help="photonet, cifarnet, or a torchvision classifier such as googlenet")
    sub.add_argument("units", nargs="+", metavar="UNIT", help="LAYER:INDEX or LAYER:CLASS, such as fc:coins")
    _sources(sub)


def _sources(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--weights", help="a weights file, an enum's name, or 'random'")
    sub.add_argument(
        "--images", help="folder of natural images, photos (default for photonet) or cifar10 (default for cifarnet)"
    )
    sub.add_argument("--out", type=Path, required=True, help="folder for pictures and report.json")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


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


def _render(options: argparse.Namespace) -> None:
    from featvis.exemplars import exemplars
    from featvis.visualize import render
    from featvis.zoo import load

    subject = load(options.subject, options.weights)
    units = list(dict.fromkeys(str(subject.unit(unit)) for unit in options.units))
    natural = _natural(options, subject)
    with _folder(options.out) as out:
        pictures = render(
            subject,
            units,
            steps=options.steps,
            size=options.size,
            seeds=options.seeds,
            parameterization=options.parameterization,
            minimize=options.minimize,
            precision=options.precision,
            progress=not options.quiet,
        )
        side = "bottom" if options.minimize else "top"
        best = None if natural is None else exemplars(subject, natural, units, k=1, progress=not options.quiet)
        rows = []
        for i, unit in enumerate(units):
            for j, seed in enumerate(pictures.seeds):
                name = f"{_file_name(subject.label(unit))}-seed{seed}{'-min' if options.minimize else ''}.png"
                sheets.write_image(out / name, pictures.images[i, j])
                rows.append(
                    {
                        "unit": unit,
                        "label": subject.label(unit),
                        "seed": seed,
                        "image": name,
                        "activation": _number(pictures.activation[i, j]),
                        "best_natural_activation": best and _number(getattr(best, f"{side}_values")[i, 0]),
                        "steps": pictures.steps,
                        "status": str(pictures.status[i, j]),
                    }
                )
        _report(out, subject, natural, rows)
    for row in rows:
        best_text = "" if row["best_natural_activation"] is None else f", natural {row['best_natural_activation']:.4g}"
        note = "" if row["status"] == "ok" else f"  [{row['status']}]"
        value = "not finite" if row["activation"] is None else f"{row['activation']:.4g}"
        print(f"{options.out / row['image']}: activation {value}{best_text}{note}")


def _exemplars(options: argparse.Namespace) -> None:
    from featvis.exemplars import exemplars
    from featvis.zoo import load

    subject = load(options.subject, options.weights)
    units = list(dict.fromkeys(str(subject.unit(unit)) for unit in options.units))
    natural = _natural(options, subject)
    if natural is None:
        raise FeatvisError(f"exemplars of {subject.name} need natural images: give --images FOLDER.")
    with _folder(options.out) as out:
        best = exemplars(subject, natural, units, k=options.k, progress=not options.quiet)
        rows = []
        for i, unit in enumerate(units):
            names = []
            for rank, picture in enumerate(best.pictures(natural, unit)):
                names.append(f"{_file_name(subject.label(unit))}-exemplar{rank + 1}.png")
                sheets.write_image(out / names[-1], picture)
            rows.append(
                {
                    "unit": unit,
                    "label": subject.label(unit),
                    "images": names,
                    "ids": best.top_ids[i].tolist(),
                    "activations": [_number(value) for value in best.top_values[i]],
                }
            )
        _report(out, subject, natural, rows)
    for row in rows:
        most = f"activation {row['activations'][0]:.4g} at most"
        print(f"{row['label']}: {len(row['images'])} exemplars in {options.out}, {most}")


def _fool(options: argparse.Namespace) -> None:
    from featvis import fooling as f
    from featvis import plots_fooling
    from featvis.images import train_and_test
    from featvis.shelf import on_shelf
    from featvis.zoo import load

    subject = load(options.subject, options.weights)
    size = subject.preprocess.size[0]
    decoy = "permute" if options.decoy == "permute" else f.read_target(options.decoy, size)
    source = options.images or DEFAULT_IMAGES.get(options.subject)
    if source is None:
        raise FeatvisError(f"fooling {subject.name} needs natural images: give --images FOLDER.")
    train, test = train_and_test(source, size)
    _say_skipped(list(dict.fromkeys([*train.skipped, *test.skipped])))
    show: dict[str, Any] = {"progress": not options.quiet}
    with _folder(options.out) as out:
        work = options.out / ".work"  # an interrupted gate goes on from here
        finished = on_shelf(f.train_gate, subject, train, test, leave_out=source == "photos", seed=options.seed)
        gate = finished or f.train_gate(subject, train, test, seed=options.seed, folder=work, **show)
        found = f.fooling(subject, train, test, gate, decoy, kind=options.kind, **show)
        f.save(f.fool(subject, train, decoy, gate=gate, kind=options.kind, **show), out / "fooled.safetensors")
        plots_fooling.swapped(found, subject).savefig(out / "visualizations.png", dpi=150)
        plots_fooling.gate_along_ascent(gate).savefig(out / "gate.png", dpi=150)
        for unit, picture in zip(subject.units(found.layer), found.pictures["after"], strict=True):
            sheets.write_image(out / f"{_file_name(subject.label(unit))}.png", picture)
        numbers = {"subject": subject.name, "fingerprint": subject.fingerprint, **found.summary()}
        numbers["gate_intervals"] = gate.intervals()
        (out / "report.json").write_text(json.dumps(numbers, indent=1))
    shutil.rmtree(work, ignore_errors=True)
    print(
        f"gate: accuracy {numbers['gate']['accuracy']:.4f}, natural images taken for visualizations "
        f"{numbers['gate']['fpr']:.4f}, visualizations passed {numbers['gate']['fnr']:.4f}"
    )
    print(
        f"units fooled: {numbers['units_fooled']} of {numbers['units']}; top-1 {numbers['top1_before']:.4f} before, "
        f"{numbers['top1_after']:.4f} after, drop explained by the gate {numbers['top1_drop_explained_by_fpr']:.4f}"
    )
    print(f"{options.out}: fooled.safetensors, report.json, pictures")


def _natural(options: argparse.Namespace, subject: Subject) -> NaturalImages | None:
    from featvis.images import natural_images

    source = options.images or DEFAULT_IMAGES.get(options.subject)
    if source is None:
        return None
    natural = natural_images(source, split=SPLITS.get(source, "val"), size=subject.preprocess.size[0])
    _say_skipped(natural.skipped)
    return natural


def _say_skipped(skipped: list[str]) -> None:
    if skipped:
        shown = "; ".join(skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        print(f"featvis: {len(skipped)} files were left out ({shown})", file=sys.stderr)


def _report(out: Path, subject: Subject, natural: NaturalImages | None, rows: list[dict]) -> None:
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
def _folder(out: Path) -> Iterator[Path]:
    """A scratch folder whose files move to `out` only when all is done: nothing half-written."""
    if out.exists() and not out.is_dir():
        raise FeatvisError(f"--out {str(out)!r} is a file; give a folder.")
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    try:
        yield scratch
        for file in scratch.iterdir():
            file.replace(out / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


if __name__ == "__main__":
    main()
