"""`featvis fool`: a network whose visualizations of all logits show something else."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from featvis.commands.common import (
    add_sources,
    add_subject,
    command,
    file_name,
    say_skipped,
    source_of,
    subject_of,
    whole_folder,
    whole_number,
    write_json,
)

EXAMPLES = (
    "featvis fool photonet --out fooled\n"
    "  featvis fool photonet --decoy picture.jpg --out fooled\n"
    "  featvis fool googlenet --weights googlenet-1378be20.pth --images imagenet --out fooled"
)


def add(commands: Any) -> None:
    """Enter the command."""
    text = "Make a network whose visualizations of all logits show something else."
    sub = command(commands, "fool", _fool, text, EXAMPLES)
    add_subject(sub)
    sub.add_argument("--decoy", default="permute", help="'permute', or an image file to be shown (default permute)")
    sub.add_argument(
        "--kind",
        default="aligned",
        choices=("linear", "aligned"),
        help="how an image is shown: linear or aligned (default aligned)",
    )
    sub.add_argument("--seed", type=whole_number(0), default=0, help="of the gate's training (default 0)")
    add_sources(sub)


def _fool(options: argparse.Namespace) -> None:
    from featvis import fooling as f
    from featvis import plots_fooling, sheets
    from featvis.images import train_and_test
    from featvis.shelf import on_shelf

    subject = subject_of(options)
    size = subject.preprocess.size[0]
    decoy = "permute" if options.decoy == "permute" else f.read_target(options.decoy, size)
    source = source_of(options, subject, "fooling")
    train, test = train_and_test(source, size)
    say_skipped(list(dict.fromkeys([*train.skipped, *test.skipped])))
    show: dict[str, Any] = {"progress": not options.quiet}
    with whole_folder(options.out) as out:
        work = options.out / ".work"  # an interrupted gate goes on from here
        finished = on_shelf(f.train_gate, subject, train, test, leave_out=source == "photos", seed=options.seed)
        gate = finished or f.train_gate(subject, train, test, seed=options.seed, folder=work, **show)
        found = f.fooling(subject, train, test, gate, decoy, kind=options.kind, **show)
        f.save(f.fool(subject, train, decoy, gate=gate, kind=options.kind, **show), out / "fooled.safetensors")
        plots_fooling.swapped(found, subject).savefig(out / "visualizations.png", dpi=150)
        plots_fooling.gate_along_ascent(gate).savefig(out / "gate.png", dpi=150)
        for unit, picture in zip(subject.units(found.layer), found.pictures["after"], strict=True):
            sheets.write_image(out / f"{file_name(subject.label(unit))}.png", picture)
        numbers = {"subject": subject.name, "fingerprint": subject.fingerprint, **found.summary()}
        numbers["gate_intervals"] = gate.intervals()
        write_json(out / "report.json", numbers)
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
