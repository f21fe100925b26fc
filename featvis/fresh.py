"""Recompute what stands on the shelf and compare: `python -m featvis.fresh`."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import featvis
from featvis import budget, cifar, controls, hardened, manipulated  # noqa: F401  (which enter their recipes)
from featvis.fooling import train_gate
from featvis.images import natural_images
from featvis.matching import Plan, human_data
from featvis.matching.stimuli import gather
from featvis.shelf import RECIPES, Shelf, whole
from featvis.subjects import Subject
from featvis.theory import average  # noqa: F401
from featvis.visualize import Affine, Crops, Fourier, Nothing, Pixels
from featvis.zoo import EMBEDDED, load

for _name in featvis.__all__:  # all that is computed enters its recipe when it is imported
    getattr(featvis, _name)
TYPES: dict[str, Any] = {kind.__name__: kind for kind in (Affine, Crops, Fourier, Nothing, Pixels, Plan)}


def compare(entry: Path, shelf: Shelf, scratch: Shelf, most_units: int | None = None) -> str:
    """Recompute one entry (or `most_units` of its units) on `scratch`; "" if it agrees, else what differs."""
    key = {name: value for name, value in json.loads((entry / "entry.json").read_text()).items() if name != "files"}
    subject = load(key["subject"])
    recipe = RECIPES.get(key["function"])
    if recipe is None or key["version"] != recipe.version:
        return f"it was made by {key['function']} version {key['version']}, which is not this package's"
    if key["fingerprint"] != subject.fingerprint:
        return f"it belongs to other weights of {subject.name}"
    if not whole(entry, key):
        return "its files are not as they were written"
    with budget.under(key.get("budget", "")):
        arguments = {name: _revive(value, subject, scratch) for name, value in key["arguments"].items()}
        units = arguments.get("units")  # one unit may stand there by itself, as text
        if most_units is not None and key["function"] == "render" and isinstance(units, list):
            rows = sorted(random.sample(range(len(units)), min(most_units, len(units))))
            arguments["units"] = [units[row] for row in rows]
        again = scratch.recall(recipe, subject, **arguments)
    return recipe.result.load(entry).difference(again)


def _revive(value: Any, subject: Subject, scratch: Shelf) -> Any:
    """The argument that `shelf.plain` wrote down."""
    if isinstance(value, dict) and "gate" in value:
        natural, test = (_revive(value[name], subject, scratch) for name in ("natural", "test"))
        return train_gate(subject, natural, test, **value["options"], shelf=scratch)
    if isinstance(value, dict) and "stimuli" in value:
        natural = _revive(value["natural"], subject, scratch)
        return gather(subject, natural, **value["stimuli"], shelf=scratch, pictures=scratch)
    if isinstance(value, dict) and "source" in value:
        return natural_images(**{name: part for name, part in value.items() if name != "fingerprint"})
    if isinstance(value, dict) and "type" in value:
        fields = {n: tuple(part) if isinstance(part, list) else part for n, part in value.items() if n != "type"}
        return TYPES[value["type"]](**fields)
    return value


def main(arguments: list[str] | None = None) -> None:
    """Recompute every entry of the embedded subjects, or `--sample N` of them, and report what differs."""
    parser = argparse.ArgumentParser(prog="python -m featvis.fresh", description=main.__doc__)
    parser.add_argument("--sample", type=int, help="only so many entries, chosen at random")
    parser.add_argument("--functions", nargs="+", help="only entries that these functions made, such as render")
    parser.add_argument("--units", type=int, help="at most so many units of an entry, chosen at random")
    parser.add_argument("--seed", type=int, help="of the random choice")
    parser.add_argument("--scratch", help="folder for the recomputed results; interrupted work resumes there")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    random.seed(seed)
    shelf = Shelf()
    entries = [entry for entry in shelf.entries() if entry.parent.name in EMBEDDED]
    without = [entry for entry in entries if entry.parent.name == "cifarnet"]
    if without and not cifar.at_hand():
        print(f"skipping {len(without)} entries of cifarnet: CIFAR-10 is not at hand ({cifar.FOLDER} says where it is)")
        entries = [entry for entry in entries if entry not in without]
    if not human_data.at_hand() and any(entry.name.startswith("humans-") for entry in entries):
        print(f"skipping the answers of people: they are not at hand ({human_data.FOLDER} says where they are)")
        entries = [entry for entry in entries if not entry.name.startswith("humans-")]
    if options.functions:
        entries = [entry for entry in entries if entry.name.rpartition("-")[0] in options.functions]
    if options.sample is not None:
        entries = random.sample(entries, min(options.sample, len(entries)))
    scratch = Shelf(options.scratch or tempfile.mkdtemp(prefix="featvis-fresh-"))
    print(f"recomputing {len(entries)} entries of {shelf.root} into {scratch.root} (seed {seed})")
    different = 0
    for entry in entries:
        found = compare(entry, shelf, scratch, options.units)
        different += bool(found)
        print(f"{entry.parent.name}/{entry.name}: {found or 'agrees'}", flush=True)
    if different or not entries:
        sys.exit(f"{different} of {len(entries)} entries differ" if entries else "the shelf is empty")


if __name__ == "__main__":
    main()
