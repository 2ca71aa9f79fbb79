"""The warm-up, when a stage ends, and what both are for: targets that no modality shows by itself."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebmc_msa.data.batch import Spec
from ebmc_msa.data.missing import restrict
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.scores import evaluate
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.settings import Settings
from ebmc_msa.training import stages
from ebmc_msa.training.best import clearly_better
from ebmc_msa.training.schedule import Schedule
from ebmc_msa.training.stages import train
from generated import imbalanced, interaction


def rested(epochs):
    """Scores and losses of a run whose validation stopped improving at its first epoch."""
    return [1.0] * epochs, [1.0] * epochs


def test_strength_is_0_for_most_of_the_warm_up_and_then_rises_to_1():
    schedule = Schedule(warmup=100, per_epoch=10).after(*rested(7))
    assert [schedule.strength(t) for t in (0, 69, 70)] == [0, 0, 0]
    assert schedule.strength(85) == pytest.approx(0.5)
    assert [schedule.strength(t) for t in (100, 1000)] == [1, 1]
    later = schedule._replace(before=80)
    assert later.strength(5) == schedule.strength(85)


def test_without_warm_up_all_is_strong_from_the_first_step():
    assert Schedule(warmup=0, per_epoch=10).after([], []).strength(0) == 1


def test_joint_training_lasts_while_validation_improves():
    schedule = Schedule(warmup=100, per_epoch=10, rest=3)
    scores = [float(min(epoch, 12)) for epoch in range(1, 21)]  # the twelfth is the last that is better
    flat = [1.0] * 20
    for losses in (flat, scores):  # a loss that rises
        assert [schedule.after(scores[:e], losses[:e]).strength(10 * e) for e in (9, 14, 15)] == [0, 0, 0]
        assert schedule.after(scores[:16], losses[:16]).strength(165) == pytest.approx(0.5)
        assert schedule.after(scores, losses).begins == 1.5
    falling = [-score for score in scores]
    assert schedule.after(flat, falling).begins == 1.5
    assert schedule._replace(rest=0).after(scores, losses).begins == 0.7


def test_when_joint_training_ends_is_settled_by_what_came_before():
    """An epoch that is better after that does not bring it back."""
    schedule = Schedule(warmup=100, per_epoch=10, rest=3)
    scores, losses = rested(9)
    assert schedule.after(scores, losses).begins == schedule.after([*scores, 2.0], [*losses, 0.5]).begins == 0.7


@pytest.mark.parametrize(("per_epoch", "begins"), [(3, 0.7), (10, 0.7), (17, 0.7), (20, 0.8), (100, 4), (1000, 40)])
def test_joint_training_lasts_for_70_percent_of_the_warm_up_and_four_epochs_at_least(per_epoch, begins):
    assert Schedule(100, per_epoch, rest=3).after(*rested(60)).begins == begins


@pytest.mark.parametrize("warmup", [1, 90, 187, 200, 400])
def test_without_rest_the_ramp_is_the_same_for_every_run(warmup):
    for seen in range(12):
        schedule = Schedule(warmup, per_epoch=40).after(*rested(seen))
        for step in range(40 * seen, 40 * seen + 40):  # of the epoch that comes
            expected = max(0.0, (step / warmup - 0.7) / (1 - 0.7)) if step < warmup else 1.0
            assert schedule.strength(step) == expected


@pytest.mark.parametrize(
    ("scores", "losses", "expected"),
    [
        ([], [], True),
        ([1.0, 2.0, 1.0], [1.0, 0.9, 1.0], True),
        ([1.0, 2.0, 1.0, 1.0], [1.0, 0.9, 1.0, 1.0], False),
        ([1.0, 2.0, 1.0, 1.0], [1.0, 0.9, 0.8, 0.7], True),  # a plateau of the score, not of the loss
        ([1.0, 2.0, 1.0, 2.1], [1.0, 0.9, 1.0, 1.0], True),
    ],
)
def test_a_stage_goes_on_while_score_or_loss_improves(scores, losses, expected):
    assert Schedule(0, per_epoch=10).go_on(scores, losses, 2) is expected


def test_joint_training_does_not_count_as_waiting():
    flat = [1.0] * 5, [1.0] * 5
    assert not Schedule(0, per_epoch=10).go_on(*flat, 2)
    assert Schedule(60, per_epoch=10).go_on(*flat, 2)  # 42 steps: into the fifth epoch
    assert not Schedule(60, per_epoch=10, before=20).go_on(*flat, 2)


def test_below_full_strength_no_epoch_counts():
    """The ramp ends with epoch 10. What joint training reached neither ends the stage nor keeps it going."""
    schedule = Schedule(100, per_epoch=10, rest=3).after(*rested(7))
    assert [schedule.warming(epochs) for epochs in (0, 7, 10, 11, 30)] == [0, 7, 10, 10, 10]
    assert schedule._replace(before=80).warming(5) == 2
    assert [schedule.go_on(*rested(epochs), 2) for epochs in (9, 10, 11, 12, 13)] == [True] * 4 + [False]
    worse = [9.0] * 10 + [1.0, 2.0, 3.0], [0.1] * 10 + [1.0, 1.0, 1.0]
    assert schedule.go_on(*worse, 2)
    for done in range(14, 60):  # 280 steps and more, of 20 an epoch; the ramp has six epochs, whatever its rounding
        assert Schedule(400, 20, rest=3, begins=done * 20 / 400).warming(200) == done + 6
    joint = Schedule(100, per_epoch=10, rest=30).after(*rested(20))
    assert joint.warming(20) == 20
    assert joint.go_on(*rested(20), 2)
    plain = Schedule(100, per_epoch=10).after(*rested(20))
    assert plain.warming(20) == 0
    assert not plain.go_on(*rested(20), 2)


def splits(dataset):
    spec = Spec.of(dataset)
    return spec, *(
        SplitView.of(dataset.splits[name], spec, torch.device("cpu")) for name in ("train", "valid", "test")
    )


@pytest.mark.parametrize(("patience", "begins"), [(0, 0.7), (3, 1.0)])
def test_training_follows_the_schedule(monkeypatch, patience, begins):
    """Corruption and modality dropout as well: all that EBMC adds is absent at first and whole in the end.

    Validation improves for two epochs, so that joint training lasts for five, one of them in the second stage.
    """
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    seen = []
    monkeypatch.setattr(
        stages, "modality_dropout", lambda present, rate, generator: seen.append(["drop", rate["first"]]) or present
    )
    monkeypatch.setattr(stages, "corrupt_at_random", lambda batch, std, rate, _: seen[-1].append(rate) or batch)
    scores = iter([1.0, 2.0] + 8 * [1.5])
    monkeypatch.setattr(stages, "clearly_better", lambda *_: True)
    monkeypatch.setattr(stages, "evaluate", lambda *_: {"acc": next(scores), "ua": 0.0, "f1": 0.0, "loss": 1.0})
    settings = Settings(stage1_epochs=4, stage2_epochs=4, batch_size=32, warmup_steps=10, joint_patience=patience)
    trained = train(EBMC(spec, settings), training, valid, settings, 0, lambda *_: None)
    expected = [min(1.0, max(0.0, (t / 10 - begins) / 0.3)) for t in range(16)]
    assert [drop for _, drop, _ in seen] == pytest.approx([0.3 * s for s in expected])
    assert [corruption for *_, corruption in seen] == pytest.approx([0.25 * s for s in expected])
    epochs = [entry for stage in trained.stages for entry in stage.history]
    assert [epoch["strength"] for epoch in epochs] == pytest.approx(expected[1::2])
    assert trained.student.strength == 0  # the epoch selected, the second, is one of joint training


def test_at_strength_0_only_the_task_loss_is_left():
    spec, training, *_ = splits(interaction("mixed", sizes=(64, 1, 1)))
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
    """Accuracy on the test split, by generated set: of all that EBMC is and of the first modality alone."""
    found = {}

    def of(kind):
        if kind not in found:
            spec, training, valid, test = splits(interaction(kind, sizes=(960, 400, 600), gain=3))
            settings = Settings(stage1_epochs=10, stage2_epochs=5, warmup_steps=180)
            torch.manual_seed(1)
            ebmc = train(EBMC(spec, settings), training, valid, settings, 1, lambda *_: None)
            models = {"ebmc": ebmc.model, "student": ebmc.student, "stage1": ebmc.stage1}
            scores = {name: evaluate(model, test)["acc"] for name, model in models.items()}
            first = test.with_present(restrict(test.present, ["first"]))
            found[kind] = scores | {"first": evaluate(ebmc.model, first)["acc"]}
        return found[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "chance"), [("mixed", 50), ("xor", 50)])
def test_what_only_both_modalities_show_is_learnt_and_outlives_balancing(kind, chance, accuracy):
    """Each bit is read by itself with probability Phi(3) = 0.9987."""
    scores = accuracy(kind)
    assert min(scores[name] for name in ("ebmc", "student", "stage1")) > 94, scores
    assert scores["first"] == pytest.approx(chance, abs=6)


@pytest.mark.slow
def test_what_both_modalities_show_is_known_from_one_as_well(accuracy):
    """Two bits, each right with probability Phi(1.5) = 0.933 in one modality, Phi(1.5 sqrt 2) = 0.983 in both."""
    scores = accuracy("redundant")
    assert scores["ebmc"] > 93  # of 96.6
    assert scores["first"] > 82  # of 87.1


@pytest.mark.slow
def test_in_a_short_run_ebmc_is_level_with_concatenation():
    """Seven classes, 20 epochs. With joint training of 105 steps, whatever validation shows, 7 points are lost."""
    spec, training, valid, test = splits(imbalanced(sizes=(960, 300, 3000)))
    scores = {}
    for kind, changes in ((Concat, {"modality_dropout": 0.0, "corruption": 0.0}), (EBMC, {})):
        settings = Settings(stage1_epochs=10, stage2_epochs=10, warmup_steps=150, **changes)
        torch.manual_seed(1)
        model = train(kind(spec, settings), training, valid, settings, 1, lambda *_: None).model
        scores[kind] = evaluate(model, test)["acc"]
    assert scores[EBMC] > scores[Concat] - 2  # standard error of the difference: about 1


@pytest.mark.slow
def test_a_decoy_does_not_hide_the_modality_that_knows(accuracy):
    scores = accuracy("decoy")
    assert scores["ebmc"] > 75  # of 87.1; a linear classifier of all features has about 35
    assert scores["first"] > 78


def test_stage_1_borrows_epochs_while_joint_training_goes_on():
    schedule = Schedule(100, per_epoch=10, rest=3)
    assert schedule.after([1.0, 2.0], [1.0, 1.1]).extends([1.0, 2.0])
    assert not schedule.after(*rested(7)).extends([1.0] * 7)
    assert not schedule.after([], []).extends([])  # a stage of no epochs stays one
    assert not schedule._replace(warmup=0).after(*rested(1)).extends([1.0])


def test_epochs_borrowed_come_from_the_second_stage():
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    settings = Settings(stage1_epochs=2, stage2_epochs=3, warmup_steps=1000)
    torch.manual_seed(0)
    one, two = train(EBMC(spec, settings), training, valid, settings, 0, lambda *_: None).stages
    assert one.epochs == 4
    assert one.epochs + two.epochs == 5


SHORT = Settings(stage1_epochs=60, stage2_epochs=10, warmup_steps=20, patience=5, lr=0.01, batch_size=16)


def test_a_run_that_stopped_at_a_turn_goes_on_as_if_it_had_not():
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    saved = []

    def run(state=None):
        torch.manual_seed(2)
        keep = None if state else lambda state: saved.append(copy.deepcopy(state))
        trained = train(EBMC(spec, SHORT), training, valid, SHORT, 2, lambda *_: None, save=keep, state=state)
        epochs = [{**epoch, "seconds": 0} for stage in trained.stages for epoch in stage.history]
        return epochs, trained.stages[0].epochs, trained.student.state_dict()

    whole, one, weights = run()
    strengths = [epoch["strength"] for epoch in whole]
    joint = strengths.count(0)
    assert 0 < strengths[joint] < 1
    for last in (joint - 1, joint, one - 1):
        again, _, found = run(saved[last])
        assert again == whole
        assert all(torch.equal(value, weights[name]) for name, value in found.items() if torch.is_tensor(value))


@pytest.mark.parametrize("clear", [False, True])
def test_an_epoch_of_joint_training_is_selected_where_it_is_clearly_better(monkeypatch, clear):
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    monkeypatch.setattr(stages, "clearly_better", lambda *_: clear)
    torch.manual_seed(1)
    trained = train(EBMC(spec, SHORT), training, valid, SHORT, 1, lambda *_: None)
    one, two = trained.stages
    full = [entry["strength"] for entry in one.history].index(1) + 1  # the first epoch with it begins below
    accuracies = [entry["valid"]["acc"] for entry in one.history]
    assert max(accuracies[:full]) > max(accuracies[full:])  # else the test tests nothing
    start, end = (0, full) if clear else (full, len(accuracies))
    assert one.epoch == start + 1 + accuracies[start:end].index(max(accuracies[start:end]))
    assert [i for i, entry in enumerate(one.history, 1) if entry["selected"]] == [one.epoch]
    assert not one.cut_short
    assert two.history[0]["strength"] == 1
    assert trained.stage1.strength == one.history[one.epoch - 1]["strength"] == 1 - clear


def test_in_a_stage_that_its_epochs_cut_short_the_best_epoch_is_selected(monkeypatch):
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    monkeypatch.setattr(stages, "clearly_better", lambda *_: pytest.fail("asked"))
    scores = iter([1.0, 3.0] + 40 * [2.0])
    monkeypatch.setattr(stages, "evaluate", lambda *_: {"acc": next(scores), "ua": 0.0, "f1": 0.0, "loss": 1.0})
    settings = replace(SHORT, stage1_epochs=9, stage2_epochs=3)
    torch.manual_seed(1)
    trained = train(EBMC(spec, settings), training, valid, settings, 1, lambda *_: None)
    one, two = trained.stages
    assert one.history[-1]["strength"] == 1
    assert [stage.cut_short for stage in trained.stages] == [True, True]
    assert one.epoch == 2
    assert two.undone
    assert trained.student.strength == 0


def test_a_stage_of_nothing_else_answers_with_an_epoch_of_joint_training():
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    settings = replace(SHORT, stage1_epochs=2, warmup_steps=1000)
    torch.manual_seed(1)
    one, _ = train(EBMC(spec, settings), training, valid, settings, 1, lambda *_: None).stages
    assert one.history[one.epoch - 1]["strength"] == 0


def test_clearly_better_is_by_more_than_a_standard_error():
    """Of right and wrong answers, w samples won and l lost are clear where (w - l)^2 > w + l."""
    for n in (4, 7, 10, 50):
        for won, lost in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0), (0, 2)):
            for shift in range(n):
                scores, than = np.full(n, 50.0), np.full(n, 50.0)
                scores[:won], than[won : won + lost] = 150.0, 150.0
                found = clearly_better("classes", np.roll(scores, shift), np.roll(than, shift))
                assert found is (won > lost and (won - lost) ** 2 > won + lost), (n, won, lost, shift)
    error, less = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.4, 2.6])
    assert clearly_better("sentiment", less, error)
    assert not clearly_better("sentiment", error, less)
    assert not clearly_better("classes", np.ones(1), np.zeros(1))
    assert not clearly_better("classes", np.ones(0), np.zeros(0))


@pytest.mark.parametrize("clear", [False, True])
def test_a_second_stage_of_more_strength_is_undone_where_the_first_is_clearly_better(monkeypatch, clear):
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    monkeypatch.setattr(stages, "clearly_better", lambda *_: clear)
    scores = iter([3.0, 2.0, 2.0, 2.0] + 40 * [1.0])
    monkeypatch.setattr(stages, "evaluate", lambda *_: {"acc": next(scores), "ua": 0.0, "f1": 0.0, "loss": 1.0})
    settings = replace(SHORT, stage1_epochs=4, stage2_epochs=20)  # 16 steps: joint training and the ramp's beginning
    torch.manual_seed(1)
    trained = train(EBMC(spec, settings), training, valid, settings, 1, lambda *_: None)
    one, two = trained.stages
    assert (one.epoch, one.history[0]["strength"]) == (1, 0)
    assert two.history[two.epoch - 1]["strength"] == 1
    assert two.undone is clear
    assert trained.student.strength == 1 - clear


def test_what_is_selected_by_another_metric_has_to_be_better_by_that_too(monkeypatch):
    """Several labels are selected by F1 and compared by accuracy."""
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    monkeypatch.setattr(stages, "clearly_better", lambda *_: True)
    scores = iter([1.0, 1.0, 1.0, 1.0] + 40 * [2.0])
    monkeypatch.setattr(stages, "evaluate", lambda *_: {"acc": next(scores), "ua": 0.0, "f1": 0.0, "loss": 1.0})
    torch.manual_seed(1)
    one, two = train(EBMC(spec, SHORT), training, valid, SHORT, 1, lambda *_: None).stages
    assert one.history[one.epoch - 1]["valid"]["acc"] == 2
    assert not two.undone


@pytest.mark.parametrize(("batch_size", "epochs", "far"), [(16, 60, 1), (16, 12, 1), (16, 11, 0), (64, 60, 1)])
def test_regularisation_begins_once_at_the_best_epoch_of_joint_training(monkeypatch, batch_size, epochs, far):
    """With 64 an epoch is one step. At the end of 12 epochs five are at full strength, as many as `patience`."""
    spec, training, valid, _ = splits(interaction("mixed", sizes=(64, 32, 1)))
    begins, ends, epoch = [], [], stages._epoch

    def watched(model, *rest):
        begins.append(copy.deepcopy(model.head.state_dict()))
        entry = epoch(model, *rest)
        ends.append(copy.deepcopy(model.head.state_dict()))
        return entry

    scores = iter([1.0, 3.0] + 40 * [2.0])
    monkeypatch.setattr(stages, "_epoch", watched)
    monkeypatch.setattr(stages, "evaluate", lambda *_: {"acc": next(scores), "ua": 0.0, "f1": 0.0, "loss": 1.0})
    settings = replace(SHORT, batch_size=batch_size, warmup_steps=320 // batch_size, stage1_epochs=epochs)
    torch.manual_seed(1)
    train(EBMC(spec, settings), training, valid, settings, 1, lambda *_: None)
    jumps = [
        i
        for i in range(1, 11)
        if not all(torch.equal(weights, ends[i - 1][name]) for name, weights in begins[i].items())
    ]
    assert jumps == [5] * far  # two epochs, and three without progress
    for name, weights in begins[5].items():
        assert torch.equal(weights, ends[1 if far else 4][name])
