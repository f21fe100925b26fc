"""The experiment as a folder for jsPsych, which labs host on JATOS, Pavlovia or a web server of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from featvis.errors import FeatvisError
from featvis.matching import trials
from featvis.matching.experiment.store import TEXTS, ordered, public, read_texts

HERE = Path(__file__).parent
FILES = ("matching.js", "matching.css", "session.css", "jspsych-matching.js", "jspsych-study.js")
SCRIPT = "dist/index.browser.min.js"
PLACE = "jspsych/index.browser.min.js"
ADD = f"copy its {SCRIPT} to {PLACE}"  # jspsych-study.js says so, too
README = f"""This folder is an experiment for jsPsych 8. It needs the package jspsych from the npm registry:
{ADD}, unless it is already there.

Serve the folder from any web server and open index.html; index.html?list=2 shows one list of trials.
On JATOS, import the folder as a study and add <script src="jatos.js"></script> to the head of index.html.

study.json does not hold the answers. To score what was collected, keep the folder that the trials came from:
  featvis match analyze answers.csv --trials FOLDER --out analysis
"""


def export(folder: Path, out: Path, package: Path | None = None, only: int | None = None) -> int:
    """Write the experiment of `folder` into `out`, with jsPsych from its npm `package` if given; how many lists."""
    made, files = trials.read(folder)
    lists = list(enumerate(made.lists))
    if only is not None:
        if not 0 <= only < len(lists):
            raise FeatvisError(f"there is no list {only}; there are lists 0 to {len(lists) - 1}.")
        lists = lists[only : only + 1]
    if package is not None and not (package / SCRIPT).is_file():
        raise FeatvisError(f"{str(package)!r} is not the package jspsych: it lacks {SCRIPT}.")
    for name in FILES:
        shutil.copy(HERE / name, out / name)
    shutil.copy(HERE / "jspsych.html", out / "index.html")
    (out / "README.txt").write_text(README)
    (out / "images").mkdir(exist_ok=True)
    shown = {
        files[key]
        for _, part in lists
        for trial in part
        for side in (trial.left, trial.right)
        for row in side
        for key in row
    }
    for name in sorted(shown):
        shutil.copy(Path(folder) / "images" / name, out / "images" / name)
    orders = [[public(trial, files, "images/") for trial in ordered(part, [made.seed, i])] for i, part in lists]
    study = {"texts": read_texts(Path(folder) / TEXTS), "lists": orders}
    (out / "study.json").write_text(json.dumps(study))
    (out / PLACE).parent.mkdir(exist_ok=True)
    if package is not None:
        shutil.copy(package / SCRIPT, out / PLACE)
    return len(orders)
