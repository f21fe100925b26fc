"""The audit: its sample, what it measures inside a network, what scores come to mean, and its report."""

from __future__ import annotations

import importlib
import json
import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score
from torch import nn

import featvis as fv
from featvis.audit import (
    CHECKS,
    COUNT,
    SCORES,
    Audit,
    Calibration,
    audit,
    changes,
    checks,
    detection,
    evidence,
    study,
    traces,
)
from featvis.audit.calibration import _tails
from featvis.audit.cases import ATTACKS, attacked, attacked_units, layer_for
from featvis.audit.page import page
from featvis.audit.sample import sampled
from featvis.engine import Local
from featvis.errors import FeatvisError
from featvis.fooling import filters, silent
from tests.small import PREPROCESS, small_images, small_subject

LETTERS = "abcdefghijklmnopq"


def table(networks: int = 6, units: int = 40, seed: int = 0, shift: float = 0.0, kinds: tuple[str, ...] = ("hidden",)):
    """Scores of networks that differ by chance alone."""
    rng = np.random.default_rng(seed)
    parts = []
    for n in range(networks):
        part = pd.DataFrame(rng.normal(shift, 1, (units, len(SCORES))), columns=list(SCORES))
        part.insert(0, "unit", [f"layer:{i}" for i in range(units)])
        part.insert(1, "kind", [kinds[i % len(kinds)] for i in range(units)])
        parts.append(part.assign(network=f"honest-{n}"))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def subject() -> fv.Subject:
    return small_subject(classes=LETTERS)


@pytest.fixture(scope="module")
def natural():
    return small_images(102)


@pytest.fixture(scope="module")
def found(subject, natural) -> Audit:
    calibration = Calibration(table(kinds=("hidden", "logit")))
    return audit(subject, natural, units=9, steps=4, calibration=calibration, progress=False)


# ---------------------------------------------------------------- the sample


def test_a_third_of_the_sample_are_logits_and_the_rest_is_spread_over_depth(subject):
    units = sampled(subject, 9)
    layers = [unit.split(":")[0] for unit in units]
    assert len(set(units)) == 9
    assert layers == sorted(layers, key=list(subject.layers).index)
    assert layers.count("fc") == 3
    assert {layer.split(".")[0] for layer in layers} == {"conv1", "conv2", "fc"}
    assert units == sampled(subject, 9)
    assert units != sampled(subject, 9, seed=1)


def test_layers_can_be_named_and_no_unit_is_asked_twice(subject):
    assert {unit.split(":")[0] for unit in sampled(subject, 5, ["conv2"])} == {"conv2"}
    assert len(sampled(subject, 500)) == len(set(sampled(subject, 500))) == sum(map(subject.channels, subject.blocks))


@pytest.mark.parametrize(("count", "layers", "words"), [(2, None, "needs 3"), (9, ["conv9"], "no layer 'conv9'")])
def test_a_sample_that_cannot_be_is_one_sentence(subject, count, layers, words):
    with pytest.raises(FeatvisError, match=words):
        sampled(subject, count, layers)


# ---------------------------------------------------------------- traces and gradients


