"""The shelf: finished results on disk, computed once and never trusted blindly.

An entry is a folder `<root>/<subject>/<function>-<key>/` with the files that the result's `save` wrote and, written
last, `entry.json`: subject fingerprint, function, arguments, recipe version, and the SHA-256 of every file. An entry
whose key or files do not match is computed again. Entries appear by renaming a finished folder, so nothing
half-written is ever seen.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from featvis import budget
from featvis.errors import FeatvisError, disk_errors

RERENDER = "FEATVIS_RERENDER"
ROOT = "FEATVIS_SHELF"


class Storable(Protocol):
    """A result that can be put on the shelf."""

    def save(self, folder: Path) -> None: ...
    @classmethod
    def load(cls, folder: Path) -> Self: ...
    def difference(self, again: Self) -> str:
        """ "" if a recomputed result agrees with this one, else what differs, as `featvis.fresh` reports it."""
        ...


Result = TypeVar("Result")
SHARE = 0.05  # by which shares may differ that rest on pictures made or networks trained anew
RECIPES: dict[str, Recipe] = {}  # by the name of the function


@dataclass(frozen=True)
class Recipe:
    """How a result is made: a version to raise when the same arguments mean another result, and what may differ.

    Arguments in `free` (progress bars, batch sizes) do not decide about the result and are no part of its key; those
    in `later` came after results had been finished, and are a part of it where they differ from their default. Under
    the quick budget arguments are lowered first (see `featvis.budget`), and the key names the budget.
    """

    compute: Callable[..., Any]
    version: int
    result: type[Storable]
    free: tuple[str, ...]
    later: tuple[str, ...] = ()

    def bound(self, subject: Any, *given: Any, **options: Any) -> inspect.BoundArguments:
        """All arguments, defaults included, as the budget allows them."""
        bound = inspect.signature(self.compute).bind(subject, *given, **options)
        bound.apply_defaults()
        if budget.quick():
            bound.arguments.update(budget.lowered(bound.arguments))
        return bound

    def key(self, subject: Any, *given: Any, **options: Any) -> dict[str, Any]:
        """What identifies an entry, as JSON writes it: all arguments, defaults included."""
        bound = self.bound(subject, *given, **options)
        name_of_subject, *_ = bound.arguments
        usual = {name: inspect.signature(self.compute).parameters[name].default for name in self.later}
        key = {
            "subject": subject.name,
            "fingerprint": subject.fingerprint,
            "function": self.compute.__name__,
            "version": self.version,
            "arguments": {
                name: plain(value)
                for name, value in bound.arguments.items()
                if name not in self.free and name != name_of_subject and not (name in usual and value == usual[name])
            },
        }
        if budget.quick():
            key["budget"] = budget.QUICK  # parts of the result that are no arguments may be lowered, too
        return json.loads(json.dumps(key, sort_keys=True))


def shelved(
    version: int, result: type[Storable], free: tuple[str, ...] = ("progress",), later: tuple[str, ...] = ()
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a function of a subject the keyword `shelf`: a result that stands there whole is not computed again."""

    def decorate(compute: Callable[..., Result]) -> Callable[..., Result]:
        recipe = Recipe(compute, version, result, free, later)

        @functools.wraps(compute)
        def call(subject: Any, *given: Any, shelf: Shelf | None = None, **options: Any) -> Result:
            if shelf is None and not budget.quick():
                return compute(subject, *given, **options)
            if shelf is None:
                bound = recipe.bound(subject, *given, **options)
                return compute(*bound.args, **bound.kwargs)
            return shelf.recall(recipe, subject, *given, **options)

        RECIPES[compute.__name__] = call.recipe = recipe  # type: ignore[attr-defined]
        return call

    return decorate


