"""The estimator of path similarity against brute force, scipy, and data whose similarity is known."""

from __future__ import annotations

import dataclasses
import json
import threading
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

import featvis as fv
from featvis import controls, damage, manipulated, path_result, similarity, zoo
from featvis.cli import main
from featvis.commands import similarity as command
from featvis.controls import rendered_paths
from featvis.errors import FeatvisError
from featvis.fooling.branch import branch_of
from featvis.path_result import PathSimilarity
from featvis.paths import Series, all_layers, class_images, like_images, path_layers, path_similarity
from featvis.shelf import kept
from featvis.similarity import Item, pair_sums, pairwise, ranks
from featvis.streams import Stream
from tests.small import small_images, small_subject

SIZE = 16


def tied(n: int = 8, f: int = 3000) -> np.ndarray:
    """Rows as a ReLU leaves them: many zeros, both signs of zero, repeated values, negative ones."""
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.normal(size=(n, f)), 0).astype(np.float32)
    rows[1] = np.round(rows[1])
    rows[2] = -rows[2]
    rows[3, :1000] = -0.0
    rows[4] = rng.integers(-3, 3, f)
    return rows


# ---------------------------------------------------------------- ranks and pairs


def test_ranks_are_scipys_with_many_ties():
    rows = torch.from_numpy(tied())
    expected = rankdata(rows.numpy(), axis=1)
    np.testing.assert_array_equal(ranks(rows), expected)
    np.testing.assert_array_equal(similarity._ranks_by_torch(rows + 0.0), expected)


def test_all_pairs_agree_with_scipy_and_numpy():
    rows = tied()
    found = pairwise(torch.from_numpy(rows)).numpy()
    for i, j in product(range(len(rows)), repeat=2):
        assert found[i, j] == pytest.approx(spearmanr(rows[i], rows[j]).statistic, abs=1e-6)
    np.testing.assert_allclose(pairwise(torch.from_numpy(rows), "pearson"), np.corrcoef(rows), atol=1e-6)
    length = np.linalg.norm(rows, axis=1)
    expected = rows @ rows.T / np.outer(length, length)
    np.testing.assert_allclose(pairwise(torch.from_numpy(rows), "cosine"), expected, atol=1e-6)


def test_many_equal_entries_do_not_add_up_to_an_error():
    rows = np.zeros((3, 200_000), np.float32)
    rows[:, ::3] = np.random.default_rng(0).integers(1, 4, (3, 66_667))
    found = pairwise(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, spearmanr(rows, axis=1).statistic, atol=1e-6)


def test_a_constant_row_has_no_similarity():
    rows = torch.rand(3, 50)
    rows[1] = 0.3
    for metric in ("spearman", "pearson"):
        found = pairwise(rows, metric)
        assert torch.isnan(found[1]).all()
        assert torch.isnan(found[:, 1]).all()
        assert torch.isfinite(found[0, 2])
    assert torch.isfinite(pairwise(rows, "cosine")).all()
    rows[1] = 0
    assert torch.isnan(pairwise(rows, "cosine")[1]).all()


def test_an_unknown_metric_is_named():
    with pytest.raises(FeatvisError, match="no metric kendall; there are spearman, pearson, cosine"):
        pairwise(torch.rand(2, 5), "kendall")


