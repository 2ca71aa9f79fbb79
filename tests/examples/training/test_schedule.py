"""The warm-up, when a stage ends, and what both are for: targets that no modality shows by itself."""

from dataclasses import replace

import pytest
import torch

from ebmc_msa.data.batch import Spec
from ebmc_msa.data.missing import restrict
from ebmc_msa.data.split import Fold
from ebmc_msa.evaluation.scores import measure
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.settings import Settings
from ebmc_msa.training import stages
from ebmc_msa.training.schedule import Schedule
from ebmc_msa.training.stages import train
from generated import interaction


def test_strength_is_0_for_most_of_the_warm_up_and_then_rises_to_1():
    schedule = Schedule(warmup=100, per_epoch=10)
    assert [schedule.strength(t) for t in (0, 69, 70)] == [0, 0, 0]
    assert schedule.strength(85) == pytest.approx(0.5)
    assert [schedule.strength(t) for t in (100, 1000)] == [1, 1]
    later = schedule._replace(before=80)
    assert later.strength(5) == schedule.strength(85)


def test_without_warm_up_all_is_strong_from_the_first_step():
    assert Schedule(warmup=0, per_epoch=10).strength(0) == 1


def test_a_short_run_has_a_short_warm_up():
    assert Schedule.of(300, 10, 100).warmup == 300
    assert Schedule.of(300, 10, 12).warmup == 90


@pytest.mark.parametrize(
    ("scores", "losses", "patience", "steps", "expected"),
    [
        ([], [], 2, 0, True),
        ([1.0, 2.0, 1.0], [1.0, 0.9, 1.0], 2, 0, True),
        ([1.0, 2.0, 1.0, 1.0], [1.0, 0.9, 1.0, 1.0], 2, 0, False),
        ([1.0, 2.0, 1.0, 1.0], [1.0, 0.9, 0.8, 0.7], 2, 0, True),  # a plateau of the score, not of the loss
        ([1.0, 2.0, 1.0, 2.1], [1.0, 0.9, 1.0, 1.0], 2, 0, True),
        ([1.0, 2.0, 1.0, 1.0], [1.0, 0.9, 1.0, 1.0], 2, 21, True),  # 3 epochs of 10 steps
    ],
)
def test_a_stage_goes_on_while_score_or_loss_improves(scores, losses, patience, steps, expected):
    assert Schedule(0, per_epoch=10).go_on(scores, losses, patience, steps) is expected


def test_the_warm_up_does_not_count_as_waiting():
    flat = [1.0] * 5, [1.0] * 5
    assert not Schedule(0, per_epoch=10).go_on(*flat, 2, 0)
    assert Schedule(40, per_epoch=10).go_on(*flat, 2, 0)
    assert not Schedule(40, per_epoch=10, before=20).go_on(*flat, 2, 0)


def folds(dataset):
    spec = Spec.of(dataset)
    return spec, *(Fold.of(dataset.splits[name], spec, torch.device("cpu")) for name in ("train", "valid", "test"))


def test_training_follows_the_schedule(monkeypatch):
    """Corruption and modality dropout as well: all that EBMC adds is absent at first and whole in the end."""
    spec, training, valid, _ = folds(interaction("mixed", sizes=(64, 32, 1)))
    seen = []
    monkeypatch.setattr(stages, "random_drop", lambda present, rate, _: seen.append(["drop", rate]) or present)
    monkeypatch.setattr(stages, "spoil", lambda batch, std, rate, _: seen[-1].append(rate) or batch)
    settings = Settings(stage1_epochs=4, stage2_epochs=4, batch_size=32, warmup_steps=10)
    model = EBMC(spec, settings)
    train(model, training, valid, settings, 0, lambda *_: None)
    expected = [Schedule(10, 2).strength(t) for t in range(16)]
    assert [drop for _, drop, _ in seen] == pytest.approx([0.3 * s for s in expected])
    assert [corruption for *_, corruption in seen] == pytest.approx([0.25 * s for s in expected])
    assert [expected[0], expected[-1]] == [0, 1]


def test_at_strength_0_only_the_task_loss_is_left():
    spec, training, *_ = folds(interaction("mixed", sizes=(64, 1, 1)))
    settings = Settings(without=("emc",))
    model, batch = EBMC(spec, settings), training.rows(torch.arange(64))
    preservation = settings.zeta * settings.lambda_2
    for strength in (0.0, 0.5, 1.0):
        model.strength = strength
        out = model(batch)
        terms = out.terms
        rest = settings.zeta * (terms["alignment"] + settings.lambda_1 * terms["redundancy"])
        rest = rest + settings.beta * (terms["reconstruction"] + model.enhance.gamma * terms["enhancement"])
        expected = terms["task"] + preservation * terms["preservation"] + strength * rest
        torch.testing.assert_close(out.loss, expected)


@pytest.fixture(scope="module")
def accuracy():
    """Test accuracy of EBMC, of its stage-1 model and of concatenation on a generated set; trained once."""
    found = {}

    def of(kind):
        if kind not in found:
            spec, training, valid, test = folds(interaction(kind, sizes=(1200, 400, 800)))
            settings = Settings(stage1_epochs=12, stage2_epochs=6)
            torch.manual_seed(1111)
            ebmc = train(EBMC(spec, settings), training, valid, settings, 1111, lambda *_: None)
            plain = replace(settings, modality_dropout=0.0, corruption=0.0)
            torch.manual_seed(1111)
            concat = train(Concat(spec, plain), training, valid, plain, 1111, lambda *_: None).model
            models = {"ebmc": ebmc.model, "student": ebmc.student, "stage1": ebmc.stage1, "concat": concat}
            scores = {name: measure(model, test)["acc"] for name, model in models.items()}
            first = test.showing(restrict(test.present, ["first"]))
            found[kind] = scores | {"first alone": measure(ebmc.model, first)["acc"]}
        return found[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "xor"])
def test_what_only_both_modalities_show_is_learnt_and_outlives_balancing(kind, accuracy):
    scores = accuracy(kind)
    assert scores["concat"] > 93
    for name in ("ebmc", "student", "stage1"):
        assert scores[name] > scores["concat"] - 2, scores


@pytest.mark.slow
def test_what_both_modalities_show_is_known_from_one_as_well(accuracy):
    scores = accuracy("redundant")
    assert scores["ebmc"] > scores["concat"] - 1
    assert scores["first alone"] > 72  # of 77: both bits, each right by a probability of Phi(1.15) = 0.875


@pytest.mark.slow
def test_a_decoy_misleads_concatenation_more_than_ebmc(accuracy):
    scores = accuracy("decoy")
    assert scores["ebmc"] > scores["concat"] + 5
    assert scores["first alone"] > 65
