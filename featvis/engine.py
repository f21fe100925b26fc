"""Engines: where the independent parts of a long job are computed: in this process, or as Ray tasks.

A job is a function `work(*shared, part)` and a list of parts that know nothing of each other. What it returns for a
part is a dict of tensors, numbers and text, so a finished part can be kept on disk and read without executing code.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featvis import checkpoint
from featvis.errors import FeatvisError, reason
from featvis.shelf import plain
from featvis.subjects import Subject

LOCAL = "local"
ENGINES = (LOCAL, "ray")
Found = dict[str, Any]
_PATIENCE = 5.0  # seconds for a head to answer; Ray itself would wait for minutes


@dataclass(frozen=True)
class Local:
    """Run the parts of a job in this process.

    folder  where every finished part is kept at once: the same job finds it there and goes on. It is never emptied;
            delete it when the result is safe. None: parts are kept in memory only
    """

    folder: Path | None = None


@dataclass(frozen=True)
class Ray:
    """Run the parts of a job as Ray tasks, on this machine or on all machines of a cluster.

    workers   tasks at a time; by default as many as there are processors, or GPUs if the subject is on one
    address   of a running head: "HOST:PORT", "ray://HOST:PORT" or "auto"; None starts Ray here for the job's time
    folder    where every finished part is kept at once: the same job finds it there and goes on. It is never emptied;
              delete it when the result is safe. None: parts are kept in memory only
    threads   of each task on the processor. The same number gives the same bits on all machines that are alike; a run
              without Ray gives those of one thread where torch has one (`torch.set_num_threads(1)`)
    retries   how often a part is run again whose worker was lost

    A subject on a GPU gets one GPU for each task. Image files are read by the workers: a folder must be there on all
    machines. Needs `pip install featvis[ray]`.
    """

    workers: int | None = None
    address: str | None = None
    folder: Path | None = None
    threads: int = 1
    retries: int = 3

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("threads", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise FeatvisError(f"{name}={value} was given for the engine; at least {least} is needed.")


Engine = str | Local | Ray


def chosen(engine: Engine) -> Local | Ray:
    """The engine that a name means. Raises FeatvisError for what is none."""
    if isinstance(engine, Local | Ray):
        return engine
    if engine not in ENGINES:
        raise FeatvisError(
            f"there is no engine {engine!r}; there are 'local', 'ray', featvis.engine.Local(...) and Ray(...)."
        )
    return Ray() if engine == "ray" else Local()


def cluster_of(engine: Engine) -> Ray | None:
    """The Ray engine that is meant; None for work in this process. Raises FeatvisError for what is no engine."""
    where = chosen(engine)
    return where if isinstance(where, Ray) else None


def kept(engine: Local | Ray, key: str | None) -> Found | None:
    """What the engine's folder holds of the part with this key, if it is there and whole."""
    return None if engine.folder is None or key is None else checkpoint.read(place(engine.folder, key), key)


def keep(engine: Local | Ray, key: str | None, found: Found) -> None:
    """Put a finished part into the engine's folder, if it has one."""
    if engine.folder is not None and key is not None:
        checkpoint.write(place(engine.folder, key), key, found)


def outcomes(
    engine: Ray, work: Callable[..., Found], shared: Sequence[Any], parts: Sequence[Any], keys: Sequence[str | None]
) -> Iterator[tuple[int, Found]]:
    """(number, work(*shared, part)) of every part, in the order in which they come to be finished.

    `keys` has for each part everything that decides about its result (see `key_of`); a part without one is not kept.
    Subjects among `shared` reach the workers on the device that they have here. Raises FeatvisError where Ray is not
    installed or its head is not there, and for a part whose workers were lost again and again.
    """
    missing = []
    for number, key in enumerate(keys):
        if (found := kept(engine, key)) is None:
            missing.append(number)
        else:
            yield number, found
    if missing:
        with ready(engine) as ray:
            for number, found in _tasks(ray, engine, work, shared, parts, missing):
                keep(engine, keys[number], found)
                yield number, found


def key_of(*things: Any) -> str | None:
    """Text that identifies things of which a result depends; None where one of them has no lasting name."""
    try:
        return json.dumps([_named(thing) for thing in things], sort_keys=True)
    except FeatvisError:
        return None


