"""Natural images: splits that share no pixel, streams that repeat, broken files that are named."""

from __future__ import annotations

from itertools import islice
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import featvis as fv
from featvis import photographs
from featvis.images import FolderImages, PhotoCrops


def painted(side: int = 40, value: int = 90) -> Image.Image:
    return Image.fromarray(np.full((side, side, 3), value, np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            painted(value=10 * i).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"no image at all")
    (tmp_path / "dog" / "notes.txt").write_text("not counted")
    painted(8).save(tmp_path / "dog" / "small.png")
    whole = tmp_path / "dog" / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:3000])
    return tmp_path


@pytest.mark.parametrize("photograph", range(17))
def test_no_pixel_is_in_both_splits(photograph):
    width, height = photographs.PHOTOGRAPHS[photograph].load().size
    seen = {split: np.zeros((height, width), bool) for split in photographs.SPLITS}
    for split, mask in seen.items():
        for x, y, side in islice(photographs.boxes(photograph, split), 500):
            assert x >= 0 <= y
            assert x + side <= width
            assert y + side <= height
            mask[y : y + side, x : x + side] = True
    assert not (seen["train"] & seen["heldout"]).any()
    assert all(mask.any() for mask in seen.values())


def test_a_crop_reads_nothing_outside_its_box():
    box = next(photographs.boxes(1, "heldout"))
    image = photographs.PHOTOGRAPHS[1].load()
    before = photographs.crop(1, box, 96)
    pixels = np.array(image)
    x, y, side = box
    inside = pixels[y : y + side, x : x + side].copy()
    pixels[:] = 0
    pixels[y : y + side, x : x + side] = inside
    alone = Image.fromarray(pixels).crop((x, y, x + side, y + side)).resize((96, 96), Image.Resampling.BICUBIC)
    assert (np.asarray(alone) == before).all()


def test_photographs_are_a_stream_of_their_own():
    natural = fv.natural_images("photos", split="heldout", n=40)
    image, label, id = natural[18]
    assert image.shape == (3, 96, 96)
    assert 0 <= image.min() <= image.max() <= 1
    assert label == 18 % 17
    assert id.startswith("cat/")
    assert torch.equal(natural.image(id), image)
    batches = list(natural.batches(16))
    assert [len(ids) for _, _, ids in batches] == [16, 16, 8]
    assert torch.equal(batches[1][0][2], image)
    later = list(natural.batches(16, start=32))
    assert later[0][2] == batches[2][2]
    longer = fv.natural_images("photos", split="heldout", n=400)
    assert longer[18][2] == id  # how many are drawn decides about none of them
    assert longer.fingerprint != natural.fingerprint


def test_all_is_four_training_crops_then_three_held_out_ones():
    everything, train, heldout = (PhotoCrops(split, 17 * 14) for split in ("all", "train", "heldout"))
    of_cat = [everything[17 * k + 1][2] for k in range(14)]
    assert of_cat[:4] == [train[17 * k + 1][2] for k in range(4)]
    assert of_cat[4:7] == [heldout[17 * k + 1][2] for k in range(3)]
    assert of_cat[7:11] == [train[17 * k + 1][2] for k in range(4, 8)]


def test_overlap_is_about_pixels_of_one_photograph():
    natural = PhotoCrops(n=1)
    assert natural.overlap("cat/0,0,96", "cat/10,10,96")
    assert not natural.overlap("cat/0,0,96", "cat/90,0,96")
    assert not natural.overlap("cat/0,0,96", "coins/0,0,96")


def test_a_folder_names_what_it_leaves_out(folder):
    natural = fv.natural_images(folder, size=32)
    assert natural.classes == ("cat", "dog")
    assert len(natural.skipped) == 2
    assert "broken.jpg" in natural.skipped[0]
    assert "small.png: 8 x 8 is smaller than the crop of 32" in natural.skipped[1]
    images, labels, ids = next(natural.batches(20))
    assert ids == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.shape == (6, 3, 32, 32)
    assert torch.allclose(images[1], torch.full((3, 32, 32), 10 / 255))
    assert any("cut.png" in line for line in natural.skipped)  # found broken only when it was read
    assert natural.fingerprint != FolderImages(folder, size=16).fingerprint


