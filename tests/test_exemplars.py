"""Exemplars against a plain search over all activations."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import featvis as fv
from featvis import scan
from tests.small import small_images, small_subject

module = importlib.import_module("featvis.exemplars")  # featvis.exemplars itself is the function

LAYERS = ["conv1", "conv2.0", "fc"]


def all_activations(subject, natural):
    images = torch.cat([batch for batch, _, _ in natural.batches(16)])
    found = next(subject.activations(images, LAYERS, batch_size=len(images)))
    maps = [found[layer] for layer in LAYERS]
    means = torch.cat([m.mean((2, 3)) if m.dim() == 4 else m for m in maps], 1).numpy()
    return means, maps, [id for _, _, ids in natural.batches(16) for id in ids]


def test_one_pass_finds_what_a_full_sort_finds():
    subject, natural = small_subject(), small_images()
    means, maps, ids = all_activations(subject, natural)
    best = fv.exemplars(subject, natural, LAYERS, k=5, distinct=False, batch=7, progress=False)
    assert best.units == tuple(u for layer in LAYERS for u in subject.units(layer))
    order = np.argsort(-means, axis=0, kind="stable")
    assert (best.top_ids == np.array(ids)[order[:5].T]).all()
    assert np.allclose(best.top_values, np.take_along_axis(means, order[:5], 0).T, atol=1e-5)
    low = np.argsort(means, axis=0, kind="stable")
    assert (best.bottom_ids == np.array(ids)[low[:5].T]).all()
    assert np.allclose(best.quantiles, np.quantile(means, scan.LEVELS, axis=0).T, atol=1e-5)
    assert (best.histogram.sum(1) == len(natural)).all()
    assert best.images == len(natural)
    place = best.top_at[3, 0]
    map_ = maps[0][order[0, 3], 3]
    y, x = divmod(int(map_.argmax()), map_.shape[1])
    assert np.allclose(place, [(y + 0.5) / map_.shape[0], (x + 0.5) / map_.shape[1]])
    assert (best.top_at[-1] == -1).all()  # a logit has no map


def test_ties_go_to_the_earlier_image():
    subject = small_subject()
    with torch.no_grad():
        subject.network.fc.weight.zero_()
    best = fv.exemplars(subject, small_images(), ["fc:1"], k=4, distinct=False, batch=9, progress=False)
    natural = small_images()
    assert best.top_ids[0].tolist() == [natural[i][2] for i in range(4)]
    assert best.bottom_ids[0].tolist() == [natural[i][2] for i in range(4)]


def test_distinct_passes_over_overlapping_crops():
    subject, natural = small_subject(), small_images(340)
    units = subject.units("conv2")
    best = fv.exemplars(subject, natural, units, k=6, progress=False)
    plain = fv.exemplars(subject, natural, units, k=6, distinct=False, progress=False)

    def overlaps(ids):
        return sum(natural.overlap(str(a), str(b)) for i, a in enumerate(ids) for b in ids[:i])

    assert sum(map(overlaps, best.top_ids)) < sum(map(overlaps, plain.top_ids)) / 3
    assert (best.top_values[:, 0] == plain.top_values[:, 0]).all()
    assert (np.diff(best.top_values, axis=1) <= 0).all()


def test_an_interrupted_pass_goes_on(tmp_path, monkeypatch):
    subject, natural = small_subject(), small_images()
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    file = tmp_path / "pass.pt"
    whole = fv.exemplars(subject, natural, LAYERS, k=3, batch=8, progress=False)
    seen: list[int] = []
    batches = natural.batches

    def breaking(batch_size, start=0, stop=None):
        for number, batch in enumerate(batches(batch_size, start, stop)):
            if start == 0 and number == 5:
                raise KeyboardInterrupt
            seen.append(len(batch[2]))
            yield batch

    monkeypatch.setattr(natural, "batches", breaking)
    with pytest.raises(KeyboardInterrupt):
        fv.exemplars(subject, natural, LAYERS, k=3, batch=8, checkpoint=file, progress=False)
    assert file.exists()
    seen.clear()
    again = fv.exemplars(subject, natural, LAYERS, k=3, batch=8, checkpoint=file, progress=False)
    assert sum(seen) == len(natural) - 32  # four batches were saved
    assert (again.top_ids == whole.top_ids).all()
    assert np.array_equal(again.quantiles, whole.quantiles)
    assert not file.exists()


def test_a_checkpoint_of_another_pass_or_cut_short_is_not_used(tmp_path):
    subject, natural = small_subject(), small_images()
    file = tmp_path / "pass.pt"
    state = scan.Pass(4, 3, len(natural))
    state.seen = 40
    state.save(file, "another key")
    expected = fv.exemplars(subject, natural, ["fc"], k=3, progress=False)
    assert (
        fv.exemplars(subject, natural, ["fc"], k=3, checkpoint=file, progress=False).top_ids == expected.top_ids
    ).all()
    file.write_bytes(b"PK cut short")
    assert (
        fv.exemplars(subject, natural, ["fc"], k=3, checkpoint=file, progress=False).top_ids == expected.top_ids
    ).all()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    subject, natural = small_subject(), small_images()
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    file, write, written = tmp_path / "pass.pt", Path.write_bytes, []

    def filling(path, data):
        written.append(path)
        if len(written) == 2:
            write(path, bytes(data)[:100])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(fv.FeatvisError, match=r"pass.pt could not be written: No space left on device; .* intact"):
        fv.exemplars(subject, natural, LAYERS, k=3, batch=8, checkpoint=file, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pass.pt"]
    saved = torch.load(file, weights_only=True)
    assert saved["found"]["seen"] == 16  # the first two batches


def test_it_saves_and_loads(tmp_path):
    subject, natural = small_subject(), small_images()
    best = fv.exemplars(subject, natural, ["fc", "conv1:2"], k=3, progress=False)
    best.save(tmp_path)
    back = fv.Exemplars.load(tmp_path)
    assert back.units == best.units
    assert (back.top_ids == best.top_ids).all()
    assert (back.frame() == best.frame()).all().all()
    assert len(best.frame()) == 5 * 3 * 2
    assert torch.equal(best.pictures(natural, "fc:1", "bottom")[0], natural.image(str(best.bottom_ids[1, 0])))


@pytest.mark.parametrize("k", [0, 52])
def test_k_has_bounds(k):
    with pytest.raises(fv.FeatvisError, match=f"k={k} exemplars were asked for; valid are 1 to 51"):
        fv.exemplars(small_subject(), small_images(), ["fc"], k=k, progress=False)


def test_unreadable_images_are_one_sentence(tmp_path):
    from PIL import Image

    file = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(file)
    natural = fv.natural_images(tmp_path, size=32)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(fv.FeatvisError, match="none of the 1 images"):
        fv.exemplars(small_subject(), natural, ["fc"], k=1, progress=False)


def test_images_of_another_size_are_refused() -> None:
    """A network that pools takes them all the same, and answers otherwise."""
    subject, fitting, large = small_subject(), small_images(200), fv.natural_images("photos", n=200, size=48)
    next(subject.logits(next(large.batches(8))[0]))
    for run in (
        lambda: fv.exemplars(subject, large, ["conv2"], k=1, progress=False),
        lambda: fv.silence(subject, large, "conv2.0", progress=False),
        lambda: fv.train_gate(subject, large, fitting, progress=False),
        lambda: fv.train_gate(subject, fitting, large, progress=False),
        lambda: fv.silent_units(subject, fitting, large, progress=False),
        lambda: fv.linearity(subject, fitting, large, progress=False),
        lambda: fv.fooling.silencing(subject, fitting, large, "conv2.0", progress=False),
        lambda: fv.fooling.push(subject, large, "conv2.0:1"),
        lambda: fv.fooling.slingshot(subject, large, "conv2.0:1", torch.rand(3, 32, 32)),
    ):
        with pytest.raises(fv.FeatvisError, match="photos-heldout has images of 48 pixels; small needs 32"):
            run()
