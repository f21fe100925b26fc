"""Two copies that are trained on differ by perturbations alone, and are checked like any other network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import featvis as fv
from featvis.hardened import HardenedPaths, hardened_paths, trained_on
from tests.small import small_images, small_subject

LETTERS = "abcdefghijklmnopq"


class Lettered:
    """The photographs' crops, under the small subject's class names."""

    def __init__(self, n: int) -> None:
        self.images = small_images(n)
        self.classes = tuple(LETTERS)

    def __getattr__(self, name: str) -> object:
        return getattr(self.images, name)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> object:
        return self.images[index]


@pytest.fixture(scope="module")
def subject() -> fv.Subject:
    return small_subject(classes=LETTERS)


def test_copies_see_the_same_images_and_leave_the_original_alone(subject, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {"plain": [], "hardened": []}
    before = [p.clone() for p in subject.network.parameters()]

    def moved(network, preprocess, images, labels, generator, radius):
        seen["hardened" if radius else "plain"].append(images.clone())
        return images

    monkeypatch.setattr("featvis.hardened.adversarial", moved)
    plain = trained_on(subject, Lettered(102), 3, 0.0, "plain", progress=False)
    hardened = trained_on(subject, Lettered(102), 3, 1.5, "hardened", progress=False)
    assert len(seen["plain"]) == len(seen["hardened"]) == 3
    for a, b in zip(seen["plain"], seen["hardened"], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(plain.network.parameters(), hardened.network.parameters(), strict=True):
        assert torch.equal(a, b)  # without the perturbation itself nothing differs
    for a, b in zip(before, subject.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(before, plain.network.parameters(), strict=True))
    assert not plain.network.training
    monkeypatch.undo()
    batches = int(plain.network.conv1[1].num_batches_tracked)
    again = trained_on(subject, Lettered(102), 3, 0.0, "plain", progress=False)
    other = trained_on(subject, Lettered(102), 3, 1.5, "hardened", progress=False)
    assert any(
        not torch.equal(a, b) for a, b in zip(again.network.parameters(), other.network.parameters(), strict=True)
    )
    tracked = [int(s.network.conv1[1].num_batches_tracked) for s in (again, other)]
    assert tracked == [batches + 3] * 2  # normalization has seen as many batches in both


def test_both_copies_are_checked(subject, tmp_path):
    found = hardened_paths(
        subject, Lettered(102), Lettered(102), train_steps=2, seeds=1, steps=1, per_class=4, progress=False
    )
    assert list(found.paths) == list(found.rates["network"]) == ["plain", "hardened"]
    assert found.paths["hardened"].subject == "small-hardened"
    assert set(found.frame()["network"]) == {"plain", "hardened"}
    for column in ("accuracy", "attacked"):
        assert found.rates[column].between(0, 1).all()
    copy = trained_on(subject, Lettered(102), 2, 0.0, "plain", progress=False)
    images = torch.stack([Lettered(102)[i][0] for i in range(102)])
    labels = torch.tensor([Lettered(102)[i][1] for i in range(102)])
    right = (torch.cat(list(copy.logits(images))).argmax(1) == labels).double().mean()
    assert found.rates["accuracy"][0] == pytest.approx(float(right), abs=0.03)  # bytes, there
    found.save(tmp_path)
    again = HardenedPaths.load(tmp_path)
    assert found.difference(again) == ""
    np.testing.assert_allclose(again.paths["plain"].like, found.paths["plain"].like, atol=1e-4)
    worse = HardenedPaths(found.paths, found.rates.assign(accuracy=found.rates["accuracy"] + 0.2))
    assert found.difference(worse)
    with pytest.raises(fv.FeatvisError, match="has other classes than small"):
        trained_on(subject, small_images(34), 1, 0.0, "plain")
