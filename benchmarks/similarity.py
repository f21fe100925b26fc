"""Spearman between all pairs of images against scipy, and the peak memory of path similarity with GoogLeNet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.memory import free
from featvis.similarity import pairwise

IMAGES, ACTIVATIONS = 100, 200_000
SAMPLE = 20  # pairs that are timed one by one
ROUNDS = 3

_ONE_CALL = """
import sys, numpy as np, torch
from scipy.stats import spearmanr
from featvis.similarity import pairwise

def kib(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

torch.set_num_threads(1)
method, images, activations = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
run = (lambda r: pairwise(torch.from_numpy(r))) if method == "featvis" else (lambda r: spearmanr(r, axis=1).statistic)
rng = np.random.default_rng(0)
run(np.maximum(rng.normal(size=(images, 100)), 0).astype(np.float32))  # loads what it needs
rows = np.stack([np.maximum(rng.normal(size=activations), 0).astype(np.float32) for _ in range(images)])
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = kib("VmRSS")
run(rows)
print((kib("VmHWM") - before) / 1024)
"""

_SCRIPT = """
import sys, time, torch, featvis as fv
from benchmarks.drawn import Drawn
from featvis.paths import all_layers, path_layers, path_similarity

count, which, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
subject = fv.load("googlenet", "random", device="cpu")
CLASSES = 40

natural = Drawn(subject, count, CLASSES)
units = [f"fc:{i}" for i in range(CLASSES)]
pictures = fv.render(subject, units, steps=1, seeds=1, progress=False)
layers = all_layers(subject) if which == "all" else path_layers(subject)
begin = time.perf_counter()
found = path_similarity(subject, pictures, natural, layers=layers, per_class=count // CLASSES, progress=False)
seconds = time.perf_counter() - begin
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
activations = sum(int(torch.tensor(subject.layers[layer]).prod()) for layer in layers)
print(int(peak.split()[1]) / 1024, seconds, len(layers), activations)
"""


def spearman() -> list[dict]:
    """Seconds and memory for all pairs, with half of the activations 0 as a ReLU leaves them; best of `ROUNDS`."""
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.normal(size=(IMAGES, ACTIVATIONS)), 0).astype(np.float32)
    pairs = [tuple(rng.choice(IMAGES, 2, replace=False)) for _ in range(SAMPLE)]
    every = IMAGES * (IMAGES - 1) // 2

    def one_by_one() -> np.ndarray:
        return np.array([spearmanr(rows[i], rows[j]).statistic for i, j in pairs])

    def at_once() -> np.ndarray:
        return spearmanr(rows, axis=1).statistic

    def ours() -> np.ndarray:
        return pairwise(torch.from_numpy(rows)).numpy()

    best: dict[str, float] = {}
    for _ in range(ROUNDS):  # in turn, so that a busy moment hits all alike
        for name, run in (("scipy, pair by pair", one_by_one), ("scipy, one call", at_once), ("featvis", ours)):
            begin = perf_counter()
            run()
            seconds = perf_counter() - begin
            best[name] = min(best.get(name, np.inf), seconds * (every / SAMPLE if run is one_by_one else 1))
    own, theirs = ours(), at_once()
    single = one_by_one()
    errors = {
        "scipy, pair by pair": float(np.abs([own[i, j] for i, j in pairs] - single).max()),
        "scipy, one call": float(np.abs(own - theirs).max()),
    }
    peaks = {name: _beyond(name) for name in ("scipy, one call", "featvis")}
    return [
        {
            "method": name,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "times_featvis": seconds / best["featvis"],
            "beyond_the_input_mib": peaks.get(name, float("nan")),
            "largest_difference": errors.get(name, float("nan")),
        }
        for name, seconds in best.items()
    ]


def _beyond(method: str) -> float:
    """MiB that a process of its own needs at most on top of the rows themselves."""
    command = [sys.executable, "-c", _ONE_CALL, method, str(IMAGES), str(ACTIVATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout)


COUNTS = {"blocks": (400, 2000), "all": (400, 2000)}  # layers -> numbers of images


def memory(threads: int, counts: Mapping[str, tuple[int, ...]] = COUNTS) -> list[dict]:
    """Peak resident MiB of path similarity on ever more images, each run in a process of its own."""
    rows = []
    for layers, numbers in counts.items():
        for count in numbers:
            peak, seconds, axis, activations = map(float, free(_SCRIPT, str(count), layers, str(threads)).split())
            rows.append(
                {
                    "images": count,
                    "layers": int(axis),
                    "activations_of_an_image": int(activations),
                    "all_of_them_mib": count * activations * 4 / 2**20,
                    "peak_mib": peak,
                    "seconds": seconds,
                }
            )
    return rows
