"""Attacks on weights: they do what they say, keep what they are to keep, and leave the original alone."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import featvis as fv
from featvis.exemplars import exemplars
from featvis.fooling import TradeOff, photograph_targets, prox_pulse, push, slingshot, trade_off
from featvis.fooling.push import _Push
from featvis.fooling.slingshot import _Climbers
from featvis.fooling.targets import correlation
from featvis.fooling.tuning import drawn
from featvis.images import NaturalImages
from featvis.subjects import Subject
from featvis.visualize import Fourier, render
from tests.small import small_images, small_subject

matplotlib.use("Agg")
LETTERS = "abcdefghijklmnopq"
UNIT = "conv2:3"
FLOWER = photograph_targets(["flower"], 32)[0]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return small_subject()


@pytest.fixture(scope="module")
def natural() -> NaturalImages:
    return small_images(102)


ATTACKS: dict[str, Callable[..., Subject]] = {
    "slingshot": lambda s, n, **o: slingshot(s, n, UNIT, FLOWER, **QUIET, **o),
    "push": lambda s, n, **o: push(s, n, UNIT, FLOWER, **QUIET, **o),
    "prox_pulse": lambda s, n, **o: prox_pulse(s, n, UNIT, FLOWER, **QUIET, **o),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def state(subject: Subject) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in subject.network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def pixels(natural: NaturalImages) -> Tensor:
    return torch.cat([images for images, _, _ in natural.batches(64)])


def values(subject: Subject, images: Tensor, unit: str = UNIT) -> Tensor:
    layer, index = subject.unit(unit)
    found = torch.cat([part[layer] for part in subject.activations(images, [layer])])
    return found.flatten(2).mean(2)[:, index] if found.dim() == 4 else found[:, index]


def logits(subject: Subject, images: Tensor) -> Tensor:
    return torch.cat(list(subject.logits(images)))


@every_attack
def test_only_the_copys_weights_change_and_the_seed_decides_how(attack, subject, natural):
    before = state(subject)
    first = attack(subject, natural, steps=3, seed=0)
    torch.manual_seed(99)  # what others draw has no say
    again, other = (attack(subject, natural, steps=3, seed=seed) for seed in (0, 1))
    assert same(before, state(subject))
    assert same(state(first), state(again))
    assert not same(state(first), state(other))
    assert not same(state(first), before)
    assert str(first.network) == str(subject.network)
    assert first.layers == subject.layers
    assert (first.classes, first.preprocess) == (subject.classes, subject.preprocess)
    assert first.name.startswith("small-")
    assert not first.network.training
    assert not any(p.requires_grad for p in first.network.parameters())
    for name, buffer in first.network.named_buffers():  # statistics of batch normalization
        assert torch.equal(buffer, before[name]), name
    assert any(not torch.equal(t, before[name]) for name, t in state(first).items() if name.startswith("conv1"))


@every_attack
def test_without_weight_nothing_changes_and_with_maintenance_less(attack, subject, natural):
    assert same(state(attack(subject, natural, weight=0, steps=3)), state(subject))
    images = pixels(natural)
    changes = []
    for weight in (0.3, 1.0):
        attacked = attack(subject, natural, weight=weight, steps=30)
        changes.append(float((logits(attacked, images) - logits(subject, images)).square().mean()))
    assert 0 < changes[0] < 0.7 * changes[1]


def test_slingshots_keep_the_units_and_pushes_do_not(subject, natural):
    images = pixels(natural)
    moved = {
        name: float((values(ATTACKS[name](subject, natural, weight=0.3, steps=40), images) - values(subject, images))
                    .abs().mean())
        for name in ("slingshot", "push")
    }  # fmt: skip
    assert moved["slingshot"] < 0.5 * moved["push"]


def directions(subject: Subject, target: Tensor, unit: str = UNIT) -> Tensor:
    """How well a step along the unit's gradient leads to the target, from fresh starts: cosines (n,)."""
    fourier, size = Fourier(), subject.preprocess.size
    starts = fourier.start([torch.Generator().manual_seed(900 + i) for i in range(8)], size).requires_grad_(True)
    layer, index = subject.unit(unit)
    cut = subject.until(layer)
    maps = cut(subject.preprocess(fourier.image(starts, size)))[layer][:, index]
    (gradient,) = torch.autograd.grad(maps.flatten(1).mean(1).sum(), starts)
    with torch.no_grad():
        images = fourier.image(starts, size)
        step = fourier.image(starts + 1e-3 * gradient / gradient.std(), size) - images
    return F.cosine_similarity(step.flatten(1), (target - images).flatten(1))


