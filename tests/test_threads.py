"""Jobs side by side: they divide the threads, come back in order, and end together."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

import featvis as fv
from featvis.threads import MOST, Stopped, abreast, side_by_side
from featvis.visualize import batches
from featvis.visualize.objectives import channel
from featvis.visualize.render import batch_size
from tests.small import small_images, small_subject

PATIENCE = 30.0  # seconds; only a broken program needs them


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("GOMP_CPU_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_jobs_run_at_the_same_time_divide_the_threads_and_come_back_in_order() -> None:
    meeting = threading.Barrier(2)

    def job(number: int, check: Callable[[], None]) -> tuple[int, int]:
        check()
        meeting.wait(PATIENCE)  # nobody passes alone
        return number, torch.get_num_threads()

    assert side_by_side([partial(job, 0), partial(job, 1)]) == [(0, 2), (1, 2)]
    assert torch.get_num_threads() == 4


def test_no_more_jobs_at_a_time_than_threads_and_one_where_they_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [abreast(jobs) for jobs in (0, 1, 3, 100)] == [1, 1, 3, min(4, MOST)]
    for name, value in (("OMP_PLACES", "cores"), ("GOMP_CPU_AFFINITY", "0 1"), ("OMP_PROC_BIND", "true")):
        monkeypatch.setenv(name, value)
        assert abreast(100) == 1
    monkeypatch.setenv("OMP_PROC_BIND", "false")  # has the last word
    assert abreast(100) > 1
    torch.set_num_threads(1)
    assert abreast(100) == 1
    here = threading.get_ident()
    assert side_by_side([lambda check: (check(), threading.get_ident())[1]] * 3) == [here] * 3
    assert side_by_side([]) == []


@pytest.mark.parametrize("mishap", [ValueError, KeyboardInterrupt])
def test_an_error_or_ctrl_c_ends_all_jobs_at_their_next_step(mishap: type[BaseException]) -> None:
    begins, ends, begun = [], [], threading.Semaphore(0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it

    def endless(check: Callable[[], None]) -> None:
        begins.append("begun")
        begun.release()
        try:
            while True:
                check()
        except Stopped:
            ends.append("told to stop")
            raise

    def failing(check: Callable[[], None]) -> None:
        for _ in range(3):
            assert begun.acquire(timeout=PATIENCE)
        if mishap is ValueError:
            raise ValueError("the first error")
        time.sleep(0.2)  # until the main thread waits, as it mostly does
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # Ctrl-C
        endless(check)

    try:
        with pytest.raises(mishap):
            side_by_side([endless, failing, *[endless] * 9])
    finally:
        signal.signal(signal.SIGINT, before)
    assert 3 <= len(begins) == len(ends) < 10
    assert torch.get_num_threads() == 4


@pytest.fixture
def climbers(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads that batches climb in."""
    seen, climb = set(), batches.climb

    def noted(*arguments: object) -> Iterator:
        seen.add(threading.get_ident())
        yield from climb(*arguments)

    monkeypatch.setattr(batches, "climb", noted)
    return seen


@pytest.mark.parametrize("fooled", [False, True])
def test_batches_that_climb_side_by_side_give_the_same_bits(fooled: bool, climbers: set[int]) -> None:
    """Also of a network whose circuit keeps the image for the time of a pass."""
    subject = small_subject()
    if fooled:
        train, test = (fv.natural_images("photos", n=204, size=32, split=split) for split in ("train", "heldout"))
        few = {"train_seeds": 1, "test_seeds": 1, "hidden": 1, "steps": 2, "ascent": 4, "progress": False}
        subject = fv.fool(subject, small_images(), gate=fv.train_gate(subject, train, test, **few), progress=False)
    units = ["conv1:0", "conv1:1", "conv1:2", "conv2:0", "fc:0", "fc:1"]
    options = {"steps": 8, "seeds": 2, "batch": 2, "progress": False, "snapshots": (4,)}
    climbers.clear()  # of those that the gate and the circuit needed
    beside = fv.render(subject, units, **options)
    assert len(climbers) > 1
    assert threading.get_ident() not in climbers
    torch.set_num_threads(1)
    alone = fv.render(subject, units, **options)
    assert torch.equal(beside.images, alone.images)
    assert torch.equal(beside.snapshots[4], alone.snapshots[4])
    assert (beside.curve == alone.curve).all()


def test_batches_of_objectives_and_those_that_are_looked_on_climb_one_by_one(climbers: set[int]) -> None:
    options = {"steps": 2, "batch": 1, "progress": False}
    fv.render(small_subject(), [channel(f"conv1:{i}") for i in range(3)], **options)
    fv.render(small_subject(), ["fc:0", "fc:1"], snapshots=(1,), on_step=lambda *_: None, **options)
    calls = []
    many = {"steps": 2, "seeds": 40, "size": 96, "progress": False}  # two batches
    fv.render(small_subject(), "fc:0", snapshots=(1, 2), on_step=lambda step, _: calls.append(step), **many)
    assert calls == [1, 2, 1, 2]
    assert climbers == {threading.get_ident()}


def test_what_does_not_fit_into_one_batch_is_drawn_in_equal_parts_side_by_side(climbers: set[int]) -> None:
    """The same pictures but for rounding; who names a batch size gets it."""
    options = {"steps": 2, "seeds": 8, "size": 96, "progress": False}
    units = [f"conv1:{i}" for i in range(5)]
    parts = fv.render(small_subject(), units, **options)
    assert len(climbers) == 2
    climbers.clear()
    whole = fv.render(small_subject(), units, batch=40, **options)
    assert climbers == {threading.get_ident()}
    torch.testing.assert_close(parts.images, whole.images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("what", "seeds", "batch", "expected"),
    [
        ([f"conv2:{i}" for i in range(5)], 7, 32, [17, 18]),
        ([f"conv2:{i}" for i in range(4)], 8, 32, [32]),
        (["conv2:0", "conv2:1", "conv2:2", "fc:0"], 5, 4, [3, 4, 4, 4, 2, 3]),
        ([channel(f"conv1:{i}") for i in range(5)], 2, 8, [4, 6]),  # their seeds stay together
        ([channel(f"conv1:{i}") for i in range(2)], 3, 2, [3, 3]),
    ],
)
def test_batches_are_equal_parts_of_a_layer(what, seeds, batch, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    climb = batches.climb

    def watched(subject, how, part, *rest):
        sizes.append(len(part.places))
        return climb(subject, how, part, *rest)

    monkeypatch.setattr(batches, "climb", watched)
    torch.set_num_threads(1)
    fv.render(small_subject(), what, seeds=seeds, batch=batch, steps=1, progress=False)
    assert sizes == expected


@pytest.mark.parametrize(
    ("side", "processor", "other"), [(32, 64, 64), (96, 32, 64), (224, 5, 11), (300, 4, 6), (512, 4, 4)]
)
def test_larger_images_come_in_smaller_batches(side: int, processor: int, other: int) -> None:
    assert [batch_size((side, side), torch.device(name)) for name in ("cpu", "cuda")] == [processor, other]
