"""The knobs: turn what makes a visualization, press Run, and watch the optimization as it happens."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from PIL import Image

from featvis.errors import FeatvisError

if TYPE_CHECKING:
    from torch import Tensor

    from featvis.subjects import Subject

_HERE = Path(__file__).parent
KNOBS = {"unit", "steps", "rate", "parameterization", "jitter", "scale", "degrees", "seed"}
FRAMES = 60  # about so many are shown in a run, however long it is


class Knobs(anywidget.AnyWidget):
    """Visualize one unit of `subject`, live, with every choice at hand.

    What can be turned: `unit`, `steps`, `rate` (step size of Adam), `parameterization` ("fourier", "pixels", "maco"),
    `jitter` (pixels of an image of 224), `scale` (0.1: from 0.9 to 1.1), `degrees` (of rotation; 0 turns any of the
    three off; maco brings crops of its own) and `seed`. `run()` works in a thread, so that the kernel stays free;
    `stop()` ends the run at its next frame; `wait()` waits for it. `result` is what `render` returned last. `render`
    takes the place of `featvis.render`, with the same arguments.
    """

    _esm = _HERE / "knobs.js"
    _css = _HERE / "knobs.css"
    unit = traitlets.Unicode().tag(sync=True)
    steps = traitlets.Int(256).tag(sync=True)
    rate = traitlets.Float(0.05).tag(sync=True)
    parameterization = traitlets.Unicode("fourier").tag(sync=True)
    jitter = traitlets.Float(12.0).tag(sync=True)
    scale = traitlets.Float(0.1).tag(sync=True)
    degrees = traitlets.Float(10.0).tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)

    units = traitlets.List(traitlets.Unicode()).tag(sync=True)  # suggestions
    running = traitlets.Bool(False).tag(sync=True)
    frame = traitlets.Bytes(b"").tag(sync=True)  # the image after `step`, as WebP
    step = traitlets.Int(0).tag(sync=True)
    total = traitlets.Int(0).tag(sync=True)
    elapsed = traitlets.Float(0.0).tag(sync=True)  # seconds
    shown = traitlets.Unicode().tag(sync=True)  # the unit that `frame` shows
    curve: traitlets.List[Any] = traitlets.List().tag(sync=True)  # [step, activation of the untransformed image]
    message = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, subject: Subject, unit: str = "fc:coins", *, render: Callable[..., Any] | None = None, **knobs: Any
    ):
        self.subject = subject
        self.result: Any = None
        self._render = render
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        *blocks, last = subject.blocks
        units = [f"{last}:{name}" for name in subject.classes] + [f"{block}:0" for block in blocks]
        super().__init__(unit=unit, units=units, **knobs)
        self.on_msg(self._obey)

    def run(self) -> None:
        """Start a run with the knobs as they are; nothing happens while one is running."""
        if self._thread and self._thread.is_alive():
            return
        self._halt.clear()
        self.running, self.message = True, ""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the run at its next frame; `result` keeps what there is."""
        self._halt.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the run has ended, at most `timeout` seconds."""
        if self._thread:
            self._thread.join(timeout)

    def _obey(self, _widget: object, content: object, _buffers: object) -> None:
        match content:
            case {"do": "stop"}:
                self.stop()
            case {"do": "run", "knobs": dict(knobs)} if not self.running:
                # The knobs come with the order: it overtakes their own messages, which wait while the kernel is busy.
                try:
                    for name, value in knobs.items():
                        if name in KNOBS:
                            setattr(self, name, value)
                except traitlets.TraitError as error:
                    self.message = str(error)
                else:
                    self.run()

    def _work(self) -> None:
        try:
            self.message = self._optimize()
        except FeatvisError as error:
            self.message = str(error)
        except Exception as error:  # the thread's end: whatever it is, the reader must learn of it
            self.message = (
                f"The run failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else '-'})."
            )
        finally:
            self.running = False

    def _optimize(self) -> str:
        """One run -> a sentence on how it ended."""
        from featvis.visualize import Affine, Nothing, StopRender, render

        unit = self.subject.unit(self.unit)
        steps, started = self.steps, time.monotonic()
        affine = Affine((self.jitter * 2 / 3, self.jitter / 3), self.scale, self.degrees)
        still = not (self.jitter or self.scale or self.degrees)
        with self.hold_sync():
            self.frame, self.curve, self.step, self.elapsed = b"", [], 0, 0.0
            self.total, self.shown = steps, self.subject.label(unit)

        def on_step(step: int, images: Tensor) -> None:
            value = self._activation(images, unit.layer, unit.index)
            with self.hold_sync():
                self.frame = _webp(images[0])
                self.step, self.elapsed = step, time.monotonic() - started
                self.curve = [*self.curve, [step, value]]
            if self._halt.is_set():
                raise StopRender

        self.result = (self._render or render)(
            self.subject,
            [str(unit)],
            steps=steps,
            seeds=(self.seed,),
            rate=self.rate,
            parameterization=self.parameterization,
            transform=None if self.parameterization == "maco" else Nothing() if still else affine,
            snapshots=moments(steps),
            on_step=on_step,
            progress=False,
        )
        return f"Stopped at step {self.step}." if self._halt.is_set() else ""

    def _activation(self, images: Tensor, layer: str, index: int) -> float | None:
        (found,) = self.subject.activations(images[:1].detach(), [layer])
        value = float(found[layer][0, index].mean())
        return value if np.isfinite(value) else None


def moments(steps: int) -> tuple[int, ...]:
    """The steps after which a frame is shown: the first ones, when much happens, then evenly; always the last."""
    early = [2**k for k in range(5) if 2**k < steps]
    return tuple(
        sorted({*early, *np.linspace(1, max(1, steps), min(FRAMES, max(1, steps))).round().astype(int).tolist()})
    )


def _webp(image: Tensor) -> bytes:
    pixels = np.asarray(image.detach().float().cpu()).clip(0, 1).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(file, "WEBP", quality=92)
    return file.getvalue()
