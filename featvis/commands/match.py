"""`featvis match`: the matching experiment, from its trials to its analysis."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from featvis.commands.common import (
    add_own,
    add_weights,
    command,
    say_skipped,
    source_of,
    subject_of,
    whole_folder,
    whole_number,
    write_json,
)
from featvis.errors import FeatvisError, listed, reason

EXAMPLES = (
    "featvis match generate --units 12 --out study\n"
    "  featvis match serve study --participants 20\n"
    "  featvis match simulate --participants 20 --studies 200 --out simulated\n"
    "  featvis match export study --out tables\n"
    "  featvis match analyze tables/answers.csv --out analysis\n"
    "  featvis match export study --as jspsych --jspsych node_modules/jspsych --out hosted\n"
    "  featvis match humans --data borowski2021 --out humans"
)


def add(commands: Any) -> None:
    """Enter the command and what it does."""
    text = "The human-matching experiment: make trials, run it, simulate it, analyse it."
    sub = command(commands, "match", lambda options: None, text, EXAMPLES)
    parts = sub.add_subparsers(required=True, metavar="WHAT")
    for name, (run, line, arguments) in WHAT.items():
        part = parts.add_parser(name, help=line, description=line)
        part.set_defaults(run=run)
        arguments(part)
        if name != "serve":
            part.add_argument("--out", type=Path, required=True, help="folder for what is made, with report.json")


def _generate_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--subject", default="photonet", help="the network (default photonet)")
    add_weights(part)
    add_own(part)
    part.add_argument("--images", help="folder of natural images, photos, cifar10 or imagenette")
    part.add_argument("--units", type=whole_number(1), default=12, help="units of each depth (default 12)")
    part.add_argument(
        "--per-trial", type=whole_number(2, 5), default=3, help="units in a trial: 3 (poster) or 5 (abstract)"
    )
    part.add_argument("--lists", type=whole_number(1), default=8, help="different lists of trials (default 8)")
    part.add_argument("--repeats", type=whole_number(1), default=2, help="trials a cell and participant (default 2)")
    part.add_argument("--steps", type=whole_number(1), default=96, help="steps of each visualization (default 96)")
    part.add_argument("--seed", type=whole_number(0), default=0, help="of all random choices (default 0)")
    part.add_argument("--quiet", action="store_true", help="no progress bars")


def _generate(options: argparse.Namespace) -> None:
    from featvis.matching import design, experiment, images_of, trials
    from featvis.matching.experiment.store import FILE as ANSWERS
    from featvis.matching.experiment.store import TEXTS, read_texts
    from featvis.matching.stimuli import gather
    from featvis.shelf import Shelf

    if options.per_trial > options.units:
        fewer = f", or 2 to {options.units} to --per-trial" if options.units > 1 else ""
        raise FeatvisError(
            f"--per-trial {options.per_trial} needs as many units of each depth, but --units {options.units} was "
            f"given; give {options.per_trial} or more to --units{fewer}."
        )
    subject = subject_of(options)
    source = source_of(options, subject, "exemplars of")
    if (options.out / ANSWERS).exists():
        raise FeatvisError(f"{options.out} holds a study that has answers; give another folder to --out.")
    read_texts(options.out / TEXTS)  # what an earlier run left, and somebody may have edited, stays
    natural = images_of(source, subject.preprocess.size[0])
    say_skipped(natural.skipped)
    with whole_folder(options.out) as out:
        made_of = gather(
            subject,
            natural,
            units=options.units,
            steps=options.steps,
            seed=options.seed,
            pictures=Shelf(options.out / ".work"),
            progress=not options.quiet,
        )
        made = design(made_of, lists=options.lists, k=options.per_trial, repeats=options.repeats, seed=options.seed)
        trials.write(made, made_of, natural, out)
        if not (options.out / TEXTS).exists():
            shutil.copy(Path(experiment.__file__).parent / TEXTS, out)
        cells = made.frame().groupby(["list", "part"]).size().unstack()
        main = [trial for part in made.lists for trial in part if trial.part == "main"]
        again = {kind: [t.repeats for t in main if t.kind == kind] for kind in trials.KINDS}
        twice = {kind: {"trials": sum(found), "of": len(found)} for kind, found in again.items()}
        report = {
            "subject": subject.name,
            "fingerprint": subject.fingerprint,
            "images": natural.name,
            "units": {depth: list(made_of.of(depth)) for depth in dict.fromkeys(made_of.depths)},
            "exemplars_strength": float(made_of.strength().mean()),
            "lists": cells.to_dict("records"),
            "trials_with_an_image_twice": twice,
        }
        write_json(out / "report.json", report)
    shutil.rmtree(options.out / ".work", ignore_errors=True)
    print(f"{options.out}: {len(made.lists)} lists of {len(made.lists[0])} trials of {options.per_trial} units")
    if any(found["trials"] for found in twice.values()):
        parts = " and ".join(f"{found['trials']} of {found['of']} {kind} trials" for kind, found in twice.items())
        print(f"in {parts} an image is there twice, because it excites two of the units; more images make that rarer")


def _simulate_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--participants", type=whole_number(1), default=20, help="in each study (default 20)")
    part.add_argument("--units", type=whole_number(1), default=12, help="units of each depth (default 12)")
    part.add_argument("--repeats", type=whole_number(1), default=1, help="trials a cell and participant (default 1)")
    part.add_argument("--gap", type=float, default=-0.15, help="planted: visualization minus exemplar (default -0.15)")
    part.add_argument("--studies", type=whole_number(1), default=200, help="how many studies (default 200)")
    part.add_argument("--seed", type=whole_number(0), default=0, help="of all random choices (default 0)")
    part.add_argument("--quiet", action="store_true", help="no progress bars")


def _simulate(options: argparse.Namespace) -> None:
    from featvis.matching.simulation import Plan, simulate, studies

    plan = Plan(options.participants, options.units, repeats=options.repeats).with_gap(options.gap)
    with whole_folder(options.out) as out:
        found = studies(None, plan, n=options.studies, seed=options.seed, progress=not options.quiet)
        simulate(plan, seed=1000 * options.seed).to_csv(out / "answers.csv", index=False)
        found.table.to_csv(out / "studies.csv", index=False)
        rows = found.frame().to_dict("records")
        write_json(out / "report.json", {"simulated": True, "plan": vars(plan), "terms": rows})
    for row in rows:
        error = f" +- {1.96 * row['error']:.3f}" if math.isfinite(row["error"]) else " (one study has no error)"
        print(
            f"{row['term']}: planted {row['truth']:+.3f}, estimated {row['estimate']:+.3f}{error}, "
            f"coverage {row['coverage']:.3f} ({row['coverage_low']:.3f} to {row['coverage_high']:.3f}), "
            f"power {row['power']:.2f}"
        )


def _analyze_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("answers", type=Path, help="a table of answers: what `export` or `simulate` writes, or jsPsych")
    part.add_argument("--trials", type=Path, help="for answers from jsPsych: what `generate` made, to score them by")


def _analyze(options: argparse.Namespace) -> None:
    import pandas as pd

    from featvis import plots_matching
    from featvis.matching import analysis, trials

    try:
        answers = pd.read_csv(options.answers, dtype={"right": str, "observer": str})
    except OSError as error:
        raise FeatvisError(
            f"{str(options.answers)!r} cannot be read: {error.strerror}; give a table of answers, which `featvis match "
            "export` or `featvis match simulate` writes."
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise FeatvisError(f"{str(options.answers)!r} is not a table of answers: {reason(error)}.") from error
    if options.trials is not None:
        answers = trials.scored(answers, trials.read(options.trials)[0])
    main, cells, catch = analysis.main_trials(answers), analysis.participants(answers), analysis.catch_trials(answers)
    model, none = None, ""
    try:
        model = analysis.effects(answers)
    except analysis.NoModel as error:
        none = str(error)
    with whole_folder(options.out) as out:
        cells.to_csv(out / "cells.csv", index=False)
        plots_matching.cells(cells).savefig(out / "cells.png", dpi=150)
        report = {
            "participants": main["observer"].nunique(),
            "units": len(analysis.shown_units(main["units"].tolist())[1]),
            "trials": len(main),
            "cells": json.loads(cells.to_json(orient="records")),
            "catch": catch.to_dict("records"),
        }
        if model is not None:
            model.frame().to_csv(out / "effects.csv", index=False)
            report |= {"effects": json.loads(model.frame().to_json(orient="records")), "spread": model.spread}
        else:
            report |= {"effects": None, "spread": None, "no_model": none}
        write_json(out / "report.json", report)
    if model is not None:
        for row in model.frame().itertuples():
            print(f"{row.term}: {row.estimate:+.3f} ({row.low:+.3f} to {row.high:+.3f})")
    else:
        (options.out / "effects.csv").unlink(missing_ok=True)  # of an earlier analysis
        for row in cells.itertuples():
            print(f"{row.kind}, n = {row.n}, {row.depth}: {row.share:.3f} ({row.trials} trials)")
        print(f"no effects: {none}")
    for row in catch.itertuples():
        print(f"{row.observer}: {row.right} of {row.trials} catch trials right")
    if missed := catch["observer"][catch["right"] < catch["trials"]].tolist():
        print(f"not all catch trials right: {listed(missed)} (their answers count like all others)")


def _humans_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--data", type=Path, help="folder with the authors' files; fetched from their repository else")


def _humans(options: argparse.Namespace) -> None:
    from featvis.matching import human_data

    found = human_data.recomputed(human_data.load(options.data))
    with whole_folder(options.out) as out:
        for name in human_data.PARTS:
            getattr(found, name).to_csv(out / f"{name}.csv", index=False)
        (out / "report.json").write_text(human_data.report(found))
    for row in found.table.itertuples():
        print(
            f"experiment {row.experiment}, {row.condition}: {row.percent_correct:.1f} +- {row.two_sem:.1f}% "
            f"({row.participants} participants, +- 2 SEM)"
        )


def _serve_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("folder", type=Path, help="what `generate` made; answers are kept beside the trials")
    part.add_argument("--participants", type=whole_number(0), default=0, help="make links until there are so many")
    part.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    part.add_argument("--port", type=whole_number(1, 65535), default=8765, help="port to listen on (default 8765)")


def _serve(options: argparse.Namespace) -> None:
    try:
        from featvis.matching.experiment.server import serve
    except ModuleNotFoundError as error:
        raise FeatvisError(f"the server needs {error.name}: pip install 'featvis[experiment]'.") from error
    serve(options.folder, options.participants, options.host, options.port)


def _export_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("folder", type=Path, help="what `generate` made, and `serve` kept answers in")
    part.add_argument("--as", dest="kind", choices=("answers", "jspsych"), default="answers", help="what to write")
    part.add_argument(
        "--list", type=whole_number(0), help="for jsPsych: only this list; else each participant gets one at random"
    )
    part.add_argument("--jspsych", type=Path, help="the package jspsych from the npm registry, to be copied beside")


def _export(options: argparse.Namespace) -> None:
    from featvis.matching.experiment import export, jspsych, store

    if options.kind == "answers":
        if not (options.folder / store.FILE).is_file():
            raise FeatvisError(f"{str(options.folder)!r} holds no answers; `featvis match serve` keeps them there.")
        kept = store.Store(options.folder)
        export.check_place(kept, options.out)
        with whole_folder(options.out) as out:
            count = export.write(kept, out)
        kept.close()
        return print(f"{options.out}: {count} answers as answers.csv and in the manner of BIDS")
    with whole_folder(options.out) as out:
        count = jspsych.export(options.folder, out, options.jspsych, options.list)
    here = "serve the folder and open index.html"
    if not (options.out / jspsych.PLACE).is_file():
        here = f"the package jspsych is missing: {jspsych.ADD}, or give --jspsych; then {here}"
    print(f"{options.out}: {count} lists of trials for jsPsych; {here}")


WHAT: dict[str, tuple[Any, str, Any]] = {
    "generate": (_generate, "Make the trials of an experiment: trials.json and image files.", _generate_arguments),
    "serve": (_serve, "Run the experiment on this machine and keep every answer.", _serve_arguments),
    "simulate": (_simulate, "Simulate and analyse studies with planted effects.", _simulate_arguments),
    "analyze": (_analyze, "Analyse answers: means, exact chance, a mixed model.", _analyze_arguments),
    "export": (_export, "Write the answers as tables, or the experiment for jsPsych.", _export_arguments),
    "humans": (_humans, "Recompute the figures of Borowski et al. (2021).", _humans_arguments),
}
