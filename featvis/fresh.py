"""Recompute what stands on the shelf and compare: `python -m featvis.fresh`."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from featvis import cifar
from featvis.atlas import Thumbs
from featvis.exemplars import Exemplars
from featvis.fooling import Fooling, Matrix, TrainedGate, train_gate
from featvis.images import natural_images
from featvis.shelf import RECIPES, Shelf, whole
from featvis.subjects import Subject
from featvis.visualize import Affine, Crops, Fourier, Nothing, Pixels, Visualizations
from featvis.zoo import EMBEDDED, load

# Rounding differs between processors and batch sizes, and hundreds of steps of ascent enlarge it: a picture is the
# same if it excites its unit the same, within these relative differences (median and largest over an entry's units).
ACTIVATION_MEDIAN, ACTIVATION_WORST = 0.03, 0.5
EXEMPLAR_VALUE = 1e-3  # of the largest activation
# A gate is trained on such pictures, and what it lets through follows: shares may differ by so much.
# A matrix has few pictures in each cell.
SHARE, CELL = 0.05, 0.2
TYPES: dict[str, Any] = {kind.__name__: kind for kind in (Affine, Crops, Fourier, Nothing, Pixels)}


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
    arguments = {name: _revive(value, subject, scratch) for name, value in key["arguments"].items()}
    rows = None
    if most_units is not None and key["function"] == "render" and len(arguments["units"]) > most_units:
        rows = sorted(random.sample(range(len(arguments["units"])), most_units))
        arguments["units"] = [arguments["units"][row] for row in rows]
    again = scratch.recall(recipe, subject, **arguments)
    return _difference(recipe.result.load(entry), again, rows)


def _difference(old: Any, new: Any, rows: list[int] | None) -> str:
    if isinstance(old, Visualizations):
        before = old.activation if rows is None else old.activation[rows]
        scale = np.abs(before).max() + 1e-12
        change = np.abs(new.activation - before) / np.maximum(np.abs(before), 0.05 * scale)
        middle, worst = float(np.median(change)), float(change.max())
        ok = middle <= ACTIVATION_MEDIAN and worst <= ACTIVATION_WORST
        return "" if ok else f"activations differ by {middle:.1%} (median) and {worst:.1%} (worst)"
    if isinstance(old, Exemplars):
        change = np.abs(old.top_values - new.top_values).max() / np.abs(old.top_values).max()
        return "" if change <= EXEMPLAR_VALUE else f"the exemplars' activations differ by {change:.2%}"
    if isinstance(old, Thumbs):
        return "" if old.ids == new.ids else "other exemplars are shown"
    change = max(abs(a - b) for a, b in zip(_shares(old), _shares(new), strict=True))
    allowed = CELL if isinstance(old, Matrix) else SHARE
    return "" if change <= allowed else f"a share differs by {change:.1%}"


def _shares(result: TrainedGate | Fooling | Matrix) -> list[float]:
    """The shares that a result of the fooling circuit comes to."""
    if isinstance(result, TrainedGate):
        return list(result.rates().values())
    if isinstance(result, Fooling):
        found = result.summary()
        shares = [found[name] for name in ("top1_before", "top1_after", "visualizations_fooled", "leak_rate")]
        return shares + list(found.get("target_correlation", {}).values())
    return result.frame[["caught", "decoy", "truth"]].to_numpy().ravel().tolist()


def _revive(value: Any, subject: Subject, scratch: Shelf) -> Any:
    """The argument that `shelf.plain` wrote down."""
    if isinstance(value, dict) and "gate" in value:
        natural, test = (_revive(value[name], subject, scratch) for name in ("natural", "test"))
        return train_gate(subject, natural, test, **value["options"], shelf=scratch)
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