def test_a_flat_folder_has_no_classes(tmp_path):
    painted().save(tmp_path / "a.png")
    natural = fv.natural_images(str(tmp_path), size=32, n=5)
    assert natural.classes == ()
    assert natural[0][1] == -1
    assert len(natural) == 1


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("nowhere", {}, "'nowhere' is no folder of images"),
        ("photos", {"split": "test"}, "photos have no split 'test'; there are train, heldout, all"),
        ("photos", {"n": 0}, "n=0 images"),
        ("photos", {"size": 0}, "size 0"),
        ([], {}, "the data set list is empty"),
    ],
)
def test_bad_sources_are_one_sentence(source, options, words):
    with pytest.raises(fv.FeatvisError, match=words):
        fv.natural_images(source, **options)


def test_an_empty_folder_is_one_sentence(tmp_path):
    with pytest.raises(fv.FeatvisError, match="no usable image, it holds no image file"):
        fv.natural_images(tmp_path)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(fv.FeatvisError, match=r"x\.png: not a readable image"):
        fv.natural_images(tmp_path)


def test_a_data_set_of_images_or_tensors():
    data = [(painted(40, 51), 3), (torch.full((3, 40, 40), 0.2), 4)]
    natural = fv.natural_images(data, size=32)
    for image, label, id in (natural[0], natural[1]):
        assert image.shape == (3, 32, 32)
        assert torch.allclose(image, torch.tensor(0.2), atol=0.003)
        assert label == 3 + int(id)
    assert torch.equal(natural.image("0"), natural[0][0])
    assert len(fv.natural_images(data, n=1, size=32)) == 1


def test_worker_processes_read_the_same_stream(folder):
    alone, ahead = (fv.natural_images(folder, size=32, workers=workers) for workers in (0, 2))
    expected, found = list(alone.batches(2)), list(ahead.batches(2))
    assert [ids for _, _, ids in found] == [ids for _, _, ids in expected]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(expected, found, strict=True))
    assert ahead.skipped == alone.skipped
    assert any("cut.png" in line for line in ahead.skipped)
    assert ahead.fingerprint == alone.fingerprint
    assert [ids for _, _, ids in ahead.batches(2, 2, 5)] == [ids for _, _, ids in alone.batches(2, 2, 5)]
    with pytest.raises(fv.FeatvisError, match="workers=-1 was given"):
        fv.natural_images(folder, size=32, workers=-1)


def test_imagenette_as_torchvision_keeps_it(tmp_path, monkeypatch):
    place = tmp_path / "imagenette2-320"
    for part, count in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n03888257"):
            (place / part / wnid).mkdir(parents=True)
            for i in range(count):
                painted(60, 10 * i).save(place / part / wnid / f"{i}.jpeg")
    monkeypatch.setenv("FEATVIS_IMAGENETTE", str(tmp_path))
    natural = fv.natural_images("imagenette", size=32)
    assert natural.classes == ("tench", "parachute")  # as GoogLeNet calls them
    assert [natural[i][1] for i in range(len(natural))] == [0, 0, 1, 1]
    assert len(fv.natural_images("imagenette", split="train", size=32)) == 6
    recipe = {name: value for name, value in natural.recipe.items() if name != "fingerprint"}
    assert fv.natural_images(**recipe).fingerprint == natural.fingerprint
    train, test = fv.images.train_and_test("imagenette", 32)
    assert (len(train), len(test)) == (6, 4)
    with pytest.raises(fv.FeatvisError, match="imagenette has no split 'test'; there are train, heldout, val"):
        fv.natural_images("imagenette", split="test")


def test_where_there_is_no_imagenette_the_sentence_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATVIS_IMAGENETTE", str(tmp_path))
    with pytest.raises(fv.FeatvisError, match=r"holds none\); fetch https://.*imagenette2-320.tgz by other means"):
        fv.natural_images("imagenette")
    monkeypatch.delenv("FEATVIS_IMAGENETTE")
    monkeypatch.setenv("HOME", str(tmp_path))

    def offline(*_given, **_options):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(fv.FeatvisError, match=r"could not be downloaded: .*; fetch .* and set|unpack it and set"):
        fv.natural_images("imagenette")
