"""The budget: how much may be computed. "quick" lowers what results ask for, so that any chapter runs in seconds.

It is set by FEATVIS_BUDGET (`make book BUDGET=quick`) and is meant for trying things out: that every cell runs on
another network, on a machine without a GPU. What is lowered goes by the name of the argument, because names mean the
same everywhere, and it is lowered before the shelf's key is made: an entry says what was computed, not what was asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from featvis.errors import FeatvisError

BUDGET = "FEATVIS_BUDGET"
QUICK = "quick"
STEPS, SEEDS = 4, 5  # of gradient ascent, and of training
IMAGES = 204  # natural ones of a stream; a gate needs 200
UNITS, LAYERS = 3, 4  # units of a hidden layer, and layers, where all would be drawn
LOGITS = 10  # of a classifier with more
CAPS: dict[str, int] = {  # by the name of the argument
    "ascent": STEPS,
    "extra": 4,
    "few": 1,
    "hidden": 1,
    "leave_out": False,
    "lines": 2,
    "lists": 4,
    "n": 2,
    "per_class": 6,
    "per_layer": 3,
    "seeds": SEEDS,
    "snapshots": STEPS,
    "steps": STEPS,
    "test_seeds": 1,
    "train_seeds": 1,
    "train_steps": 2,
    "units": 4,  # of an audit
}


def quick() -> bool:
    """Whether the budget is the quick one. Raises FeatvisError for a budget that there is not."""
    name = os.environ.get(BUDGET, "")
    if name not in ("", QUICK):
        raise FeatvisError(f"there is no budget {name!r}; leave {BUDGET} empty, or set it to {QUICK}.")
    return name == QUICK


def most(value: int, cap: int) -> int:
    """`value`, under the quick budget at most `cap`."""
    return min(value, cap) if quick() else value


def within(steps: Sequence[int]) -> tuple[int, ...]:
    """Those of the steps of an ascent that the budget allows."""
    return tuple(step for step in steps if step <= STEPS or not quick())


def some(units: Sequence[str], cap: int = LOGITS) -> list[str]:
    """The units, under the quick budget at most `cap` of them, spread over all."""
    count = most(len(units), cap)
    return [units[i * len(units) // count] for i in range(count)]


def lowered(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a result as the quick budget allows them.

    Numbers are lowered to their cap, sequences of numbers lose what is beyond it: `snapshots` those after the last
    step, others their end. Units by name stay: who asked for them goes on with them.
    """
    return {name: _lowered(name, value) if name in CAPS else value for name, value in arguments.items()}


def _lowered(name: str, value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return min(value, CAPS[name])
    if isinstance(value, (list, tuple, range)) and value and all(isinstance(part, int) for part in value):
        return tuple(v for v in value if v <= CAPS[name]) if name == "snapshots" else tuple(value[: CAPS[name]])
    return value


@contextmanager
def under(name: str) -> Iterator[None]:
    """Another budget for a while: "quick", or "" for the full one."""
    before = os.environ.get(BUDGET, "")
    os.environ[BUDGET] = name
    try:
        yield
    finally:
        os.environ[BUDGET] = before


def full() -> AbstractContextManager[None]:
    """The full budget for a while: for what is looked up on the shelf rather than computed."""
    return under("")