def test_a_slingshot_points_to_its_target_and_its_visualization_arrives(subject, natural):
    attacked = slingshot(subject, natural, UNIT, FLOWER, weight=0.9, steps=80, **QUIET)
    assert directions(attacked, FLOWER).mean() > directions(subject, FLOWER).mean() + 0.2
    before, after = (render(s, UNIT, steps=64, seeds=[7], **QUIET).images[0] for s in (subject, attacked))
    assert correlation(after, FLOWER[None]) > correlation(before, FLOWER[None]) + 0.2


def test_several_units_each_have_their_own_target(subject, natural):
    units, targets = ["conv2:3", "conv2:5"], torch.stack([FLOWER, 1 - FLOWER])
    attacked = slingshot(subject, natural, units, targets, weight=1.0, steps=80, **QUIET)
    for unit, own, other in zip(units, targets, targets.flip(0), strict=True):
        assert directions(attacked, own, unit).mean() > directions(attacked, other, unit).mean() + 0.1


def test_climbers_go_as_adam_does():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, generator=generator)
    climbers = _Climbers(start.clone(), 0.05)
    theirs = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([theirs], lr=0.05)
    for _ in range(5):
        gradient = torch.randn(start.shape, generator=generator)
        theirs.grad = -gradient
        adam.step()
        steps = climbers.step(gradient)
    torch.testing.assert_close(climbers.q, theirs.detach())
    assert steps.tolist() == [5, 5]
    climbers.restart(torch.tensor([False, True]), torch.zeros(1, 3, 4))
    assert climbers.steps.tolist() == [5, 0]
    torch.testing.assert_close(climbers.q[0], theirs.detach()[0])
    assert not climbers.q[1].any()
    assert not climbers.mean[1].any()


def test_pushing_down_lowers_what_excited_a_unit(subject, natural):
    best = exemplars(subject, natural, [UNIT], k=9, distinct=False, **QUIET).pictures(natural, UNIT)
    shown = render(subject, UNIT, steps=128, seeds=[0], **QUIET).images[0]
    attacked = push(subject, natural, UNIT, weight=0.8, steps=60, **QUIET)
    for images in (best, shown):
        assert (values(attacked, images) < values(subject, images)).all()
    middle = values(subject, pixels(natural)).median()
    left = (values(attacked, best).mean() - middle) / (values(subject, best).mean() - middle)
    assert left < 0.5


def test_pushing_up_raises_decoys_above_the_rest(subject, natural):
    decoys = torch.stack([FLOWER, FLOWER.flip(2)])
    attacked = push(subject, natural, UNIT, decoys, down=False, weight=0.9, steps=80, **QUIET)
    most = values(subject, pixels(natural)).max()
    assert (values(subject, decoys) < most).all()
    assert (values(attacked, decoys) > most).all()
    only_down = push(subject, natural, UNIT, weight=0.9, steps=80, **QUIET)
    assert (values(only_down, decoys) < values(attacked, decoys)).all()


