"""Peak memory of rendering ever more units of PhotoNet, each in a process of its own, and time for all of its units."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import featvis as fv

_SCRIPT = """
import sys, torch, featvis as fv
torch.set_num_threads(int(sys.argv[2]))
subject = fv.load("photonet", device="cpu")
units = [unit for layer in subject.blocks[::-1] for unit in subject.units(layer)][: int(sys.argv[1])]
pictures = fv.render(subject, units, steps=3, progress=False)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024, pictures.images.nbytes / 2**20)
"""


def measure(threads: int, counts: tuple[int, ...] = (64, 128, 256, 512, 1024)) -> list[dict]:
    """Peak resident MiB, and the MiB of the images themselves, for each number of units."""
    rows = []
    for count in counts:
        command = [sys.executable, "-c", _SCRIPT, str(count), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        peak, results = map(float, done.stdout.split())
        rows.append({"units": count, "peak_mib": peak, "images_mib": results})
    return rows


def whole_network(steps: int) -> dict:
    """Seconds for one image of every unit of every block of PhotoNet."""
    subject = fv.load("photonet", device="cpu")
    units = [unit for layer in subject.blocks for unit in subject.units(layer)]
    begin = perf_counter()
    fv.render(subject, units, steps=steps)
    return {"units": len(units), "steps": steps, "seconds": perf_counter() - begin}
