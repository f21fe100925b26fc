"""`featvis silence`: a network whose units of one layer show a decoy, though no natural image changes a logit."""

from __future__ import annotations

import argparse
from pathlib import Path
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
    "featvis silence photonet inception5b.branch2.1 --out silenced\n"
    "  featvis silence photonet inception5b.branch2.1 --decoy fc:coins --out silenced\n"
    "  featvis silence resnet50 layer4.1.conv2 --decoy picture.jpg --images imagenet --out silenced"
)


def add(commands: Any) -> None:
    """Enter the command."""
    text = "Make a network whose units of one layer show a decoy, with silent filters and the same logits."
    sub = command(commands, "silence", _silence, text, EXAMPLES)
    add_subject(sub)
    sub.add_argument("layer", help="a convolution, or a block that holds one, such as inception5b.branch2.1")
    sub.add_argument("--decoy", help="a unit or an image file (default: the layer's unit farthest beyond nature)")
    sub.add_argument("--units", nargs="+", metavar="UNIT", help="units of the layer (default: all)")
    sub.add_argument(
        "--direction",
        default="patch",
        choices=("patch", "bridge"),
        help="how the filters are made: patch (the paper's) or bridge (fitted) (default patch)",
    )
    sub.add_argument(
        "--strength", type=float, help="of the decoy's direction, the paper's lambda (default 30; 10 for bridge)"
    )
    sub.add_argument("--factor", type=float, help="that multiplies the filters (default 20)")
    sub.add_argument("--margin", type=float, help="of the threshold, in standard deviations (default 1)")
    sub.add_argument(
        "--redirect",
        type=whole_number(0),
        help="steps in which the visualizations that are judged let gradients through shut ReLUs, as Lucid does "
        "(default 16)",
    )
    add_sources(sub)


def _silence(options: argparse.Namespace) -> None:
    from featvis import fooling as f
    from featvis import plots_silent as draw
    from featvis import sheets
    from featvis.fooling.silence_report import check_fresh
    from featvis.fooling.silent import FACTOR, MARGIN, REDIRECT, STRENGTHS, check_recipe
    from featvis.images import train_and_test

    subject = subject_of(options)
    size = subject.preprocess.size[0]
    picture = options.decoy is not None and ":" not in Path(options.decoy).name
    decoy = f.read_target(options.decoy, size) if picture else options.decoy
    given = options.strength, options.factor, options.margin
    usual = STRENGTHS[options.direction], FACTOR, MARGIN
    strength, factor, margin = (known if value is None else value for value, known in zip(given, usual, strict=True))
    redirect = REDIRECT if options.redirect is None else options.redirect
    check_recipe(options.direction, strength, factor, margin, redirect)
    train, test = train_and_test(source_of(options, subject, "silencing"), size)
    say_skipped(list(dict.fromkeys([*train.skipped, *test.skipped])))
    check_fresh(train, test)
    show: dict[str, Any] = {"progress": not options.quiet}
    with whole_folder(options.out) as out:
        parts = f.ingredients(
            subject, train, options.layer, decoy, options.units or "all", direction=options.direction, **show
        )
        silenced = f.filled(parts, train, options.direction, strength, factor, margin, **show)
        found = f.measured(subject, silenced, parts, train, test, redirect=redirect, **show)
        f.save_silenced(silenced, out / "silenced.safetensors")
        draw.before_after(found, subject).savefig(out / "visualizations.png", dpi=150)
        draw.axis(found).savefig(out / "responses.png", dpi=150)
        draw.promised(found).savefig(out / "bound.png", dpi=150)
        found.units.to_csv(out / "units.csv", index=False)
        for unit, image in zip(found.shown, found.pictures["after"], strict=True):
            sheets.write_image(out / f"{file_name(unit)}.png", image)
        numbers = {"subject": subject.name, "fingerprint": subject.fingerprint, **found.summary()}
        write_json(out / "report.json", numbers)
    print(
        f"units: {numbers['units_flipped']} of {numbers['units_judged']} living ones show {numbers['decoy']} to "
        f"whoever redirects ReLUs for {redirect} steps, {numbers['units_flipped_plain']} to whoever does not; largest "
        f"change of a logit {numbers['max_logit_change_calibration']:g} on {numbers['calibration_images']:,} "
        f"calibration images, {numbers['max_logit_change_heldout']:g} on {numbers['heldout_images']:,} held-out ones"
    )
    print(
        f"probability that another image wakes a unit: at most {numbers['wake_probability_bound']:.2g} at "
        f"{numbers['confidence']:.0%} confidence ({numbers['sampling_model']})"
    )
    print(f"{options.out}: silenced.safetensors, report.json, units.csv, pictures")