def brute(rows: Tensor, members: np.ndarray, apart: set[tuple[int, int]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Total and count over ordered pairs of different images, by two loops."""
    alike = pairwise(rows, metric).numpy()
    sets = members.shape[1]
    total, count = np.zeros((sets, sets)), np.zeros((sets, sets))
    for i, j in product(range(len(rows)), repeat=2):
        if i != j and (i, j) not in apart and (j, i) not in apart and not np.isnan(alike[i, j]):
            total += alike[i, j] * np.outer(members[i], members[j])
            count += np.outer(members[i], members[j])
    return total, count


@pytest.fixture
def two_threads(monkeypatch):
    for name in ("GOMP_CPU_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("budget", [2**30, 40_000, 9000])
def test_sums_over_pairs_are_those_of_two_loops(budget, monkeypatch, two_threads):
    """However little memory there is: all layers at once, one by one, or blocks of sets."""
    where, add = set(), similarity._Pass._add
    monkeypatch.setattr(similarity._Pass, "_add", lambda *given: (where.add(threading.get_ident()), add(*given)))
    monkeypatch.setattr(similarity, "BUDGET", budget)
    monkeypatch.setattr(similarity, "BATCH", 5)
    subject = small_subject()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(23, 3, 32, 32, generator=generator)
    images[7] = 0.5
    rng = np.random.default_rng(1)
    members = rng.random((23, 4)) < 0.4  # some in several sets, some in none
    members[0] = [True, True, False, False]
    apart = [(0, 1), (0, 22), (3, 4), (17, 5), (21, 20), (7, 2)]
    items = [
        Item(str(i), lambda i=i: images[i], tuple(np.flatnonzero(m).tolist()))
        for i, m in enumerate(members)
    ]  # fmt: skip
    layers, metrics = ("conv1", "conv2", "fc"), ("spearman", "cosine")
    found = pair_sums(subject, items, 4, layers, metrics, apart)
    every = next(subject.activations([images], layers))
    for m, metric in enumerate(metrics):
        for k, layer in enumerate(layers):
            rows = every[layer].flatten(1)
            total, count = brute(rows, members.astype(float), set(apart), metric)
            np.testing.assert_allclose(found.count[m, k], count, atol=1e-9)
            np.testing.assert_allclose(found.total[m, k], total, rtol=1e-6, atol=1e-5)
            whole, pairs = brute(rows, members.astype(float), set(), metric)
            np.testing.assert_allclose(found.left_count[m, k], pairs - count, atol=1e-9)
            np.testing.assert_allclose(found.left_total[m, k], whole - total, rtol=1e-6, atol=1e-5)
    assert (threading.get_ident() not in where) == (budget == 2**30)  # layers of one pass share the threads


def test_only_a_row_for_each_set_is_kept(monkeypatch):
    subject, kept = small_subject(), []
    original = similarity._Pass.add

    def add(self, items, first):
        original(self, items, first)
        kept.append(sum(len(rows) for part in (self.sums, self.held) for rows in part.values()))

    monkeypatch.setattr(similarity._Pass, "add", add)
    for n in (40, 160):
        items = [Item(str(i), lambda: torch.rand(3, 32, 32), (i % 3,)) for i in range(n)]
        pair_sums(subject, items, 3, ("conv1", "conv2"), ("spearman",), [(0, 1), (2, 20)])
    assert max(kept) == 2 * (3 + 1)  # three sets and the one image that waits for its pair


# ---------------------------------------------------------------- data whose similarity is known


class Pass(nn.Module):
    """Layers that hand the image on: as it is, through a ReLU, as a constant; and two that say which class it is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 1, bias=False)
        self.conv1.weight.data = torch.eye(3)[:, :, None, None]
        self.dead = nn.Conv2d(3, 2, 1)
        nn.init.zeros_(self.dead.weight)
        nn.init.zeros_(self.dead.bias)
        self.fc = nn.Linear(3 * SIZE * SIZE, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        self.dead(x)
        return self.fc(x.flatten(1))


class Made(Stream):
    """Images (n, 3, SIZE, SIZE) with labels."""

    def __init__(self, images: Tensor, labels: list[int], classes: str):
        super().__init__()
        self.images, self.labels, self.classes = images, labels, tuple(classes)
        self.name, self.size = "made", images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.images[index], self.labels[index], str(index)

    def image(self, id: str) -> Tensor:
        return self.images[int(id)]


def mixed(patterns: Tensor, share: float, n: int, generator: torch.Generator) -> Tensor:
    """n images of each pattern (c, ...), whose expected correlation with another of the same is share * its share."""
    noise = torch.randn(len(patterns), n, *patterns.shape[1:], generator=generator)
    return 0.5 + 0.08 * (share * patterns[:, None] + (1 - share**2) ** 0.5 * noise)


NATURAL, SHOWN_SHARE = 0.8, 0.5


@pytest.fixture(scope="module")
def known() -> tuple[fv.Subject, fv.Visualizations, Made, Tensor]:
    """Natural images correlate by 0.64 within a class, visualizations by 0.40 with them: s_norm is 0.625."""
    classes = "abcdefgh"
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    subject = fv.Subject("pass", Pass(len(classes)), fv.Preprocess((SIZE, SIZE)), tuple(classes), "cpu")
    patterns = torch.randn(len(classes), 3, SIZE, SIZE, generator=generator)
    images = mixed(patterns, NATURAL, 12, generator).transpose(0, 1).flatten(0, 1)
    natural = Made(images, list(range(len(classes))) * 12, classes)
    shown = mixed(patterns, SHOWN_SHARE, 3, generator)
    return subject, pictures_of(shown), natural, patterns


def pictures_of(images: Tensor) -> fv.Visualizations:
    groups, seeds = images.shape[:2]
    status = np.full((groups, seeds), "ok")
    zeros = np.zeros((groups, seeds))
    units = tuple(f"fc:{i}" for i in range(groups))
    return fv.Visualizations("pass", units, tuple(range(seeds)), images, zeros, zeros[..., None], status, 1)


@pytest.mark.parametrize("metric", ["spearman", "pearson"])
def test_known_similarity_is_found(known, metric):
    subject, pictures, natural, _ = known
    found = path_similarity(
        subject, pictures, natural, layers=["conv1"], metric=metric, per_class=12, progress=False
    )  # fmt: skip
    row = found.frame().iloc[0]
    # Of normal variables with correlation r, Spearman's is 6 / pi * asin(r / 2).
    rank = (lambda r: 6 / np.pi * np.arcsin(r / 2)) if metric == "spearman" else (lambda r: r)
    assert row["nat_same"] == pytest.approx(rank(NATURAL**2), abs=0.01)
    assert row["fv_same"] == pytest.approx(rank(NATURAL * SHOWN_SHARE), abs=0.015)
    assert row["nat_different"] == pytest.approx(0, abs=0.03)
    assert row["fv_different"] == pytest.approx(0, abs=0.03)
    expected = rank(NATURAL * SHOWN_SHARE) / rank(NATURAL**2)
    assert row["normalized"] == pytest.approx(expected, abs=0.03)
    assert row["ci_low"] < expected < row["ci_high"]
    assert row["ci_high"] - row["ci_low"] < 0.1


def test_means_are_those_of_single_pairs(known):
    subject, pictures, natural, _ = known
    found = path_similarity(subject, pictures, natural, layers=["conv1"], per_class=5, progress=False)
    ids = class_images(subject, natural, pictures.units, 5)
    rows = torch.cat([torch.stack([natural.image(id) for row in ids for id in row]), pictures.images.flatten(0, 1)])
    alike = spearmanr(rows.flatten(1).numpy(), axis=1).statistic
    n, m, c = 5, 3, len(ids)
    off = ~np.eye(n, dtype=bool)
    for a, b in product(range(c), repeat=2):
        block = alike[a * n : a * n + n, b * n : b * n + n]
        expected = block[off].mean() if a == b else block.mean()
        assert found.like[0, 0, a, b] == pytest.approx(expected, abs=1e-6)
    for a in range(c):
        own = alike[c * n + a * m : c * n + a * m + m, a * n : a * n + n]
        assert found.shown[0, 0, 0, a] == pytest.approx(own.mean(), abs=1e-6)
    halves = found.halves[0, 0]
    first, second = alike[0:5:2, 1:5:2], alike[0:5:2, 0:5:2]
    assert halves[0, 0, 0] == pytest.approx(first.mean(), abs=1e-6)
    within = [second[~np.eye(3, dtype=bool)], alike[1:5:2, 1:5:2][~np.eye(2, dtype=bool)]]
    assert halves[1, 0, 0] == pytest.approx(np.concatenate(within).mean(), abs=1e-6)


def test_halves_give_one_and_zero_and_can_fail(known):
    subject, pictures, natural, patterns = known
    options = {"layers": ["conv1"], "per_class": 12, "progress": False}
    row = path_similarity(subject, pictures, natural, **options).diagnostics().iloc[0]
    assert row["same_low"] <= 1 <= row["same_high"]
    assert row["different_low"] <= 0 <= row["different_high"]
    assert row["same_high"] - row["same_low"] < 0.1
    broken = natural.images.clone().view(12, len(patterns), 3, SIZE, SIZE)
    broken[1::2] = broken[1::2].flip(-1)  # every other image of a class is mirrored: the halves differ
    row = path_similarity(subject, pictures, Made(broken.flatten(0, 1), natural.labels, "abcdefgh"), **options)
    assert row.diagnostics().iloc[0]["same_high"] < 0.2
    shifted = Series(natural.images.view(12, len(patterns), 3, SIZE, SIZE).transpose(0, 1)[:, :2].roll(1, 0))
    found = path_similarity(subject, pictures, natural, controls={"next": shifted}, **options).frame()
    row = found[found["series"] == "next"].iloc[0]
    assert row["ci_low"] < 0.02
    assert abs(row["normalized"]) < 0.05


def test_a_dead_layer_is_left_out_with_a_count(known):
    subject, pictures, natural, _ = known
    found = path_similarity(subject, pictures, natural, layers=["conv1", "dead"], per_class=4, progress=False)
    dead = found.frame().set_index("layer").loc["dead"]
    assert (dead["undefined"], dead["undefined_natural"]) == (24, 32)
    assert np.isnan(dead["normalized"])
    assert np.isnan(dead["p_holm"])
    summary = found.summary()
    assert summary["normalized"][1] is None
    assert summary["layers_without_anchors"] == 1
    assert summary["layers_at_or_below_zero"] == 0
    json.dumps(summary, allow_nan=False)


def test_some_constant_images_are_left_out(known):
    subject, _, natural, patterns = known
    shown = mixed(patterns, SHOWN_SHARE, 3, torch.Generator().manual_seed(5))
    shown[2, 1] = 0.25
    options = {"layers": ["conv1"], "per_class": 4, "progress": False}
    found = path_similarity(subject, pictures_of(shown), natural, **options)
    assert found.frame()["undefined"].tolist() == [1]
    two = path_similarity(subject, pictures_of(shown[:, [0, 2]]), natural, **options)
    assert found.shown[0, 0, 0, 2] == pytest.approx(two.shown[0, 0, 0, 2], abs=1e-6)


def test_visualizations_that_failed_are_left_out(known):
    subject, pictures, natural, _ = known
    status = pictures.status.copy().astype("<U16")
    status[1, 0] = "dead"
    status[2] = "stopped 4"
    marked = fv.Visualizations(**{**vars(pictures), "status": status})
    found = path_similarity(subject, marked, natural, layers=["conv1"], per_class=4, progress=False)
    assert found.images[:4, 2].tolist() == [3, 2, 0, 3]
    assert np.isnan(found.shown[0, 0, 0, 2])
    assert np.isfinite(found.frame()["normalized"][0])


def test_anchors_that_cannot_be_told_apart_give_no_number(known):
    subject, pictures, natural, _ = known
    random = Made(
        torch.rand(natural.images.shape, generator=torch.Generator().manual_seed(3)), natural.labels, "abcdefgh"
    )
    found = path_similarity(subject, pictures, random, layers=["conv1"], per_class=12, progress=False)
    assert np.isnan(found.frame()["normalized"]).all()
    assert found.summary()["layers_without_anchors"] == 1


# ---------------------------------------------------------------- intervals


def test_a_class_drawn_twice_is_no_pair_with_itself():
    rng = np.random.default_rng(0)
    matrix = rng.random((1, 4, 4))
    drawn = [0, 0, 2, 3]
    weights = np.bincount(drawn, minlength=4)[None].astype(float)
    pairs = [(a, b) for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i != j and a != b]
    expected = np.mean([matrix[0, a, b] for a, b in pairs])
    assert path_result._mean_between(matrix, weights)[0, 0] == pytest.approx(expected)
    values = np.array([[1.0, np.nan, 3.0, 5.0]])
    assert path_result._mean(values, weights)[0, 0] == pytest.approx(np.mean([1, 1, 3, 5]))
    assert path_result._mean(values, np.ones((1, 4)))[0, 0] == pytest.approx(3)


def test_anchors_are_drawn_with_the_classes(known):
    subject, pictures, natural, _ = known
    found = path_similarity(subject, pictures, natural, layers=["conv1"], per_class=6, progress=False)
    weights = found._weights
    assert weights.shape == (1 + path_result.RESAMPLES, 8)
    assert (weights[1:].sum(1) == 8).all()
    r = 7
    chosen = np.repeat(np.arange(8), weights[r].astype(int))
    same = found.like[0, 0][chosen, chosen].mean()
    different = np.mean([found.like[0, 0, a, b] for a, b in product(chosen, chosen) if a != b])
    own = found.shown[0, 0, 0, chosen].mean()
    assert found.draws()[r, 0] == pytest.approx((own - different) / (same - different))


def test_holm_and_the_layer_where_the_curve_leaves_zero():
    np.testing.assert_allclose(path_result.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(path_result.holm([0.5, np.nan, 0.9]), [1, np.nan, 1])
    layers = ("a", "b", "c", "d")
    assert path_result.leaves_zero(layers, np.array([True, False, True, True])) == "c"
    assert path_result.leaves_zero(layers, np.array([True, True, True, True])) == "a"
    assert path_result.leaves_zero(layers, np.array([True, True, True, False])) is None


def curve(values: list[float], spread: float = 0.02, classes: int = 6) -> PathSimilarity:
    """A result whose normalized curve is about `values`: anchors 0 and 0.5."""
    rng, n = np.random.default_rng(0), len(values)
    like = np.zeros((1, n, classes, classes)) + 0.5 * np.eye(classes)
    noise = rng.normal(size=classes)
    shown = 0.5 * (np.array(values)[:, None] + spread * (noise - noise.mean()))[None, None]
    counts = np.zeros((1, n, 3), int)
    layers = tuple(f"l{i}" for i in range(n))
    return PathSimilarity(
        "s", "n", "class", tuple("abcdef"[:classes]), ("spearman",), layers, ("visualizations",), like,
        np.stack([like, like], 2), shown, shown * 0, np.zeros((1, n, classes)), counts, np.ones((classes, 3), int),
    )  # fmt: skip


def test_layers_at_or_below_zero_are_counted():
    found = curve([0.0, -0.3, 0.001, 0.2, 0.5, 0.9])
    summary = found.summary()
    assert summary["layers_at_or_below_zero"] == 3
    assert summary["layers_at_or_below_zero_holm"] == 3
    assert summary["leaves_zero"] == "l3"
    assert summary["normalized"] == pytest.approx([0.0, -0.3, 0.001, 0.2, 0.5, 0.9])
    assert (summary["diagnostic_same"], summary["diagnostic_different"]) == (1, 0)
    parts = found.parts().set_index("layers")["normalized"]
    assert parts["first two thirds"] == pytest.approx(np.mean([0, -0.3, 0.001, 0.2]))
    assert parts["last third"] == pytest.approx(0.7)
    assert parts["difference"] == pytest.approx(parts["last third"] - parts["first two thirds"])
    assert summary["parts"]["last third"]["normalized"] == pytest.approx(0.7)
    assert found.parts(less="visualizations")[["normalized", "ci_low", "ci_high"]].abs().max().max() < 1e-9


def test_a_value_that_is_missing_is_not_an_anchor_that_is():
    found = curve([0.4, 0.5, 0.6])
    shown, like = found.shown.copy(), found.like.copy()
    shown[:, :, 0] = np.nan  # no visualization has a similarity in this layer
    like[:, 1] = 0.3  # here natural images cannot be told apart
    summary = dataclasses.replace(found, shown=shown, like=like).summary()
    assert summary["layers_without_anchors"] == 1
    assert summary["normalized"][:2] == [None, None]


def test_what_is_specific_is_measured_from_the_own_baseline():
    found = curve([0.4, 0.6])
    lifted = dataclasses.replace(found, elsewhere=found.shown - 0.1)
    assert lifted.specific()[0] == pytest.approx([0.2, 0.2])
    frame = lifted.frame()
    assert frame["specific"].tolist() == pytest.approx([0.2, 0.2])
    assert (frame["specific_low"] <= frame["specific"] + 1e-12).all()
    assert (frame["specific"] <= frame["specific_high"] + 1e-12).all()


def test_many_layers_ask_for_more_evidence():
    """One layer that one test finds above 0 is not, among a hundred."""
    weak = curve([0.008] * 100)
    p, corrected = weak.frame()["p"], weak.frame()["p_holm"]
    assert (p < 0.025).all()
    assert (corrected > 0.025).all()
    assert weak.summary()["layers_at_or_below_zero"] == 0
    assert weak.summary()["layers_at_or_below_zero_holm"] == 100
    assert curve([0.5] * 100).summary()["layers_at_or_below_zero_holm"] == 0


def test_a_result_is_saved_and_compared(tmp_path, known):
    subject, pictures, natural, _ = known
    found = path_similarity(
        subject, pictures, natural, layers=["conv1", "dead"], metric=("spearman", "cosine"), per_class=4, progress=False
    )
    found.save(tmp_path)
    again = PathSimilarity.load(tmp_path)
    assert (again.layers, again.metrics, again.groups) == (found.layers, found.metrics, found.groups)
    np.testing.assert_allclose(again.like, found.like, atol=2e-5)
    np.testing.assert_array_equal(again.undefined, found.undefined)
    assert found.difference(again) == ""
    other = curve([0.1, 0.2, 0.3])
    assert "differs by" in other.difference(curve([0.1, 0.8, 0.3]))
    assert other.difference(curve([0.1, 0.25, 0.3])) == ""


# ---------------------------------------------------------------- crops, exemplars, layers


def test_overlapping_crops_do_not_count():
    subject = small_subject(classes="abcdefghijklmnopq")
    natural = small_images(17 * 12)
    named = fv.Subject("small", subject.network, subject.preprocess, natural.classes, "cpu")
    pictures = fv.Visualizations(**{**vars(pictures_of(torch.rand(17, 1, 3, 32, 32))), "subject": "small"})
    found = path_similarity(named, pictures, natural, layers=["conv2"], per_class=12, progress=False)
    ids = class_images(named, natural, pictures.units, 12)
    inflated = 0
    for group, row in enumerate(ids):
        images = torch.stack([natural.image(id) for id in row])
        alike = pairwise(next(named.activations([images], ["conv2"]))["conv2"].flatten(1)).numpy()
        apart = np.array([[natural.overlap(a, b) for b in row] for a in row])
        assert found.like[0, 0, group, group] == pytest.approx(alike[~apart].mean(), abs=1e-5)
        off = ~np.eye(len(row), dtype=bool)
        assert found.overlapping[0, 0, group] == pytest.approx(alike[off].mean(), abs=1e-5)
        inflated += found.overlapping[0, 0, group] > found.like[0, 0, group, group]
    assert inflated > 10


def test_a_control_is_no_pair_with_the_image_that_it_was_made_from(known):
    subject, pictures, natural, _ = known
    ids = class_images(subject, natural, pictures.units, 4)
    copies = torch.stack([torch.stack([natural.image(id) for id in row[:2]]) for row in ids])
    options = {"layers": ["conv1"], "per_class": 4, "progress": False}
    honest = Series(copies, [row[:2] for row in ids])
    found = path_similarity(
        subject, pictures, natural, controls={"honest": honest, "blind": Series(copies)}, **options
    ).frame()  # fmt: skip
    value = found.set_index("series")["normalized"]
    assert value["honest"] == pytest.approx(1, abs=0.05)
    assert value["blind"] > 1.1


def test_hidden_units_take_their_exemplars():
    subject, natural = small_subject(), small_images(51)
    units = ["conv2:0", "conv2:3", "conv2:5"]
    pictures = fv.render(subject, units, steps=2, seeds=2, progress=False)
    found = path_similarity(subject, pictures, natural, per_class=8, progress=False)
    assert found.same == "exemplars"
    assert found.layers == (
        "conv1.0",
        "conv2.0",
        "conv2",
    )  # without normalization alone; what comes after the unit is no path to it
    assert found.groups == tuple(units)
    best = fv.exemplars(subject, natural, units, k=8, progress=False)
    rows = [[str(id) for id in row] for row in best.top_ids]
    for a, b in product(range(3), repeat=2):
        pairs = [(i, j) for i in rows[a] for j in rows[b] if not natural.overlap(i, j)]
        total = 0.0
        for i, j in pairs:
            images = torch.stack([natural.image(i), natural.image(j)])
            total += float(pairwise(next(subject.activations([images], ["conv2"]))["conv2"].flatten(1))[0, 1])
        assert found.like[0, 2, a, b] == pytest.approx(total / len(pairs), abs=1e-5)


def test_logits_of_unknown_classes_take_exemplars_too():
    subject, natural = small_subject(), small_images(51)  # 17 classes, but the subject has 4 others
    pictures = fv.render(subject, ["fc:0", "fc:1", "fc:2"], steps=1, progress=False)
    found = path_similarity(subject, pictures, natural, per_class=5, progress=False)
    assert found.same == "exemplars"
    assert found.layers == path_layers(subject)
    with pytest.raises(FeatvisError, match="photos-heldout has no images of the classes of small"):
        class_images(subject, natural, pictures.units, 2)


def test_folders_with_other_names_go_by_their_order(known):
    subject, pictures, natural, _ = known
    renamed = Made(natural.images, natural.labels, "ABCDEFGH")
    assert class_images(subject, renamed, pictures.units, 3) == class_images(subject, natural, pictures.units, 3)


def test_layers_of_an_axis():
    subject = fv.load("photonet")
    assert path_layers(subject) == subject.blocks
    every = all_layers(subject)
    assert {"conv1", "conv1.conv", "inception3a", "inception3a.branch2.1", "fc"} <= set(every)
    assert not any(name.endswith((".bn", "branch2", "maxpool1", "dropout")) for name in every)
    assert [name for name in subject.layers if name in every] == list(every)


def test_groups_are_called_by_their_whole_names(known):
    subject, pictures, natural, _ = known
    names = tuple(f"{letter} of the sea" for letter in "abcdefgh")
    longer = fv.Subject("pass", subject.network, subject.preprocess, names, "cpu")
    named = Made(natural.images, natural.labels, "abcdefgh")
    named.classes = names
    found = path_similarity(longer, pictures, named, layers=["conv1"], per_class=4, progress=False)
    assert found.groups == names


def test_labels_are_known_without_reading_images(tmp_path):
    crops = small_images(40)
    assert [crops.label(i) for i in (0, 18, 39)] == [crops[i][1] for i in (0, 18, 39)]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    folder = fv.natural_images(tmp_path, size=32)
    assert [folder.label(i) for i in range(6)] == [folder[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    dataset = fv.natural_images([(torch.rand(3, 32, 32), 5), (torch.rand(3, 32, 32), 2)], size=32)
    assert [dataset.label(i) for i in range(2)] == [5, 2]
    half = fv.images._Half(crops, 1)
    assert half.label(3) == half[3][1] == crops.label(7)


# ---------------------------------------------------------------- bad input


def test_mistakes_are_one_sentence(known):
    subject, pictures, natural, _ = known
    options = {"per_class": 4, "progress": False}

    def refuses(match: str, *given: object, **more: object) -> None:
        with pytest.raises(FeatvisError, match=match) as stop:
            path_similarity(*(given or (subject, pictures, natural)), **{**options, **more})
        assert "\n" not in str(stop.value)

    refuses("made has 12 images of class a; 13 were asked for", per_class=13)
    refuses(r"pass has no layer 'conv9' \(did you mean conv1\?\)", layers=["conv9"])
    refuses("no metric kendall", metric="kendall")
    refuses("needs at least 3 units and 4 natural images", per_class=3)
    two = pictures_of(pictures.images[:2])
    refuses("2 units and per_class=4 were given", subject, two, natural)
    large = pictures_of(torch.rand(8, 1, 3, 24, 24))
    refuses(r"'visualizations' have shape \(8, 1, 3, 24, 24\)", subject, large, natural)
    images = natural.images.clone()
    images[9] = torch.nan
    refuses(
        "conv1 of pass gives activations that are not finite for 9",
        subject,
        pictures,
        Made(images, natural.labels, "abcdefgh"),
    )


# ---------------------------------------------------------------- controls


def test_damaged_images_are_what_they_are_called():
    natural = small_images(12)
    images = torch.stack([natural[i][0] for i in range(12)])
    generator = torch.Generator().manual_seed(0)
    soft = damage.blurred(images)
    assert soft.shape == images.shape
    edges = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean()  # noqa: E731
    assert edges(soft) < 0.8 * edges(images)
    torch.testing.assert_close(damage.blurred(torch.full_like(images, 0.3)), torch.full_like(images, 0.3))
    muddled = damage.scrambled(0.5 + 0.2 * (images - 0.5), generator)  # far from 0 and 1, so that nothing is cut off
    spectrum = torch.fft.rfft2(0.5 + 0.2 * (images - 0.5)).abs()
    torch.testing.assert_close(torch.fft.rfft2(muddled).abs()[..., 1:-1], spectrum[..., 1:-1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(muddled.mean((2, 3)), 0.5 + 0.2 * (images.mean((2, 3)) - 0.5), atol=1e-4, rtol=0)
    assert np.corrcoef(muddled.flatten(), images.flatten())[0, 1] < 0.8
    middle = 0.5 + 0.2 * (images - 0.5)
    white = damage.noise(middle, generator)
    torch.testing.assert_close(white.mean((2, 3)), middle.mean((2, 3)), atol=0.02, rtol=0)
    torch.testing.assert_close(white.std((2, 3)), middle.std((2, 3)), atol=0.02, rtol=0)
    tinted = damage.recoloured(images, generator)
    assert ((tinted >= 0) & (tinted <= 1)).all()
    assert (tinted - images).abs().mean() > 0.03
    strange = damage.unseen(5, 32, generator)
    assert strange.shape == (5, 3, 32, 32)
    assert len({float(x.mean()) for x in strange}) == 5


def test_adversarial_images_stay_near_and_reach_their_class():
    subject = small_subject()
    images = torch.stack([small_images(8)[i][0] for i in range(8)])
    towards = torch.arange(8) % 4
    moved = damage.adversarial(subject, images, towards)
    distance = (moved - images).flatten(1).norm(dim=1)
    assert (distance <= damage.RADIUS * 32 + 1e-4).all()
    assert ((moved >= 0) & (moved <= 1)).all()
    before, after = (next(subject.logits(x)).log_softmax(1)[torch.arange(8), towards] for x in (images, moved))
    assert (after > before).all()


def test_images_of_other_classes_come_from_all_of_them():
    natural, other = small_images(17 * 8), fv.natural_images("photos", split="train", n=17 * 4, size=32)
    subject = fv.Subject(
        "small", small_subject(classes="abcdefghijklmnopq").network, fv.Preprocess((32, 32)), natural.classes, "cpu"
    )
    found = controls.natural_controls(subject, natural, other, subject.units("fc"), 4, 4)
    foreign = found["natural, other classes"]
    assert foreign.origins is not None
    for group, row in enumerate(foreign.origins):
        classes = [natural.classes.index(id.split("/")[0]) for id in row]
        assert len(set(classes)) == 4
        assert group not in classes
        for image, id in zip(foreign.images[group], row, strict=True):
            torch.testing.assert_close(image, natural.image(id))
    assert all(len(series.images) == 17 for series in found.values())


def test_controls_of_unknown_classes_are_made_from_what_excites_a_logit():
    subject, natural = small_subject(), small_images(51)  # 17 classes, but the subject has 4 others
    other = fv.natural_images("photos", split="train", n=51, size=32)
    options = {"seeds": 1, "few": 1, "steps": 1, "per_class": 5, "extra": 3, "progress": False}
    found = controls.controlled_paths(subject, natural, other, **options)
    assert found.paths.same == "exemplars"
    assert set(found.paths.series) == set(controls.KINDS)
    best = fv.exemplars(subject, natural, subject.units("fc"), k=8, distinct=False, progress=False)
    assert like_images(subject, natural, subject.units("fc"), 8) == best.top_ids.tolist()


def test_controlled_paths_have_every_series(tmp_path):
    natural, other = small_images(17 * 6), fv.natural_images("photos", split="train", n=17 * 2, size=32)
    network = small_subject(classes="abcdefghijklmnopq").network
    subject = fv.Subject("small", network, fv.Preprocess((32, 32)), natural.classes, "cpu")
    options = {"seeds": 2, "few": 1, "steps": 2, "per_class": 4, "extra": 2, "progress": False}
    found = controls.controlled_paths(subject, natural, other, **options)
    assert set(found.paths.series) == set(controls.KINDS)
    assert found.paths.metrics == similarity.METRICS
    assert found.pictures["noise"].shape == (3, 3, 32, 32)
    assert found.shown == ("cat", "coins", "flower")
    assert set(found.seen) == set(controls.KINDS)
    assert found.frame()["series"].nunique() == len(controls.KINDS)
    found.save(tmp_path)
    again = controls.ControlledPaths.load(tmp_path)
    assert found.difference(again) == ""
    assert (again.seen, again.shown, list(again.pictures)) == (found.seen, found.shown, list(found.pictures))
    assert (again.pictures["noise"] - found.pictures["noise"]).abs().mean() < 0.1


def test_a_fooled_subject_is_checked_like_any_other():
    natural = small_images(17 * 4)
    network = small_subject(classes="abcdefghijklmnopq").network
    subject = fv.Subject("small", network, fv.Preprocess((32, 32)), natural.classes, "cpu")
    gate = fv.train_gate(
        subject, small_images(204), small_images(204), train_seeds=1, test_seeds=1, hidden=1, steps=3, ascent=8,
        progress=False,
    )  # fmt: skip
    found = manipulated.fooled_paths(subject, natural, natural, gate, seeds=1, steps=1, per_class=4, progress=False)
    assert found.series == ("visualizations", "the decoy's picture")
    assert found.subject == "small-fooled"
    assert found.layers == path_layers(subject)
    # Of every group, the decoy's picture is another group's visualization: in all, the same pictures.
    assert not np.allclose(found.shown[0, 0], found.shown[0, 1])
    direct = rendered_paths(subject, natural, seeds=1, steps=1, per_class=4, progress=False)
    np.testing.assert_allclose(direct.like[:, :-1], found.like[:, :-1], atol=1e-6)


def test_a_silenced_subject_is_checked_like_any_other():
    subject, natural = small_subject(), small_images(102)
    found = manipulated.silenced_paths(
        subject, natural, natural, "conv2.0", most=4, seeds=1, steps=2, per_class=6, progress=False
    )
    assert found.series == ("visualizations", "the original's visualizations")
    assert found.same == "exemplars"
    assert found.layers == ("conv1.0", "conv2.0")
    every = subject.units("conv2.0")[::2]
    recipe = branch_of(fv.silence(subject, natural, "conv2.0", units=every, progress=False)).recipe
    assert recipe is not None
    assert set(found.groups) == {*every} - {recipe.decoy}  # its picture does not change
    assert len(found.groups) == 3
    honest = fv.render(subject, found.groups, seeds=1, steps=2, progress=False)
    direct = path_similarity(subject, honest, natural, per_class=6, progress=False)
    np.testing.assert_allclose(found.like, direct.like, atol=1e-6)  # silent: nothing changes for natural images
    np.testing.assert_allclose(found.shown[0, 1, :1], direct.shown[0, 0, :1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "source", "classes", "images"), [("photonet", "photos", 17, 40), ("cifarnet", "cifar10", 10, 100)]
)
def test_the_shelf_holds_what_the_chapter_promises(name, source, classes, images):
    """Enough seeds, images and classes; halves of natural images give 1 and 0 within their intervals."""
    if not zoo.trained(name):
        pytest.skip(f"{name} has no weights yet")
    subject = fv.load(name)
    found = kept(controls.controlled_paths, subject, source, per_class=images)
    assert found is not None
    result = found.paths
    assert (result.same, len(result.groups)) == ("class", classes)
    assert result.layers == path_layers(subject)
    assert result.metrics == similarity.METRICS
    assert set(result.series) == set(controls.KINDS)
    assert result.images[:, 2].min() >= 10
    assert result.images[:, :2].sum(1).min() >= images
    check = result.diagnostics()
    for column, true in (("same", 1), ("different", 0)):
        inside = (check[f"{column}_low"] <= true) & (true <= check[f"{column}_high"])
        assert path_result.misses(check, column, true) == (~inside).sum() <= 0.2 * len(check)
        assert check[column].mean() == pytest.approx(true, abs=0.03)
    frame = result.frame().query("metric == 'spearman'").set_index(["series", "layer"])["normalized"]
    last = subject.blocks[-1]
    assert frame["visualizations", last] > 0.8
    assert abs(frame["natural, other classes", last]) < 0.2
    assert frame["natural, training images", last] == pytest.approx(1, abs=0.2)


# ---------------------------------------------------------------- the command


def failed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["similarity", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_the_command_writes_table_figure_and_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 85, "heldout": 85, "all": 85})
    out = tmp_path / "out"
    main(["similarity", "photonet", "--seeds", "1", "--steps", "1", "--per-class", "4", "--layers",
          "inception4b", "inception4b", "fc", "--metric", "pearson", "--quiet", "--out", str(out)])  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["metric"] == "pearson"
    assert report["layers"] == ["inception4b", "fc"]
    for name in ("normalized", "ci_low", "ci_high"):
        assert len(report[name]) == 2
    assert report["ci_low"][1] < report["normalized"][1] < report["ci_high"][1]
    assert report["layers_at_or_below_zero"] == sum(low <= 0 for low in report["ci_low"])
    assert report["undefined_natural"] == [0, 0]
    assert report["diagnostic_same"] == pytest.approx(1, abs=0.25)
    assert report["diagnostic_different"] == pytest.approx(0, abs=0.25)
    table = np.genfromtxt(out / "similarity.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert table["layer"].tolist() == report["layers"]
    assert table["normalized"].tolist() == pytest.approx(report["normalized"])
    assert Image.open(out / "similarity.png").width > 600
    assert not list(out.glob(".unfinished*"))
    said = capsys.readouterr().out
    assert "layers at or below 0:" in said
    misses = report["diagnostic_misses"]["same"]
    assert f"(should be 1; missed by the intervals of {misses} of 2 layers)" in said


def test_the_command_says_what_is_undefined():
    nothing = {"diagnostic_same": None, "same": "exemplars"}
    assert command._halves(nothing, "same", 1) == "same exemplars undefined (no two halves could be compared)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photonet", "--metric", "kendall"], "there is no metric kendall; there are spearman, pearson, cosine"),
        (["photonet", "--layers", "inception9z"], "photonet has no layer 'inception9z'"),
        (["photonet", "--images", "nowhere"], "'nowhere' is no folder of images"),
        (["photonet", "--per-class", "6", "--seeds", "1", "--steps", "1"], "has 5 images of class"),
        (["photonet", "--units", "fc:1", "fc:2", "--seeds", "1", "--steps", "1"], "at least 3 units"),
        (["photonet", "--units", "fc:99"], "fc has units 0 to 16"),
        (["mobilenet_v3_small", "--weights", "random"], "give --images FOLDER"),
    ],
)
def test_a_mistake_of_the_command_is_one_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("featvis.images.PHOTO_CROPS", {"train": 85, "heldout": 85, "all": 85})
    line = failed(capsys, *arguments, "--quiet", "--out", str(tmp_path / "out"))
    assert words in line
    assert line.startswith("featvis: ")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_by_width_is_the_ratio_of_the_mean_differences():
    found = curve([0.4, 0.6, 0.5])
    like = found.like.copy()
    like[:, 0] *= 0.1  # a narrow scale, on which the same similarity counts for ten times as much
    narrow = dataclasses.replace(found, like=like)
    each = {name: values[0, :2] for name, values in narrow.curves().items()}
    width = each["nat_same"] - each["nat_different"]
    above = each["fv_same"] - each["nat_different"]
    plain, weighed = (narrow.parts(by_width=w).normalized[0] for w in (False, True))
    assert plain == pytest.approx((above / width).mean())
    assert weighed == pytest.approx(above.sum() / width.sum())
    assert plain > 2 * weighed


def test_a_curve_holds_the_similarity_with_other_groups():
    found = curve([0.4, 0.6])
    lifted = dataclasses.replace(found, elsewhere=found.shown - 0.1)
    each = lifted.curves()
    assert each["fv_different"] == pytest.approx(each["fv_same"] - 0.1)