class Switch(nn.Module):
    """Channel 0 is one thing for dark images and another for bright ones; `never` answers neither."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.bright, self.never = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1, bias=False)
        self.never.weight.data.zero_()

    def forward(self, x):
        bright = (x.mean((1, 2, 3), keepdim=True) > 0).float()
        return self.dark(x) * (1 - bright) + self.bright(x) * bright + F.relu(self.never(x) - 1)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.fc = Switch(), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.block(x).mean((2, 3)))


@pytest.fixture
def gated() -> fv.Subject:
    torch.manual_seed(0)
    return fv.Subject("gated", Gated(), PREPROCESS, ("a", "b"), "cpu")


def test_gradients_tell_which_channels_decide(gated):
    dark, bright = torch.full((3, 3, 32, 32), 0.2), torch.full((2, 3, 32, 32), 0.8)
    unit = gated.unit("block:1")
    on_dark, on_bright = (traces.gradient_shares(gated, unit, images) for images in (dark, bright))
    assert traces.parts_of(gated, "block") == ["block.dark", "block.bright", "block.never"]
    assert on_dark.shape == (3, 7)
    # dark 0, 1, bright 0, 1, never 0, 1, nothing at all
    torch.testing.assert_close(on_dark, torch.tensor([[0, 1, 0, 0, 0, 0, 0]] * 3).double())
    torch.testing.assert_close(on_bright, torch.tensor([[0, 0, 0, 1, 0, 0, 0]] * 2).double())


def test_a_unit_that_nothing_reaches_depends_on_nothing(gated):
    gated.network.block.dark = nn.Conv2d(3, 2, 1)
    for name in ("dark", "bright"):
        module = gated.network.block.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, output: output.detach())
    shares = traces.gradient_shares(gated, gated.unit("block:0"), torch.rand(2, 3, 32, 32) * 0.2)
    assert shares[:, -1].tolist() == [1.0, 1.0]


def test_the_network_is_left_as_it_was(gated):
    before = gated.fingerprint
    traces.gradient_shares(gated, gated.unit("block:0"), torch.rand(2, 3, 32, 32))
    changes.tuned(gated, torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.long))
    changes.pruned(gated, changes.unused(gated, torch.rand(8, 3, 32, 32)))
    assert gated.fingerprint == before
    assert not any(module._forward_hooks for module in gated.network.modules())


def test_traces_count_what_is_on_and_how_far_the_rest_is_shut(subject, natural):
    images, _ = evidence.spread(natural, 40)
    shown = torch.rand(5, 3, 32, 32)
    part = traces.traces(subject, ["conv1.0", "conv1.2"], images, shown)["conv1.0"]
    direct = next(subject.activations(images, ["conv1.0"]))["conv1.0"]
    assert torch.equal(part.natural_on, (direct > 0).flatten(2).any(2))
    assert part.shown_on.shape == (5, 6)
    torch.testing.assert_close(part.mean.float(), direct.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(part.deviation.float(), direct.std((0, 2, 3), unbiased=False), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(part.shut(), -part.mean / part.deviation)


def test_separation_and_silence_are_what_they_say():
    natural = torch.tensor([[True, False, False], [True, False, True]] * 500)
    shown = torch.tensor([[False, True, True], [False, True, False]] * 500)
    part = traces.Trace(natural, shown, torch.zeros(3), torch.ones(3))
    assert part.separation()[:2].min() > 0.99
    assert part.separation()[2] == 0.5
    assert part.silent().tolist() == [False, True, False]
    few = traces.Trace(natural, shown[:2], torch.zeros(3), torch.ones(3))
    assert few.separation()[0] < 0.8  # two images are no proof


# ---------------------------------------------------------------- changes


def test_what_natural_images_never_use_is_found_and_taken_out(subject, natural):
    images, _ = evidence.spread(natural, 60)
    hushed = fv.silence(subject, natural, "conv2", units=["conv2:1", "conv2:3"], direction="patch", progress=False)
    idle = changes.unused(hushed, images)
    assert idle["conv2.fool"][0].all()  # shut for all natural images, whether filled or not
    assert "fc" not in idle
    pruned = changes.pruned(hushed, idle)
    torch.testing.assert_close(next(pruned.logits(images)), next(hushed.logits(images)))
    far = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round()
    shown = fv.render(hushed, "conv2:1", steps=40, progress=False).images[:, 0]
    woken = [
        next(s.activations(torch.cat([far, shown]), ["conv2.relu"]))["conv2.relu"].amax() for s in (hushed, pruned)
    ]
    assert float(woken[1]) == 0.0


def test_a_hard_decision_is_not_pruned_for_having_no_gradient(natural):
    class Decided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judge, self.conv, self.fc = nn.Conv2d(3, 1, 4, 4), nn.Conv2d(3, 4, 3), nn.Linear(4, 17)

        def forward(self, x):
            e = (self.judge(x.detach()).mean((2, 3)) > 0).float()
            return self.fc(self.conv(x).mean((2, 3))) * e

    torch.manual_seed(0)
    subject = fv.Subject("decided", Decided(), PREPROCESS, tuple(LETTERS), "cpu")
    assert "judge" not in changes.unused(subject, evidence.spread(natural, 30)[0])


def test_a_little_training_moves_weights_and_not_statistics(subject, natural):
    images, labels = evidence.spread(natural, 60)
    after = changes.tuned(subject, images, labels)
    state, before = after.network.state_dict(), subject.network.state_dict()
    assert not torch.equal(state["fc.weight"], before["fc.weight"])
    assert torch.equal(state["conv1.1.running_mean"], before["conv1.1.running_mean"])
    right = [F.cross_entropy(next(s.logits(images)), labels) for s in (subject, after)]
    assert right[1] < right[0]


@pytest.mark.parametrize("outputs", [dict, OrderedDict, tuple])
def test_of_several_outputs_the_first_is_the_logits(outputs, natural):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.idle, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 17)

        def forward(self, x):
            aside, logits = self.idle(x), self.fc(self.conv(x).mean((2, 3)))
            return (logits, aside) if outputs is tuple else outputs(logits=logits, aside=aside)

    torch.manual_seed(0)
    subject = fv.Subject("several", Several(), PREPROCESS, tuple(LETTERS), "cpu")
    images, labels = evidence.spread(natural, 60)
    expected = subject.network.fc(subject.network.conv(subject.preprocess(images)).mean((2, 3)))
    torch.testing.assert_close(torch.cat(list(subject.logits(images))), expected)
    assert not torch.equal(changes.tuned(subject, images, labels).network.fc.weight, subject.network.fc.weight)
    idle = changes.unused(subject, images)
    assert list(idle) == ["idle"]
    assert idle["idle"][0].all()


def test_an_audit_takes_a_network_whose_output_is_a_map(natural):
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.idle, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 17, 1)

        def forward(self, x):
            self.idle(x)
            return {"out": self.out(self.conv(x))}

    torch.manual_seed(0)
    subject = fv.Subject("map", Map(), PREPROCESS, (), "cpu")
    images, _ = evidence.spread(natural, 60)
    assert list(changes.unused(subject, images)) == ["idle"]
    with pytest.raises(FeatvisError, match=r"the output of map is a tensor \(60, 17, 30, 30\); a classifier gives"):
        next(subject.logits(images))
    result = fv.audit(subject, natural, layers=["out"], units=3, steps=2, progress=False)
    assert len(result.units) == 3


# ---------------------------------------------------------------- scores


def test_apart_is_zero_for_strangers_and_low_for_the_same():
    torch.manual_seed(0)
    a = torch.randn(30, 1, 64)
    same, strange = checks._apart(a, a + 0.1 * torch.randn(a.shape)), checks._apart(a, torch.randn(30, 1, 64))
    assert same.max() < -4
    assert abs(strange.mean()) < 0.5
    assert np.abs(strange).max() < 4


def test_every_score_is_there_for_every_unit(found):
    assert set(SCORES) < set(found.units)
    assert [len(check.scores) > 0 for check in CHECKS] == [True] * 7
    for score in ("own features", "path similarity", "gap", "start", "dependence", "separation"):
        assert found.units[score].notna().all(), score
    assert found.units[["filters", "shut"]].notna().mean().min() > 0.5  # a unit without gradient rests on no filter
    assert found.units["dependence"].between(0, 1).all()
    assert found.units["separation"].between(0.5, 1).all()
    assert np.allclose(found.units["gap"], -found.units["shortfall"])


def test_without_labels_the_checks_that_need_none_still_run(natural):
    stranger = small_subject(classes="abcd")
    result = audit(
        stranger, natural, units=6, steps=2, calibration=Calibration(table(kinds=("hidden", "logit"))), progress=False
    )
    assert result.units["tuned"].isna().all()
    assert result.units["p agreement"].notna().all()
    assert "tuned" not in result.pictures
    assert "(not asked: tuned)" in result.finding("stability")
    assert result.about.alike is True  # the reader's own calibration is taken to be of their kind


# ---------------------------------------------------------------- what scores mean


def test_p_values_of_honest_units_are_uniform_and_count_all_checks_once():
    calibration = Calibration(table(8, 40))
    new = table(8, 40, seed=1)
    p = pd.concat([calibration.units(part)["p"] for _, part in new.groupby("network")])
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs((p <= 0.05).mean() - 0.05) < 0.04
    every = calibration.units(new)
    names = [f"p {check.name}" for check in CHECKS]
    # Adjusted: the smallest of a unit's seven is the unit's own, not a seventh of it.
    np.testing.assert_allclose(every[names].min(axis=1), every["p"])


def test_an_odd_unit_stands_out_in_the_check_that_sees_it():
    calibration = Calibration(table(8, 40))
    odd = table(1, 20, seed=2)
    odd.loc[3, "dependence"] = 40.0
    p = calibration.units(odd)
    assert p["p"].idxmin() == 3
    assert p.loc[3, "p gates"] == p.loc[3, "p"] == 1 / (1 + 320)
    assert p.loc[3, "p path"] > 0.05


def test_a_whole_network_is_held_against_whole_networks():
    calibration = Calibration(table(8, 40))
    usual = calibration.checks(table(1, 40, seed=3))
    assert (usual["p_holm"] > 0.05).all()
    shifted = table(1, 40, seed=4)
    shifted["path similarity"] += 2.0
    row = calibration.checks(shifted).set_index("check").loc["path"]
    assert row["p_holm"] < 0.01
    assert row["score"] > 3


def test_kinds_of_units_are_not_mixed_and_missing_scores_stay_missing():
    honest = table(6, 40, kinds=("hidden", "logit"))
    honest.loc[honest["kind"] == "logit", "gap"] += 100
    calibration = Calibration(honest)
    new = table(1, 40, seed=5, kinds=("hidden", "logit"))
    new.loc[new["kind"] == "logit", "gap"] += 100
    assert (calibration.tails(new)["gap"] < 0.01).mean() < 0.1
    new["tuned"] = new["pruned"] = np.nan
    assert calibration.tails(new)["stability"].isna().all()
    assert calibration.units(new)["p"].notna().all()


def test_a_network_is_never_held_against_itself():
    honest = table(4, 30)
    strange = honest["network"] == "honest-2"
    honest.loc[strange, "gap"] += 50
    calibration = Calibration(honest)
    own = calibration.honest[calibration.honest["network"] == "honest-2"]
    assert (own["gap"] < 0.01).all()


def test_tails_fall_beyond_the_last_honest_score_and_never_reach_zero():
    honest = np.sort(np.random.default_rng(0).normal(size=99))
    found = _tails(honest, np.array([-10.0, honest[-1], honest[-1] + 1, honest[-1] + 3, np.inf]))
    assert found[0] == 1.0
    assert found[1] == 2 / 100
    assert found[1] > found[2] > found[3] > found[4] == 1e-12


def test_the_table_that_comes_with_the_package_fits_the_checks():
    calibration = Calibration.read()
    assert len(calibration.networks) >= 5
    assert calibration.networks == [f"{name}-{seed}" for name, seed in study.CALIBRATED]
    assert set(calibration.table["kind"]) == {"hidden", "logit"}


def test_a_table_that_was_made_for_other_checks_is_named():
    with pytest.raises(FeatvisError, match="no column gap"):
        Calibration(table(2, 5).drop(columns="gap"))
    with pytest.raises(FeatvisError, match="fewer than 2 honest networks"):
        Calibration(table(1, 5))


# ---------------------------------------------------------------- the result


def test_the_result_comes_back_from_the_shelf_as_it_was(found, tmp_path):
    found.save(tmp_path)
    again = Audit.load(tmp_path)
    pd.testing.assert_frame_equal(again.units, found.units, check_dtype=False)
    assert again.about == found.about
    assert again.verdict == found.verdict
    assert found.difference(again) == ""
    assert {name: images.shape for name, images in again.pictures.items()} == {
        name: images.shape for name, images in found.pictures.items()
    }


def test_the_report_says_what_the_issue_of_trust_needs(found):
    report = json.loads(json.dumps(found.report(), allow_nan=False))
    assert {"subject", "verdict", "checks", "units"} <= set(report)
    assert [check["name"] for check in report["checks"]] == [check.name for check in CHECKS]
    assert all({"score", "p_value", "finding"} <= set(check) for check in report["checks"])
    assert len(report["units"]) == 9


def with_p(found: Audit, p: float, holm: float, excess: float = 1.0, alike: bool = True) -> Audit:
    units = found.units.assign(p=[p] + [0.5] * (len(found.units) - 1))
    about = replace(found.about, excess=excess, alike=alike)
    return replace(found, about=about, units=units, checks=found.checks.assign(p_holm=[holm] + [1.0] * 6))


def test_verdicts_follow_from_the_numbers(found):
    calm, some, alarm = with_p(found, 0.5, 1.0), with_p(found, 0.004, 1.0, 0.01), with_p(found, 0.5, 0.01)
    assert [a.verdict for a in (calm, some, alarm)] == [
        "no sign of manipulation",
        "do not trust some units",
        "do not trust",
    ]
    assert found.units["label"][0] in some.summary()
    assert "agreement" in alarm.summary()
    few = with_p(found, 0.03, 1.0)  # one of nine at 5% is chance
    assert few.verdict == "no sign of manipulation"
    assert f"Have a look at {found.units['label'][0]}." in few.summary()
    assert "verdict" in calm.difference(alarm)


def test_another_kind_of_network_is_not_accused(found):
    for stranger in (with_p(found, 0.004, 1.0, 0.01, alike=False), with_p(found, 0.5, 0.01, alike=False)):
        assert stranger.verdict == "unlike the reference networks"
        assert "Unlike the networks it was compared with" in page(stranger)
        assert "Take its p-values as scores" in page(stranger)
    assert with_p(found, 0.5, 1.0, alike=False).verdict == "no sign of manipulation"


def test_more_odd_units_than_in_honest_networks_are_a_verdict_with_the_real_table():
    honest = Calibration.read()
    excess = [honest.excess(np.r_[np.full(k, 0.01), np.full(COUNT - k, 0.5)]) for k in range(COUNT + 1)]
    assert excess[0] == pytest.approx(1.0)
    assert excess == sorted(excess, reverse=True)
    assert excess[1] > 0.05  # one of 24 is chance
    assert excess[COUNT // 3] < 0.05
    assert honest.excess([np.nan, 0.01]) == honest.excess([0.01])


def test_networks_that_differ_make_the_count_of_odd_units_less_telling():
    alike, strange = table(8, 40), table(8, 40)
    strange.loc[strange["network"] == "honest-2", "gap"] += 30
    p = np.r_[np.full(6, 0.01), np.full(34, 0.5)]
    assert Calibration(alike).excess(p) < Calibration(strange).excess(p)


def test_the_page_stands_alone(found):
    text = page(with_p(found, 0.004, 0.01))
    assert "Do not trust these visualizations" in text
    assert text.count("<article") == 9
    assert text.index(found.units["label"][0] + "<small>") < text.index(found.units["label"][1] + "<small>")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "$" not in re.sub(r"base64,[^\"]*", "", text)
    assert "prefers-color-scheme: dark" in text


def test_a_check_in_which_units_stand_out_is_not_ticked(found):
    odd = with_p(found, 0.004, 1.0, 0.01)
    units = odd.units.assign(**{f"p {check.name}": 0.9 for check in CHECKS} | {"p gates": 0.004})
    text = page(replace(odd, units=units))
    assert text.count("some units unlike") == 1
    assert text.count("like honest networks</span>") == 6
    assert "unlike honest networks</span>" not in text


def test_what_is_named_by_strangers_cannot_write_into_the_page(found):
    about = replace(found.about, subject="<script>alert(1)</script>", left_out=("<b>x</b>",))
    assert "<script" not in page(replace(found, about=about))


def test_interrupted_work_goes_on(subject, natural, tmp_path, monkeypatch):
    calibration = Calibration(table(kinds=("hidden", "logit")))
    options = {"units": 4, "steps": 2, "calibration": calibration, "progress": False}
    batches, evidence = (importlib.import_module(f"featvis.{name}") for name in ("visualize.batches", "audit.evidence"))
    ascend, climbed, asked = batches.ascend, [], []

    def counted(*given, **more):
        climbed.append(1)
        return ascend(*given, **more)

    def interrupted(*given, **more):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(1)
        return fv.render(*given, **more)

    monkeypatch.setattr(batches, "ascend", counted)
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            audit(subject, natural, engine=Local(tmp_path), **options)
    assert climbed
    first = audit(subject, natural, engine=Local(tmp_path), **options)
    together = len(climbed)
    whole = audit(subject, natural, **options)
    assert len(climbed) - together == together  # none was climbed twice
    pd.testing.assert_frame_equal(first.units, whole.units)


@pytest.mark.parametrize(
    ("options", "n", "size", "words"),
    [({}, 40, 32, "40 natural images are too few"), ({}, 60, 48, "needs 32"), ({"units": 1}, 60, 32, "needs 3")],
)
def test_what_cannot_be_audited_is_one_sentence(subject, options, n, size, words):
    with pytest.raises(FeatvisError, match=words) as caught:
        audit(subject, fv.natural_images("photos", n=n, size=size), progress=False, **options)
    assert str(caught.value).count(". ") == 0


# ---------------------------------------------------------------- who finds what


@pytest.fixture(scope="module")
def trials() -> study.Trials:
    honest = table(2, 30, seed=6, kinds=("hidden", "logit")).assign(attack=study.HONEST, strength=0.0)
    rows, natural, pictures = [honest], [], {}
    for control in study.CONTROLS:
        part = table(1, 9, seed=8, kinds=("hidden" if control.hidden else "logit",)).drop(columns="network")
        key = {"network": "photonet", "attack": control.name, "strength": 0.0}
        rows.append(part.assign(**key))
        natural.append(key | {"same": 100, "before": 95, "after": 95, "images": 100, "shown": 0.0})
    for attack in ATTACKS[:4]:
        part = table(1, 9, seed=7, kinds=("hidden" if attack.hidden else "logit",)).drop(columns="network")
        if attack.name == "slingshot":
            part["own features"] += 8
        for strength in attack.strengths:
            key = {"network": "photonet", "attack": attack.name, "strength": strength}
            rows.append(part.assign(**key))
            natural.append(key | {"same": 98, "before": 95, "after": 90, "images": 100, "shown": 0.5})
            pictures[study.case_name(**key)] = torch.rand(3, 3, 3, 16, 16)
    ways = pd.DataFrame([{"attack": study.HONEST, "way": "Fourier", "own": 8, "units": 9}])
    return study.Trials(pd.concat(rows, ignore_index=True), pd.DataFrame(natural), ways, pictures)


@pytest.fixture(scope="module")
def honest_table() -> Calibration:
    return Calibration(table(8, 40, kinds=("hidden", "logit")))


def test_false_alarms_are_counted_with_exact_intervals(trials, honest_table):
    rates = detection.false_alarms(trials, honest_table)
    assert rates["network"].tolist() == ["honest-0", "honest-1", "all"]
    whole = rates.iloc[-1]
    assert whole["units"] == 60
    assert whole["alarms"] == rates["alarms"].iloc[:-1].sum()
    assert whole["low"] <= whole["rate"] <= whole["high"]


def test_the_area_is_one_where_a_check_sees_and_a_half_where_it_is_blind(trials, honest_table):
    areas = detection.detection(trials, honest_table).set_index(["attack", "check"])
    seen = areas.loc[("slingshot", "agreement")]
    assert seen["auc"] > 0.95
    assert seen["found"] == 1.0
    assert seen["units"] == 9
    blind = areas.loc[("slingshot", "path")]
    assert blind["low"] < 0.5 < blind["high"]
    assert (areas["low"] <= areas["auc"]).all()
    assert areas.loc[("slingshot", detection.TOGETHER), "auc"] > 0.9


def test_the_area_is_that_under_the_curve():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30).astype(float), rng.integers(0, 5, 40).astype(float)
    found = detection._area([(a, b)], rng)
    assert found["auc"] == pytest.approx(roc_auc_score(np.r_[np.ones(30), np.zeros(40)], np.r_[a, b]))
    draws = [detection._area([(rng.choice(a, 30), rng.choice(b, 40))], rng)["auc"] for _ in range(400)]
    assert found["low"] == pytest.approx(np.quantile(draws, 0.025), abs=0.03)
    assert found["high"] == pytest.approx(np.quantile(draws, 0.975), abs=0.03)


def test_units_are_compared_with_those_of_their_own_network():
    rng = np.random.default_rng(0)
    seen, blind = (np.full(9, 8.0), np.zeros(9)), (np.full(9, 2.0), np.full(9, 3.0))
    found = detection._area([seen, blind], rng)
    assert found["each"] == (1.0, 0.0)
    assert [found[name] for name in ("auc", "low", "high")] == pytest.approx([0.5] * 3)
    assert detection._area([seen, (np.zeros(0), np.zeros(9))], rng)["auc"] == 1.0
    assert np.isnan(detection._area([(np.zeros(0), np.zeros(9))], rng)["auc"])


def test_trials_come_back_from_the_shelf(trials, honest_table, tmp_path):
    trials.save(tmp_path)
    again = study.Trials.load(tmp_path)
    assert trials.difference(again) == ""
    assert list(again.pictures) == list(trials.pictures)
    before, after = (detection.verdicts(t, honest_table) for t in (trials, again))
    pd.testing.assert_frame_equal(before, after, check_dtype=False, atol=1e-3)
    assert (again.frame["attack"] == study.HONEST).sum() == 60


def test_finished_trials_are_kept(trials, tmp_path):
    study._keep(tmp_path / "part.pt", trials)
    again = study._kept(tmp_path / "part.pt")
    pd.testing.assert_frame_equal(again.frame, trials.frame, check_dtype=False, rtol=1e-12)
    assert set(again.natural["strength"]) == set(trials.natural["strength"])  # to the bit: strengths are looked up
    assert torch.equal(again.pictures["photonet/slingshot/0.3"], trials.pictures["photonet/slingshot/0.3"])


def test_attacks_are_aimed_where_they_say(subject):
    photonet = fv.load("photonet")
    assert layer_for(photonet, False) == "fc"
    assert layer_for(photonet, True) == "inception5b.branch2.1"
    assert len(attacked_units(photonet, "fc")) == 9
    assert attacked_units(subject, "conv1") == subject.units("conv1")


def test_the_playground_holds_every_case(trials, honest_table):
    from featvis.widgets import Auditor

    data = detection.playground(trials, honest_table, "photonet", {})
    widget = Auditor(data, attack=3)
    assert widget.strength == len(ATTACKS[3].strengths) - 1
    assert [one["name"] for one in data["attacks"]] == [attack.name for attack in ATTACKS[:4]]
    assert data["tiles"] == 3 * 3 * sum(len(one["cases"]) for one in data["attacks"])
    unit = data["attacks"][3]["cases"][-1]["units"][0]
    assert unit["p"][0] == unit["all"] < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("sheet"), "lacks sheet"),
        (lambda d: d.update(attacks=[]), "no attack to show"),
        (lambda d: d["attacks"][0]["cases"][0]["units"][0].update(all=0.0), "p-value"),
        (lambda d: d["attacks"][0]["cases"][0]["units"][0].update(pictures=[0, 1, 999]), "three pictures"),
        (lambda d: d["attacks"][0].update(cases=[]), "no case"),
    ],
)
def test_data_that_do_not_fit_are_one_sentence(trials, honest_table, change, words):
    from featvis.widgets import Auditor

    data = json.loads(json.dumps(detection.playground(trials, honest_table, "photonet", {})))
    change(data)
    with pytest.raises(FeatvisError, match=words):
        Auditor(data)


def test_a_position_that_is_not_there_is_named(trials, honest_table):
    from featvis.widgets import Auditor

    widget = Auditor(detection.playground(trials, honest_table, "photonet", {}))
    with pytest.raises(FeatvisError, match="there is no attack 9: there are 0 to 3"):
        widget.attack = 9
    with pytest.raises(FeatvisError, match="no attack -1"):
        Auditor(widget.data, attack=-1)


# ---------------------------------------------------------------- other kinds of networks


def test_a_transformer_is_audited(natural):
    from featvis._torchvision import torchvision

    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 24, num_classes=17)
    nn.init.normal_(network.heads.head.weight)  # torchvision starts with a head of zeros
    subject = fv.Subject("vit", network, PREPROCESS, tuple(LETTERS), "cpu")
    layers = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.self_attention", "heads.head"]
    result = audit(subject, natural, layers=layers, units=6, steps=2, progress=False)
    assert result.units["p"].notna().all()
    assert result.units["dependence"].notna().all()


def test_linear_layers_on_maps_with_channels_last_are_left_alone(natural):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.fc = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5), nn.Linear(5, 17)

        def forward(self, x):
            return self.fc(F.relu(self.mix(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))

    torch.manual_seed(0)
    subject = fv.Subject("last", Last(), PREPROCESS, tuple(LETTERS), "cpu")
    assert "mix" not in changes.unused(subject, evidence.spread(natural, 30)[0])
    result = audit(subject, natural, layers=["conv", "fc"], units=6, steps=2, progress=False)
    assert result.units["p"].notna().all()


# ---------------------------------------------------------------- attacked networks


@pytest.mark.parametrize("name", ["push", "silent units", "slingshot"])
def test_attacks_are_made_on_the_units_that_they_name(subject, natural, name):
    attack = next(attack for attack in ATTACKS if attack.name == name)
    calibration = Calibration(table(kinds=("hidden", "logit")))
    before = subject.fingerprint
    changed, units = attacked(subject, attack, attack.strengths[0], natural, None, calibration)  # no gate is needed
    assert units == attacked_units(subject, layer_for(subject, attack.hidden))
    assert all(unit.startswith("conv2:") for unit in units)
    assert changed.fingerprint != before == subject.fingerprint
    assert changed.channels("conv2") == subject.channels("conv2")


def test_adapted_filters_are_as_small_as_honest_ones(subject, natural, monkeypatch):
    for module, name, value in ((silent, "STEPS", 8), (silent, "SNAPSHOTS", (4, 8)), (filters, "ITERATIONS", 20)):
        monkeypatch.setattr(module, name, value)
    honest = table(kinds=("hidden", "logit"))
    attack = next(attack for attack in ATTACKS if attack.name == "silent, adapted")
    sizes = []
    for shift in (0.0, 3.0):  # honest networks with larger filters leave an attacker more room
        calibration = Calibration(honest.assign(filters=honest["filters"] + shift))
        changed, _ = attacked(subject, attack, 0.0, natural, None, calibration)
        sizes.append(float(fv.fooling.branch_of(changed).fool.weight.abs().max()))
    assert sizes[0] < sizes[1]


def test_trials_go_on_where_they_were_and_cover_every_case(subject, trials, tmp_path, monkeypatch):
    done = []

    def one(network, attack=None, strength=0.0, *_rest):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append((network.name, attack.name if attack else study.HONEST, strength))
        frame = trials.frame.head(2).assign(network=network.name, attack=done[-1][1], strength=strength)
        name = study.case_name(network.name, done[-1][1], strength)
        return study.Trials(frame, pd.DataFrame(), pd.DataFrame(), {name: torch.zeros(3, 3, 3, 16, 16)})

    monkeypatch.setattr(study, "_honest", one)
    monkeypatch.setattr(study, "_attacked", one)
    monkeypatch.setattr(study, "sibling", lambda name, seed, _folder: small_named(f"{name}-{seed}"))
    gate = type("Gate", (), {"recipe": {"gate": "none"}})()
    arguments = (subject, small_images(20), small_images(30), gate)
    with pytest.raises(KeyboardInterrupt):
        study.trials(*arguments, folder=tmp_path, progress=False)
    first = list(done)
    done[:] = []
    monkeypatch.setattr(study, "_attacked", lambda *given: one(*given) if len(done) < 6 else one_more(one, done, given))
    result = study.trials(*arguments, folder=tmp_path, progress=False)
    cases = list(zip(result.frame["network"], result.frame["attack"], result.frame["strength"], strict=True))
    assert not set(first) & set(done)
    every = [(a.name, s) for a in (*study.CONTROLS, *ATTACKS) for s in a.strengths]
    assert {(a, s) for n, a, s in cases if n == "small" and a != study.HONEST} == set(every)
    assert {n for n, a, _ in cases if a == study.HONEST} == {"small", *(f"{n}-{s}" for n, s in study.TESTED)}


def one_more(one, done, given):
    kept = list(done)
    done[:] = []
    result = one(*given)
    done[:] = [*kept, *done]
    return result


def small_named(name: str) -> fv.Subject:
    found = small_subject(seed=len(name), classes=LETTERS)
    found.name = name
    return found
