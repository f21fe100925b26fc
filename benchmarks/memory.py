"""Peak memory of ever more pictures, and of a scan of ever more images, and time for all units: PhotoNet, 96 px."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COUNTS = (100, 1_000, 10_000)

# Pictures of up to 1,000 units; ten of each where more are asked for.
_RENDER = """
import sys, torch, featvis as fv
torch.set_num_threads(int(sys.argv[2]))
count = int(sys.argv[1])
subject = fv.load("photonet", device="cpu")
units = [unit for layer in subject.blocks[::-1] for unit in subject.units(layer)][: min(count, 1000)]
pictures = fv.render(subject, units, seeds=count // len(units), steps=3, progress=False)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024, pictures.images.nbytes / 2**20)
"""

# Every block's units on ever more crops, which are cut as they are asked for; none is kept.
_SCAN = """
import sys, torch, featvis as fv
torch.set_num_threads(int(sys.argv[2]))
subject = fv.load("photonet", device="cpu")
natural = fv.natural_images("photos", split="all", n=int(sys.argv[1]))
fv.exemplars(subject, natural, list(subject.blocks), progress=False)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024, 0.0)
"""


# Batches climb in several threads, which may run where they like; this process and its children are pinned.
_FREE = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, range(os.cpu_count()))
"""

_ALL = """
import sys, time, torch, featvis as fv
torch.set_num_threads(int(sys.argv[2]))
subject = fv.load("photonet", device="cpu")
units = [unit for layer in subject.blocks for unit in subject.units(layer)]
begin = time.perf_counter()
fv.render(subject, units, steps=int(sys.argv[1]), progress=False)
print(len(units), time.perf_counter() - begin)
"""


def free(script: str, *arguments: str) -> str:
    """What a script prints in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_CPU_AFFINITY"}
    command = [sys.executable, "-c", _FREE + script, *arguments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment).stdout


def measure(threads: int, counts: tuple[int, ...] = COUNTS) -> list[dict]:
    """Peak resident MiB, each in a process of its own, and how many of these are finished pictures."""
    rows = []
    for what, script in (("render", _RENDER), ("exemplars", _SCAN)):
        for count in counts:
            peak, results = _run(script, count, threads)
            rows.append(
                {"command": what, "images": count, "peak_mib": peak, "results_mib": results, "rest_mib": peak - results}
            )
    return rows


def whole_network(steps: int, threads: int) -> dict:
    """Seconds for one image of every unit of every block of PhotoNet."""
    units, seconds = _run(_ALL, steps, threads)
    return {"units": int(units), "steps": steps, "threads": threads, "seconds": seconds}


def _run(script: str, *numbers: int) -> list[float]:
    return [float(word) for word in free(script, *map(str, numbers)).split()]
