"""A subject and a render that need no network: for the knobs, here and in a notebook's kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from featvis.errors import FeatvisError
from featvis.visualize import StopRender


class FakeSubject:
    """What Knobs asks of a subject: the activation is the image's mean, times ten."""

    blocks = ("conv1", "fc")
    classes = ("cat", "coins")

    def unit(self, text: str) -> SimpleNamespace:
        layer, _, which = text.partition(":")
        if layer != "fc" or which not in self.classes:
            raise FeatvisError(f"{text!r} names no unit.")
        return SimpleNamespace(layer=layer, index=self.classes.index(which))

    def label(self, unit: SimpleNamespace) -> str:
        return f"{unit.layer}:{unit.index} {self.classes[unit.index]}"

    def activations(self, images: torch.Tensor, layers: list[str]) -> Iterator[dict[str, torch.Tensor]]:
        yield {layers[0]: 10 * images.mean((1, 2, 3))[:, None].expand(-1, 2)}


SUBJECT: Any = FakeSubject()


class FakeRender:
    """Images that grow brighter from step to step; keeps the arguments, waits `pause` seconds a step."""

    def __init__(self, pause: float = 0.0):
        self.pause = pause
        self.asked: dict[str, Any] = {}

    def __call__(self, subject: Any, units: list[str], **asked: Any) -> str:
        self.asked = asked
        try:
            for step in range(1, asked["steps"] + 1):
                time.sleep(self.pause)
                if step in asked["snapshots"]:
                    asked["on_step"](step, torch.full((1, 3, 32, 32), step / asked["steps"]))
        except StopRender:
            return "stopped"
        return "done"
