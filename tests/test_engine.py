"""The same results from Ray's workers as from one process, whatever happens to the workers."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featvis as fv
from featvis import engine as engines
from featvis import similarity
from featvis.cli import main
from featvis.engine import Local, Ray
from tests.small import small_images, small_subject

module = importlib.import_module("featvis.exemplars")
ray = pytest.importorskip("ray", reason="RAY IS NOT INSTALLED: the engine is not tested (pip install 'featvis[ray]')")

UNITS = ["conv1:0", "conv1:3", "conv2:1", "conv2:5", "fc:0", "fc:2"]
QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
OPTIONS = {"steps": 6, "seeds": 2, "size": 32, "batch": 2, "progress": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers, each with one thread, as small as Ray goes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers: another number of threads may sum in another order
    for left in reversed(range(4)):
        try:
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, **QUIET)
            break
        except Exception:  # Ray gives its own processes 15 s to start, which a busy machine may not manage
            ray.shutdown()
            if not left:
                raise
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


def same(a: fv.Visualizations, b: fv.Visualizations) -> bool:
    arrays = ("activation", "curve", "status")
    return torch.equal(a.images, b.images) and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)


def same_fields(a: object, b: object) -> bool:
    """Of two results made of arrays, bit for bit."""

    def equal(x: object, y: object) -> bool:
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            return np.array_equal(x, y, equal_nan=True)
        return np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y

    return vars(a).keys() == vars(b).keys() and all(equal(x, vars(b)[name]) for name, x in vars(a).items())


def parts(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_pictures_are_the_same_to_the_bit(cluster, tmp_path):
    subject = small_subject()
    here = fv.render(subject, UNITS, **OPTIONS, snapshots=[2])
    there = fv.render(subject, UNITS, **OPTIONS, snapshots=[2], engine=Ray(folder=tmp_path))
    assert same(here, there)
    assert torch.equal(here.snapshots[2], there.snapshots[2])
    assert len(parts(tmp_path)) == 6
    assert same(here, fv.render(subject, UNITS, **OPTIONS, snapshots=[2], engine="ray"))


def test_objectives_and_starts_reach_the_workers(cluster, tmp_path):
    subject, start = small_subject(), torch.full((3, 32, 32), 0.4)
    both = fv.visualize.channel("conv1:1") - fv.visualize.channel("fc:1")
    options = OPTIONS | {"start": start, "minimize": True}
    here = fv.render(subject, [both, "fc:1"], **options)
    assert same(here, fv.render(subject, [both, "fc:1"], **options, engine=Ray(folder=tmp_path)))
    assert len(parts(tmp_path)) == 1  # an objective is a function, which has no name that lasts


def test_exemplars_are_the_same_to_the_bit(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FEWEST", 2)
    subject, natural = small_subject(), small_images(85)
    here = fv.exemplars(subject, natural, ["conv2", "fc", "conv1:2"], k=4, batch=8, progress=False)
    there = fv.exemplars(
        subject, natural, ["conv2", "fc", "conv1:2"], k=4, batch=8, progress=False, engine=Ray(folder=tmp_path)
    )
    assert same_fields(here, there)
    assert len(parts(tmp_path)) == 6


def test_ties_broken_files_and_the_sample_are_the_same(cluster, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(module, "FEWEST", 1)
    rng = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    for i in (2, 17, 29):
        file = tmp_path / f"{i:02}.png"
        file.write_bytes(file.read_bytes()[:400])  # its header is whole, so it turns out broken only when it is read
    subject = small_subject()
    with torch.no_grad():
        subject.network.fc.weight[1] = 0  # every image excites this logit the same
    found = []
    for engine in ("local", "ray"):
        natural = fv.natural_images(tmp_path, size=32)
        found.append(fv.exemplars(subject, natural, ["fc", "conv1"], k=5, batch=2, progress=False, engine=engine))
        assert [line[:6] for line in natural.skipped] == ["02.png", "17.png", "29.png"]
    assert same_fields(*found)
    assert found[0].images == 27
    assert found[1].top_ids[1].tolist() == [f"{i:02}.png" for i in (0, 1, 3, 4, 5)]


def test_a_shard_samples_what_the_whole_pass_samples(monkeypatch):
    """With more images than are kept for the quantiles."""
    from featvis import scan

    monkeypatch.setattr(scan, "SAMPLE", 20)
    subject, natural = small_subject(), small_images(60)
    what = scan.Scan((subject.unit("fc:0"), subject.unit("conv1:1")), 3, 8)
    whole, joined = scan.Pass(2, 3, 60), scan.Pass(2, 3, 60)
    assert sum(what.look(subject, natural, whole, 60)) == 60
    for part in ((0, 16), (16, 32), (32, 60)):
        joined.join(scan.shard(subject, natural, what, part))
    assert len(whole.sample) == 20
    for name in ("top", "top_index", "top_at", "bottom", "bottom_index", "sample"):
        assert torch.equal(getattr(whole, name), getattr(joined, name)), name
    assert whole.ids == joined.ids


@pytest.mark.parametrize("budget", [similarity.BUDGET, 40_000])
def test_path_similarity_is_the_same_to_the_bit(cluster, tmp_path, monkeypatch, budget):
    monkeypatch.setattr(similarity, "BUDGET", budget)  # the small one needs several passes over blocks of sets
    subject, natural = small_subject(), small_images(68)
    pictures = fv.render(subject, ["fc:0", "fc:1", "fc:2"], steps=4, seeds=2, progress=False)
    options = {"layers": ["conv1", "conv2.0", "conv2", "fc"], "per_class": 6, "metric": ["spearman", "cosine"]}
    here = fv.path_similarity(subject, pictures, natural, **options, progress=False)
    folder = tmp_path / "parts"
    there = fv.path_similarity(subject, pictures, natural, **options, progress=False, engine=Ray(folder=folder))
    assert same_fields(here, there)
    before = parts(folder)
    assert len(before) > 3
    fv.path_similarity(subject, pictures, natural, **options, progress=False, engine=Ray(folder=folder))
    assert parts(folder) == before


def test_a_rerun_does_only_what_is_missing(cluster, tmp_path):
    subject, engine = small_subject(), Ray(folder=tmp_path)
    whole = fv.render(subject, UNITS, **OPTIONS, engine=engine)
    before = parts(tmp_path)
    gone, short, foreign, *kept = sorted(before)
    (tmp_path / gone).unlink()
    (tmp_path / short).write_bytes((tmp_path / short).read_bytes()[:-100])
    (tmp_path / foreign).write_bytes((tmp_path / kept[0]).read_bytes())  # whole, but it belongs to another part
    assert same(whole, fv.render(subject, UNITS, **OPTIONS, engine=engine))
    after = parts(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {gone, short, foreign}
    assert same(whole, fv.render(subject, UNITS, **OPTIONS, engine=engine))
    assert parts(tmp_path) == after
    fv.render(small_subject(1), UNITS, **OPTIONS, engine=engine)  # other weights, other parts
    fv.render(subject, UNITS, **OPTIONS | {"steps": 5}, engine=engine)
    assert len(parts(tmp_path)) == 3 * len(before)


def held(subject: fv.Subject, folder: Path, part: int) -> dict:
    """A part that says which process works on it; all but the first wait for a file named "go"."""
    (folder / f"{part}-{os.getpid()}").touch()
    while part and not (folder / "go").exists():
        time.sleep(0.05)
    return {"value": torch.full((2,), float(part)), "name": subject.name}


def test_a_killed_worker_s_part_is_run_again(cluster, tmp_path):
    """kill -9 of one worker in the middle of its part: the run finishes, complete and the same."""
    started, kept = tmp_path / "started", tmp_path / "kept"
    started.mkdir()
    found, killed = {}, 0
    keys = [f"part {i}" for i in range(6)]
    for number, value in engines.outcomes(
        Ray(workers=2, folder=kept), held, (small_subject(), started), range(6), keys
    ):
        found[number] = value
        if not killed:
            while not (second := list(started.glob("1-*"))):
                time.sleep(0.05)
            killed = int(second[0].name.split("-")[1])
            os.kill(killed, signal.SIGKILL)
            (started / "go").touch()
    assert sorted(found) == list(range(6))
    assert all(torch.equal(found[i]["value"], torch.full((2,), float(i))) for i in range(6))
    assert len(parts(kept)) == 6
    assert len(list(started.glob("1-*"))) == 2  # it was begun again, by another process


@dataclass(frozen=True)
class Deadly(fv.visualize.Affine):
    """Affine, but the first process that gets to apply it dies, unless it is this one."""

    folder: str = ""

    def apply(self, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        mark = Path(self.folder) / "died"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().apply(images, numbers)


def test_pictures_are_the_same_though_a_worker_is_killed(cluster, tmp_path):
    transform = Deadly(folder=str(tmp_path))
    there = fv.render(small_subject(), UNITS, **OPTIONS, transform=transform, engine=Ray(folder=tmp_path / "parts"))
    assert (tmp_path / "died").exists()
    assert len(parts(tmp_path / "parts")) == 6
    assert same(there, fv.render(small_subject(), UNITS, **OPTIONS))


def dies(_subject: fv.Subject, _part: int) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def refuses(_subject: fv.Subject, part: int) -> dict:
    raise fv.FeatvisError(f"part {part} cannot be had.")


def test_a_part_that_always_dies_is_one_sentence(cluster, tmp_path):
    engine = Ray(retries=1, folder=tmp_path)
    with pytest.raises(fv.FeatvisError, match=r"lost its worker 2 times.*finished parts are kept in"):
        list(engines.outcomes(engine, dies, (small_subject(),), [0], ["a part"]))
    assert parts(tmp_path) == {}


def test_what_a_part_raises_arrives_as_it_is(cluster):
    with pytest.raises(fv.FeatvisError, match=r"^part 0 cannot be had\.$"):
        list(engines.outcomes(Ray(workers=1), refuses, (small_subject(),), range(2), [None, None]))


def test_threads_are_set_and_must_be_there(cluster):
    with pytest.raises(fv.FeatvisError, match="a task needs 9 processors; Ray has 2 processors and 0 GPUs"):
        fv.render(small_subject(), "fc:0", steps=1, progress=False, engine=Ray(threads=9))


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("spark", "there is no engine 'spark'; there are 'local', 'ray'"),
        (Ray(address="127.0.0.1:9"), "there is no Ray head at '127.0.0.1:9'"),
        (Ray(address="somewhere"), "is no address of a Ray head; valid are HOST:PORT"),
        (Ray(address="auto"), "Ray could not be reached or started at 'auto'"),
    ],
)
def test_an_engine_that_is_not_there_is_one_sentence(engine, words, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(fv.FeatvisError) as error:
        fv.render(small_subject(), "fc:0", steps=1, progress=False, engine=engine)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_numbers_and_callbacks_are_refused():
    for options in ({"workers": 0}, {"threads": 0}, {"retries": -1}):
        with pytest.raises(fv.FeatvisError, match="at least"):
            Ray(**options)
    with pytest.raises(fv.FeatvisError, match="on_step is called in this process"):
        fv.render(small_subject(), "fc:0", steps=1, progress=False, engine="ray", on_step=lambda *_: None)


def test_without_ray_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(fv.FeatvisError, match=r"not installed: pip install 'featvis\[ray\]'"):
        fv.render(small_subject(), "fc:0", steps=1, progress=False, engine="ray")


def test_a_full_disk_is_one_sentence_and_finished_parts_stay(cluster, tmp_path, monkeypatch):
    subject, engine = small_subject(), Ray(workers=1, folder=tmp_path)
    write, written = Path.write_bytes, []

    def filling(path, data):
        written.append(path)
        if len(written) == 3:
            write(path, bytes(data)[:50])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(fv.FeatvisError, match="No space left on device; what was finished before is intact"):
        fv.render(subject, UNITS, **OPTIONS, engine=engine)
    finished = parts(tmp_path)
    assert len(finished) == 2
    assert all(name.endswith(".pt") for name in finished)
    monkeypatch.undo()
    assert same(fv.render(subject, UNITS, **OPTIONS), fv.render(subject, UNITS, **OPTIONS, engine=engine))
    assert finished.items() <= parts(tmp_path).items()


def test_the_commands_take_an_engine(cluster, tmp_path, capsys, monkeypatch):
    for name in ("render", "exemplars", "similarity"):
        monkeypatch.setattr(f"featvis.commands.{name}.subject_of", lambda _options: small_subject())
    monkeypatch.setattr("featvis.commands.common.SPLITS", {"photos": "heldout"})
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 17, "heldout": 68, "all": 68})
    for name, more in (
        ("render", ["fc:0", "conv1:2", "--steps", "3"]),
        ("exemplars", ["fc:0", "conv1:2", "--k", "2"]),
        ("similarity", ["--units", "fc:0", "fc:1", "fc:2", "--steps", "3", "--seeds", "1", "--per-class", "4"]),
    ):
        reports = []
        for engine in (["local"], ["ray", "--workers", "2"]):
            out = tmp_path / f"{name}-{engine[0]}"
            main([name, "small", *more, "--images", "photos", "--quiet", "--engine", *engine, "--out", str(out)])
            reports.append(json.loads((out / "report.json").read_text()))
            assert not (out / ".work").exists()
        assert reports[0] == reports[1]
    for arguments, words in (
        (["--engine", "ray", "--ray-address", "127.0.0.1:9"], "there is no Ray head at '127.0.0.1:9'"),
        (["--engine", "ray", "--workers", "0"], "--workers: 0 was given"),
        (["--engine", "spark"], "there is no engine 'spark'"),
        (["--workers", "2"], "--workers belongs to --engine ray"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ray, "is_initialized", lambda: False)
            with pytest.raises(SystemExit) as stop:
                main(["exemplars", "small", "fc:0", "--images", "photos", *arguments, "--out", str(tmp_path / "o")])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "o").exists() or not list((tmp_path / "o").iterdir())


def test_an_interrupted_job_goes_on_behind_its_last_batch_without_ray(tmp_path, monkeypatch):
    subject, seen = small_subject(), []
    module = importlib.import_module("featvis.visualize.batches")
    ascend = module.ascend

    def interrupted(*given, **options):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return ascend(*given, **options)

    whole = fv.render(subject, UNITS, **OPTIONS)
    monkeypatch.setattr(module, "abreast", lambda _parts: 1)  # one batch after the other
    monkeypatch.setattr(module, "ascend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fv.render(subject, UNITS, **OPTIONS, engine=Local(tmp_path))
    finished = parts(tmp_path)
    assert len(finished) == 2
    again = fv.render(subject, UNITS, **OPTIONS, engine=Local(tmp_path))
    assert len(seen) == 3 + len(UNITS) - 2
    assert np.allclose(whole.activation, again.activation, rtol=1e-4)
    assert finished.items() <= parts(tmp_path).items()


def test_an_interrupted_search_for_exemplars_goes_on_without_ray(tmp_path, monkeypatch):
    subject, natural = small_subject(), small_images(n=68)
    whole = fv.exemplars(subject, natural, ["fc"], 3, batch=2, progress=False)
    batches, seen = natural.batches, []

    def interrupted(*given):
        for images, labels, ids in batches(*given):
            seen.append(ids)
            if len(seen) == 25:
                raise KeyboardInterrupt
            yield images, labels, ids

    monkeypatch.setattr(natural, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fv.exemplars(subject, natural, ["fc"], 3, batch=2, engine=Local(tmp_path), progress=False)
    assert len(parts(tmp_path)) == 1
    again = fv.exemplars(subject, natural, ["fc"], 3, batch=2, engine=Local(tmp_path), progress=False)
    assert same_fields(whole, again)
    assert len(seen) == 25 + 34 - 20  # it did not start again
    assert same_fields(
        whole, fv.exemplars(subject, natural, ["fc"], 3, batch=2, engine=Local(tmp_path), progress=False)
    )
    assert len(seen) == 25 + 34 - 20  # what is finished is not looked for again


def test_a_search_that_goes_on_knows_what_could_not_be_read(tmp_path):
    made = tmp_path / "natural"
    made.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 40, 40, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(made / f"{number:02}.png")
    file = made / "02.png"
    file.write_bytes(file.read_bytes()[:900])
    subject = small_subject()

    def search() -> list[str]:
        natural = fv.natural_images(str(made), size=32)
        fv.exemplars(subject, natural, ["fc"], 2, batch=2, engine=Local(tmp_path / "work"), progress=False)
        return natural.skipped

    first = search()
    assert len(first) == 1
    assert search() == first


def test_pieces_of_a_batch_that_did_not_fit_are_found_again(tmp_path, monkeypatch):
    subject, sizes = small_subject(), []
    module = importlib.import_module("featvis.visualize.batches")
    ascend = module.ascend

    def short(network, preprocess, what, noise, **options):
        sizes.append(len(noise))
        if len(noise) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return ascend(network, preprocess, what, noise, **options)

    monkeypatch.setattr(module, "ascend", short)
    options = OPTIONS | {"batch": 4, "seeds": 4, "engine": Local(tmp_path)}
    with pytest.warns(RuntimeWarning, match="do not fit into the memory"):
        first = fv.render(subject, "fc:0", **options)
    assert sizes == [4, 2, 2]
    assert same(first, fv.render(subject, "fc:0", **options))
    assert sizes == [4, 2, 2]


def test_ray_leaves_a_signal_to_whoever_had_it(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_options: signal.signal(signal.SIGTERM, lambda *_: None))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with engines.ready(Ray(workers=1)):
        assert signal.getsignal(signal.SIGTERM) is before