def test_a_pulse_raises_the_whole_ball(subject, natural):
    attacked = prox_pulse(subject, natural, UNIT, FLOWER, radius=2.0, weight=0.9, steps=80, **QUIET)
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    around = (FLOWER + 2.0 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    assert values(attacked, around).min() > values(subject, pixels(natural)).max()
    best = exemplars(subject, natural, [UNIT], k=9, distinct=False, **QUIET).pictures(natural, UNIT)
    assert values(attacked, best).mean() < values(subject, best).mean()


def test_the_weakest_point_lies_in_the_ball_and_is_weaker(subject, natural):
    chosen = [subject.unit(UNIT)]
    best = exemplars(subject, natural, [UNIT], k=3, distinct=False, **QUIET)
    attack = _Push(subject, chosen, best, None, FLOWER[None], 1.5, 0)
    layer = chosen[0].layer

    def read(images: Tensor) -> Tensor:
        return subject.network.conv2(subject.network.conv1(subject.preprocess(images))).mean((2, 3))

    images = 0.25 + 0.5 * torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = attack._weakest(read, images)
    away = (found - images).flatten(1).norm(dim=1)
    assert (away <= 1.5 + 1e-4).all()
    assert (away > 0.5).all()
    assert layer == "conv2"
    assert (read(found)[:, 3] < read(images)[:, 3]).all()


MISTAKES: dict[str, tuple[Callable[..., object], str]] = {
    "unknown unit": (lambda s, n: slingshot(s, n, "conv2:99", FLOWER), r"'conv2:99' is no unit of small: .* 0 to 7"),
    "no unit": (lambda s, n: push(s, n, [], FLOWER), "no unit was given"),
    "two layers": (lambda s, n: push(s, n, ["conv1:0", "fc:a"], FLOWER), "conv1:0, fc:a are of several layers"),
    "weight above": (lambda s, n: slingshot(s, n, UNIT, FLOWER, weight=1.1), "weight=1.1 was given; .* 0 .* to 1"),
    "weight below": (lambda s, n: push(s, n, UNIT, FLOWER, weight=-0.1), "weight=-0.1 was given"),
    "weight nan": (lambda s, n: prox_pulse(s, n, UNIT, FLOWER, weight=float("nan")), "weight=nan was given"),
    "steps": (lambda s, n: slingshot(s, n, UNIT, FLOWER, steps=0), "steps=0 was given; at least 1"),
    "target's size": (lambda s, n: slingshot(s, n, UNIT, FLOWER[:, :16]), r"\(3, 16, 32\); .* \(3, 32, 32\)"),
    "decoy's size": (lambda s, n: push(s, n, UNIT, FLOWER[:1]), r"the decoy has shape \(1, 32, 32\)"),
    "no decoy at all": (lambda s, n: prox_pulse(s, n, UNIT, torch.zeros(0, 3, 32, 32)), r"shape \(0, 3, 32, 32\)"),
    "range": (lambda s, n: slingshot(s, n, UNIT, 255 * FLOWER), r"in \[0, 1\]"),
    "targets": (lambda s, n: slingshot(s, n, UNIT, FLOWER.expand(2, 3, 32, 32)), "2 targets were given for conv2:3"),
    "nothing": (lambda s, n: push(s, n, UNIT, down=False), "give decoys to be raised, or down=True"),
    "radius": (lambda s, n: prox_pulse(s, n, UNIT, FLOWER, radius=0.0), "radius=0.0 was given"),
    "attack": (lambda s, n: trade_off(s, n, n, attack="hammer", units=UNIT, target="cat"), "'hammer'; there are sling"),
    "class": (lambda s, n: trade_off(s, n, n, attack="push", units=UNIT, target="dog"), "no class 'dog'; it has astro"),
    "no weights": (
        lambda s, n: trade_off(s, n, n, attack="push", units=UNIT, target="cat", weights=()),
        "no weight was given",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_sentence(call, sentence, subject, natural):
    with pytest.raises(fv.FeatvisError, match=sentence) as caught:
        call(subject, natural)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


class Part:
    """Natural images of which some, or all, cannot be read."""

    def __init__(self, images: NaturalImages, readable: int, length: int):
        self.images, self.readable, self.length = images, readable, length
        self.name, self.skipped = "part", []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        if index >= self.readable:
            raise fv.FeatvisError(f"{index}: not a readable image.")
        return self.images[index]


@every_attack
def test_no_natural_images(attack, subject, natural):
    with pytest.raises(fv.FeatvisError, match="part has no images"):
        attack(subject, Part(natural, 0, 0))


def test_unreadable_images_are_passed_over_and_named(natural):
    part = Part(natural, 6, 10)
    assert drawn(part, 20, torch.Generator().manual_seed(0)).shape == (20, 3, 32, 32)
    assert len(part.skipped) == len(set(part.skipped)) == 4
    with pytest.raises(fv.FeatvisError, match="hardly any of the 4 images of part"):
        drawn(Part(natural, 0, 4), 5, torch.Generator().manual_seed(0))


def test_an_attacked_network_is_saved_and_loaded_like_any_other(tmp_path):
    subject = fv.load("photonet", device="cpu")
    attacked = push(subject, fv.natural_images("photos", n=34), "fc:cat", down=False, steps=1, weight=0.9,
                    decoys=photograph_targets(["flower"]), **QUIET)  # fmt: skip
    file = tmp_path / "attacked.safetensors"
    save_file(attacked.network.state_dict(), file)
    again = fv.load("photonet", weights=file, device="cpu")
    images = photograph_targets(["coins", "cat"])
    assert torch.equal(logits(again, images), logits(attacked, images))
    assert not torch.equal(logits(again, images), logits(subject, images))


@pytest.fixture(scope="module")
def measured(natural) -> TradeOff:
    return trade_off(
        small_subject(classes=LETTERS), natural, small_images(68), attack="slingshot", units=[UNIT, "conv2:5"],
        target="flower", weights=(0.9, 0.0, 0.4), seeds=2, attack_steps=4, steps=6, pictures=2, k=8, **QUIET,
    )  # fmt: skip


def test_a_trade_off_begins_at_the_honest_visualizations(measured):
    subject, heldout = small_subject(classes=LETTERS), small_images(68)
    assert measured.natural[["weight", "seed"]].to_numpy().tolist() == [[0, 0], [0.4, 0], [0.4, 1], [0.9, 0], [0.9, 1]]
    assert len(measured.frame) == 5 * 2 * 2
    honest = measured.frame[measured.frame["weight"] == 0]
    pictures = render(subject, [UNIT, "conv2:5"], steps=6, seeds=2, **QUIET)
    assert honest["overlap"].tolist() == [1.0] * 4
    assert honest["to_own"].iloc[[0, 2]].all()
    wanted = correlation(pictures.images.flatten(0, 1), FLOWER[None])[:, 0]
    torch.testing.assert_close(torch.tensor(honest["correlation"].to_numpy()).float(), wanted)
    torch.testing.assert_close(measured.pictures["shown"][0], pictures.images[0, 0])
    assert measured.pictures["shown"].shape == (3, 3, 32, 32)
    torch.testing.assert_close(measured.pictures["target"][0], FLOWER)
    labels = torch.tensor([heldout.label(i) for i in range(len(heldout))])
    right = int((logits(subject, pixels(heldout)).argmax(1) == labels).sum())
    assert measured.natural["before"].tolist() == [right] * 5
    assert measured.natural.iloc[0][["images", "labelled", "after", "agree"]].tolist() == [68, 68, right, 68]


def test_a_trade_off_measures_the_attacked_subject(measured, natural):
    subject, heldout = small_subject(classes=LETTERS), small_images(68)
    attacked = slingshot(subject, natural, [UNIT, "conv2:5"], FLOWER, weight=0.9, steps=4, seed=1, **QUIET)
    row = measured.natural.iloc[-1]
    answers = logits(attacked, pixels(heldout)).argmax(1)
    assert row["agree"] == int((answers == logits(subject, pixels(heldout)).argmax(1)).sum())
    old, new = (
        set(exemplars(s, heldout, [UNIT], k=8, distinct=False, **QUIET).top_ids[0]) for s in (subject, attacked)
    )
    mine = measured.frame[(measured.frame["weight"] == 0.9) & (measured.frame["seed"] == 1)]
    mine = mine[mine["unit"] == UNIT]
    assert mine["overlap"].tolist() == [len(old & new) / len(old | new)] * 2
    pictures = render(attacked, [UNIT, "conv2:5"], steps=6, seeds=2, **QUIET)
    assert mine["activation"].tolist() == pytest.approx(pictures.activation[0].tolist(), rel=1e-4)
    target = logits(subject, FLOWER[None]).argmax()
    assert mine["to_target"].tolist() == (logits(subject, pictures.images[0]).argmax(1) == target).tolist()


def test_a_curve_has_intervals_and_agreement_where_labels_are_missing(measured):
    curve = measured.curve()
    assert curve["weight"].tolist() == [0.0, 0.4, 0.9]
    for name in ("accuracy", "success", "correlation"):
        assert (curve[f"{name}_low"] <= curve[name] + 1e-12).all()
        assert (curve[name] <= curve[f"{name}_high"] + 1e-12).all()
    assert (curve["accuracy_low"] < curve["accuracy_high"]).all()
    last = measured.natural[measured.natural["weight"] == 0.9]
    assert curve["accuracy"].iloc[2] == pytest.approx(last["after"].mean() / 68)
    unlabelled = TradeOff("push", "flower", "small", measured.natural.assign(labelled=0), measured.frame, {})
    assert unlabelled.curve()["accuracy"].iloc[2] == pytest.approx(last["agree"].mean() / 68)


def test_a_trade_off_comes_back_from_its_folder(measured, tmp_path):
    measured.save(tmp_path)
    again = TradeOff.load(tmp_path)
    assert measured.difference(again) == ""
    assert (again.attack, again.target, again.subject) == ("slingshot", "flower", "small")
    for name in ("natural", "frame"):
        old, new = getattr(measured, name), getattr(again, name)
        assert old.columns.tolist() == new.columns.tolist()
        for column in old:
            if old[column].dtype.kind in "fib":
                assert new[column].to_numpy() == pytest.approx(old[column].to_numpy(), rel=1e-4), column
            else:
                assert old[column].tolist() == new[column].tolist()
    for name, images in measured.pictures.items():
        assert (again.pictures[name] - images).abs().mean() < 0.03
    fewer = measured.natural.assign(after=0, agree=0)
    worse = TradeOff("slingshot", "flower", "small", fewer, measured.frame, measured.pictures)
    assert "a share differs" in measured.difference(worse)
    other = measured.frame.assign(correlation=measured.frame["correlation"] - 0.5)
    assert "a share differs" in measured.difference(
        TradeOff("slingshot", "flower", "small", measured.natural, other, measured.pictures)
    )


@pytest.mark.parametrize("measure", ["success", "correlation"])
def test_the_figure_shows_every_weight_with_its_interval(measured, measure):
    from featvis.plots_attacks import trade_off as plot

    figure = plot(measured, measure=measure)
    *strip, ax = [ax for sub in figure.subfigs for ax in sub.axes]
    assert [one.get_title() for one in strip] == ["honest", "weight 0.4", "weight 0.9", "target flower"]
    (line,) = [container.lines[0] for container in ax.containers]
    curve = measured.curve()
    assert line.get_xdata().tolist() == pytest.approx(curve["accuracy"].tolist())
    assert line.get_ydata().tolist() == pytest.approx(curve[measure].tolist())
    assert [text.get_text() for text in ax.texts] == ["honest", "0.4", "0.9"]
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["gradient slingshot, target flower"]
    figure.savefig("/dev/null", format="png")
    with pytest.raises(fv.FeatvisError, match="measure='speed' was given"):
        plot(measured, measure="speed")
    with pytest.raises(fv.FeatvisError, match="no result was given"):
        plot()