def _named(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return hashlib.sha256(thing.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    if is_dataclass(thing) and not hasattr(thing, "fingerprint"):
        return {"type": type(thing).__name__, **{f.name: _named(getattr(thing, f.name)) for f in fields(thing)}}
    if isinstance(thing, (list, tuple)):
        return [_named(part) for part in thing]
    return plain(thing)


def _tasks(
    ray: Any, engine: Ray, work: Callable[..., Found], shared: Sequence[Any], parts: Sequence[Any], missing: list[int]
) -> Iterator[tuple[int, Found]]:
    gpu = any(isinstance(value, Subject) and value.device.type == "cuda" for value in shared)
    try:  # once, not with every task
        common = ray.put([_portable(value) for value in shared])
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise FeatvisError(f"this cannot be sent to Ray's workers: {reason(error)}") from error
    task = ray.remote(_task).options(num_cpus=engine.threads, num_gpus=int(gpu), max_retries=engine.retries)
    room = ray.cluster_resources().get("GPU" if gpu else "CPU", 0) // (1 if gpu else engine.threads)
    if room < 1:
        has = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        needs = "1 GPU" if gpu else f"{engine.threads} processors"
        raise FeatvisError(f"a task needs {needs}; Ray has {has['CPU']:g} processors and {has['GPU']:g} GPUs.")
    waiting = list(missing)
    running: dict[Any, int] = {}

    def fill() -> None:
        while waiting and len(running) < (engine.workers or room):
            number = waiting.pop(0)
            running[task.remote(work, common, parts[number], engine.threads)] = number

    try:
        fill()
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            number, found = running.pop(done), _result(ray, done, engine)
            fill()  # nobody waits while this one is looked at
            yield number, found
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _task(work: Callable[..., Found], shared: list[Any], part: Any, threads: int) -> Found:
    torch.set_num_threads(threads)
    return work(*(_at_home(value) for value in shared), part)


def _result(ray: Any, done: Any, engine: Ray) -> Found:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:  # what the part itself raised
        raise error.cause from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        kept = "nothing is kept" if engine.folder is None else f"finished parts are kept in {engine.folder}"
        raise FeatvisError(
            f"one part lost its worker {engine.retries + 1} times, perhaps for want of memory; {kept}."
        ) from error


def _portable(value: Any) -> Any:
    """A subject's copy on the processor: a machine without its device can unpack it, too."""
    if not isinstance(value, Subject) or value.device.type == "cpu":
        return value
    moved = copy.copy(value)
    moved.network = copy.deepcopy(value.network).cpu()
    return moved


def _at_home(value: Any) -> Any:
    if isinstance(value, Subject) and value.device.type != "cpu":
        value.device = torch.device(value.device.type)  # Ray shows a task its own GPU alone, as number 0
        value.network.to(value.device)
    return value


@contextmanager
def ready(engine: Ray) -> Iterator[Any]:
    """Ray's module, connected: as the program has started it, or else for the time of the context."""
    try:
        import ray
    except ImportError as error:
        raise FeatvisError("the engine 'ray' needs Ray, which is not installed: pip install 'featvis[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if engine.address is None:
        count = (engine.workers or max(1, (os.cpu_count() or 1) // engine.threads)) * engine.threads
        options |= {"num_cpus": count, "include_dashboard": False}
    else:
        _check_head(engine.address)
    main, before = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=engine.address or "local", **options)
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in place
    except Exception as error:  # Ray raises whatever went wrong, a plain Exception among others
        where = engine.address or "this machine"
        raise FeatvisError(f"Ray could not be reached or started at {where!r}: {reason(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_head(address: str) -> None:
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise FeatvisError(f"{address!r} is no address of a Ray head; valid are HOST:PORT, ray://HOST:PORT and auto.")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise FeatvisError(
            f"there is no Ray head at {address!r} ({reason(error)}); start one with `ray start --head`, or leave the "
            "address out to run on this machine."
        ) from error


def place(folder: Path, key: str) -> Path:
    """The file in an engine's folder that belongs to a key; other versions of featvis have others."""
    key = f"{version('featvis')} {key}"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
