"""Ray: the same pictures by one worker and by two, with one thread each."""

from __future__ import annotations

import logging
import os
from time import perf_counter

import torch

import featvis as fv
from featvis.engine import Ray

SIZE = 8  # pictures of a batch
ROUNDS = 2


def measure(batches: int, steps: int) -> list[dict]:
    """Best seconds for one and two workers, in turn; `bit_identical` holds them against the local engine."""
    import ray

    subject = fv.load("photonet", device="cpu")
    units = subject.units("inception4b")[: batches * SIZE]
    torch.set_num_threads(1)
    options = {"steps": steps, "batch": SIZE, "progress": False}
    local = fv.render(subject, units, **options)
    # The other parts tie threads to processors, which workers would inherit: both would share the first one.
    os.environ.pop("GOMP_CPU_AFFINITY", None)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    seconds: dict[int, float] = {}
    same = True
    try:
        fv.render(subject, units[: 2 * SIZE], **options | {"steps": 1}, engine=Ray(workers=2))  # processes start
        for _ in range(ROUNDS):
            for workers in (1, 2):
                begin = perf_counter()
                found = fv.render(subject, units, **options, engine=Ray(workers=workers))
                seconds[workers] = min(seconds.get(workers, float("inf")), perf_counter() - begin)
                same &= torch.equal(found.images, local.images)
    finally:
        ray.shutdown()
    return [
        {
            "workers": workers,
            "pictures": len(units),
            "steps": steps,
            "seconds": took,
            "times_faster_than_1": seconds[1] / took,
            "bit_identical": same,
        }
        for workers, took in seconds.items()
    ]
