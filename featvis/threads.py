"""Independent jobs side by side in one process: what small batches need to keep several threads of torch busy.

Every operation of a small batch waits for the slowest of its threads. Where two batches have one thread each, none
waits. Operations let go of Python's lock, so threads of Python will do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

MOST = 4  # jobs at a time: what they do between operations has to wait for Python's lock

T = TypeVar("T")
Job = Callable[[Callable[[], None]], T]


class Stopped(Exception):
    """A job was told to stop: another one has failed, or the program was interrupted."""


def abreast(jobs: int) -> int:
    """How many of so many jobs are done at a time: no more than torch has threads, and one where these are pinned."""
    return 1 if _pinned() else max(1, min(jobs, torch.get_num_threads(), MOST))


def _pinned() -> bool:
    """Whether OpenMP binds its threads to processors. New threads would all be where the first one is."""
    told = os.environ.get("OMP_PROC_BIND", "")
    return told.lower() != "false" if told else any(map(os.environ.get, ("GOMP_CPU_AFFINITY", "OMP_PLACES")))


def side_by_side(jobs: Sequence[Job[T]]) -> list[T]:
    """What `job(check)` returns, for every job. `abreast` of them are done at a time, and divide torch's threads.

    A job calls `check` now and then. That raises `Stopped` once another job has raised an error, or Ctrl-C was pressed;
    what was raised first is raised here, too. Jobs must not trace networks with torch.fx, which changes all modules for
    the time.
    """
    threads, workers = torch.get_num_threads(), abreast(len(jobs))
    if workers == 1:
        return [job(lambda: None) for job in jobs]
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    def work(job: Job[T]) -> T:
        torch.set_num_threads(threads // workers)  # of this thread alone, and of threads that are yet to come
        return job(check)

    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting = [pool.submit(work, job) for job in jobs]
            done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
            for one in waiting:
                if one in done:
                    one.result()
            return [one.result() for one in waiting]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