class Shelf:
    """Finished results below a folder; by default FEATVIS_SHELF, or the `results` folder of the project."""

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root) if root is not None else _default_root()

    def __repr__(self) -> str:
        return f"Shelf({str(self.root)!r}, {sum(1 for _ in self.entries())} entries)"

    def recall(self, recipe: Recipe, subject: Any, *given: Any, **options: Any) -> Any:
        """The result of `recipe.compute(subject, *given, **options)`, from the shelf if it stands there whole."""
        key = recipe.key(subject, *given, **options)
        folder = self.folder(key)
        if not os.environ.get(RERENDER) and whole(folder, key):
            return recipe.result.load(folder)
        bound = recipe.bound(subject, *given, **options)
        result = recipe.compute(*bound.args, **bound.kwargs)
        self.put(folder, key, result)
        return result

    def folder(self, key: dict[str, Any]) -> Path:
        """Where the entry with this key stands."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.root / key["subject"] / f"{key['function']}-{digest}"

    def put(self, folder: Path, key: dict[str, Any], result: Storable) -> None:
        """Write an entry in a scratch folder and move it into place in one step.

        Raises FeatvisError if the disk is full.
        """
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
            before = scratch.with_name(f"{scratch.name}-before")
            try:
                scratch.chmod(0o755)
                result.save(scratch)
                files = {f.name: _sha256(f) for f in sorted(scratch.iterdir())}
                (scratch / "entry.json").write_text(json.dumps({**key, "files": files}, indent=1))
                with suppress(FileNotFoundError):  # of two processes that replace an entry one comes second
                    folder.rename(before)
                try:
                    scratch.rename(folder)
                except OSError:  # another process has put the same entry there in the meantime
                    if not whole(folder, key):
                        raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                shutil.rmtree(before, ignore_errors=True)

    def entries(self) -> Iterator[Path]:
        """The folders of all entries."""
        yield from sorted(file.parent for file in self.root.glob("*/*/entry.json"))


def shares_differ(old: Iterable[float], new: Iterable[float], allowed: float = SHARE) -> str:
    """ "" if no share differs from its counterpart by more than `allowed`."""
    change = max((abs(a - b) for a, b in zip(old, new, strict=True)), default=0.0)
    return "" if change <= allowed else f"a share differs by {change:.1%}"


def on_shelf(function: Callable[..., Result], subject: Any, *given: Any, **options: Any) -> Result | None:
    """The finished result of a shelved function, if it stands on the default shelf or on the one that comes with the
    project; nothing is computed or written."""
    recipe: Recipe = function.recipe  # type: ignore[attr-defined]
    key = recipe.key(subject, *given, **options)
    for shelf in (Shelf(), published()):
        if whole(folder := shelf.folder(key), key):
            return recipe.result.load(folder)  # type: ignore[return-value]
    return None


def kept(function: Callable[..., Result], subject: Any, source: str, **arguments: Any) -> Result | None:
    """A finished result made from images of `source` with these arguments, without having the images at hand.

    For data sets that are not part of the project: what was found on them stands on the default shelf or on the one
    that comes with the project, and the key of an entry could not be computed without them. None if there is no such
    result, or it is not whole.
    """
    recipe: Recipe = function.recipe  # type: ignore[attr-defined]
    wanted = {name: plain(value) for name, value in arguments.items()}
    roots = dict.fromkeys([Shelf().root, published().root])
    names = f"{subject.name}/{recipe.compute.__name__}-*/entry.json"
    for entry in (entry for root in roots for entry in sorted(root.glob(names))):
        key = {name: value for name, value in json.loads(entry.read_text()).items() if name != "files"}
        given = key["arguments"]
        fits = key["fingerprint"] == subject.fingerprint and key["version"] == recipe.version
        fits = fits and ("budget" not in key or budget.quick())
        fits = fits and any(isinstance(value, dict) and value.get("source") == source for value in given.values())
        if fits and wanted.items() <= given.items() and whole(entry.parent, key):
            return recipe.result.load(entry.parent)  # type: ignore[return-value]
    return None


def whole(folder: Path, key: dict[str, Any]) -> bool:
    """Whether the entry belongs to the key and every file is as it was written."""
    try:
        entry = json.loads((folder / "entry.json").read_text())
        files = entry.pop("files")
        return entry == key and all(_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def plain(value: Any) -> Any:
    """An argument as JSON: numbers and text as they are, natural images by recipe, subjects by fingerprint,
    dataclasses by their fields."""
    if hasattr(value, "recipe"):
        return value.recipe
    if hasattr(value, "fingerprint"):  # another subject
        return {"type": type(value).__name__, "name": value.name, "fingerprint": value.fingerprint}
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{name: plain(part) for name, part in asdict(value).items()}}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise FeatvisError(
        f"a result that depends on a {type(value).__name__} cannot be put on the shelf; compute it directly."
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def published() -> Shelf:
    """The shelf that comes with the project, whatever FEATVIS_SHELF says; where there is none, the default one.

    For what is known of the embedded networks, which no other subject and no budget changes.
    """
    return Shelf(_project_root() or _own_root() or _default_root())


def _default_root() -> Path:
    if os.environ.get(ROOT):  # an empty one is none
        return Path(os.environ[ROOT])
    return _project_root() or Path.cwd() / "results"


def _own_root() -> Path | None:
    """The shelf of the clone that this package is run from, wherever its reader works; none if it was installed."""
    root = Path(__file__).resolve().parents[1]
    return root / "results" if (root / "results").is_dir() and (root / "pyproject.toml").is_file() else None


def _project_root() -> Path | None:
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "results").is_dir() and (folder / "pyproject.toml").is_file():
            return folder / "results"
    return None
